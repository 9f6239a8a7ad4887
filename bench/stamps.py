"""The audio that measures its own way: what the source writes into each delta and the followers read out of it.

Clocks are compared between processes, so they are ``time.monotonic_ns``, which all processes of one machine share.
"""

import base64
import struct
from typing import NamedTuple

DELTA_BYTES = 4800
INTERVAL_SECONDS = 0.1
SAMPLE_RATE_HZ = 24_000  # 16-bit mono: 4800 bytes are exactly the 100 ms between two of them

# 24 bytes, so that they are 32 letters of Base64 without padding and the rest of the delta can be encoded once.
_STAMP = struct.Struct(">qQ8x")
STAMP_LETTERS = _STAMP.size * 4 // 3

AUDIO_REST = base64.b64encode(bytes(DELTA_BYTES - _STAMP.size))
"""The Base64 of everything after the stamp."""


class Stamp(NamedTuple):
    """When a delta was sent (``time.monotonic_ns``) and which delta of its session it is, from 0."""

    sent_ns: int
    delta: int


def encode_stamp(stamp: Stamp) -> bytes:
    """The first letters of a delta's Base64."""
    return base64.b64encode(_STAMP.pack(*stamp))


def decode_stamp(letters: bytes) -> Stamp:
    """Read what ``encode_stamp`` wrote."""
    return Stamp(*_STAMP.unpack(base64.b64decode(letters)))
