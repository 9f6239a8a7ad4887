"""WAV files: the header we write and the ones that other people write."""

import io
import struct
import wave

import numpy as np
import pytest

from server.audio import AudioError, has_sound, parse_wav, to_mono_pcm16, wav_header
from tests.audio.samples import chunk, tone, wav

SAMPLES = tone(0.5, 24000).tobytes()


def test_our_header_is_read_by_the_standard_library() -> None:
    with wave.open(io.BytesIO(wav_header(len(SAMPLES), 24000) + SAMPLES)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        assert file.getnframes() == len(SAMPLES) // 2
        assert file.readframes(12000) == SAMPLES


def test_a_growing_file_says_that_it_does_not_know_its_size() -> None:
    header = wav_header(None, 24000)
    assert len(header) == 44
    assert header[4:8] == header[40:44] == b"\xff\xff\xff\xff"
    assert parse_wav(header + SAMPLES).samples == SAMPLES


def test_a_payload_too_long_for_the_header_is_written_as_unknown() -> None:
    assert wav_header(2**32 - 20, 24000) == wav_header(None, 24000)


def test_the_samples_do_not_always_begin_at_44() -> None:
    parsed = parse_wav(wav(SAMPLES, before=chunk(b"LIST", b"INFOodd"), after=chunk(b"id3 ", b"tail")))
    assert parsed.data_offset == 44 + 8 + 8
    assert parsed.samples == SAMPLES
    assert (parsed.sample_rate_hz, parsed.channels, parsed.bits_per_sample, parsed.is_float) == (24000, 1, 16, False)
    assert parsed.duration_seconds == 0.5


@pytest.mark.parametrize("claimed", [0xFFFFFFFF, 0x7FFFFFFF, len(SAMPLES) + 2, 0])
def test_a_data_size_that_lies_means_to_the_end(claimed: int) -> None:
    assert parse_wav(wav(SAMPLES, data_size=claimed)).samples == SAMPLES


def test_a_file_without_samples_is_empty_not_its_next_chunk() -> None:
    assert parse_wav(wav(b"", after=chunk(b"LIST", b"INFO"))).frames == 0


def test_half_a_frame_at_the_end_is_left_out() -> None:
    assert len(parse_wav(wav(b"\x01" * 10, channels=2, data_size=0xFFFFFFFF)).samples) == 8


def test_an_extensible_header_is_read_by_its_sub_format() -> None:
    guid = struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")
    layout = struct.pack("<HHIIHHHHI", 0xFFFE, 2, 48000, 192000, 4, 16, 22, 16, 3) + guid
    body = b"WAVE" + chunk(b"fmt ", layout) + chunk(b"data", SAMPLES)
    parsed = parse_wav(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert (parsed.sample_rate_hz, parsed.channels, parsed.samples == SAMPLES) == (48000, 2, True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF",
        b"RIFF\0\0\0\0WAVE",
        b"RIFF\0\0\0\0AVI " + bytes(100),
        wav(SAMPLES)[:40],
        wav(SAMPLES, tag=2),
        wav(SAMPLES, tag=0xFFFE),
        wav(SAMPLES, channels=0),
        wav(SAMPLES, sample_rate_hz=0),
        wav(SAMPLES, sample_rate_hz=0xFFFFFFF0 // 2),
        wav(SAMPLES, bits=12),
        b"RIFF\0\0\0\0WAVE" + chunk(b"data", SAMPLES),
        b"RIFF\0\0\0\0WAVE" + chunk(b"junk", b"") * 2000 + wav(SAMPLES)[12:],
    ],
    ids=lambda data: data[:48].hex(),
)
def test_nonsense_is_an_audio_error(data: bytes) -> None:
    with pytest.raises(AudioError, match=r"WAV file .*\.|WAV file\."):
        parse_wav(data)


def test_mono_16_bit_is_kept_bit_for_bit() -> None:
    assert to_mono_pcm16(parse_wav(wav(SAMPLES, sample_rate_hz=8000))) == SAMPLES


def test_channels_are_averaged() -> None:
    stereo = np.array([[1000, 3000], [-500, 500], [32767, 32767]], dtype="<i2").tobytes()
    mixed = np.frombuffer(to_mono_pcm16(parse_wav(wav(stereo, channels=2))), dtype="<i2")
    assert mixed.tolist() == [2000, 0, 32767]


@pytest.mark.parametrize(
    ("stored", "bits", "tag"),
    [
        (bytes([128, 0, 255, 192]), 8, 1),
        (b"".join(value.to_bytes(3, "little", signed=True) for value in (0, -(2**23), 2**23 - 1, 2**22)), 24, 1),
        (np.array([0, -(2**31), 2**31 - 1, 2**30], dtype="<i4").tobytes(), 32, 1),
        (np.array([0.0, -1.0, 1.0, 0.5], dtype="<f4").tobytes(), 32, 3),
        (np.array([np.nan, -7.0, np.inf, 0.5], dtype="<f8").tobytes(), 64, 3),
    ],
    ids=["8 bit", "24 bit", "32 bit", "float", "double, with what is no number"],
)
def test_every_width_becomes_the_same_16_bit_samples(stored: bytes, bits: int, tag: int) -> None:
    samples = np.frombuffer(to_mono_pcm16(parse_wav(wav(stored, bits=bits, tag=tag))), dtype="<i2")
    assert samples.tolist() == pytest.approx([0, -32768, 32767, 16384], abs=256 if bits == 8 else 1)


@pytest.mark.parametrize(
    ("data", "sounds"),
    [
        (wav_header(4, 24_000) + b"\1\0\2\0", True),
        (wav_header(0, 24_000), False),
        (wav_header(1, 24_000) + b"\1", False),
        (b"RIFF\0\0\0\0WAVE", False),
        (b"ID3 an MP3, perhaps", False),
        (b"", False),
    ],
    ids=["two samples", "no sample", "half a sample", "a header alone", "no WAV", "nothing"],
)
def test_a_file_has_sound_where_a_whole_sample_is_in_it(data: bytes, sounds: bool) -> None:
    assert has_sound(data) is sounds
