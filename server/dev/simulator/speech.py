"""Real speech without a provider: eSpeak NG, turned into PCM, WAV or MP3.

The same text, voice and format always give the same bytes, in every process. eSpeak keeps state from one utterance to
the next (phases of its oscillators), and not even its own terminate call resets it; so every piece of text is spoken by
a freshly loaded copy of the library, which costs about 5 ms.
"""

import asyncio
import ctypes
import hashlib
import itertools
import math
import os
import re
import struct
import sys
import threading
from array import array
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import espeakng_loader
import lameenc

AudioFormat = Literal["pcm", "wav", "mp3"]

LANGUAGES = {
    "Chinese": "cmn",
    "English": "en-us",
    "German": "de",
    "Italian": "it",
    "Portuguese": "pt",
    "Spanish": "es",
    "Japanese": "ja",
    "Korean": "ko",
    "French": "fr",
    "Russian": "ru",
}
"""The languages of the synthesis APIs, by the name of eSpeak's voice for each."""

ISO_LANGUAGES = {
    "zh": "Chinese",
    "en": "English",
    "de": "German",
    "it": "Italian",
    "pt": "Portuguese",
    "es": "Spanish",
    "ja": "Japanese",
    "ko": "Korean",
    "fr": "French",
    "ru": "Russian",
}
"""The codes of the customization API."""

_VARIANTS = (
    *("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"),
    *("Andy", "Annie", "Alicia", "Andrea", "Gene", "Henrique", "Hugo", "Lee", "Marco", "Michael", "linda", "paul"),
)
_ESPEAK_RATE_HZ = 22_050
_PIECE_CHARACTERS = 240
_CACHE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Sound:
    """How one voice sounds: eSpeak's variant, words per minute, pitch and pitch range (0..100)."""

    variant: str
    words_per_minute: int
    pitch: int
    pitch_range: int


def sound_of(voice: str) -> Sound:
    """A sound of its own for every voice, told by a hash of its id (or of whatever else identifies it)."""
    digest = hashlib.sha256(voice.encode()).digest()
    return Sound(
        variant=_VARIANTS[digest[0] % len(_VARIANTS)],
        words_per_minute=150 + digest[1] % 40,
        pitch=25 + digest[2] % 50,
        pitch_range=35 + digest[3] % 40,
    )


@dataclass(frozen=True)
class Manner:
    """Everything beside the text that decides what is heard.

    Attributes:
        language: A name of ``LANGUAGES``, never ``Auto``.
        speech_rate, pitch_rate: Factors, 1.0 is the voice's own.
        volume: 0..100, 50 is the voice's own.
    """

    sound: Sound
    language: str
    speech_rate: float = 1.0
    pitch_rate: float = 1.0
    volume: int = 50


@dataclass(frozen=True)
class Coding:
    """How samples become bytes. ``bit_rate_kbps`` concerns MP3 alone and is moved to the nearest one that exists.

    ``wav`` is a stream: its header claims the greatest possible length, since nobody knows the true one yet.
    """

    format: AudioFormat = "pcm"
    sample_rate_hz: int = 24_000
    bit_rate_kbps: int = 128

    @property
    def bytes_per_second(self) -> int:
        """How much payload one second of speech is."""
        if self.format == "mp3":
            return _mp3_bit_rate(self.bit_rate_kbps, self.sample_rate_hz) * 125
        return self.sample_rate_hz * 2


