"""How long the sound of an M4A lasts, told by its boxes alone.

Source: ISO/IEC 14496-12 (the ISO base media file format): boxes, ``mdhd``, ``hdlr``, ``trex``, ``tfhd``, ``trun``.
"""

import struct
from collections.abc import Iterator

from server.audio.errors import AudioError

_MOST_BOXES = 100_000  # a minute of fragments has hundreds; ten megabytes of empty boxes would cost seconds
_CONTAINERS = {b"moov", b"trak", b"mdia", b"mvex", b"moof", b"traf"}
_UNKNOWN_32, _UNKNOWN_64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
_TFHD_BASE_OFFSET, _TFHD_DESCRIPTION, _TFHD_DURATION = 0x1, 0x2, 0x8
_TRUN_DATA_OFFSET, _TRUN_FIRST_FLAGS, _TRUN_DURATION = 0x1, 0x4, 0x100
_TRUN_PER_SAMPLE = (0x100, 0x200, 0x400, 0x800)


class _Track:
    """What the boxes say about one track; ``fragment_units`` counts what its fragments add."""

    def __init__(self) -> None:
        self.track_id = 0
        self.is_sound = False
        self.timescale = 0
        self.units = 0
        self.default_units = 0
        self.fragment_units = 0


def m4a_duration_seconds(data: bytes | bytearray | memoryview) -> float:
    """The longest sound track, in seconds; fragmented files (as browsers record them) are summed up.

    Linear, and at most about 0.2 s of work. A box that claims to reach behind the end is taken to end there.

    Raises:
        AudioError: If there is no sound track with a duration, or the boxes make no sense.
    """
    view = memoryview(data).cast("B")
    try:
        tracks = _read_tracks(view)
    except struct.error as exc:
        raise AudioError("This M4A file is damaged.") from exc
    seconds = [
        max(track.units, track.fragment_units) / track.timescale
        for track in tracks
        if track.is_sound and track.timescale > 0
    ]
    if not seconds or max(seconds) <= 0:
        raise AudioError("This M4A file holds no audio.")
    return max(seconds)


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
    """Every box in file order, a container before what is in it. ``body`` begins behind the size and the name."""
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
        if size == 1:
            if begin + 8 > end:
                raise AudioError("This M4A file is damaged.")
            (size,) = struct.unpack_from(">Q", view, begin)
            begin += 8
        box_end = end if size == 0 else min(at + size, end)
        if box_end < begin:
            raise AudioError("This M4A file is damaged.")
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
