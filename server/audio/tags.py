"""What may stand in front of a recording and is none of it: ID3v2, ID3v1 and APEv2 tags, and zeros.

Source: id3.org, "ID3 tag version 2.4.0 - Main Structure" (sizes of seven bits a byte, the footer's flag); Hydrogenaudio
Knowledgebase, "APEv2 specification" (32 bytes of header, the flags that tell whether there is one).
"""

import re

ID3V2_BYTES, ID3V1_BYTES = 10, 128
_APE_BYTES = 32
_APE_HAS_HEADER = 1 << 31
_MOST_TAGS = 1000  # a file has one or two; what has more than this is no recording
_ZEROS = re.compile(rb"\0*")


def id3v2_bytes(start: bytes) -> int:
    """Length of the ID3v2 tag whose first ten bytes these are; 0 where it is none."""
    if not start.startswith(b"ID3") or len(start) < ID3V2_BYTES:
        return 0
    sizes = start[6:10]
    if any(byte & 0x80 for byte in sizes):
        return 0
    size = sizes[0] << 21 | sizes[1] << 14 | sizes[2] << 7 | sizes[3]
    footer = ID3V2_BYTES if start[5] & 0x10 else 0
    return ID3V2_BYTES + size + footer


def ape_bytes(start: bytes) -> int:
    """Length of the APEv2 tag whose first 32 bytes these are; 0 where it is none."""
    if not start.startswith(b"APETAGEX") or len(start) < _APE_BYTES:
        return 0
    size, flags = int.from_bytes(start[12:16], "little"), int.from_bytes(start[20:24], "little")
    # The size counts the footer and not the header. A tag in front of something always has a header.
    return size + (_APE_BYTES if flags & _APE_HAS_HEADER else 0)


def end_of_tags(view: memoryview) -> int:
    """Where the recording begins, after any number of tags and zeros. At most the length of ``view``."""
    at, end = 0, len(view)
    for _ in range(_MOST_TAGS):
        start = bytes(view[at : at + _APE_BYTES])
        if start[:1] == b"\0" and not _is_box(start):
            match = _ZEROS.match(view, at)
            first = match.end() if match else at
            # The size of an MP4's first box begins with zeros, which are its own.
            for own in range(1, min(4, first - at + 1)):
                if _is_box(bytes(view[first - own : first - own + 8])):
                    return first - own
            length = first - at
        elif start.startswith(b"TAG"):
            length = ID3V1_BYTES
        else:
            length = id3v2_bytes(start) or ape_bytes(start)
        if not length:
            break
        at = min(at + length, end)
    return at


def _is_box(start: bytes) -> bool:
    """Whether an MP4 box that may be a file's first begins here."""
    return start[4:8] in FIRST_BOXES


FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
