"""Whole frames of an MP3 that arrives in slices cut anywhere: what follows them can be joined to anything.

The headers are those of ``mp3``, whose tables this shares.
"""

from server.audio.mp3 import continues, frame_kind, next_sync, tag_bytes

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
