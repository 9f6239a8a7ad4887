"""The recordings that people upload."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from server.audio import (
    REFERENCE_MIME_TYPES,
    AudioError,
    ReferenceKind,
    for_other_readers,
    parse_wav,
    read_recording,
    to_reference_wav,
    wav_header,
)
from tests.audio.samples import box, id3v2, m4a, mp3, tone, wav

WAV_FILE = wav(tone(4.0, 24000).tobytes())
MP3_FILE = mp3(4.0)
M4A_FILE = m4a(4.0)
APE_TAG = b"APETAGEX" + struct.pack("<IIII", 2000, 5032, 1, 0xA0000000) + bytes(8) + b"\xff\xfb\x90\x44" * 1258
CASES = sorted(
    path for path in (Path(__file__).parent.parent / "cases").iterdir() if path.suffix not in (".json", ".txt")
)


def kind_of(data: bytes) -> ReferenceKind:
    return read_recording(data).kind


@pytest.mark.parametrize(
    ("data", "kind"),
    [(WAV_FILE, "wav"), (MP3_FILE, "mp3"), (M4A_FILE, "m4a")],
    ids=["wav", "mp3", "m4a"],
)
@pytest.mark.parametrize(
    "front",
    [
        b"",
        id3v2(40_000),
        id3v2(700) + id3v2(20) + bytes(5),
        APE_TAG,
        APE_TAG + id3v2(100) + bytes(3000),
        b"TAG" + bytes(125),
        bytes(20_000),
    ],
    ids=["nothing", "ID3v2", "two of them and zeros", "APEv2", "three things", "ID3v1", "zeros"],
)
def test_a_recording_is_known_by_its_bytes_whatever_stands_in_front(data: bytes, kind: str, front: bytes) -> None:
    found = read_recording(front + data)
    assert found.kind == kind
    assert found.seconds == pytest.approx(4.0, abs=0.08)
    if kind == "m4a" or not front.startswith(b"ID3"):
        assert found.start == len(front)


@pytest.mark.parametrize(
    "junk",
    [random.Random(5).randbytes(100_000), b"LYRICSBEGIN" + b"la " * 9000, b"\xff\xfb\x90\x44" * 9000, id3v2(500)[:-3]],
    ids=["noise", "an unknown tag", "what looks like frames", "a tag that is too short"],
)
def test_an_mp3_is_found_wherever_its_frames_begin(junk: bytes) -> None:
    found = read_recording(junk + MP3_FILE)
    assert (found.kind, found.sample_rate_hz) == ("mp3", 24000)
    assert found.seconds == pytest.approx(4.0, abs=0.13)
    assert for_other_readers(junk + MP3_FILE, found)[:2] in (b"\xff\xf3", b"ID")


@pytest.mark.parametrize(
    ("data", "kind"), [(WAV_FILE, "wav"), (MP3_FILE, "mp3"), (M4A_FILE, "m4a")], ids=["wav", "mp3", "m4a"]
)
@pytest.mark.parametrize(
    "front",
    [
        b"\xef\xbb\xbf",
        b"\r\n",
        b"ID3\x03\0\0\0\0\0\xf0" + bytes(240),
        b"\xff\xfb\x90\x44" * 1000 + b"APETAGEX" + struct.pack("<IIII", 1000, 4032, 1, 0) + bytes(8),
        b'--limit\r\nContent-Disposition: form-data; name="file"\r\n\r\n',
    ],
    ids=["byte order mark", "line break", "size of a tag in eight bits a byte", "APEv1", "head of a form"],
)
def test_what_nobody_knows_in_front_hides_nothing(data: bytes, kind: str, front: bytes) -> None:
    found = read_recording(front + data)
    assert (found.kind, found.start) == (kind, len(front))
    assert found.seconds == pytest.approx(4.0, abs=0.08)
    assert for_other_readers(front + data, found) == data


@pytest.mark.parametrize("first", [b"uuid", b"styp", b"pdin"])
def test_a_box_that_nobody_expects_may_come_first(first: bytes) -> None:
    assert read_recording(box(first, bytes(40)) + M4A_FILE).kind == "m4a"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("filler", [b"RIFF\0\0\0\0WAVE", b"\0\0\0\x08ftyp", b"....ftyp", b"WAVE"])
def test_ten_megabytes_of_beginnings_take_linear_time(filler: bytes) -> None:
    with pytest.raises(AudioError):
        read_recording(b"?" + filler * (10_000_000 // len(filler)))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", ""),
        (b"\x1a\x45\xdf\xa3" + bytes(200), " This one is WebM or Matroska."),
        (b"OggS" + bytes(200), " This one is Ogg."),
        (id3v2(300) + b"fLaC" + bytes(200), " This one is FLAC."),
        (b"#!AMR\n" + bytes(200), " This one is AMR."),
        (b"FORM\0\0\1\0AIFF" + bytes(200), " This one is AIFF."),
        (b"RIFF\0\0\1\0AVI " + bytes(200), " This one is AVI."),
        (b"riff\x2e\x91\xcf\x11" + bytes(200), " This one is Sony Wave64."),
        ((b"\xff\xf1\x50\x80\x01\x1f\xfc" + bytes(1)) * 500, " This one is AAC without a container."),
        (b"\xff\xfd\x90\x44" + bytes(500), " This one is MPEG (MP2)."),
        (id3v2(300), " This one is nothing but tags."),
        (bytes(1000), " This one is nothing but tags."),
        (b"<!doctype html><html>", ""),
        (random.Random(5).randbytes(100_000), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:8].hex(),
)
def test_anything_else_is_refused_by_its_name(data: bytes, named: str) -> None:
    with pytest.raises(AudioError) as raised:
        read_recording(data)
    assert str(raised.value) == f"The recording must be a WAV, MP3 or M4A file.{named}"


def test_every_kind_has_a_type_for_the_provider() -> None:
    assert {kind_of(data) for data in (WAV_FILE, MP3_FILE, M4A_FILE)} == set(REFERENCE_MIME_TYPES)


def test_a_recording_without_audio_has_no_duration() -> None:
    for data in (wav(b""), m4a(0.0), m4a(4.0, entries=()), id3v2(20) + wav_header(0, 24000)):
        with pytest.raises(AudioError, match=r"holds no audio\.$"):
            read_recording(data)


@pytest.mark.parametrize("data", [WAV_FILE[:3000], MP3_FILE[:3000], M4A_FILE, *(path.read_bytes() for path in CASES)])
def test_damaged_recordings_raise_nothing_but_audio_errors(data: bytes) -> None:
    """Bytes changed, cut and repeated at random: whatever comes of it, it is a recording or an `AudioError`."""
    dice = random.Random(11)
    layout = min(len(data), 300)
    for _ in range(150):
        damaged = bytearray(data if dice.random() < 0.2 else data[:3000] + data[-3000:])
        for _ in range(dice.randrange(1, 12)):
            at = dice.randrange(layout) if dice.random() < 0.7 else dice.randrange(len(damaged))
            damaged[at] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
        cut = bytes(damaged[: dice.randrange(len(damaged))] if dice.random() < 0.3 else damaged)
        try:
            found = read_recording(cut)
            assert found.seconds > 0
            for_other_readers(cut, found)
        except AudioError:
            continue


def test_a_wav_that_is_as_wanted_keeps_its_samples() -> None:
    samples = tone(3.0, 24000).tobytes()
    file = wav(samples, before=b"LIST\x04\0\0\0INFO")
    assert to_reference_wav(file) == wav_header(len(samples), 24000) + samples


@pytest.mark.parametrize(
    ("sample_rate_hz", "channels"), [(8000, 1), (16000, 1), (22050, 2), (44100, 2), (48000, 1), (48000, 6), (24000, 2)]
)
def test_any_other_wav_becomes_24_khz_mono(sample_rate_hz: int, channels: int) -> None:
    samples = tone(3.0, sample_rate_hz, hz=1000.0, channels=channels).tobytes()
    result = parse_wav(to_reference_wav(wav(samples, sample_rate_hz=sample_rate_hz, channels=channels)))
    assert (result.sample_rate_hz, result.channels, result.bits_per_sample, result.data_offset) == (24000, 1, 16, 44)
    assert result.duration_seconds == pytest.approx(3.0, abs=0.001)
    heard = np.frombuffer(result.samples, dtype="<i2").astype(float)[6000:-6000]
    wanted = tone(3.0, 24000, hz=1000.0).astype(float)[6000:-6000]
    # The same tone, at the same pitch, volume and place: what is left of the difference is quieter by 50 dB.
    assert np.sqrt(np.mean((heard - wanted) ** 2)) < 0.003 * np.sqrt(np.mean(wanted**2))


def test_what_24_khz_cannot_hold_does_not_come_back_as_another_tone() -> None:
    samples = tone(3.0, 48000, hz=20_000.0).tobytes()
    result = parse_wav(to_reference_wav(wav(samples, sample_rate_hz=48000)))
    assert np.abs(np.frombuffer(result.samples, dtype="<i2").astype(int)[2400:-2400]).max() < 50


def test_a_header_that_claims_hours_is_refused() -> None:
    with pytest.raises(AudioError, match="too long"):
        to_reference_wav(wav(bytes(2_000_000), sample_rate_hz=1000))
