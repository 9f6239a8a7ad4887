"""The long bad week: kills, outages, fail-overs and deploys that overlap, then the judge (`make chaos`).

The same seed makes the same plan; what a fault hits depends on the moment, so a run says what it met.
"""

import argparse
import asyncio
import itertools
import json
import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from moto.server import ThreadedMotoServer

from tests.chaos.judge import an_hour_later, judge
from tests.chaos.seams import MODAL_SEAMS, SEAMS
from tests.chaos.world import FAKE_CLOCK, Node, Source, World, world
from tests.conftest import AWS_ENVIRONMENT

PROCESSES = 5
SPEAKERS = 2
STRIKERS = 4  # processes that are brought to a seam at the same time
_PAUSED = 0.15  # of those who reach a seam stand still there, and go on
_PAUSES = (2.0, 8.0, 20.0)
_OUTAGES_SECONDS = (3.0, 12.0, 30.0)
# What the slowest end waits for: a job whose taking was never heard of is given up after three minutes.
_OVER_SECONDS = 320.0
# How far the processes' own clocks are apart. Tokens are forgiven ten seconds.
_CLOCKS = ("", "+8s", "-8s")
_MISBEHAVIOURS: tuple[dict[str, Any], ...] = (
    {"do": "abort", "at": "audio"},
    {"do": "abort", "after_deltas": 3},
    {"do": "error", "at": "audio", "code": "InternalError"},
    {"do": "close", "at": "response_end", "code": 1011},
    {"delta_sizes": [1, 3, 1001]},
)


Strike = tuple[str, float | None]
"""A seam, and for how long the process stands still there; None: it dies."""


async def _stores(nodes: list[Node], seconds: float, **fault: float) -> None:
    """Have the doors to the store misbehave in this way for so long; as they come, none does."""
    for node in nodes:
        for name, value in fault.items():
            setattr(node.store, name, value)
    await asyncio.sleep(seconds)
    for node in nodes:
        for name, value in fault.items():
            setattr(node.store, name, type(value)())


