"""How long an MP3 sounds, told by its frame headers alone.

Source: ISO/IEC 11172-3 and 13818-3 for layer III headers; MPEG 2.5 (8, 11.025 and 12 kHz) is the usual extension of
them; the places of Xing, Info and VBRI marks are those that every encoder in use follows.
"""

import re

from server.audio.tags import ID3V1_BYTES, ID3V2_BYTES, id3v2_bytes

_VERSIONS = {0b00: "2.5", 0b10: "2", 0b11: "1"}
_RATES_HZ = {"1": (44100, 48000, 32000), "2": (22050, 24000, 16000), "2.5": (11025, 12000, 8000)}
_KBPS_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def _frame_kinds() -> dict[int, tuple[int, int, int]]:
    """``(length in bytes, samples, rate)`` by the second and third byte of a header, for every legal layer III one."""
    kinds: dict[int, tuple[int, int, int]] = {}
    for version_bits, version in _VERSIONS.items():
        samples = 1152 if version == "1" else 576
        for unprotected in (0, 1):
            second = 0xE0 | version_bits << 3 | 0b01 << 1 | unprotected
            for bitrate_index, kbps in enumerate(_KBPS_1 if version == "1" else _KBPS_2, start=1):
                for rate_index, rate_hz in enumerate(_RATES_HZ[version]):
                    for padding in (0, 1):
                        length = samples // 8 * kbps * 1000 // rate_hz + padding
                        for private in (0, 1):
                            third = bitrate_index << 4 | rate_index << 2 | padding << 1 | private
                            kinds[second << 8 | third] = (length, samples, rate_hz)
    return kinds


_KINDS = _frame_kinds()
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]")
_SAME_STREAM = 0xFE0C  # version, layer and sampling rate: what two neighbours of one stream share
_MOST_DISTRACTIONS = 65_536
_BELIEVED_FRAMES = 4  # so many in a row are no accident, in ten megabytes of anything


class Mp3Clock:
    """Counts the frames of an MP3 that arrives in slices cut anywhere, holding at most one frame of it.

    - A frame counts when it is whole. A frame that opens with a Xing, Info or VBRI mark is an index and carries no
      speech, so it never counts, wherever it stands. Encoder delay and padding do count: they are played.
    - ID3v2 and ID3v1 tags are stepped over, also between the parts of several streams put together.
    - After anything else the clock looks for the next frame; one that does not directly follow another is believed
      only when a second one of the same stream, a tag, or the end follows it.
    - Free-format streams (no bit rate in the header) are not understood.

    The work is linear. After 65,536 tags and places that only looked like frames it stops listening (``lost``): these
    bytes are no MP3.
    """

    def __init__(self) -> None:
        self.lost = False
        self._tail = b""
        self._skip = 0  # bytes of a tag that are still to come
        self._at_border = True  # nothing, a whole frame or a whole tag lies directly before
        self._in_stream = False  # a whole frame lies directly before
        self._distractions = 0
        self._counts: dict[tuple[int, int], int] = {}

    @property
    def frames(self) -> int:
        return sum(self._counts.values()) + (1 if self._last_unconfirmed() else 0)

    @property
    def seconds(self) -> float:
        """The duration so far. A last frame of which bytes are missing is not in it."""
        total = sum(count * samples / rate_hz for (samples, rate_hz), count in self._counts.items())
        if last := self._last_unconfirmed():
            total += last[1] / last[2]
        return total

    @property
    def sample_rate_hz(self) -> int:
        """The rate of most of what sounds; 0 before the first frame is confirmed."""
        sounding: dict[int, float] = {}
        for (samples, rate_hz), count in self._counts.items():
            sounding[rate_hz] = sounding.get(rate_hz, 0.0) + count * samples / rate_hz
        return max(sounding, key=lambda rate_hz: sounding[rate_hz], default=0)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        if self.lost:
            return
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        if skipped:
            data = memoryview(data)[skipped:]
        self._tail = self._walk(self._tail + data if self._tail else bytes(data))

    def _walk(self, data: bytes) -> bytes:
        """Count what is whole in ``data`` and return the rest."""
        end = len(data)
        at = 0
        while at < end:
            if self._at_border:
                tag = tag_bytes(data, at)
                if tag is None:
                    break
                if tag:
                    if self._distracted():
                        return b""
                    self._in_stream = False
                    self._skip = max(0, at + tag - end)
                    at = min(at + tag, end)
                    continue
            if self._in_stream:
                if end - at < 4:
                    break
                kind = frame_kind(data, at)
                if kind is None:
                    self._at_border = self._in_stream = False
                    continue
            else:
                match = _SYNC.search(data, at)
                if match is None:
                    self._at_border = self._at_border and end - at < 3
                    at = max(at, end - 2)
                    break
                self._at_border = self._at_border and match.start() == at
                at = match.start()
                if end - at < 4:
                    break
                kind = frame_kind(data, at)
                if kind is not None and end - at < kind[0] + 4:
                    break
                if kind is None or not continues(data, at, at + kind[0]):
                    if self._distracted():
                        return b""
                    self._at_border = False
                    at += 1
                    continue
            length, samples, rate_hz = kind
            if end - at < length:
                break
            if not is_index(data, at):
                self._counts[samples, rate_hz] = self._counts.get((samples, rate_hz), 0) + 1
            self._at_border = self._in_stream = True
            at += length
        return data[at:]

    def _distracted(self) -> bool:
        self._distractions += 1
        self.lost = self._distractions > _MOST_DISTRACTIONS
        return self.lost

    def _last_unconfirmed(self) -> tuple[int, int, int] | None:
        """The kind of a frame that nothing follows yet, where it is exactly whole."""
        if self._in_stream or self._skip or len(self._tail) < 4:
            return None
        kind = frame_kind(self._tail, 0)
        return kind if kind and kind[0] == len(self._tail) and not is_index(self._tail, 0) else None


