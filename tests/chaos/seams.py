"""Where a process can be stopped from outside: at a statement, a request to the store, a provider's word.

Nothing in the product knows of this. Each seam brings a process to the moment and leaves it there; what happens to the
process then is up to the caller.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Literal

from server.dev.simulator.behaviours import Planned
from tests.chaos.world import Node, Source, World
from tests.voices import TRANSCRIPT, recording, upload

_DELTA_BYTES = 1152  # three whole MP3 frames
_REACHED_SECONDS = 20.0

Spoken = Literal["realtime", "inference"]
Seam = Callable[[World, Node, str], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _asking(world: World, node: Node, source: Source, text: str) -> AsyncIterator[None]:
    """Ask, and do not wait for the answer: where the rows are what is stopped at, there is none yet."""
    asking = asyncio.create_task(world.say(node, source, text))
    try:
        yield
    finally:
        await asking  # it is answered, or breaks off with its process, at the latest after its client's own deadline


@asynccontextmanager
async def _reached(held: asyncio.Event) -> AsyncIterator[None]:
    async with asyncio.timeout(_REACHED_SECONDS):
        await held.wait()
    yield


@asynccontextmanager
async def _at_statement(words: bytes, source: Spoken, world: World, node: Node, text: str) -> AsyncIterator[None]:
    async with _asking(world, node, source, text):
        with node.door.holding_back(words) as held:
            async with _reached(held):
                yield


@asynccontextmanager
async def _at_put(
    moment: Literal["before", "after"], source: Spoken, world: World, node: Node, text: str
) -> AsyncIterator[None]:
    async with _asking(world, node, source, text):
        with node.store.holding_a_put(moment) as held:
            async with _reached(held):
                yield


@asynccontextmanager
async def _held(plan: Planned) -> AsyncIterator[None]:
    try:
        await plan.held(timeout_seconds=_REACHED_SECONDS)
        yield
    finally:
        plan.release()


@asynccontextmanager
async def _at_word(fault: dict[str, Any], source: Spoken, world: World, node: Node, text: str) -> AsyncIterator[None]:
    shape = {"minimum_bytes": 8 * _DELTA_BYTES, "delta_bytes": _DELTA_BYTES, "faults": [{"do": "hold", **fault}]}
    plan = world.simulator.behave("realtime", shape, text_contains=text)
    async with _asking(world, node, source, text), _held(plan):
        yield


@asynccontextmanager
async def _at_upgrade(source: Spoken, world: World, node: Node, text: str) -> AsyncIterator[None]:
    """The session is being opened: claimed, and nothing said. An upgrade cannot be told by its text."""
    plan = world.simulator.behave("realtime", {"faults": [{"do": "hold", "at": "upgrade"}]})
    async with _asking(world, node, source, text), _held(plan):
        yield


@asynccontextmanager
async def _piece(world: World, node: Node, text: str) -> AsyncIterator[None]:
    plan = world.simulator.behave("http", {"do": "hold"}, text_contains=text)
    async with _asking(world, node, "http", text), _held(plan):
        yield


@asynccontextmanager
async def _job(world: World, node: Node, text: str) -> AsyncIterator[None]:
    """Of a process that submits jobs."""
    plan = world.simulator.behave("modal", {"do": "hold"}, action="submit", text_contains=text)
    async with _asking(world, node, "modal", text), _held(plan):
        yield


@asynccontextmanager
async def _clone(world: World, node: Node, text: str) -> AsyncIterator[None]:
    plan = world.simulator.behave("customization", {"do": "hold"}, action="create")
    async with world.client(node) as client:
        voice_id = await upload(client, recording())
        body = {"voice_id": voice_id, "name": "Ada", "language": "English", "transcript": TRANSCRIPT}
        asking = asyncio.create_task(client.http.post("/api/clone/finalize", json=body))
        try:
            async with _held(plan):
                yield
        finally:
            await asyncio.gather(asking, return_exceptions=True)


@asynccontextmanager
async def _design(world: World, node: Node, text: str) -> AsyncIterator[None]:
    plan = world.simulator.behave("customization", {"do": "hold"}, action="create", text_contains=text)
    await world.design(node, text)
    async with _held(plan):
        yield


@asynccontextmanager
async def before_the_claim(world: World, node: Node, text: str) -> AsyncIterator[None]:
    """A text that has waited is about to be somebody's.

    Of a process that has one place and is alone: any other one with a free place would take the text as soon as it is
    there. So this is no seam of the long form.
    """
    plan = world.simulator.behave("realtime", {"faults": [{"do": "hold", "at": "upgrade"}]})
    assert await world.say(node, "realtime", "This takes the only place.")
    async with _held(plan):
        assert await world.say(node, "realtime", text)
        with node.door.holding_back(b"SET owner = $3, state = 'speaking'") as held:
            plan.release()
            async with _reached(held):
                yield


def _spoken(source: Spoken) -> dict[str, Seam]:
    return {
        f"{source}: while the rows are written": partial(_at_statement, b"INSERT INTO public.generations", source),
        f"{source}: while the session opens": partial(_at_upgrade, source),
        f"{source}: before the first audio": partial(_at_word, {"at": "audio"}, source),
        f"{source}: before the first commit": partial(_at_statement, b"INSERT INTO internal.spool", source),
        f"{source}: in the middle of the audio": partial(_at_word, {"after_deltas": 4}, source),
        f"{source}: before the provider's end": partial(_at_word, {"at": "response_end"}, source),
        f"{source}: after the provider's end": partial(_at_statement, b"SET state = 'spoken'", source),
        f"{source}: before the upload": partial(_at_put, "before", source),
        f"{source}: after the upload": partial(_at_put, "after", source),
        f"{source}: before the rows are completed": partial(
            _at_statement, b"SET status = 'completed', audio_obj", source
        ),
        f"{source}: between the two updates": partial(_at_statement, b"SET status = 'completed', provider_st", source),
    }


SEAMS: dict[str, Seam] = {
    **_spoken("realtime"),
    **_spoken("inference"),
    "http: while a piece is bought": _piece,
    "clone: while a voice is bought": _clone,
    "design: while a preview is bought": _design,
}
MODAL_SEAMS: dict[str, Seam] = {"modal: while a job is submitted": _job}
