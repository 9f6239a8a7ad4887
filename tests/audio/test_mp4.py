"""How long the sound of an M4A lasts."""

import io
import struct
from typing import Any

import mutagen.mp4
import pytest

from server.audio import AudioError, m4a_duration_seconds
from tests.audio.samples import box, m4a

OTHER_READER: Any = mutagen.mp4.MP4


@pytest.mark.parametrize("long_form", [False, True])
def test_the_duration_is_what_another_reader_says(long_form: bool) -> None:
    data = m4a(12.5, long_form=long_form)
    assert m4a_duration_seconds(data) == 12.5
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
    assert m4a_duration_seconds(data) == pytest.approx(150 * 1024 / 48000)


def test_a_track_that_is_no_sound_does_not_count() -> None:
    with pytest.raises(AudioError):
        m4a_duration_seconds(m4a(5.0, handler=b"vide"))


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
    with pytest.raises(AudioError, match="M4A"):
        m4a_duration_seconds(data)


@pytest.mark.timeout(20)
def test_a_fragment_that_claims_billions_of_samples_costs_nothing() -> None:
    trun = struct.pack(">II", 0x100, 0xFFFFFFFF) + bytes(5_000_000)
    many = m4a(5.0) + box(b"moof", box(b"traf", box(b"tfhd", struct.pack(">II", 0, 1)), box(b"trun", trun)))
    assert m4a_duration_seconds(many) == 5.0
