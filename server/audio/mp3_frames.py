"""Whole frames of an MP3 that arrives in slices cut anywhere, and how a second stream is joined to a first one.

The headers are those of ``mp3``, whose tables this shares.
"""

from server.audio.mp3 import (
    continues,
    frame_kind,
    is_index,
    is_mpeg_1,
    next_sync,
    side_info_bytes,
    tag_bytes,
)

_HEADER_BYTES = 4


class WholeFrames:
    """Hands on what is whole, holds at most one frame, and leaves out what is no frame (tags, noise).

    The first frame, and one after noise, is believed once another of the same stream follows it, or the end.

    Attributes:
        seconds: How long the frames sound that were handed on.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._tail = b""
        self._skip = 0  # bytes of a tag that are still to come
        self._aligned = False  # a whole frame lies directly before

    def feed(self, data: bytes) -> bytes:
        """The frames that have become whole."""
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        return self._walk(self._tail + data[skipped:], ended=False)

    def finish(self) -> bytes:
        """A last frame that nothing follows. What is not whole by now is left out."""
        return self._walk(self._tail, ended=True)

    def _walk(self, data: bytes, *, ended: bool) -> bytes:
        end, at = len(data), 0
        whole: list[bytes] = []
        begun: int | None = None  # where a run of neighbouring frames begins
        while end - at >= _HEADER_BYTES:
            tag = tag_bytes(data, at)
            if tag is None and not ended:
                break
            if tag:
                _take(whole, data, begun, at)
                begun = None
                self._aligned = False
                self._skip = max(0, at + tag - end)
                at = min(end, at + tag)
                continue
            kind = frame_kind(data, at)
            if kind is None:
                _take(whole, data, begun, at)
                begun = None
                self._aligned = False
                at = next_sync(data, at + 1)
                continue
            length, samples, rate_hz = kind
            if not self._aligned:
                if end - at < length + _HEADER_BYTES and not (ended and end - at == length):
                    if not ended:
                        break
                    at = next_sync(data, at + 1)
                    continue
                if end - at > length and not continues(data, at, at + length):
                    at = next_sync(data, at + 1)
                    continue
            if end - at < length:
                break
            if begun is None:
                begun = at
            self.seconds += samples / rate_hz
            self._aligned = True
            at += length
        _take(whole, data, begun, at)
        self._tail = b"" if ended else data[at:]
        return b"".join(whole)


def _take(whole: list[bytes], data: bytes, begun: int | None, at: int) -> None:
    """Keep the run of frames that ends at ``at``; the next one has not begun."""
    if begun is not None:
        whole.append(data[begun:at])


class Mp3Joint:
    """What of a second stream follows a first one, frame by frame.

    Index frames are left out, and so is as much of its beginning as was heard already. Layer III lets a frame begin its
    data in the frames before it ("bit reservoir"): one that reaches back beyond the joint would be decoded from another
    stream's data, so it is silent; its own data stays where the next frame may look for it.

    Args:
        given_seconds: How much of the second stream was heard already.

    Source: ISO/IEC 11172-3, 2.4.1.7 and 2.4.2.7 (``main_data_begin``), 13818-3 for MPEG-2.
    """

    def __init__(self, given_seconds: float) -> None:
        self._left = given_seconds
        self._reservoir: int | None = 0  # bytes of data since the joint; None once no frame can reach back further

    def leave_away_at_most(self, seconds: float) -> None:
        """Of what follows no more was heard than this."""
        self._left = min(self._left, seconds)

    def feed(self, frames: bytes) -> bytes:
        """The frames that follow, of some whole ones."""
        kept: list[bytes] = []
        at = 0
        while at < len(frames) and (self._reservoir is not None or self._left > 0):
            kind = frame_kind(frames, at)
            if kind is None:
                break
            length, samples, rate_hz = kind
            begins, at = at, at + length
            if is_index(frames, begins):
                continue
            if self._left >= samples / rate_hz / 2:
                self._left -= samples / rate_hz
            else:
                self._left = 0.0
                kept.append(self._joined(frames[begins:at]))
        return b"".join([*kept, frames[at:]])

    def _joined(self, frame: bytes) -> bytes:
        if self._reservoir is None:
            return frame
        head = _HEADER_BYTES + (0 if frame[1] & 1 else 2)  # a checksum follows the header where that bit is not set
        side = side_info_bytes(frame, 0)
        longest, begins = (511, frame[head] << 1 | frame[head + 1] >> 7) if is_mpeg_1(frame, 0) else (255, frame[head])
        if begins > self._reservoir:
            silence = bytes((frame[0], frame[1] | 1, frame[2], frame[3])) + bytes(side)
            frame = silence + frame[len(silence) :]
        self._reservoir += len(frame) - head - side
        if self._reservoir >= longest:
            self._reservoir = None
        return frame


class SampleJoint:
    """The same for 16-bit mono samples.

    Args:
        given_bytes: How much of the second stream was heard already.
    """

    def __init__(self, given_bytes: int) -> None:
        self._left = given_bytes

    def leave_away_at_most(self, seconds: float) -> None:
        """Of what follows nothing was heard: samples are not held back, as an encoder's last frames are."""
        self._left = 0

    def feed(self, samples: bytes) -> bytes:
        """The samples that follow."""
        left = min(self._left, len(samples))
        self._left -= left
        return samples[left:]
