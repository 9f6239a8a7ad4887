"""What of a text can be seen, and whether there is anything in it to say."""

import unicodedata

# Controls, marks without a shape (a joiner, for instance), separators, and what only changes the letter before it.
_SHAPELESS = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Mn", "Me"})
_EMPTY = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
# What is shown as nothing though its category says otherwise. Source: Unicode, DerivedCoreProperties.txt,
# Default_Ignorable_Code_Point, as far as it is not in the categories above; the blank of Braille; the object that is
# not there; a note without a head.
_BLANK_RANGES = (
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2065, 0x2065),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0xFFFC, 0xFFFC),
    (0x1D159, 0x1D159),
    (0xE0000, 0xE0FFF),
)
_BLANKS = frozenset(chr(code) for first, last in _BLANK_RANGES for code in range(first, last + 1))
# Signs that count as symbols and are said: Braille, Arabic words written as one sign, radicals that stand for their
# characters, SignWriting.
_SPOKEN_SYMBOLS = (
    (0x2801, 0x28FF),
    (0x2E80, 0x2FD5),
    (0xFD40, 0xFD4F),
    (0xFDCF, 0xFDCF),
    (0xFDFD, 0xFDFF),
    (0x1D800, 0x1DAAF),
)
_TATWEEL = "\u0640"  # lengthens the letter before it, and is a letter by its category alone


def looks_empty(text: str) -> bool:
    """Whether there is nothing but blanks, controls and joiners: what somebody leaves who has typed nothing."""
    return all(unicodedata.category(sign) in _EMPTY for sign in text)


def is_visible(text: str) -> bool:
    """Whether anything of a text can be seen."""
    return any(_is_seen(sign) for sign in text)


def is_speakable(text: str) -> bool:
    """Whether a text holds one letter or digit of any script, or a sign that stands for some (℃, ™, ①, Ⓐ)."""
    return any(_is_said(sign) for sign in text)


def has_letters(text: str) -> bool:
    """As ``is_speakable``, but for signs that a voice may well have no word for."""
    return any(sign not in _BLANKS and sign != _TATWEEL and sign.isalnum() for sign in text)


def _is_seen(sign: str) -> bool:
    return sign not in _BLANKS and unicodedata.category(sign) not in _SHAPELESS


def _is_said(sign: str) -> bool:
    if sign in _BLANKS or sign == _TATWEEL:
        return False
    category = unicodedata.category(sign)
    if category[0] in "LN":
        return True
    if category == "Cn":
        # A letter of a script that is newer than this Python; emoji are where emoji are.
        return not (0x1F000 <= ord(sign) <= 0x1FBFF or ord(sign) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(sign) <= 0xFDEF)
    if category == "So" and any(first <= ord(sign) <= last for first, last in _SPOKEN_SYMBOLS):
        return True
    meant = unicodedata.normalize("NFKC", sign)
    return meant != sign and any(unicodedata.category(part)[0] in "LN" for part in meant)
