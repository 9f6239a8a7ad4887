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
        wav(SAMPLES, channels=0),
        wav(SAMPLES, sample_rate_hz=0),
        wav(SAMPLES, sample_rate_hz=0xFFFFFFF0 // 2),
        b"RIFF\0\0\0\0WAVE" + chunk(b"data", SAMPLES),
        b"RIFF\0\0\0\0WAVE" + chunk(b"junk", b"") * 2000 + wav(SAMPLES)[12:],
    ],
    ids=lambda data: data[:48].hex(),
)
def test_nonsense_is_an_audio_error(data: bytes) -> None:
    with pytest.raises(AudioError, match=r"WAV file .*\.|WAV file\."):
        parse_wav(data)


@pytest.mark.parametrize("name", [b"LIST", b"smpl", b"bext", b"iXML", b"JUNK", b"cue ", b"id3 ", b"abcd", b"~~~~"])
@pytest.mark.parametrize("off", [-13, -8, -5, -4, -3, -2, -1, 1, 2, 3, 4, 7, 8, 12])
def test_a_chunk_that_is_longer_or_shorter_than_it_says_is_stepped_over(name: bytes, off: int) -> None:
    """Wherever it stands: before the samples, and before the format."""
    body = bytes(range(128, 168))
    wrong = name + struct.pack("<I", len(body) + off) + body
    good = wav(SAMPLES)
    for file in (wav(SAMPLES, before=wrong), good[:12] + wrong + good[12:]):
        assert parse_wav(file).samples == SAMPLES


@pytest.mark.parametrize("claimed", [14, 17, 18, 20, 22, 40, 9000, 0x7FFFFFFF])
def test_a_format_chunk_that_is_off_is_stepped_over_too(claimed: int) -> None:
    good = wav(SAMPLES, before=chunk(b"fact", bytes(4)))
    assert parse_wav(good[:16] + struct.pack("<I", claimed) + good[20:]).samples == SAMPLES


def test_an_odd_chunk_needs_no_padding() -> None:
    assert parse_wav(wav(SAMPLES, before=chunk(b"LIST", b"INFO odd name")[:-1])).samples == SAMPLES


def test_a_chunk_that_claims_the_whole_file_hides_nothing() -> None:
    lying = chunk(b"LIST", b"INFO the word data, as in metadata, is no chunk", size=9_000_000)
    assert parse_wav(wav(SAMPLES, before=lying)).samples == SAMPLES


def test_what_stands_after_the_samples_is_not_heard() -> None:
    for after in (chunk(b"LIST", b"INFO"), bytes(999), b"TAG" + bytes(125), b"\xff" * 7):
        assert parse_wav(wav(SAMPLES, after=after)).samples == SAMPLES


@pytest.mark.parametrize(
    ("channels", "byte_rate", "frame_bytes", "bits", "width"),
    [
        (1, 0, 0, 16, 16),
        (1, 48000, 0, 16, 16),
        (1, 48000, 1, 16, 16),
        (1, 24000, 2, 16, 16),
        (1, 48000, 2, 0, 16),
        (1, 48000, 2, 8, 16),
        (1, 48000, 2, 12, 16),
        (1, 96000, 4, 24, 32),
        (1, 72000, 4, 24, 24),
        (2, 48000, 2, 16, 16),
        (2, 96000, 2, 16, 16),
        (1, 99, 2, 16, 16),
    ],
)
def test_fields_that_contradict_each_other_are_outvoted(
    channels: int, byte_rate: int, frame_bytes: int, bits: int, width: int
) -> None:
    layout = struct.pack("<HHIIHH", 1, channels, 24000, byte_rate, frame_bytes, bits)
    parsed = parse_wav(b"RIFF\0\0\0\0WAVE" + chunk(b"fmt ", layout) + chunk(b"data", SAMPLES))
    assert (parsed.sample_rate_hz, parsed.channels, parsed.bits_per_sample) == (24000, channels, width)


def test_what_the_other_fields_tell_need_not_be_said() -> None:
    for channels, rate_hz in ((0, 24000), (1, 0), (0, 0)):
        layout = struct.pack("<HHIIHH", 1, channels, rate_hz, 48000, 2, 16)
        parsed = parse_wav(b"RIFF\0\0\0\0WAVE" + chunk(b"fmt ", layout) + chunk(b"data", SAMPLES))
        assert (parsed.sample_rate_hz, parsed.channels) == (24000, 1)


