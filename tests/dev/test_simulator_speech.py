"""The arithmetic of the simulated speech: cutting texts, counting characters, changing sample rates, writing WAV."""

import itertools
import math
import struct
import wave
from io import BytesIO

import pytest

from server.dev.simulator.speech import (
    billed_characters,
    language_of,
    pieces_of,
    portions_of,
    resampled,
    sound_of,
    wav_file,
)

TEXTS = [
    "One sentence.",
    "Two. Sentences! Or “three”?\n\nAnd a paragraph without an end",
    "3.14 is no sentence of its own, e.g. here. " * 20,
    "没有空格的长句子" * 60 + "。后面还有。",
    "   ",
    "x" * 1000,
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_lose_nothing_and_are_short(text: str) -> None:
    pieces = pieces_of(text)

    assert "".join(pieces) == text
    assert all(0 < len(piece) <= 240 for piece in pieces)


@pytest.mark.parametrize("text", [text for text in TEXTS if len(text) >= 5])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_portions_lose_nothing_and_are_as_many_as_asked(text: str, count: int) -> None:
    portions = portions_of(text, count)

    assert "".join(piece for portion in portions for piece in portion) == text
    assert len(portions) == min(count, len(text))
    assert all(portions)


def test_ideographs_count_twice_and_everything_else_once() -> None:
    assert billed_characters("你好, world 世界!") == 4 * 2 + 9
    assert billed_characters("かな カナ 한글 é 🎉") == len("かな カナ 한글 é 🎉")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("你好", "Chinese"),
        ("漢字とかな", "Japanese"),
        ("안녕", "Korean"),
        ("Привет", "Russian"),
        ("Bonjour", "English"),
    ],
)
def test_the_script_tells_the_language(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize("to_hz", [8000, 16_000, 24_000, 48_000])
def test_resampling_keeps_a_tone_and_its_length(to_hz: int) -> None:
    pitch_hz = 440
    count = 22_050
    tone = [round(10_000 * math.sin(2 * math.pi * pitch_hz * index / 22_050)) for index in range(count)]
    samples = struct.unpack(f"<{to_hz}h", resampled(struct.pack(f"<{count}h", *tone), 22_050, to_hz))

    upward = sum(1 for before, after in itertools.pairwise(samples) if before < 0 <= after)
    assert upward == pytest.approx(pitch_hz, abs=1)
    assert max(samples) == pytest.approx(10_000, rel=0.05)


def test_a_wav_file_is_read_back_with_and_without_a_remark() -> None:
    pcm = bytes(range(200)) * 10
    for file in (wav_file(pcm, 16_000), wav_file(pcm, 16_000, remark="odd"), wav_file(pcm, 16_000, remark="even")):
        with wave.open(BytesIO(file)) as audio:
            assert (audio.getframerate(), audio.readframes(10_000)) == (16_000, pcm)
        assert struct.unpack_from("<I", file, 4)[0] == len(file) - 8


def test_voices_differ_in_more_than_one_way() -> None:
    sounds = [sound_of(f"qwen-tts-vc-{number}") for number in range(50)]

    assert len(set(sounds)) == 50
    assert len({sound.variant for sound in sounds}) > 10
