"""Whole frames out of an MP3 that arrives in slices cut anywhere."""

import pytest

from server.audio import WholeFrames, mp3_duration_seconds
from tests.audio.samples import id3v2, mp3

SPEECH = mp3(1.0, kbps=128)


def fed(data: bytes, size: int) -> tuple[list[bytes], WholeFrames]:
    frames = WholeFrames()
    handed = [frames.feed(data[at : at + size]) for at in range(0, len(data), size)]
    return [*handed, frames.finish()], frames


@pytest.mark.parametrize("size", [1, 7, 383, 384, 385, 5000, 1_000_000])
def test_nothing_of_a_stream_is_lost_however_it_is_cut(size: int) -> None:
    handed, frames = fed(SPEECH, size)
    assert b"".join(handed) == SPEECH
    assert frames.seconds == pytest.approx(mp3_duration_seconds(SPEECH), abs=0.03)


@pytest.mark.parametrize("size", [1, 100, 1_000_000])
def test_tags_and_noise_are_left_out(size: int) -> None:
    handed, _ = fed(id3v2(3000) + SPEECH + b"noise \xff" * 9 + id3v2(10) + SPEECH + b"TAG" + bytes(125), size)
    assert b"".join(handed) == SPEECH + SPEECH


@pytest.mark.parametrize("size", [1, 100, 1_000_000])
def test_a_frame_that_is_not_whole_is_left_out(size: int) -> None:
    handed, _ = fed(SPEECH[:-10], size)
    kept = b"".join(handed)
    assert SPEECH.startswith(kept)
    assert 0 < len(SPEECH) - len(kept) <= 400


@pytest.mark.parametrize("data", [b"", b"\xff", bytes(10_000), b"\xff\xfb" * 3000, b"ID3", b"RIFFxxxxWAVE"])
def test_what_is_no_mp3_has_no_frames(data: bytes) -> None:
    for size in (1, 64, 1_000_000):
        assert b"".join(fed(data, size)[0]) == b""


def test_a_single_frame_is_believed_at_the_end() -> None:
    frame = SPEECH[: len(SPEECH) // 2]
    whole = b"".join(fed(frame, 50)[0])
    first = whole[:384]
    assert b"".join(fed(first, 50)[0]) == first
