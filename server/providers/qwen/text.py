"""Where a long text may be cut: at sentence ends if there are any, and never inside what belongs together.

The non-streaming API speaks at most 600 characters at once. How it counts them is not documented;
billing counts an ideograph as two, so counting the cap that way is right under both readings.
"""

import re
import unicodedata
from enum import IntEnum
from typing import Literal

from server.providers.languages import HAN

PIECE_CHARACTERS = 600

_IDEOGRAPH = re.compile(f"[{HAN}]")


def count_characters(text: str) -> int:
    """Length as the provider bills it: code points, with a CJK ideograph counting twice.

    Source: Model Studio, "Real-time speech synthesis" and "Qwen-TTS API", billing notes.
    """
    return len(text) + len(_IDEOGRAPH.findall(text))


def split_text(text: str, cap: int = PIECE_CHARACTERS) -> list[str]:
    """Cut a text into pieces of at most ``cap`` counted characters; joined, they are the text again.

    Each piece reaches as far as it can and ends at the best kind of place that it holds: after a sentence, else
    after a comma or the like, else between words. Only a word longer than the cap is cut inside, and a
    user-perceived character only if it alone is longer than the cap. Where there is a choice, every piece has a letter
    or a digit: one without would come back without audio, which counts as a failure.
    """
    last = next((at for at in range(len(text) - 1, -1, -1) if text[at].isalnum()), len(text))
    pieces: list[str] = []
    start = 0
    while (end := _furthest(text, start, cap)) < len(text):
        first = next((at for at in range(start, end) if text[at].isalnum()), end)
        cut = _best_cut(text, start, end, first, last)
        pieces.append(text[start:cut])
        start = cut
    return [*pieces, text[start:]]


def _furthest(text: str, start: int, cap: int) -> int:
    """The end of the longest piece from ``start`` that the cap allows; at least one character."""
    end, count = start, 0
    while end < len(text):
        count += 2 if _IDEOGRAPH.match(text[end]) else 1
        if count > cap:
            return max(end, start + 1)
        end += 1
    return end


def _best_cut(text: str, start: int, end: int, first: int, last: int) -> int:
    """The best place in ``(start, end]``; ``first`` and ``last`` are the outermost letters or digits still to say."""
    best: tuple[int, bool, int] | None = None
    best_cut = end
    for cut in range(end, start, -1):
        place = _place(text, cut)
        # Wholeness first, then something to say on both sides, then the kind of place; among equals the furthest.
        worth = (min(place, _Place.WORD), first < cut <= last, place)
        if best is None or worth > best:
            best, best_cut = worth, cut
            if worth == (_Place.WORD, True, _Place.SENTENCE):
                break
    return best_cut


class _Place(IntEnum):
    """How good a place is to cut at."""

    INSIDE_CHARACTER = 0
    INSIDE_WORD = 1
    UNSPACED = 2  # between two characters of a script that does not show where words end
    WORD = 3
    CLAUSE = 4
    SENTENCE = 5


# How far one looks around a place: somebody may send a thousand blanks, and each is a place to cut at.
_LONGEST_RUN = 24
_NO_BREAK = "\u00a0\u202f\u2007\u2060"
_WIDE_STOPS = "。！？｡．"
_STOPS = ".!?…" + _WIDE_STOPS
_WIDE_COMMAS = "，、；：､"
_COMMAS = ",;:" + _WIDE_COMMAS
_DASHES = "–—―─"
_CLOSERS = ")]}»›”’」』）】》〉］｝〕"
_EITHER_QUOTES = "\"'"
_OPENERS = "([{«‹„‚“‘「『（【《〈［｛〔¿¡"
# One language's opening mark is another's closing one (« so », »so«; “so”, „so“): the spaces around it decide first.
_TURNING_QUOTES = "«»‹›“”‘’"
_HAN_NUMERALS = "一二三四五六七八九十百千万萬億亿兆〇零两"
# Signs that Japanese never starts a line with, so a piece should not either.
_NEVER_FIRST = "ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶー々ゝゞヽヾ・"
# Words whose full stop ends no sentence, in the languages that are written with full stops.
_ABBREVIATED_WORDS = """
    mr mrs ms dr prof sr jr st mt vs etc no vol fig approx dept est inc ltd co capt col gen lt sgt rev
    nr hr fr bd ca bzw usw ggf evtl inkl exkl abs art str tel mio mrd geb gest vgl sog dipl ing
    mme mlle mm av apr env réf tél chap sra srta ud uds vd vds dra pág núm
    sig sigra dott ssa avv arch egr gent pag ex exmo exma
    гг ул стр рис см др пр руб коп тыс млн млрд проф акад им
"""
_ABBREVIATIONS = frozenset(_ABBREVIATED_WORDS.split())


def _place(text: str, cut: int) -> _Place:
    """How good it is to cut between ``text[cut - 1]`` and ``text[cut]``."""
    if _joined(text, cut):
        return _Place.INSIDE_CHARACTER
    left, right = cut, cut
    while left > max(0, cut - _LONGEST_RUN) and _breaks(text[left - 1]):
        left -= 1
    while right < min(len(text), cut + _LONGEST_RUN) and _breaks(text[right]):
        right += 1
    if left == 0 or right == len(text) or _breaks(text[left - 1]) or _breaks(text[right]):
        return _Place.WORD  # only whitespace on one side, as far as one looks
    before, after = text[left - 1], text[right]
    if _opens(text, left - 1) or before in _NO_BREAK or after in _NO_BREAK:
        return _Place.INSIDE_WORD
    if _closes(text, right) or after in _STOPS or after in _COMMAS:
        return _Place.INSIDE_WORD  # also French: a space stands before "!", and belongs to the word
    gap = text[left:right]
    if before.isdigit() and after.isdigit():
        return _Place.INSIDE_WORD if "\n" not in gap else _Place.CLAUSE  # "1 000 000"
    if gap.count("\n") > 1:
        return _Place.SENTENCE
    stop = left
    while stop > max(1, left - _LONGEST_RUN) and (
        _closes(text, stop - 1)
        or (gap and text[stop - 1] in _EITHER_QUOTES)
        or (stop < left and text[stop - 1].isspace())  # French: « so », with a space before the closing mark
    ):
        stop -= 1
    if stop < left and not gap and after in "とっ":
        return _Place.INSIDE_WORD  # Japanese: the particle after a quotation belongs to it
    place = _place_behind(text, stop, after, spaced=bool(gap))
    return max(place, _Place.CLAUSE) if "\n" in gap else place


