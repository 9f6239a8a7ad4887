"""Cutting off readers that no longer read, or too slowly to hear anything: where they stopped they can resume."""

import asyncio
import logging
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)


# Speech as MP3 is 4 kB a second and more. Whoever takes less than this would hold a place for hours; the connection of
# a phone in a tunnel is no slower for so long.
LEAST_BYTES_PER_SECOND = 512


class StalledReaderProtocol(HttpToolsProtocol):
    """uvicorn's own, cut off once its peer has taken less than the least for too long.

    A plain close would wait for the peer to read what is still to be sent: for ever, where it reads nothing. The
    pause and the resumption of writing are what the event loop says of a peer, whatever is being sent to it.
    """

    stalled_seconds: ClassVar[float]
    _stalled: asyncio.TimerHandle | None = None

    @classmethod
    def cut_after(cls, seconds: float) -> type["StalledReaderProtocol"]:
        """The same class with its own time limit; the server makes its connections without arguments of ours."""
        return type(cls.__name__, (cls,), {"stalled_seconds": seconds})

    def pause_writing(self) -> None:
        super().pause_writing()
        self._check_later(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._check_no_more()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._check_no_more()
        super().connection_lost(exc)

    def _check_later(self, unsent: int) -> None:
        self._check_no_more()
        self._stalled = self.loop.call_later(self.stalled_seconds, self._check, unsent)

    def _check(self, unsent_before: int) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent_before - unsent >= LEAST_BYTES_PER_SECOND * self.stalled_seconds:
            self._check_later(unsent)
        else:
            logger.info("connection cut, its peer reads nothing or too slowly", extra={"unsent_bytes": unsent})
            self.transport.abort()

    def _check_no_more(self) -> None:
        if self._stalled:
            self._stalled.cancel()
