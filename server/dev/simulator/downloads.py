"""The audio files that answers of the simulated synthesis point at, and how long they are kept."""

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

_KEPT_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True)
class File:
    """One file, with the facts of the request that made it."""

    audio: bytes
    expires_at: float
    facts: dict[str, Any]


class Downloads:
    """The synthesised files, by name, until they are too many."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, File] = OrderedDict()

    def offer(self, audio: bytes, expires_at: float, facts: dict[str, Any]) -> str:
        """Keep a file; returns path and query of its address."""
        name = hashlib.sha256(f"{len(self._files)} {time.time_ns()}".encode()).hexdigest()[:24] + ".wav"
        self._files[name] = File(audio, expires_at, facts)
        while sum(len(file.audio) for file in self._files.values()) > _KEPT_BYTES and len(self._files) > 1:
            self._files.popitem(last=False)
        signature = hashlib.sha256(f"simulated {name} {expires_at}".encode()).hexdigest()[:16]
        return f"/downloads/{name}?Expires={int(expires_at)}&Signature={signature}&simulated=true"

    def find(self, name: str) -> File | None:
        """The file, expired or not; None where there is none of this name (any more)."""
        return self._files.get(name)
