"""Samples at another rate, while they come."""

import numpy as np
import soxr

from server.audio.formats import SAMPLE_BYTES


class Resampler:
    """One stream of 16-bit little-endian mono samples, cut anywhere. Takes about 1 ms a second: call it in a thread."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self._stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="int16")
        self._half = b""

    def feed(self, samples: bytes) -> bytes:
        """What can be told so far at the other rate; may be empty."""
        if self._half:
            samples = self._half + samples
        whole = len(samples) - len(samples) % SAMPLE_BYTES
        self._half = samples[whole:]
        return self._resampled(samples[:whole], last=False) if whole else b""

    def flush(self) -> bytes:
        """The rest. Nothing may be fed afterwards."""
        return self._resampled(b"", last=True)

    def _resampled(self, samples: bytes, *, last: bool) -> bytes:
        told = self._stream.resample_chunk(np.frombuffer(samples, dtype="<i2"), last=last)
        return bytes(told.astype("<i2").tobytes())
