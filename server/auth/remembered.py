"""What was found out lately, for a while and never for too many: the oldest is forgotten first."""

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """Values that hold until their time, at most ``at_most`` of them. It has no clock of its own."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._entries: dict[K, tuple[V, float]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, now: float) -> V | None:
        """The value, unless its time is over."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, until = entry
        if now >= until:
            del self._entries[key]
            return None
        return value

    def put(self, key: K, value: V, until: float) -> None:
        self._entries.pop(key, None)  # a new place at the end
        while len(self._entries) >= self._at_most:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (value, until)

    def items(self) -> list[tuple[K, V]]:
        """Everything that is kept, over or not."""
        return [(key, value) for key, (value, _) in self._entries.items()]

    def forget(self, key: K) -> None:
        self._entries.pop(key, None)
