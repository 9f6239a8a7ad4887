"""What of a text can be seen, and whether there is anything in it to say."""

from pathlib import Path

import pytest

from server.text import has_letters, is_speakable, is_visible, looks_empty

LINES = (Path(__file__).parent / "cases" / "texts.txt").read_text().split("\n")[:-1]
SAID = [
    "a", "7", "ß", "é", "e\u0301", "\u0435", "你", "ー", "あ", "한", "ᄀ", "ก", "ا", "א", "क", "½", "Ⅷ", "٣", "①", "Ⓐ",
    "🄰", "™", "℃", "㎏", "⠓⠑⠇⠇⠕", "⺀", "⼀", "𐎀", "\U00011f04", "﷽", "…a…", "👍 1", "1️⃣", "#9",
]  # fmt: skip
NOT_SAID = [
    *LINES, "👍🏽", "👨‍👩‍👧", "🇩🇪", "❤️", "🫠", "\U0001fae9", "!?", "¿", "«»", "—", "***", "# ", "|---|", "€", "+", "→",
    "\u0301", "\u0301\u0302", "\u20dd", "\u064b", "\u0640", "\u200b", "\u2060\u200d", "\u1160", "\uffa0", "\u17b4",
    "\u180e", "\ufe0f", "\U000e0100", "\U000e0041", "\ufffc", "\ufffd", "\ufff0", "\uffff", "\ue000", "\u061c", "",
]  # fmt: skip


@pytest.mark.parametrize("text", SAID, ids=ascii)
def test_a_letter_or_a_digit_of_any_script_can_be_said(text: str) -> None:
    assert is_speakable(text)
    assert is_visible(text)
    assert is_speakable(f"\u3164 {text} \u2800")


@pytest.mark.parametrize("text", NOT_SAID, ids=ascii)
def test_without_one_there_is_nothing_to_say(text: str) -> None:
    assert not is_speakable(text)
    assert not has_letters(text)
    assert not is_speakable(text * 50)


@pytest.mark.parametrize("text", ["👍", "…", "---", "。", "\ufffd"], ids=ascii)
def test_what_cannot_be_said_may_well_be_seen(text: str) -> None:
    assert is_visible(text)
    assert not looks_empty(text)


@pytest.mark.parametrize("text", [*LINES[6:], "\u200b", "\uffa0\ufe0e", "\u0301", "\U0001d159", " \t\n"], ids=ascii)
def test_invisible_signs_are_invisible_whatever_they_are_called(text: str) -> None:
    assert not is_visible(text)


def test_signs_that_stand_for_letters_are_less_sure_than_letters() -> None:
    assert not has_letters("℃")
    assert has_letters("5 ℃")