class BadWeek:
    """One plan, carried out: kills one after the other, everything else beside them."""

    def __init__(self, chaos: World, seed: int) -> None:
        self._chaos = chaos
        self._draw = random.Random(seed)
        self._database = asyncio.Lock()  # one thing at a time happens to the database, or none could be told apart
        self._numbers = itertools.count(1)
        self._over = False
        self._beside: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._strikes: list[Strike] = []
        self._planned_faults, self._each = 0, 0.0

    async def run(self, *, kills: int, outages: int, fail_overs: int, deploys: int) -> None:
        """Do all of it, as evenly spread over the kills as it goes."""
        await asyncio.gather(*(self._chaos.start() for _ in range(PROCESSES)))
        kinds = [*_OUTAGES] * (outages // len(_OUTAGES) + 1)
        beside: list[Callable[[], Coroutine[Any, Any, None]]] = [
            *(partial(self._outage, kind) for kind in self._draw.sample(kinds, outages)),
            *[self._deploy] * deploys,
            *[self._fail_over] * (fail_overs - fail_overs // 2),
            *[self._lossy_fail_over] * (fail_overs // 2),
        ]
        self._draw.shuffle(beside)
        self._beside, self._strikes = beside, self._planned(kills)
        self._planned_faults, self._each = len(beside), len(beside) / kills
        async with asyncio.TaskGroup() as group:
            speakers = [group.create_task(self._speak()) for _ in range(SPEAKERS)]
            faults: list[asyncio.Task[None]] = []
            await asyncio.gather(*(self._strike(group, faults) for _ in range(STRIKERS)))
            await asyncio.gather(*faults)
            self._over = True
            await asyncio.gather(*speakers)

    def _planned(self, kills: int) -> list[Strike]:
        """At which seams processes die, the last first; where one only stands still for a while, it is no death."""
        every = [*SEAMS, *MODAL_SEAMS]
        self._draw.shuffle(every)
        strikes: list[Strike] = []
        for name in itertools.cycle(every):
            paused = name in SEAMS and self._draw.random() < _PAUSED
            strikes.append((name, self._draw.choice(_PAUSES) if paused else None))
            kills -= not paused
            if not kills:
                return strikes[::-1]
        raise AssertionError("a cycle has no end")

    async def _strike(self, group: asyncio.TaskGroup, faults: list[asyncio.Task[None]]) -> None:
        """One strike after the other, and beside them what else is due, until none is left."""
        counted = self._chaos.counted
        while self._strikes:
            while self._beside and self._planned_faults - len(self._beside) < counted.get("kills", 0) * self._each:
                faults.append(group.create_task(self._beside.pop()()))
            await self._struck(*self._strikes.pop())
            if self._strikes and len(self._strikes) % 10 == 0:
                print(f"{len(self._strikes)} strikes to come, {dict(counted)}", file=sys.stderr, flush=True)
        while self._beside:
            faults.append(group.create_task(self._beside.pop()()))

    def _text(self) -> str:
        """A text of three sentences, each of which is told from those of all others."""
        number = next(self._numbers)
        return f"Text {number} begins here. Text {number} goes on with a second sentence. Text {number} ends with this."

    async def _speak(self) -> None:
        """Somebody who speaks all the while, on every lane; now and then the provider misbehaves."""
        chaos = self._chaos
        while not self._over:
            source: Source = self._draw.choice(("realtime", "inference", "realtime", "http"))
            text = self._text()
            if source != "http" and self._draw.random() < 0.3:
                chaos.simulator.behave("realtime", self._draw.choice(_MISBEHAVIOURS), text_contains=text)
                chaos.misbehaved.add(text)
                chaos.count("misbehaviours of the provider")
            if node := self._any():
                await chaos.say(node, source, text)
            await asyncio.sleep(1.0)

    def _any(self) -> Node | None:
        serving = [node for node in self._chaos.nodes if node.serves and node.speaks == "qwen"]
        return self._draw.choice(serving) if serving else None

    async def _victim(self, name: str) -> Node:
        """A process that nobody else does anything to, as many beside it as there should be."""
        chaos = self._chaos
        if name in MODAL_SEAMS:
            victim = await chaos.start(TTS_PROVIDER_MODE="modal")
        else:
            while len([node for node in chaos.nodes if node.serves]) < PROCESSES:
                await chaos.start()
            able = [node for node in chaos.nodes if node.serves and not node.doomed]
            victim = self._draw.choice(able) if able else await chaos.start()
        victim.doomed = True
        return victim

    async def _struck(self, name: str, pause: float | None) -> None:
        """Bring a process to a seam and kill it, also where it does not get there because another fault is in its way;
        or stop it for so long instead, and let it go on."""
        chaos, victim = self._chaos, await self._victim(name)
        seam = {**SEAMS, **MODAL_SEAMS}[name](chaos, victim, self._text())
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(seam)
            except (TimeoutError, OSError, AssertionError, httpx.TransportError):
                chaos.count("did not get to its seam")
            else:
                chaos.count(f"at {name}")
            if pause:
                async with chaos.stopped(victim):
                    await asyncio.sleep(pause)
            else:
                await chaos.kill(victim)
        victim.doomed = False

    async def _outage(self, kind: str) -> None:
        chaos, seconds = self._chaos, self._draw.choice(_OUTAGES_SECONDS)
        chaos.count(f"outages: {kind}")
        await _OUTAGES[kind](self, [node for node in chaos.nodes if node.alive], seconds)

    async def _database_away(self, nodes: list[Node], seconds: float) -> None:
        async with self._database:
            for node in nodes:
                node.door.shut()
            await asyncio.sleep(seconds)
            for node in nodes:
                node.door.open()

    async def _one_stranded(self, nodes: list[Node], seconds: float) -> None:
        async with self._database:
            # It cannot say that it lives.
            with self._chaos.interrupting(), self._draw.choice(nodes).door.held():
                await asyncio.sleep(seconds)

    async def _demoted(self, nodes: list[Node], _: float) -> None:
        async with self._database:
            try:
                await self._draw.choice(nodes).door.demote()
            except TimeoutError:
                self._chaos.count("nothing to demote")

    async def _deaf(self, nodes: list[Node], seconds: float) -> None:
        for node in nodes:
            node.door.notifications = False
        await asyncio.sleep(seconds)
        for node in nodes:
            node.door.notifications = True

    async def _store_away(self, nodes: list[Node], seconds: float) -> None:
        await _stores(nodes, seconds, away=True)

    async def _store_refuses(self, nodes: list[Node], seconds: float) -> None:
        await _stores(nodes, seconds, refusing=True)

    async def _store_slow(self, nodes: list[Node], seconds: float) -> None:
        await _stores(nodes, seconds, slow_seconds=2.0)

    async def _answers_lost(self, nodes: list[Node], seconds: float) -> None:
        await _stores(nodes, seconds, losing=3)

    async def _deploy(self) -> None:
        """A new process first, then SIGTERM to an old one."""
        chaos = self._chaos
        await chaos.start()
        able = [node for node in chaos.nodes if node.serves and not node.doomed]
        able[0].doomed = True
        if status := await chaos.leave(able[0]):
            chaos.findings.append(f"{able[0].name} left with {status}")
        chaos.count("deploys")

    async def _fail_over(self) -> None:
        async with self._database:
            with self._chaos.interrupting():
                await self._chaos.fail_over()

    async def _lossy_fail_over(self) -> None:
        async with self._database:
            with self._chaos.interrupting():
                lost = await self._chaos.fail_over(lose_seconds=1.0)
            self._chaos.count("bytes of log lost", lost)


_Outage = Callable[[BadWeek, list[Node], float], Coroutine[Any, Any, None]]
_OUTAGES: dict[str, _Outage] = {
    "database away": BadWeek._database_away,
    "one process stranded": BadWeek._one_stranded,
    "one process on a server that only reads": BadWeek._demoted,
    "notifications kept back": BadWeek._deaf,
    "store away": BadWeek._store_away,
    "store refuses": BadWeek._store_refuses,
    "store slow": BadWeek._store_slow,
    "answers of the store lost": BadWeek._answers_lost,
}


async def _run(options: argparse.Namespace, s3_endpoint: str) -> int:
    began = time.monotonic()
    async with world(s3_endpoint, AWS_ENVIRONMENT) as chaos:
        try:
            if FAKE_CLOCK.exists():
                chaos.clocks = _CLOCKS
            else:
                print("All clocks are right: Debian's package libfaketime is not installed.", file=sys.stderr)
            week = BadWeek(chaos, options.seed)
            async with asyncio.timeout(options.minutes * 60 - _OVER_SECONDS):
                await week.run(
                    kills=options.kills,
                    outages=options.outages,
                    fail_overs=options.fail_overs,
                    deploys=options.deploys,
                )
            while not any(node.serves for node in chaos.nodes):
                await chaos.start()
            print(f"Everything has happened after {time.monotonic() - began:.0f} s. The judge waits.", file=sys.stderr)
            outcomes = await judge(chaos, within_seconds=_OVER_SECONDS)
            print(f"The verdict is there after {time.monotonic() - began:.0f} s.", file=sys.stderr)
            await an_hour_later(chaos)
        except (AssertionError, TimeoutError) as exc:
            print("NOT CLEAN:", str(exc) or "it took too long", *chaos.findings, sep="\n", file=sys.stderr)
            outcomes = {}
        finally:
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                for log in chaos.folder.glob("*.log"):
                    shutil.copy(log, options.logs)
            figures = {**chaos.counted, "unanswered": chaos.unanswered, "seconds": round(time.monotonic() - began)}
            print(json.dumps(dict(sorted(figures.items())), indent=2))
        print("CLEAN" if outcomes else "NOT CLEAN", json.dumps({"ended": outcomes}))
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
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # writing to somebody who was just killed is no news
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
