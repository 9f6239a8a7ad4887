"""What an M4A holds (or an MP4, a MOV, a 3GP: all are the same boxes), told by its boxes alone.

Source: ISO/IEC 14496-12 (the ISO base media file format): boxes, ``mdhd``, ``hdlr``, ``stsd``, ``trex``, ``tfhd``,
``trun``; ISO/IEC 14496-14 and 14496-3 for ``esds`` and the AudioSpecificConfig in it; Apple, "QuickTime File Format
Specification", for sound descriptions of versions 1 and 2.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from server.audio.codecs import object_type_codec, sample_entry_codec
from server.audio.errors import AudioError
from server.audio.tags import FIRST_BOXES

_MOST_BOXES = 100_000  # a minute of fragments has hundreds; ten megabytes of empty boxes would cost seconds
_CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf"}
_MOST_DESCRIPTIONS = 16
_DESCRIPTION_BYTES = 65_536
_BRANDS = ((b"qt", "QuickTime"), (b"3g", "3GP"), (b"M4A", "M4A"), (b"M4B", "M4A"), (b"M4P", "M4A"))
_UNKNOWN_32, _UNKNOWN_64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
_TFHD_BASE_OFFSET, _TFHD_DESCRIPTION, _TFHD_DURATION = 0x1, 0x2, 0x8
_TRUN_DATA_OFFSET, _TRUN_FIRST_FLAGS, _TRUN_DURATION = 0x1, 0x4, 0x100
_TRUN_PER_SAMPLE = (0x100, 0x200, 0x400, 0x800)


@dataclass(frozen=True)
class M4a:
    """The sound of an M4A file.

    Attributes:
        sample_rate_hz: Of what a decoder makes of it, the highest of what the headers say; 0 where they say nothing.
    """

    seconds: float
    sample_rate_hz: int


class _Track:
    """What the boxes say about one track; ``fragment_units`` counts what its fragments add."""

    def __init__(self) -> None:
        self.track_id = 0
        self.is_sound = False
        self.timescale = 0
        self.units = 0
        self.default_units = 0
        self.fragment_units = 0
        self.refused: str | None = None
        self.aac_rate_hz: int | None = None

    @property
    def seconds(self) -> float:
        return max(self.units, self.fragment_units) / self.timescale if self.timescale else 0.0


def is_m4a(start: bytes) -> bool:
    """Whether a file with these first eight bytes begins with a box that files of this kind begin with."""
    return start[4:8] in FIRST_BOXES


def parse_m4a(data: bytes | bytearray | memoryview) -> M4a:
    """The longest AAC track; fragmented files (as browsers record them) are summed up.

    Linear, and at most about 0.2 s of work. A box that claims to reach beyond the end is taken to end there.

    Raises:
        AudioError: If there is no AAC track with a duration, or the boxes make no sense. The sentence names another
            codec where there is one.
    """
    view = memoryview(data).cast("B")
    container = _container(bytes(view[:12]))
    try:
        tracks = [track for track in _read_tracks(view) if track.is_sound]
    except struct.error as exc:
        raise AudioError(f"This {container} file is damaged.") from exc
    aac = [track for track in tracks if track.aac_rate_hz is not None]
    refused = [track.refused for track in tracks if track.refused]
    if refused and not aac:
        raise AudioError(
            f"This {container} file holds {refused[0]} audio, which cannot be used. "
            "Please save it as M4A (AAC) or WAV and upload that."
        )
    longest = max(aac, key=lambda track: track.seconds, default=None)
    if longest is None or longest.seconds <= 0:
        raise AudioError(f"This {container} file holds no audio.")
    return M4a(longest.seconds, longest.aac_rate_hz or 0)


def _container(start: bytes) -> str:
    """What people call a file of this major brand."""
    if start[4:8] != b"ftyp":
        return "QuickTime"
    return next((name for brand, name in _BRANDS if start[8:12].startswith(brand)), "MP4")


def _read_tracks(view: memoryview) -> list[_Track]:
    tracks: list[_Track] = []
    default_units: dict[int, int] = {}
    fragments: list[tuple[int, int | None, int, int]] = []  # track, own default, samples without duration, units
    fragment_track, fragment_default = 0, None
    for name, body in _boxes(view):
        if name == b"trak":
            tracks.append(_Track())
        elif name == b"traf":
            fragment_track, fragment_default = 0, None
        elif name == b"trex":
            _, track_id, _, units = struct.unpack_from(">IIII", body)
            default_units[track_id] = units
        elif name == b"tfhd":
            fragment_track, fragment_default = _read_tfhd(body)
        elif name == b"trun":
            samples, units = _read_trun(body)
            fragments.append((fragment_track, fragment_default, samples, units))
        elif tracks:
            _read_track_box(name, body, tracks[-1])
    by_id = {track.track_id: track for track in tracks}
    for track_id, own_default, samples, units in fragments:
        if track := by_id.get(track_id):
            default = default_units.get(track_id, 0) if own_default is None else own_default
            track.fragment_units += units + samples * default
    return tracks


def _boxes(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Every box in file order, a container before what is in it. ``body`` begins after the size and the name."""
    seen = 0
    open_ends = [len(view)]
    at = 0
    while open_ends:
        end = open_ends[-1]
        if at + 8 > end:
            at = end
            open_ends.pop()
            continue
        seen += 1
        if seen > _MOST_BOXES:
            raise AudioError("This M4A file is damaged.")
        size, name = struct.unpack_from(">I4s", view, at)
        begin = at + 8
        if size == 1 and begin + 8 <= end:
            (size,) = struct.unpack_from(">Q", view, begin)
            begin += 8
        box_end = end if size == 0 else min(at + size, end)
        if box_end < begin:
            at = end  # no box: whatever stands here, what stands around it is still good
            continue
        yield name, view[begin:box_end]
        if name in _CONTAINERS and len(open_ends) < 8:
            open_ends.append(box_end)
            at = begin
        else:
            at = box_end


