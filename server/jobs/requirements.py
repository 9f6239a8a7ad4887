"""What a request has to say before anything is made of it: a text, a language, a name."""

from server.errors import NOTHING_TO_SPEAK, Invalid
from server.parts import Parts
from server.text import is_speakable, is_visible, looks_empty

# What browsers trim: everything that Python calls a blank, and the byte order mark.
_BLANKS = "".join(letter for letter in map(chr, range(0x3001)) if letter.isspace()) + "\ufeff"


def count_characters(text: str) -> int:
    """Characters as browsers count them: UTF-16 code units, so most emoji are two."""
    return len(text.encode("utf-16-le")) // 2


def plain(text: str) -> str:
    """A text as it is kept and compared: browsers write a form's line breaks in another way than those of JSON."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def require_text(parts: Parts, text: str, *, cap: int | None = None) -> str:
    """The text to speak, without blanks around it.

    Args:
        cap: How long it may be, where that is not what the settings say.

    Raises:
        Invalid: It is too long, or there is nothing in it to say.
    """
    trimmed = text.strip(_BLANKS)
    cap = cap or parts.settings.qwen_max_text_chars
    if count_characters(trimmed) > cap:
        raise Invalid(f"Text cannot exceed {cap} characters")
    require_speakable(trimmed, if_empty="Please enter text to speak")
    return trimmed


def require_speakable(text: str, *, if_empty: str) -> None:
    """See that a voice has something to say, before anything is bought.

    Raises:
        Invalid: The text looks empty (then it says ``if_empty``), or has not one letter or digit.
    """
    if not is_speakable(text):
        raise Invalid(if_empty if looks_empty(text) else NOTHING_TO_SPEAK)


def require_language(parts: Parts, name: str) -> str:
    """The language as ``/api/languages`` spells it.

    Raises:
        Invalid: It is none of them.
    """
    for known in parts.providers.abilities.languages:
        if known.casefold() == name.strip().casefold():
            return known
    raise Invalid(f"This language is not supported. Choose one of: {', '.join(parts.providers.abilities.languages)}.")


def require_name(name: str) -> str:
    """A voice's name without blanks around it.

    Raises:
        Invalid: Nothing is left, or too much.
    """
    trimmed = name.strip()
    if not 1 <= len(trimmed) <= 100 or not is_visible(trimmed):
        raise Invalid("Please give the voice a name of 1 to 100 characters.")
    return trimmed
