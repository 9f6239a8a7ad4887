"""Samples as MP3, while they come.

An encoder is fed slices cut anywhere and answers with whatever frames are whole by then; its last ones come with
``flush``. Encoding a second of speech takes about 5 ms, during which other threads run: call it in one.
"""

from typing import Final

import lameenc

from server.audio.formats import SAMPLE_BYTES

# Speech of one voice sounds at 64 kbit/s as it did; MPEG-1's rates have twice the samples to carry.
_KBPS: Final = 64
_KBPS_MPEG_1: Final = 128
_QUALITY: Final = 5  # of 0 (slowest) to 9
_RATES_HZ: Final = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


class Mp3Encoder:
    """One speech: every slice goes through the same encoder, so nothing is heard where two of them meet.

    Args:
        sample_rate_hz: Of the 16-bit little-endian mono samples. One that MP3 does not have is resampled to the next.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        self.sample_rate_hz = next((rate for rate in _RATES_HZ if rate >= sample_rate_hz), _RATES_HZ[-1])
        self._half = b""
        self._encoder = lameenc.Encoder()
        self._encoder.silence()
        self._encoder.set_channels(1)
        self._encoder.set_in_sample_rate(sample_rate_hz)
        self._encoder.set_out_sample_rate(self.sample_rate_hz)
        self._encoder.set_bit_rate(_KBPS_MPEG_1 if self.sample_rate_hz >= 32000 else _KBPS)
        self._encoder.set_quality(_QUALITY)

    def encode(self, samples: bytes) -> bytes:
        """The frames that these samples have completed; empty while there is none."""
        if self._half:
            samples = self._half + samples
        whole = len(samples) - len(samples) % SAMPLE_BYTES
        self._half = samples[whole:]
        return bytes(self._encoder.encode(samples[:whole])) if whole else b""

    def flush(self) -> bytes:
        """The last frames. Nothing may be encoded afterwards."""
        return bytes(self._encoder.flush())
