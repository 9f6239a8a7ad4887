"""How long an MP3 sounds, told by its frame headers."""

import io
import random
from typing import Any

import mutagen.mp3
import pytest

from server.audio import Mp3Clock, mp3_duration_seconds
from tests.audio.samples import id3v2, mp3

FRAME_SECONDS = 576 / 24000
OTHER_READER: Any = mutagen.mp3.MP3


@pytest.mark.parametrize(
    ("sample_rate_hz", "kbps", "channels"),
    [(8000, 32, 1), (16000, 64, 1), (24000, 64, 1), (24000, 128, 1), (44100, 128, 2), (48000, 192, 2)],
)
def test_the_duration_is_what_another_reader_says(sample_rate_hz: int, kbps: int, channels: int) -> None:
    data = mp3(3.3, sample_rate_hz, kbps=kbps, channels=channels)
    seconds = mp3_duration_seconds(data)
    assert seconds == pytest.approx(OTHER_READER(io.BytesIO(data)).info.length, abs=0.001)
    # The encoder rounds up to whole frames and adds its delay: at most three of them.
    assert 3.3 <= seconds <= 3.3 + 3 * (1152 if sample_rate_hz > 24000 else 576) / sample_rate_hz


def test_slices_cut_anywhere_add_up_to_the_same() -> None:
    data = id3v2(700) + mp3(2.0) + b"TAG" + bytes(125) + id3v2(50) + mp3(1.0)
    whole = mp3_duration_seconds(data)
    for seed in range(20):
        cuts = random.Random(seed)
        clock, at = Mp3Clock(), 0
        while at < len(data):
            length = cuts.choice([1, 2, 3, 7, 100, 191, 192, 193, 2000])
            clock.feed(data[at : at + length])
            at += length
        assert clock.seconds == whole
    assert whole == pytest.approx(mp3_duration_seconds(mp3(2.0)) + mp3_duration_seconds(mp3(1.0)))


def test_the_clock_runs_while_the_audio_grows() -> None:
    data = mp3(2.0)
    clock = Mp3Clock()
    seen = []
    for at in range(0, len(data), 192):  # one frame each, at 64 kbit/s and 24 kHz
        clock.feed(data[at : at + 192])
        seen.append(clock.seconds)
    assert seen == pytest.approx([FRAME_SECONDS * (index + 1) for index in range(len(seen))])


def test_streams_put_together_sound_one_after_the_other() -> None:
    one, other = mp3(1.0, 24000), mp3(1.0, 44100, kbps=128, channels=2)
    expected = mp3_duration_seconds(one) + mp3_duration_seconds(other)
    assert mp3_duration_seconds(one + other) == pytest.approx(expected)
    assert mp3_duration_seconds(one + id3v2(3000) + other) == pytest.approx(expected)


def test_tags_full_of_false_frames_do_not_count() -> None:
    data = mp3(1.0)
    assert mp3_duration_seconds(id3v2(5000) + data + b"TAG" + b"\xff\xfb\x90\x44" * 31 + b"x") == pytest.approx(
        mp3_duration_seconds(data)
    )


@pytest.mark.parametrize(
    ("header", "mark_at", "mark"),
    [
        ("fff384c4", 4 + 9, b"Xing"),
        ("fff384c4", 4 + 9, b"Info"),
        ("fff38404", 4 + 17, b"Info"),
        ("fff384c4", 36, b"VBRI"),
    ],
    ids=["Xing, mono", "Info, mono", "Info, stereo", "VBRI"],
)
def test_an_index_frame_is_not_audio(header: str, mark_at: int, mark: bytes) -> None:
    index = bytearray(bytes.fromhex(header) + bytes(188))
    index[mark_at : mark_at + 4] = mark
    assert mp3_duration_seconds(bytes(index) + mp3(1.0)) == mp3_duration_seconds(mp3(1.0))
    assert mp3_duration_seconds(bytes(index)) == 0.0


def test_a_cut_frame_is_not_counted_and_the_next_stream_is_found() -> None:
    data = mp3(1.0)
    assert mp3_duration_seconds(data[:-100]) == pytest.approx(mp3_duration_seconds(data) - FRAME_SECONDS)
    assert mp3_duration_seconds(data[:-100] + data) == pytest.approx(
        2 * mp3_duration_seconds(data) - FRAME_SECONDS, abs=2 * FRAME_SECONDS
    )


def test_garbage_between_frames_is_stepped_over() -> None:
    data = mp3(1.0)
    noise = random.Random(7).randbytes(5000)
    assert mp3_duration_seconds(noise + data + noise) == pytest.approx(
        mp3_duration_seconds(data), abs=2 * FRAME_SECONDS
    )


def test_bytes_without_frames_last_no_time() -> None:
    for data in (b"", b"\xff", b"ID3", bytes(10_000), b"RIFF" + bytes(400), random.Random(3).randbytes(100_000)):
        assert mp3_duration_seconds(data) == 0.0


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "pattern",
    [
        b"\xff",
        b"\xff\xfb\x90",
        b"\xff\xf3\x18",
        b"\xff\xf3\x14\xc0" + bytes(20),
        b"\xff\xf3\x14\xc0" + bytes(21),
        b"ID3\4\0\0\0\0\0\0",
        b"TAG" + bytes(125),
    ],
    ids=lambda pattern: pattern[:8].hex(),
)
def test_ten_hostile_megabytes_take_linear_time(pattern: bytes) -> None:
    """The limit is loose enough for a busy machine and far below what anything quadratic would take."""
    mp3_duration_seconds(pattern * (10_000_000 // len(pattern)))


def test_a_clock_that_only_meets_false_frames_stops_listening() -> None:
    clock = Mp3Clock()
    clock.feed(b"\xff\xf3\x14\xc0x" * 100_000)
    assert clock.lost
    clock.feed(mp3(1.0))
    assert clock.seconds == 0.0
