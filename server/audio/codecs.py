"""What sound can be packed as: the names that people know, by the marks that files carry.

Source: the registered WAVE form tags of Microsoft's ``mmreg.h``; the sample entries and object types that the MP4
Registration Authority lists; Apple, "QuickTime File Format Specification"; and each format's own magic number.
"""

_WAVE_TAGS = {
    0x0002: "Microsoft ADPCM",
    0x0006: "A-law",
    0x0007: "µ-law",
    0x0008: "DTS",
    0x0010: "OKI ADPCM",
    0x0011: "IMA ADPCM",
    0x0016: "G.723",
    0x0022: "TrueSpeech",
    0x0031: "GSM",
    0x0034: "G.728",
    0x003E: "G.722",
    0x0040: "G.721 ADPCM",
    0x0045: "G.726",
    0x0050: "MPEG (MP2)",
    0x0055: "MP3",
    0x0057: "AMR",
    0x0058: "AMR",
    0x0064: "G.726",
    0x0065: "G.722",
    0x0083: "G.729",
    0x0092: "Dolby Digital (AC-3)",
    0x00FF: "AAC",
    0x0160: "Windows Media Audio",
    0x0161: "Windows Media Audio",
    0x0162: "Windows Media Audio",
    0x0163: "Windows Media Audio",
    0x0270: "ATRAC3",
    0x1600: "AAC",
    0x1602: "AAC",
    0x1610: "AAC",
    0x2000: "Dolby Digital (AC-3)",
    0x2001: "DTS",
    0x566F: "Vorbis",
    0x5756: "WavPack",
    0x674F: "Vorbis",
    0x6750: "Vorbis",
    0x6751: "Vorbis",
    0x676F: "Vorbis",
    0x6770: "Vorbis",
    0x6771: "Vorbis",
    0x704F: "Opus",
    0x7A21: "AMR",
    0x7A22: "AMR",
    0xA106: "AAC",
    0xA109: "Speex",
    0xF1AC: "FLAC",
}

_SAMPLE_ENTRIES = {
    b"alac": "Apple Lossless (ALAC)",
    b"samr": "AMR",
    b"sawb": "AMR",
    b"sawp": "AMR",
    b"sevc": "EVRC",
    b"ssmv": "SMV",
    b"sqcp": "QCELP",
    b"Qclp": "QCELP",
    b"Opus": "Opus",
    b"ac-3": "Dolby Digital (AC-3)",
    b"sac3": "Dolby Digital (AC-3)",
    b"ec-3": "Dolby Digital Plus (E-AC-3)",
    b"ac-4": "Dolby AC-4",
    b"mlpa": "Dolby TrueHD",
    b"dtsc": "DTS",
    b"dtsh": "DTS",
    b"dtsl": "DTS",
    b"dtse": "DTS",
    b"dtsx": "DTS",
    b"fLaC": "FLAC",
    b"vorb": "Vorbis",
    b"spex": "Speex",
    b".mp3": "MP3",
    b"mp3 ": "MP3",
    b"ms\0\x55": "MP3",
    b"ms\0\x02": "Microsoft ADPCM",
    b"ms\0\x11": "IMA ADPCM",
    b"ima4": "IMA ADPCM",
    b"MAC3": "MACE",
    b"MAC6": "MACE",
    b"agsm": "GSM",
    b"ulaw": "µ-law",
    b"alaw": "A-law",
    b"QDMC": "QDesign",
    b"QDM2": "QDesign",
    b"apac": "Apple Positional Audio",
    b"mha1": "MPEG-H",
    b"mha2": "MPEG-H",
    b"mhm1": "MPEG-H",
    b"mhm2": "MPEG-H",
    b"iamf": "IAMF",
    b"enca": "copy-protected",
    b"drms": "copy-protected",
    b"lpcm": "uncompressed (PCM)",
    b"sowt": "uncompressed (PCM)",
    b"twos": "uncompressed (PCM)",
    b"in24": "uncompressed (PCM)",
    b"in32": "uncompressed (PCM)",
    b"fl32": "uncompressed (PCM)",
    b"fl64": "uncompressed (PCM)",
    b"ipcm": "uncompressed (PCM)",
    b"fpcm": "uncompressed (PCM)",
    b"NONE": "uncompressed (PCM)",
    b"raw ": "uncompressed (PCM)",
}