def _read_track_box(name: bytes, body: memoryview, track: _Track) -> None:
    if name == b"tkhd":
        (track.track_id,) = struct.unpack_from(">I", body, 20 if _version(body) == 1 else 12)
    elif name == b"hdlr":
        track.is_sound = track.is_sound or bytes(body[8:12]) == b"soun"
    elif name == b"mdhd":
        if _version(body) == 1:
            track.timescale, units = struct.unpack_from(">IQ", body, 20)
        else:
            track.timescale, units = struct.unpack_from(">II", body, 12)
        track.units = 0 if units in (_UNKNOWN_32, _UNKNOWN_64) else units
    elif name == b"stsd":
        _read_descriptions(body, track)


def _read_descriptions(body: memoryview, track: _Track) -> None:
    """What the track's samples are: AAC with its rate, or the name of something else.

    Source: ISO/IEC 14496-12, 8.5.2 and 12.2.3; of a video track nothing is used.
    """
    at = 8
    for _ in range(_MOST_DESCRIPTIONS):
        if at + 36 > len(body):
            return
        size, name = struct.unpack_from(">I4s", body, at)
        entry = bytes(body[at : at + min(size or _DESCRIPTION_BYTES, _DESCRIPTION_BYTES)])
        if len(entry) < 36:
            return
        config = _read_config(entry)
        codec = object_type_codec(*config[:2]) if config else None
        if name == b"mp4a" and codec is None:
            rates = [_entry_rate_hz(entry), config[2] if config else 0, track.aac_rate_hz or 0]
            track.aac_rate_hz = max(rates)
        else:
            track.refused = track.refused or codec or sample_entry_codec(name)
        at += len(entry)


def _entry_rate_hz(entry: bytes) -> int:
    (version,) = struct.unpack_from(">H", entry, 16)
    (rate_hz,) = struct.unpack_from(">H", entry, 32)
    if version == 2 and len(entry) >= 48:
        (exact,) = struct.unpack_from(">d", entry, 40)
        rate_hz = int(exact) if 0 < exact < 1e6 else 0
    return int(rate_hz)