def _place_behind(text: str, stop: int, after: str, *, spaced: bool) -> _Place:
    """The place after ``text[:stop]``, closing quotes skipped, where ``after`` is the next visible character."""
    mark, previous = text[stop - 1], text[stop - 2] if stop > 1 else ""
    wide = bool(_script(after)) and not previous.isascii()
    if mark in _WIDE_STOPS or mark in _WIDE_COMMAS:
        if previous.isdigit() and after.isdigit():
            return _Place.INSIDE_WORD
        return _Place.SENTENCE if mark in _WIDE_STOPS else _Place.CLAUSE
    if mark in _STOPS and (spaced or wide):
        if after.islower():
            return _Place.WORD if mark == "." else _Place.CLAUSE
        return _Place.WORD if mark == "." and _abbreviated(text, stop - 1) else _Place.SENTENCE
    if (mark in _COMMAS and (spaced or wide)) or (mark in _DASHES + "…" and mark != after and not after.isdigit()):
        return _Place.CLAUSE
    if spaced:
        return _Place.WORD
    return _place_unspaced(mark, after)


def _place_unspaced(before: str, after: str) -> _Place:
    scripts = _script(before), _script(after)
    numeral_before = before.isdigit() or before in _HAN_NUMERALS
    numeral_after = after.isdigit() or after in _HAN_NUMERALS
    if scripts == ("", "") or after in _NEVER_FIRST or (numeral_before and numeral_after):
        return _Place.INSIDE_WORD
    if "" in scripts:
        # Where Latin letters meet a script without spaces, a word ends; a digit belongs to what it counts.
        other = before if not scripts[0] else after
        return _Place.WORD if other.isalpha() or other in _OPENERS else _Place.INSIDE_WORD
    if scripts == ("katakana", "katakana"):
        return _Place.INSIDE_WORD
    if scripts[0] == "hiragana" and scripts[1] != "hiragana":
        return _Place.WORD  # a particle or an ending stands before the next word
    return _Place.UNSPACED


def _script(character: str) -> str:
    """Which script without spaces a character belongs to; empty for all others."""
    if "\u3041" <= character <= "\u309f":
        return "hiragana"
    if "\u30a0" <= character <= "\u30ff" or "\uff66" <= character <= "\uff9f":
        return "katakana"
    return "han" if _IDEOGRAPH.match(character) else ""


def _opens(text: str, at: int) -> bool:
    """Whether ``text[at]`` is a bracket or a quotation mark that opens."""
    turned = _turned(text, at)
    return text[at] in _OPENERS if turned is None else turned == "opens"


def _closes(text: str, at: int) -> bool:
    """Whether ``text[at]`` is a bracket or a quotation mark that closes."""
    turned = _turned(text, at)
    return text[at] in _CLOSERS if turned is None else turned == "closes"


def _turned(text: str, at: int) -> Literal["opens", "closes"] | None:
    """What the spaces around a quotation mark make of it; None where they say nothing."""
    if text[at] not in _TURNING_QUOTES:
        return None
    space_before = at == 0 or text[at - 1].isspace()
    space_behind = at + 1 == len(text) or text[at + 1].isspace()
    if space_before == space_behind:
        return None
    return "opens" if space_before else "closes"


def _abbreviated(text: str, stop: int) -> bool:
    """Whether the full stop at ``text[stop]`` ends an abbreviation, an initial or an ordinal, and so no sentence."""
    start = stop
    while start > 0 and (text[start - 1].isalnum() or unicodedata.combining(text[start - 1])):
        start -= 1
    word = text[start:stop].casefold()
    if word.isdigit():
        return len(word) <= 2  # "am 3. Mai"; a year ends sentences
    # "z. B.", "J. Smith"; a single syllable of Hangul is a word.
    initial = len(word) == 1 and (word.isascii() or "\u0400" <= word <= "\u04ff")
    return initial or word in _ABBREVIATIONS


def _breaks(character: str) -> bool:
    return character.isspace() and character not in _NO_BREAK


def _joined(text: str, cut: int) -> bool:
    """Whether the two characters around ``cut`` are one to a reader: accents, emoji sequences, flags, Hangul, CR LF."""
    if not 0 < cut < len(text):
        return False
    before, after = text[cut - 1], text[cut]
    if unicodedata.category(after) in ("Mn", "Me", "Mc") or after in "\u200d\u200c\uff9e\uff9f":
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f":
        return True
    if before == "\u200d" or (before == "\r" and after == "\n"):
        return True
    if "\u1160" <= after <= "\u11ff" and ("\u1100" <= before <= "\u11ff" or "\uac00" <= before <= "\ud7a3"):
        return True
    if _flag(before) and _flag(after):
        run = cut - 1
        while run > 0 and _flag(text[run - 1]):
            run -= 1
        return (cut - run) % 2 == 1
    return False


def _flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
