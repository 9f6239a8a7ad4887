"""The usual way to write the same relay: FastAPI, ``json``, and a queue for each client.

Nothing in it is slow on purpose. Each delta is decoded and checked, put into the client's queue as samples, and encoded
again for the client; there is no spool, no second reader and no resume, as in many a server that relays speech.
"""

import argparse
import asyncio
import base64
import json
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from websockets.asyncio.client import connect

from bench.children import run_child
from bench.relay import OPENING, serve

_QUEUED_AT_MOST = 1000


def application(source_url: str) -> FastAPI:
    """One address, ``/stream``: the events of one speech."""
    app = FastAPI()

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(_events(source_url), media_type="text/event-stream")

    return app


async def _events(source_url: str) -> AsyncIterator[str]:
    queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(_QUEUED_AT_MOST)
    async with asyncio.TaskGroup() as group:
        group.create_task(_hear(source_url, queue))
        while (heard := await queue.get()) is not None:
            offset, audio = heard
            data = json.dumps({"delta": base64.b64encode(audio).decode()}, separators=(",", ":"))
            yield f"event: response.audio.delta\nid: {offset}\ndata: {data}\n\n"


async def _hear(source_url: str, queue: "asyncio.Queue[tuple[int, bytes] | None]") -> None:
    offset = 0
    async with connect(source_url, max_size=2**24) as spoken:
        for frame in OPENING:
            await spoken.send(frame)
        async for message in spoken:
            event = json.loads(message)
            if event["type"] == "response.audio.delta":
                audio = base64.b64decode(event["delta"])
                offset += len(audio)
                await queue.put((offset, audio))
            elif event["type"] == "session.finished":
                break
    await queue.put(None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    options = parser.parse_args()
    run_child(serve(application(options.source)))
