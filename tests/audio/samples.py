"""Sounds for the tests, made with a real encoder or byte by byte."""

import struct

import lameenc
import numpy as np
from numpy.typing import NDArray


def tone(seconds: float, sample_rate_hz: int, *, hz: float = 440.0, channels: int = 1) -> NDArray[np.int16]:
    """A sine at half volume; with several channels, the same on each (interleaved)."""
    times = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    samples = (np.sin(2 * np.pi * hz * times) * 16000).astype("<i2")
    return np.repeat(samples, channels)


def mp3(seconds: float, sample_rate_hz: int = 24000, *, kbps: int = 64, channels: int = 1) -> bytes:
    """What LAME makes of a tone."""
    encoder = lameenc.Encoder()
    encoder.silence()
    encoder.set_bit_rate(kbps)
    encoder.set_in_sample_rate(sample_rate_hz)
    encoder.set_channels(channels)
    encoder.set_quality(7)
    return bytes(encoder.encode(tone(seconds, sample_rate_hz, channels=channels).tobytes()) + encoder.flush())


def id3v2(size: int) -> bytes:
    """An ID3v2.4 tag of that size, full of bytes that look like frame headers."""
    sizes = bytes([size >> 21 & 0x7F, size >> 14 & 0x7F, size >> 7 & 0x7F, size & 0x7F])
    return b"ID3\x04\x00\x00" + sizes + (b"\xff\xfb\x90\x44" * (size // 4 + 1))[:size]


def chunk(name: bytes, body: bytes, *, size: int | None = None) -> bytes:
    """A RIFF chunk, with a size that lies where one is given."""
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) & 1)


def wav(
    samples: bytes,
    *,
    sample_rate_hz: int = 24000,
    channels: int = 1,
    bits: int = 16,
    tag: int = 1,
    before: bytes = b"",
    after: bytes = b"",
    data_size: int | None = None,
) -> bytes:
    """A WAV file with chunks around its samples."""
    frame_bytes = channels * bits // 8
    layout = struct.pack("<HHIIHH", tag, channels, sample_rate_hz, sample_rate_hz * frame_bytes, frame_bytes, bits)
    body = b"WAVE" + chunk(b"fmt ", layout) + before + chunk(b"data", samples, size=data_size) + after
    return b"RIFF" + struct.pack("<I", len(body)) + body


def box(name: bytes, *parts: bytes) -> bytes:
    """An MP4 box."""
    body = b"".join(parts)
    return struct.pack(">I4s", len(body) + 8, name) + body


def m4a(
    seconds: float, *, timescale: int = 44100, handler: bytes = b"soun", long_form: bool = False, media: bytes = b"\0"
) -> bytes:
    """An M4A whose boxes say that it lasts that long; ``media`` is what its ``mdat`` holds."""
    units = round(seconds * timescale)
    mdhd = (
        struct.pack(">IQQIQHH", 1 << 24, 0, 0, timescale, units, 0, 0)
        if long_form
        else struct.pack(">IIIIIHH", 0, 0, 0, timescale, units, 0, 0)
    )
    track = box(
        b"trak",
        box(b"tkhd", struct.pack(">IIIII", 7, 0, 0, 1, 0) + bytes(64)),
        box(
            b"mdia",
            box(b"mdhd", mdhd),
            box(b"hdlr", bytes(8) + handler + bytes(13)),
            box(b"minf", box(b"stbl", box(b"stsd", bytes(8)))),
        ),
    )
    movie = box(b"moov", box(b"mvhd", struct.pack(">IIIII", 0, 0, 0, 1000, round(seconds * 1000)) + bytes(80)), track)
    return box(b"ftyp", b"M4A \0\0\0\0M4A mp42isom") + box(b"mdat", media) + movie
