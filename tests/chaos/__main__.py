"""The long bad week: kills, outages, fail-overs and deploys that overlap, then the judge (`make chaos`).

The same seed makes the same plan; what a fault hits depends on the moment, so a run says what it met.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from moto.server import ThreadedMotoServer

from tests.chaos.judge import judge
from tests.chaos.seams import MODAL_SEAMS, SEAMS
from tests.chaos.world import Node, Source, World, world
from tests.conftest import AWS_ENVIRONMENT

PROCESSES = 3
_PAUSES = (2.0, 8.0, 20.0)
_OUTAGES_SECONDS = (3.0, 12.0, 30.0)
# What the slowest end waits for: a job whose taking was never heard of is given up after three minutes.
_OVER_SECONDS = 320.0
_MISBEHAVIOURS: tuple[dict[str, Any], ...] = (
    {"do": "abort", "at": "audio"},
    {"do": "abort", "after_deltas": 3},
    {"do": "error", "at": "audio", "code": "InternalError"},
    {"do": "close", "at": "response_end", "code": 1011},
    {"delta_sizes": [1, 3, 1001]},
)


class BadWeek:
    """One plan, carried out: kills one after the other, everything else beside them."""

    def __init__(self, chaos: World, seed: int) -> None:
        self._chaos = chaos
        self._draw = random.Random(seed)
        self._database = asyncio.Lock()  # one thing at a time happens to the database, or none could be told apart
        self._numbers = iter(range(10**9))
        self._over = False

    async def run(self, *, kills: int, outages: int, fail_overs: int, deploys: int) -> None:
        """Do all of it, as evenly spread over the kills as it goes."""
        for _ in range(PROCESSES):
            await self._chaos.start()
        beside: list[Callable[[], Coroutine[Any, Any, None]]] = [self._outage] * outages + [self._deploy] * deploys
        beside += [self._fail_over, self._lossy_fail_over] * (fail_overs // 2) + [self._fail_over] * (fail_overs % 2)
        self._draw.shuffle(beside)
        seams = [*SEAMS] * (kills // len(SEAMS) + 1)
        self._draw.shuffle(seams)
        async with asyncio.TaskGroup() as group:
            load = group.create_task(self._load())
            for number in range(kills):
                while beside and len(beside) * kills > (kills - number - 1) * (outages + deploys + fail_overs):
                    group.create_task(_awaited(beside.pop()()))
                await self._kill(seams[number])
            for fault in beside:
                await fault()
            self._over = True
            await load

    def _text(self) -> str:
        return f"This is text number {next(self._numbers)}. It has a second sentence. And it has a third one."

    async def _load(self) -> None:
        """People who speak all the while, on every lane; now and then the provider misbehaves."""
        while not self._over:
            source: Source = self._draw.choice(("realtime", "inference", "realtime", "http"))
            text = self._text()
            if source != "http" and self._draw.random() < 0.3:
                self._chaos.simulator.behave("realtime", self._draw.choice(_MISBEHAVIOURS), text_contains=text)
                self._chaos.count("misbehaviours of the provider")
            if any(node.serves for node in self._chaos.nodes):
                await self._chaos.say(self._any(), source, text)
            await asyncio.sleep(0.5)

    def _any(self) -> Node:
        return self._draw.choice([node for node in self._chaos.nodes if node.serves])

    async def _kill(self, name: str) -> None:
        """Bring a process to a seam and kill or stop it; where it does not get there, kill it anyway."""
        chaos = self._chaos
        while len([node for node in chaos.nodes if node.serves]) < PROCESSES:
            await chaos.start()
        victim = self._any()
        pause = self._draw.choice(_PAUSES) if self._draw.random() < 0.15 else 0.0
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(SEAMS[name](chaos, victim, self._text()))
            except (TimeoutError, OSError, AssertionError, ConnectionError):
                chaos.count("did not get to its seam")
            else:
                chaos.count(f"at {name}")
            if not victim.serves:
                return
            if pause:
                async with chaos.stopped(victim):
                    await asyncio.sleep(pause)
            else:
                await chaos.kill(victim)

    async def job(self) -> None:
        """A process of the other mode dies while a job is submitted."""
        chaos = self._chaos
        node = await chaos.start(TTS_PROVIDER_MODE="modal")
        [seam] = MODAL_SEAMS.values()
        async with seam(chaos, node, self._text()):
            chaos.count("at modal: while a job is submitted")
            await chaos.kill(node)

    async def _outage(self) -> None:
        chaos, seconds = self._chaos, self._draw.choice(_OUTAGES_SECONDS)
        kind = self._draw.choice(("database away", "one stranded", "read-only", "deaf", "store away", "store refuses",
                                  "store slow", "store loses answers"))  # fmt: skip
        chaos.count(f"outages: {kind}")
        nodes = [node for node in chaos.nodes if node.alive]
        if kind in ("database away", "one stranded", "read-only"):
            async with self._database:
                if kind == "database away":
                    for node in nodes:
                        node.door.shut()
                    await asyncio.sleep(seconds)
                    for node in nodes:
                        node.door.open()
                elif kind == "one stranded":
                    with self._draw.choice(nodes).door.held():
                        await asyncio.sleep(seconds)
                else:
                    try:
                        await self._draw.choice(nodes).door.demote()
                    except TimeoutError:
                        chaos.count("nothing to demote")
            return
        for node in nodes:
            node.door.notifications = kind != "deaf"
            node.store.away = kind == "store away"
            node.store.refusing = kind == "store refuses"
            node.store.slow_seconds = 2.0 if kind == "store slow" else 0.0
            node.store.losing = 3 if kind == "store loses answers" else 0
        await asyncio.sleep(seconds)
        for node in nodes:
            node.door.notifications = True
            node.store.heal()

    async def _deploy(self) -> None:
        """A new process first, then SIGTERM to an old one."""
        chaos = self._chaos
        await chaos.start()
        serving = [node for node in chaos.nodes if node.serves]
        status = await chaos.leave(serving[0])
        assert status == 0, f"{serving[0].name} left with {status}"
        chaos.count("deploys")

    async def _fail_over(self) -> None:
        async with self._database:
            await self._chaos.fail_over()

    async def _lossy_fail_over(self) -> None:
        async with self._database:
            lost = await self._chaos.fail_over(lose_seconds=1.0)
            self._chaos.count("bytes of log lost", lost)


async def _awaited(fault: Awaitable[None]) -> None:
    await fault


async def _run(options: argparse.Namespace, s3_endpoint: str) -> int:
    began = time.monotonic()
    async with world(s3_endpoint, AWS_ENVIRONMENT) as chaos:
        try:
            week = BadWeek(chaos, options.seed)
            async with asyncio.timeout(options.minutes * 60 - _OVER_SECONDS):
                await week.job()
                await week.run(
                    kills=options.kills,
                    outages=options.outages,
                    fail_overs=options.fail_overs,
                    deploys=options.deploys,
                )
            while not any(node.serves for node in chaos.nodes):
                await chaos.start()
            outcomes = await judge(chaos, within_seconds=_OVER_SECONDS)
        except (AssertionError, TimeoutError) as exc:
            print(f"NOT CLEAN: {exc or 'it took too long'}", file=sys.stderr)
            outcomes = {}
        finally:
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                for node in chaos.nodes:
                    shutil.copy(chaos.folder / f"{node.name}.log", options.logs)
            figures = {**chaos.counted, "unanswered": chaos.unanswered, "seconds": round(time.monotonic() - began)}
            print(json.dumps(dict(sorted(figures.items())), indent=2))
        print(json.dumps({"ended": outcomes}))
        return 0 if outcomes else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="which plan")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--outages", type=int, default=20)
    parser.add_argument("--fail-overs", type=int, default=5)
    parser.add_argument("--deploys", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=40.0, help="longer than this is a failure")
    parser.add_argument("--logs", type=Path, help="a folder for what the processes logged")
    options = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ.update(AWS_ENVIRONMENT)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        return asyncio.run(_run(options, f"http://{host}:{port}"))
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
