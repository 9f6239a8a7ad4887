"""Samples become MP3 while they come, and nothing is heard where two slices meet."""

import pytest

from server.audio import Mp3Encoder, mp3_duration_seconds
from tests.audio.samples import tone


def encoded(samples: bytes, sample_rate_hz: int, slice_bytes: int) -> bytes:
    encoder = Mp3Encoder(sample_rate_hz)
    slices = (samples[start : start + slice_bytes] for start in range(0, len(samples), slice_bytes))
    return b"".join(map(encoder.encode, slices)) + encoder.flush()


@pytest.mark.parametrize("sample_rate_hz", [8000, 16000, 20000, 22050, 24000, 32000, 44100, 48000])
def test_an_mp3_sounds_as_long_as_its_samples(sample_rate_hz: int) -> None:
    """But for the encoder's delay and what fills the last frame."""
    mp3 = encoded(tone(3.0, sample_rate_hz).tobytes(), sample_rate_hz, 16 * 1024)
    frame_seconds = 576 / 8000
    assert 3.0 <= mp3_duration_seconds(mp3) < 3.0 + 3 * frame_seconds


@pytest.mark.parametrize("slice_bytes", [1, 999, 4801, 16 * 1024])
def test_where_slices_meet_makes_no_difference(slice_bytes: int) -> None:
    samples = tone(0.5, 24000).tobytes()
    assert encoded(samples, 24000, slice_bytes) == encoded(samples, 24000, len(samples))


def test_frames_come_with_the_samples_and_not_all_at_the_end() -> None:
    encoder = Mp3Encoder(24000)
    assert len(encoder.encode(tone(1.0, 24000).tobytes())) > 0.9 * 64_000 / 8


def test_no_samples_are_no_frames() -> None:
    encoder = Mp3Encoder(24000)
    assert encoder.encode(b"") == encoder.encode(b"\0") == b""
