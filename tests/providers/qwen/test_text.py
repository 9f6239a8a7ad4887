"""Cutting long texts, counting them, and telling their language."""

import random
import re
import sys
import unicodedata

import pytest

from server.providers.languages import LANGUAGES, language_iso, script_language, spoken_iso
from server.providers.qwen.text import count_characters, split_text

SENTENCES = {
    "Chinese": "我们昨天去了公园，看到了很多花。天气非常好！你也想去吗？他说：“好的。”然后我们就走了……",
    "English": 'Dr. Smith paid $3.50 for it. "Really?" she asked. Yes! At 5 p.m. J. Doe left; nobody saw him. ',
    "German": "Am 3. Mai kam Hr. Müller, z. B. mit dem Zug. „Wirklich?“, fragte sie. Ja! Es waren 1.000,50 Euro. ",
    "Italian": "Il dott. Rossi è arrivato alle 10. Perché no? «Certo!» disse lei. Erano 1.000 euro, più o meno. ",
    "Portuguese": "O Sr. Silva não veio. Porquê? Ninguém sabe! Custou 1 000 euros, talvez mais. ",
    "Spanish": "¿Cómo está Ud.? ¡Muy bien! La Sra. López pagó 1.000 euros; nadie lo vio. Después se fue. ",
    "Japanese": "昨日、友達と公園に行きました。楽しかった！「また行きたい。」と彼は言いました。コンピューターは便利。",
    "Korean": "어제 친구와 공원에 갔습니다. 정말 즐거웠어요! 또 가고 싶으세요? 네. 가격은 1,000원이었습니다. ",
    "French": "Bonjour ! Comment ça va ? M. Dupont a payé 1 000 euros. « Vraiment ? » dit-elle. L’été arrive. ",
    "Russian": "Вчера мы ходили в парк. Было здорово! И т. д. Цена — 1 000 руб. Правда? «Да!» — сказал он. ",
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("cap", [40, 97, 600])
def test_long_text_is_cut_at_sentence_ends_in_every_language(language: str, cap: int) -> None:
    text = (SENTENCES[language] * 60)[:2000].strip()
    pieces = split_text(text, cap)
    assert "".join(pieces) == text
    assert all(count_characters(piece) <= cap for piece in pieces)
    assert all(any(map(str.isalnum, piece)) for piece in pieces)
    if cap >= 97:
        ends = [piece.rstrip()[-1] for piece in pieces[:-1]]
        assert set(ends) <= set('.!?。！？…»”」"“'), ends


@pytest.mark.parametrize(
    ("text", "cap", "pieces"),
    [
        ("One. Two. Three.", 10, ["One. Two. ", "Three."]),
        ("Ask Dr. Who now. Then go.", 17, ["Ask Dr. Who now. ", "Then go."]),
        ("It costs 3.14 dollars, or so they all say", 24, ["It costs 3.14 dollars, ", "or so they all say"]),
        ("Es war am 3. Mai warm. Gut.", 22, ["Es war am 3. Mai warm.", " Gut."]),
        ("Er kam im Mai 2020. Dann ging er", 25, ["Er kam im Mai 2020. ", "Dann ging er"]),
        ("alpha beta 1 000 000 gamma", 17, ["alpha beta ", "1 000 000 gamma"]),
        ("Il dit\u00a0: oui. Non\u00a0! Voilà", 14, ["Il dit\u00a0: oui. ", "Non\u00a0! Voilà"]),
        ("Ah bon ! Comment ça", 7, ["Ah ", "bon ! ", "Comment", " ça"]),
        ("first line\n\nsecond line here", 20, ["first line\n\n", "second line here"]),
        ("你好。我是老师。再见。", 13, ["你好。", "我是老师。", "再见。"]),
        ("说三百二十元整", 9, ["说", "三百二十", "元整"]),
        ("私はコンピューターを買う", 10, ["私は", "コンピューターを", "買う"]),
        ("はい。「いいえ。」と言う", 9, ["はい。", "「いいえ。」と", "言う"]),
        ("Il répondit : « Non ! » « Oui ! » dit-elle", 26, ["Il répondit : « Non ! » ", "« Oui ! » dit-elle"]),
        ("«Vieni subito!» Disse di no", 20, ["«Vieni subito!» ", "Disse di no"]),
        ("»Komm doch!« »Ich kann nicht.« Er ging", 18, ["»Komm doch!« ", "»Ich kann nicht.« ", "Er ging"]),
        ("Er rief: „Komm doch!“ Sie ging", 26, ["Er rief: „Komm doch!“ ", "Sie ging"]),
        ("“Come in!” ‘I will not.’ So he", 26, ["“Come in!” ‘I will not.’ ", "So he"]),
        ("„Komm“, sagte er. »Nein«, rief sie. So", 19, ["„Komm“, sagte er. ", "»Nein«, rief sie. ", "So"]),
        ("aaaaaaaaaaaa", 5, ["aaaaa", "aaaaa", "aa"]),
        ("", 5, [""]),
        ("short", 5, ["short"]),
    ],
)
def test_cut_spares_what_belongs_together(text: str, cap: int, pieces: list[str]) -> None:
    assert split_text(text, cap) == pieces


@pytest.mark.parametrize(
    "character",
    [
        "e\u0301",
        "👩‍👩‍👧",
        "👍🏽",
        "🇩🇪",
        "か\u3099",
        "\u1112\u1161\u11ab",
        "☂\ufe0f",
        "ｶﾞ",
        "🏴\U000e0067\U000e0062\U000e007f",
    ],
)
def test_no_cut_inside_a_user_perceived_character(character: str) -> None:
    pieces = split_text(character * 20, 7)
    assert "".join(pieces) == character * 20
    assert all(piece == character * piece.count(character) for piece in pieces), pieces


def test_last_piece_is_never_mere_punctuation() -> None:
    text = "One two three four. !!! ??? ..."
    assert len(split_text(text, 20)) == 2
    assert all(re.search(r"\w", piece) for piece in split_text(text, 20))


def test_any_text_survives_being_cut() -> None:
    rng = random.Random(7)
    alphabet = "ab3 .,!?\n\u00a0\u0301\u200d。、我三かーカ👍🏽🇩🇪ㅎ하\u1161\"'(«»)—…\r"
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 120)))
        cap = rng.randint(2, 30)
        pieces = split_text(text, cap)
        assert "".join(pieces) == text
        assert all(count_characters(piece) <= cap for piece in pieces)
        assert all(pieces) or not text


