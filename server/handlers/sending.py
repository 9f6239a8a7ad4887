"""Sending a body that grows: to whoever is still there, and without waking a task for every part of it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from starlette.types import Message, Receive, Send

T = TypeVar("T")


async def ended_or_left(
    receive: Receive, sending: Coroutine[Any, Any, T], *beside: Coroutine[Any, Any, None]
) -> asyncio.Task[T]:
    """The task of ``sending`` once it has ended; cancelled where the client has hung up. What runs beside it ends with
    it."""
    async with asyncio.TaskGroup() as group:
        sender = group.create_task(sending)
        others = [group.create_task(one) for one in (_until_gone(receive, sender), *beside)]
        await asyncio.wait({sender})
        for other in others:
            other.cancel()
    return sender


async def _until_gone(receive: Receive, sender: asyncio.Task[Any]) -> None:
    """Cancel ``sender`` when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    sender.cancel()


def body_part(part: bytes) -> Message:
    return {"type": "http.response.body", "body": part, "more_body": True}


class Listener:
    """Who reads the events of a speech: woken when something has changed, or handed what is new at once.

    The latter where nothing but audio is new and the client has taken all there was before: waking a task for every
    delta costs more than all the rest that is done for it here.

    Attributes:
        send: The ASGI channel of the response.
        catch_up: The serialised audio that the client has not had yet, which counts as sent; None where there is none.
    """

    def __init__(self) -> None:
        self.send: Send | None = None
        self.catch_up: Callable[[], bytes | None] = lambda: None
        self._woken = asyncio.Event()
        self._waits = False
        self._sending: _Begun | None = None

    def changed(self) -> None:
        """Have a look around."""
        self._woken.set()

    def grew(self) -> None:
        """There is more audio."""
        if not self._waits or self._woken.is_set() or self.send is None or (new := self.catch_up()) is None:
            self._woken.set()
            return
        while new is not None and self._sending is None:
            self._sending = _begin(self.send(body_part(new)))
            new = None if self._sending else self.catch_up()
        if self._sending:
            self._woken.set()  # the client is slow: now its task waits for it

    async def wait(self) -> None:
        """Return when there is something to look at, and nothing is being sent."""
        self._waits = True
        try:
            await self._woken.wait()
        finally:
            self._waits = False
        self._woken.clear()
        sending, self._sending = self._sending, None
        if sending:
            await sending


class _Begun:
    """An awaitable that was taken as far as it went without waiting, for somebody else to await the rest of it.

    Args:
        waits_for: What it yielded.
        failed: It has ended so.
    """

    def __init__(
        self, steps: Generator[Any, Any, Any], waits_for: object = None, failed: Exception | None = None
    ) -> None:
        self._steps = steps
        self._waits_for = waits_for
        self._failed = failed

    def __await__(self) -> Generator[Any, Any, None]:
        if self._failed:
            raise self._failed
        try:
            yield self._waits_for
        except BaseException:
            self._steps.close()
            raise
        yield from self._steps


def _begin(sending: Awaitable[None]) -> _Begun | None:
    """Take it as far as it goes without waiting; None if that is to its end."""
    steps = sending.__await__()
    try:
        waits_for = next(steps)
    except StopIteration:
        return None
    except Exception as exc:  # noqa: BLE001 - it is the listener's, and not whoever speaks
        return _Begun(steps, failed=exc)
    return _Begun(steps, waits_for)
