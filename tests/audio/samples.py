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


def specific_config(sample_rate_hz: int, *, object_type: int = 2, raised_to_hz: int | None = None) -> bytes:
    """An AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1) for mono; ``raised_to_hz`` is what HE-AAC makes of the rate."""
    rates = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
    first = f"{object_type:05b}" if object_type < 31 else f"{31:05b}{object_type - 32:06b}"
    bits = first + f"{rates.index(sample_rate_hz):04b}" + f"{1:04b}" + "000"
    if raised_to_hz is not None:
        bits += f"{0x2B7:011b}{5:05b}1{rates.index(raised_to_hz):04b}"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def esds(config: bytes, *, object_type: int = 0x40) -> bytes:
    """The box with which an ``mp4a`` sample entry says what it is."""

    def descriptor(tag: int, body: bytes) -> bytes:
        return bytes([tag, 0x80, 0x80, 0x80, len(body)]) + body

    decoder = descriptor(4, bytes([object_type, 0x15]) + bytes(11) + (descriptor(5, config) if config else b""))
    return box(b"esds", bytes(4), descriptor(3, bytes(3) + decoder + descriptor(6, b"\x02")))


def sample_entry(
    name: bytes = b"mp4a", sample_rate_hz: int = 44100, *extra: bytes, version: int = 0, channels: int = 1
) -> bytes:
    """One entry of ``stsd`` for sound."""
    rate = sample_rate_hz << 16 if version < 2 and sample_rate_hz < 65536 else 0x10000
    more = bytes(16) if version == 1 else b""
    if version == 2:
        more = struct.pack(">IdIIIIII", 72, float(sample_rate_hz), channels, 0x7F000000, 16, 0, 0, 0)
    return box(name, struct.pack(">6xHHHIHHHHI", 1, version, 0, 0, channels, 16, 0, 0, rate), more, *extra)


def m4a(
    seconds: float,
    *,
    timescale: int = 44100,
    handler: bytes = b"soun",
    long_form: bool = False,
    media: bytes = b"\0",
    brand: bytes = b"M4A ",
    entries: tuple[bytes, ...] | None = None,
) -> bytes:
    """An M4A whose boxes say that it lasts that long; ``media`` is what its ``mdat`` holds."""
    entries = (sample_entry(b"mp4a", 44100, esds(specific_config(44100))),) if entries is None else entries
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
            box(b"minf", box(b"stbl", box(b"stsd", struct.pack(">II", 0, len(entries)), *entries))),
        ),
    )
    movie = box(b"moov", box(b"mvhd", struct.pack(">IIIII", 0, 0, 0, 1000, round(seconds * 1000)) + bytes(80)), track)
    return box(b"ftyp", brand + b"\0\0\0\0M4A mp42isom") + box(b"mdat", media) + movie
