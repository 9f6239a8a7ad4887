"""A WAV file as MP3, while it is read."""

from dataclasses import replace

from server.audio.encoding import Mp3Encoder
from server.audio.wav import UNKNOWN_SIZE, Wav, parse_wav, to_mono_pcm16

# The samples begin behind the header, which is 44 bytes long in what we store and a little longer in what others wrote.
_HEADER_WITHIN_BYTES = 4096


class WavAsMp3:
    """Takes a file in slices cut anywhere, answers with MP3 frames. About 0.3 s for a minute: call it in a thread."""

    def __init__(self) -> None:
        self._held = b""
        self._begun: tuple[Wav, Mp3Encoder] | None = None
        self._left = 0  # bytes of samples that are still to come

    def feed(self, data: bytes) -> bytes:
        """The frames that are whole now; empty while there is none.

        Raises:
            AudioError: If it is no WAV file, or holds samples that we cannot read.
        """
        self._held += data
        if self._begun is None and len(self._held) < _HEADER_WITHIN_BYTES:
            return b""
        return self._encode(*(self._begun or self._begin()))

    def finish(self) -> bytes:
        """The last frames.

        Raises:
            AudioError: If all of it was no WAV file.
        """
        wav, encoder = self._begun or self._begin()
        return self._encode(wav, encoder) + encoder.flush()

    def _begin(self) -> tuple[Wav, Mp3Encoder]:
        wav = parse_wav(self._held)
        size = int.from_bytes(self._held[wav.data_offset - 4 : wav.data_offset], "little")
        self._left = size if 0 < size < UNKNOWN_SIZE else 1 << 62
        self._held = self._held[wav.data_offset :]
        self._begun = wav, Mp3Encoder(wav.sample_rate_hz)
        return self._begun

    def _encode(self, wav: Wav, encoder: Mp3Encoder) -> bytes:
        width = wav.channels * wav.bits_per_sample // 8
        count = min(len(self._held), self._left) // width * width
        samples, self._held = self._held[:count], self._held[count:]
        self._left -= count
        return encoder.encode(to_mono_pcm16(replace(wav, samples=memoryview(samples)))) if count else b""
