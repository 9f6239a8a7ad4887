"""The floor: from the source's socket to the follower's, and nothing else.

The same two libraries carry the bytes as in the server (``websockets`` in, uvicorn out), so the difference is what the
product does between them: parsing, checking, decoding, keeping, sharing, resuming, authorizing. Beside it one endpoint
that answers a poll with one indexed SELECT, behind the framework that the server uses.
"""

import argparse
import asyncio
import socket
from typing import Any

import asyncpg
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.asyncio.client import connect

from bench.children import run_child, say, stdin_lines
from bench.lag import LoopLag
from bench.stamps import SAMPLE_RATE_HZ

_CONVERSATION: list[dict[str, Any]] = [
    {
        "type": "session.update",
        "session": {"voice": "v", "mode": "server_commit", "response_format": "pcm", "sample_rate": SAMPLE_RATE_HZ},
    },
    {"type": "input_text_buffer.append", "text": "Good evening."},
    {"type": "session.finish"},
]
OPENING = [
    msgspec.json.encode({"event_id": f"event_{number}", **event}).decode() for number, event in enumerate(_CONVERSATION)
]


class Relay:
    """An ASGI application with two addresses: ``/stream`` and, with a task's id after it, ``/poll/``."""

    def __init__(self, source_url: str, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._source_url = source_url
        self._pool = pool
        self._polls = Starlette(routes=[Route("/poll/{task_id}", self._poll)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/poll/"):
            await self._polls(scope, receive, send)
        else:
            await self._stream(send)

    async def _stream(self, send: Send) -> None:
        async with connect(
            self._source_url, compression=None, proxy=None, ping_interval=None, max_size=2**24
        ) as spoken:
            for frame in OPENING:
                await spoken.send(frame)
            await _start(send, b"text/event-stream")
            finished = False
            while not finished:
                heard = await spoken.recv(decode=False)
                # The delta stands last in its frame, so its bytes can be passed on as they came.
                if (at := heard.find(b'"delta":"')) >= 0:
                    event = b"data: {%b\n\n" % heard[at:]
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                else:
                    finished = b'"session.finished"' in heard
        await send({"type": "http.response.body", "body": b""})

    async def _poll(self, request: Request) -> Response:
        row = await self._pool.fetchrow(
            "SELECT id, status FROM public.tasks WHERE id = $1", request.path_params["task_id"]
        )
        return Response(msgspec.json.encode(dict(row or {})), media_type="application/json")


async def _start(send: Send, media_type: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", media_type)]})


async def main(source_url: str, database_url: str) -> None:
    async with asyncpg.create_pool(database_url, min_size=1, max_size=10) as pool:
        await serve(Relay(source_url, pool))


async def serve(app: ASGIApp) -> None:
    """Serve until standard input ends; told to, say how late the loop was."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, ws="none"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        say(port=listener.getsockname()[1])
        lag = LoopLag(asyncio.get_running_loop())
        async for line in stdin_lines():
            if line == "lag":
                lag.tell()
        server.should_exit = server.force_exit = True
        await serving


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    parser.add_argument("--database", required=True)
    options = parser.parse_args()
    run_child(main(options.source, options.database))