def _read_config(entry: bytes) -> tuple[int, int, int] | None:
    """``(object type, audio object type, sample rate)`` of the ``esds`` in a sample entry; None where there is none."""
    match = re.search(rb"esds.{4}\x03", entry, re.DOTALL)
    if match is None:
        return None
    try:
        at = _after_length(entry, match.end())
        flags = entry[at + 2]
        at += 3 + (2 if flags & 0x80 else 0) + (2 if flags & 0x20 else 0)
        if flags & 0x40:
            at += 1 + entry[at]
        if entry[at] != 0x04:
            return None
        at = _after_length(entry, at + 1)
        object_type = entry[at]
        at += 13
        if entry[at] != 0x05:
            return object_type, 0, 0
        begin = _after_length(entry, at + 1)
        return (object_type, *_read_specific_config(entry[begin : begin + min(entry[begin - 1] & 0x7F, 64)]))
    except IndexError:
        return None


def _after_length(entry: bytes, at: int) -> int:
    """Where a descriptor's body begins: its length takes one to four bytes of seven bits."""
    for _ in range(4):
        at += 1
        if not entry[at - 1] & 0x80:
            break
    return at


_AAC_RATES_HZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)


class _Bits:
    """Reads big-endian bits; what lies after the end is zero."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self.left = len(data) * 8

    def take(self, count: int) -> int:
        self.left -= count
        value = self._value >> self.left if self.left >= 0 else 0
        return value & ((1 << count) - 1)

    def object_type(self) -> int:
        first = self.take(5)
        return 32 + self.take(6) if first == 31 else first

    def rate_hz(self) -> int:
        index = self.take(4)
        if index == 15:
            return self.take(24)
        return _AAC_RATES_HZ[index] if index < len(_AAC_RATES_HZ) else 0


def _read_specific_config(config: bytes) -> tuple[int, int]:
    """``(audio object type, sample rate)``, with the rate that spectral band replication (HE-AAC) raises it to."""
    bits = _Bits(config)
    object_type, rate_hz = bits.object_type(), bits.rate_hz()
    channels = bits.take(4)
    if object_type in (5, 29):  # told at the front
        return 2, max(rate_hz, bits.rate_hz())
    if object_type in (1, 2, 3, 4) and channels:
        bits.take(1)
        bits.take(1 + 14 if bits.take(1) else 1)
        if bits.take(11) == 0x2B7 and bits.object_type() == 5 and bits.take(1):  # told at the back
            rate_hz = max(rate_hz, bits.rate_hz())
    return object_type, rate_hz


def _version(body: memoryview) -> int:
    return body[0] if len(body) else 0


def _read_tfhd(body: memoryview) -> tuple[int, int | None]:
    """``(track, the fragment's own default duration of a sample)``."""
    flags, track_id = struct.unpack_from(">II", body)
    at = 8 + (8 if flags & _TFHD_BASE_OFFSET else 0) + (4 if flags & _TFHD_DESCRIPTION else 0)
    if not flags & _TFHD_DURATION:
        return track_id, None
    (units,) = struct.unpack_from(">I", body, at)
    return track_id, units


def _read_trun(body: memoryview) -> tuple[int, int]:
    """``(samples that last the default duration, units of those that say their own)``."""
    flags, samples = struct.unpack_from(">II", body)
    if not flags & _TRUN_DURATION:
        return samples, 0
    at = 8 + (4 if flags & _TRUN_DATA_OFFSET else 0) + (4 if flags & _TRUN_FIRST_FLAGS else 0)
    row_bytes = 4 * sum(1 for flag in _TRUN_PER_SAMPLE if flags & flag)
    there = min(samples, max(0, len(body) - at) // row_bytes)
    rows = body[at : at + there * row_bytes]
    return 0, sum(row[0] for row in struct.iter_unpack(f">I{row_bytes - 4}x", rows))