def mp3_duration_seconds(data: bytes | bytearray | memoryview) -> float:
    """How long an MP3 sounds, by its frames (see `Mp3Clock`); 0.0 for bytes that hold none."""
    clock = Mp3Clock()
    clock.feed(data)
    return clock.seconds


def frame_kind(data: bytes, at: int) -> tuple[int, int, int] | None:
    """``(length in bytes, samples, rate)`` of the frame whose header stands at ``at``; None where none does."""
    if data[at] != 0xFF or data[at + 3] & 0b11 == 0b10:  # emphasis 2 is reserved
        return None
    return _KINDS.get(data[at + 1] << 8 | data[at + 2])


def next_sync(data: bytes, at: int) -> int:
    """Where from ``at`` on something looks like a frame; near the end of the data, where that could still turn out."""
    match = _SYNC.search(data, at)
    return match.start() if match else max(at, len(data) - 3)


def continues(data: bytes, at: int, following: int) -> bool:
    """Whether what stands at ``following`` makes a frame at ``at`` believable."""
    if data.startswith((b"ID3", b"TAG"), following):
        return True
    if frame_kind(data, following) is None:
        return False
    one = data[at + 1] << 8 | data[at + 2]
    other = data[following + 1] << 8 | data[following + 2]
    return (one ^ other) & _SAME_STREAM == 0


def is_mpeg_1(data: bytes, at: int) -> bool:
    """Whether the frame at ``at`` is of MPEG-1, and not of MPEG-2 or 2.5."""
    return data[at + 1] >> 3 & 0b11 == 0b11


def side_info_bytes(data: bytes, at: int) -> int:
    """How long the side information of the frame at ``at`` is."""
    mono = data[at + 3] >> 6 == 0b11
    return {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}[is_mpeg_1(data, at), mono]


def is_index(data: bytes, at: int) -> bool:
    """Whether the frame at ``at`` is a Xing, Info or VBRI frame: a table of contents without sound."""
    mark = at + 4 + side_info_bytes(data, at)
    return data[mark : mark + 4] in (b"Xing", b"Info") or data[at + 36 : at + 40] == b"VBRI"


def tag_bytes(data: bytes, at: int) -> int | None:
    """Length of the ID3 tag that begins at ``at``; 0 where none does, None where more bytes must tell."""
    start = data[at : at + ID3V2_BYTES]
    if start[:1] not in (b"I", b"T"):
        return 0
    if len(start) < 3:
        return None if b"ID3".startswith(start) or b"TAG".startswith(start) else 0
    if start.startswith(b"TAG"):
        return ID3V1_BYTES
    if start.startswith(b"ID3") and len(start) < ID3V2_BYTES:
        return None
    return id3v2_bytes(start)


def find_frames(view: memoryview, at: int = 0) -> int | None:
    """Where several frames of one stream directly follow one another for the first time; None where they never do.

    Linear: what only looks like a frame is looked at once, and at most 65,536 of it.
    """
    for tried, match in enumerate(_SYNC.finditer(view, at)):
        if _begins_stream(view, match.start()):
            return match.start()
        if tried >= _MOST_DISTRACTIONS:
            break
    return None


def _begins_stream(view: memoryview, at: int) -> bool:
    first = None
    for seen in range(_BELIEVED_FRAMES):
        head = bytes(view[at : at + 4])
        if seen and (at == len(view) or head.startswith((b"ID3", b"TAG", b"APET"))):
            return True
        kind = frame_kind(head, 0) if len(head) == 4 else None
        if kind is None:
            return False
        mark = (head[1] << 8 | head[2]) & _SAME_STREAM
        if first is None:
            first = mark
        elif mark != first:
            return False
        at += kind[0]
    return True
