"""WAV files become MP3 while they are read, whoever wrote them."""

import struct

import pytest

from server.audio import AudioError, WavAsMp3, mp3_duration_seconds, wav_header
from tests.audio.samples import tone


def converted(file: bytes, slice_bytes: int) -> bytes:
    converter = WavAsMp3()
    slices = (file[start : start + slice_bytes] for start in range(0, len(file), slice_bytes))
    return b"".join(map(converter.feed, slices)) + converter.finish()


@pytest.mark.parametrize("slice_bytes", [7, 4801, 1 << 20])
def test_a_file_of_ours_sounds_as_long_however_it_is_cut(slice_bytes: int) -> None:
    samples = tone(2.0, 24000).tobytes()
    mp3 = converted(wav_header(len(samples), 24000) + samples, slice_bytes)
    assert mp3_duration_seconds(mp3) == pytest.approx(2.0, abs=0.1)


def test_a_file_of_others_has_channels_and_something_behind_its_samples() -> None:
    mono = tone(2.0, 48000)
    samples = struct.pack(f"<{2 * len(mono)}h", *(sample for sample in mono for _ in range(2)))
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 0, b"WAVE", b"fmt ", 16, 1, 2, 48000, 192000, 4, 16)
    behind = struct.pack("<4sI", b"LIST", 96_000) + b"\x7f" * 96_000
    file = header + struct.pack("<4sI", b"data", len(samples)) + samples + behind
    assert mp3_duration_seconds(converted(file, 5000)) == pytest.approx(2.0, abs=0.1)


def test_a_size_that_nobody_knew_means_to_the_end() -> None:
    samples = tone(1.0, 24000).tobytes()
    assert mp3_duration_seconds(converted(wav_header(None, 24000) + samples, 5000)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("file", [b"", b"RIFF", b"ID3" * 3000])
def test_what_is_no_wav_is_none(file: bytes) -> None:
    with pytest.raises(AudioError):
        converted(file, 5000)
