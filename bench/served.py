"""`python -m server serve`, ended with its parent and able to say how late its loop was; by itself it does neither."""

import asyncio
import os
import signal
import sys
import threading

import uvloop

from bench.lag import LoopLag
from server import serve
from server.__main__ import main

_lags: list[tuple[asyncio.AbstractEventLoop, LoopLag]] = []


def _watched_loop() -> asyncio.AbstractEventLoop:
    loop = uvloop.new_event_loop()
    _lags.append((loop, LoopLag(loop)))
    return loop


def _hear_the_parent() -> None:
    while heard := os.read(0, 4096):  # not sys.stdin: a thread that waits in it would break the end of the interpreter
        for _ in range(heard.count(b"lag\n")):
            loop, lag = _lags[-1]
            loop.call_soon_threadsafe(lag.tell)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    serve.loop_factory = lambda: _watched_loop
    threading.Thread(target=_hear_the_parent, daemon=True).start()
    sys.exit(main(["serve"]))