@pytest.mark.parametrize("form", [b"RF64", b"BW64"])
@pytest.mark.parametrize("told", [len(SAMPLES), len(SAMPLES) + 9_000_000, 0], ids=["right", "too long", "unknown"])
def test_long_forms_keep_the_size_of_the_samples_elsewhere(form: bytes, told: int) -> None:
    sizes = chunk(b"ds64", struct.pack("<QQQI", 0, told, 0, 0))
    plain = wav(SAMPLES, data_size=0xFFFFFFFF, after=chunk(b"axml", b"<xml/>") if told == len(SAMPLES) else b"")
    file = form + b"\xff\xff\xff\xffWAVE" + sizes + plain[12:]
    assert parse_wav(file).samples == SAMPLES


def test_a_long_form_with_a_size_of_its_own_goes_by_it() -> None:
    sizes = chunk(b"ds64", struct.pack("<QQQI", 0, 12, 0, 0))
    assert parse_wav(b"RF64\xff\xff\xff\xffWAVE" + sizes + wav(SAMPLES)[12:]).samples == SAMPLES


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_big_endian_samples_are_turned_round(width: int) -> None:
    little = tone(0.1, 24000).tobytes() * 6
    little = little[: len(little) // width * width]
    big = np.frombuffer(little, dtype=np.uint8).reshape(-1, width)[:, ::-1].tobytes()
    layout = struct.pack(">HHIIHH", 1, 1, 24000, 24000 * width, width, width * 8)
    body = b"WAVEfmt " + struct.pack(">I", 16) + layout + b"data" + struct.pack(">I", len(big)) + big
    assert parse_wav(b"RIFX" + struct.pack(">I", len(body)) + body).samples == little


@pytest.mark.parametrize(
    ("tag", "named"),
    [
        (2, "Microsoft ADPCM"),
        (6, "A-law"),
        (7, "µ-law"),
        (0x11, "IMA ADPCM"),
        (0x31, "GSM"),
        (0x55, "MP3"),
        (0x161, "Windows Media Audio"),
        (0x704F, "Opus"),
        (0x4242, "unknown (0x4242)"),
    ],
)
@pytest.mark.parametrize("extensible", [False, True])
def test_a_codec_that_is_no_pcm_is_named_with_the_way_out(tag: int, named: str, extensible: bool) -> None:
    layout = struct.pack("<HHIIHH", 0xFFFE if extensible else tag, 1, 24000, 24000, 1, 8)
    if extensible:
        layout += struct.pack("<HHIH", 22, 8, 4, tag) + bytes.fromhex("000000001000800000aa00389b71")
    with pytest.raises(AudioError) as raised:
        parse_wav(b"RIFF\0\0\0\0WAVE" + chunk(b"fmt ", layout) + chunk(b"data", SAMPLES))
    assert str(raised.value) == (
        f"This WAV file holds {named} audio, which cannot be used. "
        "Please save it as a WAV with PCM samples, or as M4A (AAC)."
    )


_PCM_GUID = bytes.fromhex("0100000000001000800000aa00389b71")
_EXTENSIBLE = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 24000, 48000, 2, 16, 22, 16, 4)


@pytest.mark.parametrize(
    "layout",
    [
        _EXTENSIBLE + _PCM_GUID,
        _EXTENSIBLE + bytes.fromhex("010000002107d3118644c8c1ca000000"),
        _EXTENSIBLE + bytes.fromhex("00000001000000108000") + _PCM_GUID[10:],
        _EXTENSIBLE + bytes(16),
        _EXTENSIBLE[:16] + bytes(2),
        _EXTENSIBLE[:16],
    ],
    ids=["the usual one", "ambisonic", "turned round", "zeros", "without its extension", "as long as a plain one"],
)
def test_an_extensible_format_that_says_little_holds_pcm(layout: bytes) -> None:
    parsed = parse_wav(b"RIFF\0\0\0\0WAVE" + chunk(b"fmt ", layout) + chunk(b"data", SAMPLES))
    assert (bytes(parsed.samples), parsed.bits_per_sample, parsed.is_float) == (SAMPLES, 16, False)


def test_samples_behind_an_empty_chunk_of_them_are_found() -> None:
    assert parse_wav(wav(b"", after=chunk(b"data", SAMPLES))).samples == SAMPLES
    assert parse_wav(wav(b"", after=chunk(b"data", b""))).frames == 0


def test_samples_of_a_width_that_nobody_uses_are_named() -> None:
    with pytest.raises(AudioError, match="stores 64-bit samples"):
        parse_wav(wav(SAMPLES, bits=64))
    with pytest.raises(AudioError, match="stores 16-bit floats"):
        parse_wav(wav(SAMPLES, bits=16, tag=3))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("filler", [b"data", b"fmt ", b"LIST\0\0\0\0", b"data\xff\xff\xff\x7f", b"abcd"])
def test_ten_hostile_megabytes_take_linear_time_here_too(filler: bytes) -> None:
    assert not has_sound(b"RIFF\0\0\0\0WAVEabcd\xff\xff\xff\x7f" + filler * (10_000_000 // len(filler)))


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
