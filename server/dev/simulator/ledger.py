"""What the simulated providers were asked: every call, in order, with what became of it."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

Surface = Literal["realtime", "http", "customization", "modal"]
Call = dict[str, Any]
"""One call. Always there: ``id``, ``surface``, ``action``, ``at`` (ISO time). The rest depends on the surface, see
``Ledger.record``."""


def now_iso() -> str:
    """The present moment as calls carry it: UTC, milliseconds, ``Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Ledger:
    """The list behind ``GET /calls``, and a way to wait for a fact in it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._recorded = 0
        self._waiting: list[tuple[Callable[[list[Call]], bool], asyncio.Future[None]]] = []

    def record(self, surface: Surface, action: str, **facts: Any) -> Call:
        """Add one call and return its record, which grows by ``note`` while the call runs.

        Facts by surface: every call ``model``, ``voice``, ``status`` (HTTP status answered), ``code`` (of a refusal);
        speech ``text``, ``characters`` (counted as billed), ``language``; realtime also ``format``,
        ``sample_rate``, ``speech_rate``, ``pitch_rate``, ``volume``, ``deltas``, ``audio_bytes`` (both as sent so far),
        ``billed_characters``, ``holding``,
        ``ended`` (``finished``, ``client_closed``, ``refused``, ``misbehaved``), ``ended_at``, ``close_code``,
        ``closed_at`` (when the socket was gone); modal ``job_id``, and of a
        submission ``transcript``; its ``voice`` is the SHA-256 of the recording as it was sent, in Base64.
        """
        self._recorded += 1
        call: Call = {"id": self._recorded, "surface": surface, "action": action, "at": now_iso(), **facts}
        self.calls.append(call)
        self._wake()
        return call

    def note(self, call: Call, **facts: Any) -> None:
        """Add what has become known about a call."""
        call.update(facts)
        self._wake()

    def clear(self) -> None:
        """Forget all calls. Sessions that still run go on, unseen."""
        self.calls.clear()
        self._wake()

    async def until(self, fact: Callable[[list[Call]], bool], timeout_seconds: float = 10.0) -> None:
        """Wait until ``fact(calls)`` holds.

        Raises:
            TimeoutError: If it did not within ``timeout_seconds``.
        """
        if fact(self.calls):
            return
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (fact, arrived)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(timeout_seconds):
                await arrived
        finally:
            self._waiting.remove(entry)

    def _wake(self) -> None:
        for fact, arrived in self._waiting:
            if not arrived.done():
                try:
                    holds = fact(self.calls)
                except Exception as exc:  # noqa: BLE001 - the waiter's own mistake belongs to the waiter
                    arrived.set_exception(exc)
                else:
                    if holds:
                        arrived.set_result(None)
