"""Captions from words with their times."""

from server.audio.captions import captions

SENTENCES = [
    [("Good", 0, 290), ("morning", 363, 871), (".", 871, 880)],
    [("This", 1016, 1310), ("is", 1384, 1531), ("<a>", 1604, 1678), ("test", 3_661_751, 3_662_045)],
]


def test_each_sentence_is_a_caption_with_its_times() -> None:
    assert captions(SENTENCES[:1], "vtt") == "WEBVTT\n\n00:00:00.000 --> 00:00:00.880\nGood morning.\n\n"
    assert captions(SENTENCES, "srt") == (
        "1\n00:00:00,000 --> 00:00:00,880\nGood morning.\n\n"
        "2\n00:00:01,016 --> 00:00:01,678\nThis is <a>\n\n"
        "3\n01:01:01,751 --> 01:01:02,045\ntest\n\n"
    )


def test_what_a_browser_would_read_as_markup_is_text() -> None:
    assert "This is &lt;a&gt;" in captions(SENTENCES, "vtt")


def test_a_long_sentence_is_several_captions() -> None:
    sentence = [(f"word{number}", number * 100, number * 100 + 90) for number in range(60)]
    lines = [line for line in captions([sentence], "srt").splitlines() if line.startswith("word")]
    assert max(map(len, lines)) <= 84
    assert " ".join(lines).split() == [word for word, _, _ in sentence]


def test_east_asian_words_are_not_spaced() -> None:
    assert "你好世界。" in captions([[("你好", 0, 10), ("世界", 10, 20), ("。", 20, 21)]], "vtt")


def test_nothing_makes_an_empty_file() -> None:
    assert captions([], "vtt") == "WEBVTT\n\n"
    assert captions([[("\n", 0, 1)]], "srt") == ""