def language_of(text: str, otherwise: str = "English") -> str:
    """The language that a text's script tells: kana before Han, since Japanese mixes both."""
    if re.search(r"[\u3040-\u30ff]", text):
        return "Japanese"
    if re.search(r"[\uac00-\ud7af\u1100-\u11ff]", text):
        return "Korean"
    if re.search(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", text):
        return "Chinese"
    if re.search(r"[\u0400-\u04ff]", text):
        return "Russian"
    return otherwise


def billed_characters(text: str) -> int:
    """What the provider counts: an ideograph is 2, everything else is 1."""
    return len(text) + len(re.findall(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", text))


def pieces_of(text: str) -> list[str]:
    """A text cut after its sentences, so that speech can begin before all of it has been spoken.

    Nothing is lost: the pieces joined are the text.
    """
    pieces: list[str] = []
    for sentence in re.findall(r".+?(?:[.!?…]+[\"')\]]*(?=\s|$)\s*|[。！？]+[」』”]*\s*|\n+|$)", text, re.DOTALL):
        rest = sentence
        while len(rest) > _PIECE_CHARACTERS:
            head = rest[:_PIECE_CHARACTERS]
            cut = max(head.rfind(mark) for mark in (" ", ",", ";", ":", "，", "、", "；")) + 1
            cut = cut or _PIECE_CHARACTERS
            pieces.append(rest[:cut])
            rest = rest[cut:]
        pieces.append(rest)
    return [piece for piece in pieces if piece] or [text]


def portions_of(text: str, count: int) -> list[list[str]]:
    """A text's pieces dealt out to ``count`` successive responses; a text of fewer sentences is cut between words."""
    pieces = pieces_of(text)
    while len(pieces) < count:
        longest = max(range(len(pieces)), key=lambda index: len(pieces[index]))
        piece = pieces[longest]
        if len(piece) < 2:
            break
        cut = piece.find(" ", len(piece) // 2) + 1 or len(piece) // 2
        cut = cut if 0 < cut < len(piece) else len(piece) // 2
        pieces[longest : longest + 1] = [piece[:cut], piece[cut:]]
    count = min(count, len(pieces))
    borders = [round(index * len(pieces) / count) for index in range(count + 1)]
    return [pieces[start:end] for start, end in itertools.pairwise(borders)]


def wav_file(pcm: bytes, sample_rate_hz: int = 24_000, *, remark: str | None = None) -> bytes:
    """16-bit mono samples as a WAV file. A ``remark`` becomes a LIST chunk in front of the samples.

    Programs that write such chunks are common, so a reader may not take byte 44 for the first sample.
    """
    chunks = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, sample_rate_hz, sample_rate_hz * 2, 2, 16)
    if remark is not None:
        words = remark.encode() + b"\0" * (2 - len(remark.encode()) % 2)
        info = b"INFOISFT" + struct.pack("<I", len(words)) + words
        chunks += b"LIST" + struct.pack("<I", len(info)) + info
    chunks += b"data" + struct.pack("<I", len(pcm)) + pcm
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def _wav_stream_header(sample_rate_hz: int) -> bytes:
    form = struct.pack("<IHHIIHH", 16, 1, 1, sample_rate_hz, sample_rate_hz * 2, 2, 16)
    return b"RIFF\xff\xff\xff\xffWAVEfmt " + form + b"data\xff\xff\xff\xff"


def resampled(pcm: bytes, from_hz: int, to_hz: int) -> bytes:
    """Samples at another rate, by straight lines between neighbours: good enough for a simulation."""
    if from_hz == to_hz or not pcm:
        return pcm
    shared = math.gcd(from_hz, to_hz)
    steps_in, steps_out = from_hz // shared, to_hz // shared
    source = _samples(pcm)
    length = len(source)
    source.append(source[-1])
    result = array("h", bytes(2 * (length * steps_out // steps_in)))
    # One pass per phase of the ratio instead of one step per sample: ten times faster, and it needs no library.
    for phase in range(min(steps_out, len(result))):
        first, remainder = divmod(phase * steps_in, steps_out)
        wanted = len(range(phase, len(result), steps_out))
        left = source[first::steps_in][:wanted]
        if remainder == 0:
            result[phase::steps_out] = left
        else:
            weight = (remainder << 15) // steps_out
            right = source[first + 1 :: steps_in]
            mixed = [a + ((b - a) * weight >> 15) for a, b in zip(left, right, strict=False)]
            result[phase::steps_out] = array("h", mixed)
    return _bytes(result)


def _samples(pcm: bytes) -> "array[int]":
    samples = array("h", pcm)
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


def _bytes(samples: "array[int]") -> bytes:
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes()


def _mp3_bit_rate(wanted_kbps: int, sample_rate_hz: int) -> int:
    """The nearest bit rate that MPEG-1 (from 32 kHz on), MPEG-2 (from 16 kHz on) or MPEG-2.5 has at this rate."""
    if sample_rate_hz >= 32_000:
        rates = [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
    else:
        rates = [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]
        if sample_rate_hz < 16_000:
            rates = rates[:8]
    return min(rates, key=lambda rate: abs(rate - wanted_kbps))


# --- eSpeak NG --------------------------------------------------------------------------------------------------------

_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8, _END_PAUSE = 2, 0x8000, 1, 0x1000
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_espeak_lock = threading.Lock()


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes

    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


def _speak(text: str, manner: Manner) -> bytes:
    """Speak one piece: 16-bit mono at ``_ESPEAK_RATE_HZ``. Blocks; one at a time in a whole process."""
    heard: list[bytes] = []

    @_SynthCallback  # type: ignore[untyped-decorator, unused-ignore]
    def hear(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            heard.append(ctypes.string_at(samples, count * 2))
        return 0

    sound = manner.sound
    words = text.replace("\0", " ").encode("utf-8", "replace") + b"\0"
    with _espeak_lock:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            data = os.fsencode(espeakng_loader.get_data_path())
            if library.espeak_Initialize(_SYNCHRONOUS, 500, data, _DO_NOT_EXIT) != _ESPEAK_RATE_HZ:
                raise RuntimeError("eSpeak NG could not be started")
            library.espeak_SetSynthCallback(hear)
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
            library.espeak_SetVoiceByName(f"{LANGUAGES[manner.language]}+{sound.variant}".encode())
            library.espeak_SetParameter(_RATE, min(450, max(80, round(sound.words_per_minute * manner.speech_rate))), 0)
            library.espeak_SetParameter(_VOLUME, 2 * manner.volume, 0)
            library.espeak_SetParameter(_PITCH, min(99, round(sound.pitch * manner.pitch_rate)), 0)
            library.espeak_SetParameter(_RANGE, sound.pitch_range, 0)
            size = ctypes.c_size_t(len(words))
            library.espeak_Synth(words, size, 0, 0, 0, _UTF8 | _END_PAUSE, None, None)
            library.espeak_Synchronize()
            library.espeak_Terminate()
        finally:
            _unload(library)
    # A text without anything to say (a lone emoji, a dash) is a short pause, as a person would make it.
    return b"".join(heard) or bytes(_ESPEAK_RATE_HZ // 4 * 2)


class Utterance:
    """One text spoken in one manner and coding, grown piece by piece and kept for whoever says the same again.

    ``pieces`` are spoken in order through one encoder, so joined chunks are one file, whoever asked for them first.
    """

    def __init__(self, pieces: tuple[str, ...], manner: Manner, coding: Coding, executor: ThreadPoolExecutor) -> None:
        self._pieces, self._manner, self._coding, self._executor = pieces, manner, coding, executor
        self._chunks: list[bytes] = []
        self._lock = threading.Lock()
        self._encoder: Any = None
        if coding.format == "mp3":
            self._encoder = lameenc.Encoder()
            self._encoder.set_channels(1)
            self._encoder.set_in_sample_rate(coding.sample_rate_hz)
            self._encoder.set_out_sample_rate(coding.sample_rate_hz)
            self._encoder.set_bit_rate(_mp3_bit_rate(coding.bit_rate_kbps, coding.sample_rate_hz))
            self._encoder.set_quality(7)
            self._encoder.silence()

    @property
    def size(self) -> int:
        """Bytes held so far."""
        return sum(map(len, self._chunks))

    async def chunk(self, index: int) -> bytes:
        """The audio of piece ``index``, spoken now unless it has been before."""
        if len(self._chunks) <= index:
            # The thread itself keeps what it made, so a listener that is cancelled meanwhile leaves no hole.
            await asyncio.get_running_loop().run_in_executor(self._executor, self._grow, index)
        return self._chunks[index]

    async def whole(self) -> bytes:
        """The whole audio."""
        return b"".join([await self.chunk(index) for index in range(len(self._pieces))])

    def _grow(self, index: int) -> None:
        with self._lock:
            while len(self._chunks) <= index:
                self._chunks.append(self._next())

    def _next(self) -> bytes:
        number = len(self._chunks)
        rate = self._coding.sample_rate_hz
        pcm = resampled(_speak(self._pieces[number], self._manner), _ESPEAK_RATE_HZ, rate)
        if self._encoder is not None:
            encoded = bytes(self._encoder.encode(pcm))
            return encoded + bytes(self._encoder.flush()) if number == len(self._pieces) - 1 else encoded
        if self._coding.format == "wav" and number == 0:
            return _wav_stream_header(rate) + pcm
        return pcm


class Speech:
    """Where utterances come from. Speaks in one thread of its own, since eSpeak can do one thing at a time."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="simulated-speech")
        self._kept: OrderedDict[tuple[tuple[str, ...], Manner, Coding], Utterance] = OrderedDict()

    def utterance(self, pieces: list[str], manner: Manner, coding: Coding) -> Utterance:
        """The utterance of these pieces, the one from last time if it is still kept."""
        key = (tuple(pieces), manner, coding)
        utterance = self._kept.get(key)
        if utterance is None:
            while self._kept and sum(kept.size for kept in self._kept.values()) > _CACHE_BYTES:
                self._kept.popitem(last=False)
            utterance = self._kept[key] = Utterance(key[0], manner, coding, self._executor)
        self._kept.move_to_end(key)
        return utterance

    async def samples(self, text: str, voice: str, language: str, sample_rate_hz: int = 24_000) -> bytes:
        """A whole text as 16-bit mono samples."""
        manner = Manner(sound_of(voice), language_of(text) if language == "Auto" else language)
        return await self.utterance(pieces_of(text), manner, Coding("pcm", sample_rate_hz)).whole()

    async def encoded(self, text: str, voice: str, language: str, coding: Coding) -> bytes:
        """A whole text as a complete file of ``coding`` (a WAV states its true length)."""
        if coding.format == "wav":
            return wav_file(await self.samples(text, voice, language, coding.sample_rate_hz), coding.sample_rate_hz)
        manner = Manner(sound_of(voice), language_of(text) if language == "Auto" else language)
        return await self.utterance(pieces_of(text), manner, replace(coding)).whole()

    def close(self) -> None:
        """Let the thread end; what nobody began to speak stays unspoken."""
        self._executor.shutdown(wait=True, cancel_futures=True)