_OBJECT_TYPES = {
    0x69: "MP3",
    0x6B: "MP3",
    0xA0: "EVRC",
    0xA1: "SMV",
    0xA5: "Dolby Digital (AC-3)",
    0xA6: "Dolby Digital Plus (E-AC-3)",
    0xA9: "DTS",
    0xAA: "DTS",
    0xAB: "DTS",
    0xAC: "DTS",
    0xAD: "Opus",
    0xAE: "Dolby AC-4",
    0xDD: "Vorbis",
    0xE1: "QCELP",
}

_AUDIO_OBJECT_TYPES = {
    7: "TwinVQ",
    8: "CELP",
    9: "HVXC",
    24: "CELP",
    25: "HVXC",
    32: "MPEG (MP1)",
    33: "MPEG (MP2)",
    34: "MP3",
    36: "MPEG-4 Lossless (ALS)",
    37: "MPEG-4 Lossless (SLS)",
    38: "MPEG-4 Lossless (SLS)",
    42: "xHE-AAC (USAC)",
}

_MAGIC = (
    (b"fLaC", "FLAC"),
    (b"OggS", "Ogg"),
    (b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (b"#!AMR", "AMR"),
    (b"caff", "Core Audio (CAF)"),
    (b".snd", "Sun audio (AU)"),
    (b"ADIF", "AAC without a container"),
    (b"riff\x2e\x91\xcf\x11", "Sony Wave64"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media"),
    (b"wvpk", "WavPack"),
    (b"MAC ", "Monkey's Audio"),
    (b"MPCK", "Musepack"),
    (b"MP+", "Musepack"),
    (b"TTA1", "True Audio (TTA)"),
    (b"DSD ", "DSD"),
    (b"FRM8", "DSD"),
    (b"MThd", "MIDI"),
    (b"FLV\x01", "Flash video"),
    (b".RMF", "RealMedia"),
    (b".ra\xfd", "RealAudio"),
    (b"\x0b\x77", "Dolby Digital (AC-3)"),
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b\x08", "a gzip archive"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
)
_FORMS = {b"AIFF": "AIFF", b"AIFC": "AIFF", b"8SVX": "8SVX"}
_RIFF_FORMS = {b"AVI ": "AVI", b"RMID": "MIDI", b"WEBP": "a picture", b"CDXA": "a video CD"}


def wave_codec(tag: int) -> str:
    """What a WAV file with this format tag holds."""
    return _WAVE_TAGS.get(tag, f"unknown (0x{tag:04X})")


def sample_entry_codec(name: bytes) -> str:
    """What an MP4 track with a sample entry of this name holds."""
    known = _SAMPLE_ENTRIES.get(name)
    if known:
        return known
    letters = name.decode("latin-1").strip()
    return f"“{letters}”" if letters and letters.isascii() and letters.isprintable() else "unknown"


def object_type_codec(object_type: int, audio_object_type: int) -> str | None:
    """What the decoder configuration of an ``mp4a`` track names; None for AAC."""
    if object_type == 0x40:
        return _AUDIO_OBJECT_TYPES.get(audio_object_type)
    if object_type in (0x66, 0x67, 0x68):
        return None
    return _OBJECT_TYPES.get(object_type, f"unknown (0x{object_type:02X})")


def foreign_format(view: memoryview) -> str | None:
    """The name of a format that we do not take, by how it begins; None where it is not known."""
    start = bytes(view[:16])
    for magic, name in _MAGIC:
        if start.startswith(magic):
            return name
    if start[:4] == b"FORM":
        return _FORMS.get(start[8:12], "IFF")
    if start[:4] in (b"RIFF", b"RIFX") and start[8:12] != b"WAVE":
        return _RIFF_FORMS.get(start[8:12], "a RIFF file of another kind")
    if _is_adts(view):
        return "AAC without a container"
    return "MPEG (MP2)" if _is_layer_two(start) else None


def _is_adts(view: memoryview) -> bool:
    """Whether two ADTS headers follow one another. Source: ISO/IEC 14496-3, 1.A.3."""
    at = 0
    for _ in range(2):
        head = bytes(view[at : at + 6])
        if len(head) < 6 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
            return False
        length = (head[3] & 0b11) << 11 | head[4] << 3 | head[5] >> 5
        if length < 7:
            return False
        at += length
    return True


def _is_layer_two(start: bytes) -> bool:
    return len(start) > 2 and start[0] == 0xFF and start[1] & 0xE6 == 0xE4 and 0x10 <= start[2] < 0xF0
