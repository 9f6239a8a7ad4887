"""The languages that can be asked for, under their two names, and which one a text is written in."""

import re

AUTO = "Auto"

# Clients and the realtime API say names, the APIs that make voices say ISO codes.
_ISO = {
    "Chinese": "zh",
    "English": "en",
    "German": "de",
    "Italian": "it",
    "Portuguese": "pt",
    "Spanish": "es",
    "Japanese": "ja",
    "Korean": "ko",
    "French": "fr",
    "Russian": "ru",
}

LANGUAGES: tuple[str, ...] = tuple(_ISO)
"""The ten names, without ``Auto``."""

HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""CJK ideographs, as the inside of a character class: hanzi, kanji and hanja, with the two signs used like one."""

# Halfwidth katakana count, the halfwidth punctuation before them does not.
_SCRIPTS = {
    "Japanese": re.compile("[\u3041-\u3096\u30a1-\u30fa\u30fc\u31f0-\u31ff\uff66-\uff9f]"),
    "Chinese": re.compile(f"[{HAN}]"),
    "Korean": re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]"),
    "Russian": re.compile("[\u0400-\u052f]"),
    "English": re.compile("[A-Za-z\u00c0-\u024f]"),
}
# An ideograph or a syllable says about as much as three letters; without this "我爱用 Python 编程" would be English.
_LETTERS_WORTH = {"Japanese": 3, "Chinese": 3, "Korean": 3, "Russian": 1, "English": 1}


def language_iso(name: str) -> str | None:
    """The ISO code of a v1 language name, in any case; None for ``Auto``.

    Raises:
        KeyError: For a name that the provider does not speak.
    """
    if name.casefold() == AUTO.casefold():
        return None
    return {known.casefold(): code for known, code in _ISO.items()}[name.casefold()]


def script_language(text: str) -> str:
    """The name of the language that the text's script tells: Han, kana, Hangul, Cyrillic; anything else is English.

    Kana make Han characters Japanese. In a mixed text the script that says most decides.
    """
    weights = {name: len(script.findall(text)) * _LETTERS_WORTH[name] for name, script in _SCRIPTS.items()}
    if weights["Japanese"]:
        weights["Japanese"] += weights.pop("Chinese")
    # On a tie the earlier one wins, and English is last.
    return max(weights, key=lambda name: weights[name]) if any(weights.values()) else "English"


def spoken_iso(name: str, text: str) -> str:
    """The ISO code to name where the provider must be told one: that of the name, for ``Auto`` that of the script."""
    return language_iso(name) or _ISO[script_language(text)]
