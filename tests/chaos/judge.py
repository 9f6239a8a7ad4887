"""The one judge: whatever happened, this has to hold once it is over."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from tests.chaos.world import Said, World
from tests.support import wait_for

RUNBOOK = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
_WAV_HEADER_BYTES = 44
_STARTS = 3  # tries of one speech at its provider, as long as nothing was heard


async def ended(world: World, within_seconds: float) -> None:
    """Wait until nothing is under way any more: no task without an end, and run, spool and queue empty."""

    async def over() -> bool:
        return not any((await _left(world)).values())

    try:
        await wait_for(over, within_seconds, every_seconds=0.25)
    except AssertionError:
        async with world.rows() as rows:
            tasks = await rows.fetch(
                """SELECT t.id, t.type, t.status, t.provider_status, t.metadata, now() - t.created_at AS age, r.state,
                          r.attempt, r.owner, now() - r.beat_at AS silent
                     FROM public.tasks t FULL JOIN internal.runs r ON r.task_id = t.id
                    WHERE t.status IN ('pending', 'processing') OR r.task_id IS NOT NULL"""
            )
            jobs = await rows.fetch("SELECT * FROM internal.procrastinate_jobs WHERE status IN ('todo', 'doing')")
        left = [str(await _left(world)), *(str(dict(row)) for row in (*tasks, *jobs))]
        raise AssertionError(f"not over after {within_seconds} s:\n" + "\n".join(left)) from None


async def _left(world: World) -> dict[str, int]:
    async with world.rows() as rows:
        row = await rows.fetchrow(
            """SELECT (SELECT count(*) FROM public.tasks WHERE status IN ('pending', 'processing')) AS tasks,
                      (SELECT count(*) FROM internal.runs) AS runs, (SELECT count(*) FROM internal.spool) AS spool,
                      (SELECT count(*) FROM internal.procrastinate_jobs
                        WHERE status IN ('todo', 'doing')) AS jobs"""
        )
    assert row
    return dict(row)


async def judge(world: World, *, within_seconds: float) -> dict[str, int]:
    """Wait for the end of everything, then look at all of it. Returns how the texts ended, for the figures.

    Raises:
        AssertionError: With every finding, not only the first.
    """
    await ended(world, within_seconds)
    await world.followed()
    findings: list[str] = []
    outcomes: dict[str, int] = {}
    async with world.rows() as rows:
        for said in world.said:
            row = await rows.fetchrow(
                """SELECT t.status, t.error, t.error_category, g.audio_object_key, g.status AS generation
                     FROM public.tasks t LEFT JOIN public.generations g ON g.id = t.generation_id WHERE t.id = $1""",
                UUID(said.task_id),
            )
            outcome = await _one(world, said, dict(row) if row else None, findings)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    _purchases(world, findings)
    await _outside(world, findings)
    _logs(world, findings)
    assert not findings, "\n".join(findings)
    return outcomes


async def _one(world: World, said: Said, row: dict[str, Any] | None, findings: list[str]) -> str:
    what = f"{said.source} {said.text!r} ({said.task_id})"
    if row is None:
        if world.lossy_at is None:
            findings.append(f"{what}: taken and not known any more")
        return "lost with its rows"
    if row["status"] == "completed":
        if row["generation"] not in (None, "completed"):
            findings.append(f"{what}: its task has completed and its generation is {row['generation']}")
        await _object(world, said, row["audio_object_key"], findings)
    elif not row["error"]:
        findings.append(f"{what}: {row['status']} without words")
    if said.stream_url:
        if said.end is None and not said.gone:
            findings.append(f"{what}: its listener was never told the end")
        elif said.end and said.end["status"] != row["status"] and world.lossy_at is None:
            findings.append(f"{what}: heard {said.end['status']}, and the row says {row['status']}")
    calls = [call for call in world.simulator.calls if call.get("text") == said.text]
    allowed = _STARTS + said.interruptions if said.source in ("realtime", "inference") else 1
    if len(calls) > allowed:
        findings.append(f"{what}: {len(calls)} calls, {allowed} allowed")
    return str(row["status"])


async def _object(world: World, said: Said, key: str | None, findings: list[str]) -> None:
    if key is None:
        findings.append(f"{said.text!r}: completed without an object")
        return
    assert said.generation_id
    async with world.client(world.serving()) as client:
        redirect = await client.http.get(f"/api/generations/{said.generation_id}/audio")
    if redirect.status_code != 302:
        findings.append(f"{said.text!r}: completed, and its audio is answered {redirect.status_code}")
        return
    async with httpx.AsyncClient() as anybody:
        answer = await anybody.get(redirect.headers["location"])
    if answer.status_code != 200:
        findings.append(f"{said.text!r}: its object is not there ({answer.status_code})")
        return
    whole = answer.content
    payload = whole[_WAV_HEADER_BYTES:] if whole.startswith(b"RIFF") else whole
    if said.stream_url and bytes(said.heard) not in (payload, whole):
        findings.append(f"{said.text!r}: heard {len(said.heard)} bytes, stored {len(payload)} others")
    spoken = [
        call["audio_bytes"] for call in world.simulator.calls if call.get("text") == said.text and "deltas" in call
    ]
    # A speech that goes on in another process is the sum of what several said.
    whole_in_one = said.source == "realtime" or not said.interruptions
    if spoken and whole_in_one and len(payload) not in spoken:
        findings.append(f"{said.text!r}: stored {len(payload)} bytes, the provider sent {spoken}")


def _purchases(world: World, findings: list[str]) -> None:
    """What is bought once is bought once, whatever dies meanwhile."""
    per_text: dict[tuple[str, str], int] = {}
    for call in world.simulator.calls:
        if (call["surface"], call["action"]) in (
            ("http", "synthesize"),
            ("modal", "submit"),
            ("customization", "create"),
        ):
            what = str(call.get("text") or call.get("preferred_name") or call.get("name") or call["id"])
            per_text[call["surface"], what] = per_text.get((call["surface"], what), 0) + call.get("billed", 1)
    findings += [f"{surface}: {what!r} was bought {n} times" for (surface, what), n in per_text.items() if n > 1]


async def reconciled(world: World) -> dict[str, Any]:
    """What `python -m server reconcile --json` tells, as an operator would ask it."""
    node = world.serving()
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "reconcile", "--json"),
        env=node.variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(program.communicate(), timeout=60.0)
    assert out, err.decode()
    found: dict[str, Any] = json.loads(out)
    return found


async def _outside(world: World, findings: list[str]) -> None:
    """`reconcile` lists the purchases that were cut off, each one, and nothing else."""
    found = await reconciled(world)
    async with world.rows() as rows:
        cut = await rows.fetch("SELECT subject FROM internal.purchases WHERE state IN ('unknown', 'calling')")
    listed = {UUID(purchase["subject"]) for purchase in found["purchases"]}
    lapsed = {row["subject"] for row in cut}
    if not listed <= lapsed:
        findings.append(f"reconcile lists purchases that are decided: {listed - lapsed}")
    if world.lossy_at is None and len(listed) > world.undecided:
        findings.append(f"reconcile lists {len(listed)} purchases, {world.undecided} were cut off")
    for kind in ("unstored", "problems", "removals"):
        if found[kind]:
            findings.append(f"reconcile lists {kind}: {found[kind]}")


def _logs(world: World, findings: list[str]) -> None:
    """Each error that a process logged is one that the runbook tells what to do about."""
    for node in world.nodes:
        for line in node.process.log.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                findings.append(f"{node.name} printed {line!r}")
                continue
            known = entry["message"] in RUNBOOK or entry["message"].rstrip(".") in RUNBOOK
            if entry["level"].upper() in ("ERROR", "CRITICAL") and not known:
                findings.append(f"{node.name} logged an error that the runbook does not explain: {line[:1500]}")
