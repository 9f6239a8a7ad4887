"""Captions from words with their times: what is read while a speech is heard, as WebVTT or SubRip."""

import re
from collections.abc import Iterable, Iterator
from typing import Literal

Word = tuple[str, int, int]
CaptionFormat = Literal["vtt", "srt"]

# Two lines of forty-two letters, and as long as one reads them.
MOST_CHARACTERS, MOST_MS = 84, 7000
_UNSPACED = re.compile("[\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff9f]")


def captions(batches: Iterable[list[Word]], form: CaptionFormat) -> str:
    """A file of captions; a batch (a sentence) never shares a caption with the next one."""
    cues = [cue for batch in batches for cue in _cues(batch)]
    if form == "srt":
        return "".join(
            f"{number}\n{_time(start, ',')} --> {_time(end, ',')}\n{text}\n\n"
            for number, (text, start, end) in enumerate(cues, start=1)
        )
    escaped = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    shown = (f"{_time(start, '.')} --> {_time(end, '.')}\n{text.translate(escaped)}\n\n" for text, start, end in cues)
    return "WEBVTT\n\n" + "".join(shown)


def _cues(batch: list[Word]) -> Iterator[Word]:
    text, begins, ends = "", 0, 0
    for word, start, end in batch:
        plain = " ".join(word.split())
        if not plain:
            continue
        joined = text + ("" if not text or _touch(text, plain) else " ") + plain
        if text and (len(joined) > MOST_CHARACTERS or end - begins > MOST_MS):
            yield text, begins, ends
            text = ""
        if not text:
            joined, begins = plain, start
        text, ends = joined, end
    if text:
        yield text, begins, ends


def _touch(text: str, following: str) -> bool:
    """Whether nothing stands between these: East Asian words, and marks that close what came before."""
    return bool(_UNSPACED.match(text[-1]) or _UNSPACED.match(following[0])) or following[0] in ".,;:!?)]}…”’"


def _time(milliseconds: int, comma: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{comma}{rest:03}"
