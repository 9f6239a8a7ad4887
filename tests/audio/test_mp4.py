"""What an M4A holds, and how long it lasts."""

import io
import struct
from typing import Any

import mutagen.mp4
import pytest

from server.audio import AudioError, parse_m4a
from tests.audio.samples import box, esds, m4a, sample_entry, specific_config

OTHER_READER: Any = mutagen.mp4.MP4


@pytest.mark.parametrize("long_form", [False, True])
def test_the_duration_is_what_another_reader_says(long_form: bool) -> None:
    data = m4a(12.5, long_form=long_form)
    assert parse_m4a(data).seconds == 12.5
    assert OTHER_READER(io.BytesIO(data)).info.length == 12.5


def fragmented(*, own_durations: bool, default_in_fragment: bool) -> bytes:
    """Three fragments of 50 samples that last 1024 units of 48,000 each, as a browser records them."""
    header = m4a(0.0, timescale=48000)
    start = header.index(b"moov") - 4
    movie = header[start + 8 :] + box(b"mvex", box(b"trex", struct.pack(">IIIIII", 0, 1, 1, 1024, 0, 0)))
    fragments = b""
    for _ in range(3):
        tfhd = struct.pack(">IIQI", 0x9, 1, 0, 1024) if default_in_fragment else struct.pack(">II", 0, 1)
        rows = b"".join(struct.pack(">II", 1024, 300) for _ in range(50))
        trun = struct.pack(">IIi", 0x301, 50, 8) + rows if own_durations else struct.pack(">IIi", 0x1, 50, 8)
        fragments += box(b"moof", box(b"mfhd", bytes(8)), box(b"traf", box(b"tfhd", tfhd), box(b"trun", trun)))
        fragments += box(b"mdat", bytes(100))
    return header[:start] + box(b"moov", movie) + fragments


@pytest.mark.parametrize("own_durations", [False, True])
@pytest.mark.parametrize("default_in_fragment", [False, True])
def test_fragments_are_summed_up(own_durations: bool, default_in_fragment: bool) -> None:
    data = fragmented(own_durations=own_durations, default_in_fragment=default_in_fragment)
    assert parse_m4a(data).seconds == pytest.approx(150 * 1024 / 48000)


def test_a_track_that_is_no_sound_does_not_count() -> None:
    with pytest.raises(AudioError):
        parse_m4a(m4a(5.0, handler=b"vide"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        box(b"ftyp", b"M4A "),
        m4a(0.0),
        m4a(5.0, timescale=0),
        m4a(5.0)[:-150],
        box(b"ftyp") + box(b"moov", box(b"trak", box(b"mdia", box(b"mdhd", b"\0")))),
        box(b"ftyp") + struct.pack(">I4s", 1, b"moov"),
        box(b"ftyp") + struct.pack(">I4sQ", 1, b"moov", 3),
        box(b"ftyp") + struct.pack(">I4s", 3, b"moov"),
        box(b"ftyp") + struct.pack(">I4s", 0, b"moov") * 100,
        box(b"ftyp") + box(b"moov") * 150_000,
    ],
    ids=lambda data: str(len(data)),
)
def test_nonsense_is_an_audio_error(data: bytes) -> None:
    with pytest.raises(AudioError, match=r"This (M4A|MP4|QuickTime) file"):
        parse_m4a(data)


@pytest.mark.timeout(20)
def test_a_fragment_that_claims_billions_of_samples_costs_nothing() -> None:
    trun = struct.pack(">II", 0x100, 0xFFFFFFFF) + bytes(5_000_000)
    many = m4a(5.0) + box(b"moof", box(b"traf", box(b"tfhd", struct.pack(">II", 0, 1)), box(b"trun", trun)))
    assert parse_m4a(many).seconds == 5.0


AAC = esds(specific_config(48000))