def test_two_thousand_characters_are_cut_quickly() -> None:
    """The job does this in the event loop, where every millisecond delays somebody's delta."""
    text = SENTENCES["English"] * 19
    assert len(split_text(text)) == 4


@pytest.mark.parametrize("run", [" ", "\n", '" ', "» ", "\u0301", "。"])
def test_a_long_run_of_one_kind_is_cut_without_looking_back_at_all_of_it(run: str) -> None:
    """Counted in calls, not in seconds: each place may cost a bounded number of looks."""
    text = "a" + (run * 2000)[:1998] + "b"
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        pieces = split_text(text)
    finally:
        sys.setprofile(None)
    assert "".join(pieces) == text
    assert calls < 2000 * 250


def test_ideographs_count_twice_and_all_else_once() -> None:
    assert count_characters("漢字かなカナ한글 abc。👍") == 2 * 2 + 4 + 2 + 1 + 3 + 1 + 1
    assert count_characters("𠀀") == 2
    assert count_characters(unicodedata.normalize("NFD", "é")) == 2


@pytest.mark.parametrize("language", LANGUAGES)
def test_script_tells_the_language_for_auto(language: str) -> None:
    told = script_language(SENTENCES[language])
    assert told == (language if language in ("Chinese", "Japanese", "Korean", "Russian") else "English")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("我爱用 Python 编程", "Chinese"),
        ("Please say 你好 to the teacher when you see her", "English"),
        ("東京タワー", "Japanese"),
        ("12345 !?", "English"),
        ("", "English"),
    ],
)
def test_script_that_says_most_decides(text: str, language: str) -> None:
    assert script_language(text) == language


def test_languages_have_iso_codes_in_any_case() -> None:
    assert [language_iso(name) for name in LANGUAGES] == ["zh", "en", "de", "it", "pt", "es", "ja", "ko", "fr", "ru"]
    assert language_iso("german") == "de"
    assert language_iso("auto") is None
    assert spoken_iso("Auto", "Привет") == "ru"
    assert spoken_iso("French", "Привет") == "fr"
    with pytest.raises(KeyError):
        language_iso("Klingon")
