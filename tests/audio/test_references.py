"""The recordings that people upload."""

import random

import numpy as np
import pytest

from server.audio import (
    REFERENCE_MIME_TYPES,
    AudioError,
    ReferenceKind,
    identify,
    parse_wav,
    reference_duration_seconds,
    to_reference_wav,
    wav_header,
)
from tests.audio.samples import id3v2, m4a, mp3, tone, wav

WAV_FILE = wav(tone(4.0, 24000).tobytes())
MP3_FILE = mp3(4.0)
M4A_FILE = m4a(4.0)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (WAV_FILE, "wav"),
        (MP3_FILE, "mp3"),
        (id3v2(40_000) + MP3_FILE, "mp3"),
        (M4A_FILE, "m4a"),
        (wav_header(None, 24000), "wav"),
        (b"", None),
        (b"\x1a\x45\xdf\xa3" + bytes(200), None),
        (b"OggS" + bytes(200), None),
        (b"fLaC" + bytes(200), None),
        (b"\xff\xf1\x50\x80" * 500, None),
        (b"<!doctype html><html>", None),
        (random.Random(5).randbytes(100_000), None),
    ],
    ids=["wav", "mp3", "mp3 with a tag", "m4a", "header", "empty", "webm", "ogg", "flac", "adts", "html", "noise"],
)
def test_a_recording_is_known_by_its_bytes(data: bytes, kind: str | None) -> None:
    assert identify(data) == kind


@pytest.mark.parametrize(("data", "kind"), [(WAV_FILE, "wav"), (MP3_FILE, "mp3"), (M4A_FILE, "m4a")])
def test_its_duration_is_read_from_its_own_structure(data: bytes, kind: ReferenceKind) -> None:
    assert reference_duration_seconds(data, kind) == pytest.approx(4.0, abs=0.08)
    assert kind in REFERENCE_MIME_TYPES


@pytest.mark.parametrize("kind", ["wav", "mp3", "m4a"])
def test_a_recording_without_audio_has_no_duration(kind: ReferenceKind) -> None:
    for data in (b"", b"ID3\4\0\0\0\0\0\0", wav(b""), m4a(0.0), bytes(1000)):
        with pytest.raises(AudioError, match=r"\.$"):
            reference_duration_seconds(data, kind)


@pytest.mark.parametrize("data", [WAV_FILE[:3000], MP3_FILE[:3000], M4A_FILE])
def test_damaged_recordings_raise_nothing_but_audio_errors(data: bytes) -> None:
    """Bytes changed, cut and repeated at random: whatever comes of it, it is a number or an `AudioError`."""
    dice = random.Random(11)
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(dice.randrange(1, 12)):
            damaged[dice.randrange(min(len(damaged), 300))] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
        cut = bytes(damaged[: dice.randrange(len(damaged))] if dice.random() < 0.3 else damaged)
        identify(cut)
        for kind in REFERENCE_MIME_TYPES:
            try:
                assert reference_duration_seconds(cut, kind) > 0
            except AudioError:
                continue
    for _ in range(50):
        damaged = bytearray(data)
        damaged[dice.randrange(12, 44)] = dice.randrange(256)
        try:
            to_reference_wav(damaged)
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