@pytest.mark.parametrize(
    ("entry", "rate_hz"),
    [
        (sample_entry(b"mp4a", 48000, AAC), 48000),
        (sample_entry(b"mp4a", 16000, esds(specific_config(16000))), 16000),
        (sample_entry(b"mp4a", 24000, esds(specific_config(24000, raised_to_hz=48000))), 48000),
        (sample_entry(b"mp4a", 22050, esds(bytes.fromhex("2b92080000"))), 44100),
        (sample_entry(b"mp4a", 44100, esds(specific_config(22050))), 44100),
        (sample_entry(b"mp4a", 16000, box(b"wave", box(b"frma", b"mp4a"), AAC), version=1), 48000),
        (sample_entry(b"mp4a", 32000, version=2), 32000),
        (sample_entry(b"mp4a", 48000, esds(b"", object_type=0x67)), 48000),
        (sample_entry(b"mp4a", 0), 0),
    ],
    ids=[
        "LC",
        "16 kHz",
        "HE told at the back",
        "HE told at the front",
        "fields that disagree",
        "QuickTime",
        "version 2",
        "MPEG-2",
        "says nothing",
    ],
)
def test_the_rate_is_what_a_decoder_makes_of_it(entry: bytes, rate_hz: int) -> None:
    assert parse_m4a(m4a(5.0, entries=(entry,))).sample_rate_hz == rate_hz


@pytest.mark.parametrize(
    ("brand", "entry", "sentence"),
    [
        (b"M4A ", sample_entry(b"alac"), "This M4A file holds Apple Lossless (ALAC) audio"),
        (b"3gp4", sample_entry(b"samr", 8000), "This 3GP file holds AMR audio"),
        (b"3g2a", sample_entry(b"sqcp", 8000), "This 3GP file holds QCELP audio"),
        (b"isom", sample_entry(b"Opus", 48000), "This MP4 file holds Opus audio"),
        (b"mp42", sample_entry(b"ac-3", 48000), "This MP4 file holds Dolby Digital (AC-3) audio"),
        (b"mp42", sample_entry(b"fLaC", 48000), "This MP4 file holds FLAC audio"),
        (b"qt  ", sample_entry(b"lpcm", version=2), "This QuickTime file holds uncompressed (PCM) audio"),
        (b"qt  ", sample_entry(b"ms\0\x11"), "This QuickTime file holds IMA ADPCM audio"),
        (b"M4P ", sample_entry(b"drms"), "This M4A file holds copy-protected audio"),
        (b"isom", sample_entry(b"zzz9"), "This MP4 file holds “zzz9” audio"),
        (b"isom", sample_entry(b"\0\1\2\3"), "This MP4 file holds unknown audio"),
        (b"isom", sample_entry(b"mp4a", 44100, esds(b"", object_type=0x6B)), "This MP4 file holds MP3 audio"),
        (
            b"M4A ",
            sample_entry(b"mp4a", 44100, esds(specific_config(44100, object_type=42))),
            "This M4A file holds xHE-AAC (USAC) audio",
        ),
    ],
    ids=lambda value: value[4:8].decode("latin-1") if isinstance(value, bytes) and len(value) > 4 else None,
)
def test_a_codec_that_cannot_be_used_is_named_with_the_way_out(brand: bytes, entry: bytes, sentence: str) -> None:
    with pytest.raises(AudioError) as raised:
        parse_m4a(m4a(5.0, brand=brand, entries=(entry,)))
    assert str(raised.value) == f"{sentence}, which cannot be used. Please save it as M4A (AAC) or WAV and upload that."


def test_what_stands_after_the_last_box_changes_nothing() -> None:
    for after in (bytes(100), b"\0\0\0\3junk", b"TAG" + bytes(125), b"\xff" * 7, struct.pack(">I4s", 1, b"free")):
        assert parse_m4a(m4a(5.0) + after).seconds == 5.0


def test_a_track_that_can_be_used_is_found_beside_one_that_cannot() -> None:
    both = m4a(5.0, entries=(sample_entry(b"apac"), sample_entry(b"mp4a", 48000, AAC)))
    assert parse_m4a(both).sample_rate_hz == 48000
