"""The one judge: whatever happened, this has to hold once it is over."""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from tests.chaos.world import Said, World
from tests.gateway import Client
from tests.support import wait_for

RUNBOOK = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
_NUMBER = re.compile(r"\d+")
# The runbook explains these to an operator; here they are findings all the same.
_MISTAKES = ("worker died", "background loop failed", "jobs not fetched")
_WAV_HEADER_BYTES = 44
# A rest of a text that is shorter is not told from others.
_SHORTEST_REST = 6


# What a process was doing when it died, or what it was given by an answer that was lost, stays in the queue and does
# nothing; ``an_hour_later`` sees it go.
_JOBS = "internal.procrastinate_jobs WHERE status = 'todo'"


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
            jobs = await rows.fetch(f"SELECT * FROM {_JOBS}")
        left = [str(await _left(world)), *(str(dict(row)) for row in (*tasks, *jobs))]
        raise AssertionError(f"not over after {within_seconds} s:\n" + "\n".join(left)) from None


async def an_hour_later(world: World) -> None:
    """All processes but a new one leave, and the dead have been silent for an hour: then the queue is empty."""
    leaving = [node for node in world.nodes if node.serves]
    await world.start()
    for node in leaving:
        if status := await world.leave(node):
            raise AssertionError(f"{node.name} left with {status}")
    async with world.rows() as rows:
        await rows.execute(
            """UPDATE internal.procrastinate_workers SET last_heartbeat = last_heartbeat - interval '1 hour'
                WHERE last_heartbeat < now() - interval '40 seconds'"""
        )

        async def empty() -> bool:
            return not await rows.fetchval("SELECT count(*) FROM internal.procrastinate_jobs")

        await wait_for(empty, 240.0, every_seconds=1.0)


async def _left(world: World) -> dict[str, int]:
    async with world.rows() as rows:
        row = await rows.fetchrow(
            f"""SELECT (SELECT count(*) FROM public.tasks WHERE status IN ('pending', 'processing')) AS tasks,
                      (SELECT count(*) FROM internal.runs) AS runs, (SELECT count(*) FROM internal.spool) AS spool,
                      (SELECT count(*) FROM {_JOBS}) AS jobs"""
        )
    assert row
    return dict(row)


async def judge(world: World, *, within_seconds: float) -> dict[str, int]:
    """Wait for the end of everything, then look at all of it. Returns how the texts ended, for the figures.

    Raises:
        AssertionError: With every finding, not only the first.
    """
    findings = world.findings
    try:
        await ended(world, within_seconds)
    except AssertionError as exc:
        findings.append(str(exc))
    await world.followed()
    outcomes: dict[str, int] = {}
    async with world.rows() as rows:
        tasks = {
            row["id"]: dict(row)
            for row in await rows.fetch(
                """SELECT t.id, t.status, t.error, t.result, g.audio_object_key, g.status AS generation,
                          g.provider_metadata -> 'attempts' AS attempts
                     FROM public.tasks t LEFT JOIN public.generations g ON g.id = t.generation_id"""
            )
        }
    async with world.client(world.serving()) as client, httpx.AsyncClient() as anybody:
        for said in world.said:
            outcome = await _one(world, said, tasks.get(UUID(said.task_id)), findings)
            if outcome == "completed" and said.source != "design":
                await _object(world, said, client, anybody, findings)
            kind = f"{said.source} {outcome}"
            outcomes[kind] = outcomes.get(kind, 0) + 1
    await _purchases(world, findings)
    await _outside(world, findings)
    _logs(world, findings)
    assert not findings, "\n".join(findings)
    return outcomes


async def _one(world: World, said: Said, row: dict[str, Any] | None, findings: list[str]) -> str:
    """What the rows, the listener and the provider say of one text; its outcome."""
    what = f"{said.source} {said.text!r} ({said.task_id})"
    if row is None:
        if not world.at_risk(said):
            findings.append(f"{what}: taken and not known any more")
        return "lost with its rows"
    if row["generation"] not in (None, row["status"]):
        findings.append(f"{what}: its task has {row['status']} and its generation is {row['generation']}")
    if row["status"] == "completed":
        if said.source == "design" and not row["result"]:
            findings.append(f"{what}: completed without a preview")
        if said.source != "design" and not row["audio_object_key"]:
            findings.append(f"{what}: completed without an object")
    elif not row["error"]:
        findings.append(f"{what}: {row['status']} without words")
    elif not world.interruptions(said) and said.text not in world.misbehaved:
        findings.append(f"{what}: {row['status']} though nothing happened to it: {row['error']}")
    if said.stream_url and not said.gone:
        if said.end is None:
            findings.append(f"{what}: its listener was never told the end")
        elif said.end["status"] != row["status"] and not world.at_risk(said):
            findings.append(f"{what}: heard {said.end['status']}, and the row says {row['status']}")
    if said.source in ("realtime", "inference"):
        # What a process did not live to see may be spoken once more, and the rows say so each time. Where the provider
        # breaks off a lane that goes on, the sentence under way is begun again: the process notes that with the end.
        mended = said.source == "inference" and said.text in world.misbehaved
        sent, noted = len(_sent(world, said)) - mended, len(row["attempts"] or ())
        interruptions = world.interruptions(said)
        if sent > 1 + interruptions + world.at_risk(said):
            findings.append(f"{what}: its text was sent {sent} times, with {interruptions} interruptions")
        if sent > 1 + noted and not world.at_risk(said):
            findings.append(f"{what}: its text was sent {sent} times, and its row tells of {noted} more attempts")
    return str(row["status"])


def _sent(world: World, said: Said) -> list[dict[str, Any]]:
    """The calls in which the provider was sent this text, or the rest of it; a session without a text cost nothing."""
    return [
        call
        for call in world.simulator.calls
        if call["surface"] == "realtime"
        and len(call["text"]) > _SHORTEST_REST
        and (said.text.endswith(call["text"]) or said.text.startswith(call["text"]))
    ]


async def _object(world: World, said: Said, client: Client, anybody: httpx.AsyncClient, findings: list[str]) -> None:
    """What is stored is what was heard, and what the provider has sent."""
    redirect = await client.http.get(f"/api/generations/{said.generation_id}/audio")
    if redirect.status_code != 302:
        findings.append(f"{said.text!r}: completed, and its audio is answered {redirect.status_code}")
        return
    answer = await anybody.get(redirect.headers["location"])
    if answer.status_code != 200:
        findings.append(f"{said.text!r}: its object is not there ({answer.status_code})")
        return
    whole = answer.content
    payload = whole[_WAV_HEADER_BYTES:] if whole.startswith(b"RIFF") else whole
    if said.stream_url and not said.gone and bytes(said.heard) not in (payload, whole):
        finding = f"{said.source} {said.text!r}: heard {len(said.heard)} bytes, stored {len(payload)} others"
        if world.at_risk(said):
            world.count("heard otherwise than stored, for commits were lost")
        else:
            findings.append(finding)
    spoken = [call["audio_bytes"] for call in _sent(world, said)]
    if said.source == "realtime" and len(payload) not in spoken:
        findings.append(f"{said.text!r}: stored {len(payload)} bytes, the provider sent {spoken}")
    if said.source == "inference" and len(payload) > sum(spoken):
        findings.append(f"{said.text!r}: stored {len(payload)} bytes, the provider sent {spoken} in all")


_BOUGHT = {("http", "synthesize"): "http", ("modal", "submit"): "modal", ("customization", "create"): "voice"}


async def _purchases(world: World, findings: list[str]) -> None:
    """What is bought by itself is bought once, by the provider's own book, and has a row here that knows of it."""
    async with world.rows() as rows:
        known = await rows.fetch(
            """SELECT p.kind, p.state, p.provider_name, g.text
                 FROM internal.purchases p LEFT JOIN public.tasks t ON t.id = p.subject
                 LEFT JOIN public.generations g ON g.id = t.generation_id"""
        )
    texts = {(row["kind"], row["text"]) for row in known}
    names = {row["provider_name"] for row in known}
    bought: dict[tuple[str, str], list[str]] = {}
    for call in world.simulator.calls:
        if kind := _BOUGHT.get((call["surface"], call["action"])):
            what = str(call["preferred_name"] if kind == "voice" else call["text"])
            bought.setdefault((kind, what), []).append(call["at"])
    for (kind, what), times in bought.items():
        # Who bought may die in the moment in which the database forgets that it did: then nobody knows.
        forgotten = [at for at in times if any(begin <= at <= end for begin, end in world.losses)]
        if len(times) > 1 and len(times) - len(forgotten) <= 1:
            world.count("bought again, for commits were lost", len(times) - 1)
        elif len(times) > 1:
            findings.append(f"{kind}: {what!r} was bought at {times}; commits were lost at {world.losses}")
        if not forgotten and (what not in names if kind == "voice" else (kind, what) not in texts):
            findings.append(f"{kind}: {what!r} was bought at {times}, and no purchase knows of it")


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
        cut = await rows.fetch("SELECT subject, state FROM internal.purchases WHERE state IN ('unknown', 'calling')")
    listed = {UUID(purchase["subject"]) for purchase in found["purchases"]}
    open_ones = {row["subject"] for row in cut}
    if not listed <= open_ones:
        findings.append(f"reconcile lists purchases that are decided: {listed - open_ones}")
    if forgotten := {row["subject"] for row in cut if row["state"] == "unknown"} - listed:
        findings.append(f"reconcile does not list {forgotten}")
    undisturbed = {UUID(said.task_id) for said in world.said if not world.interruptions(said)}
    if wrong := listed & undisturbed:
        findings.append(f"reconcile lists purchases that nothing happened to: {wrong}")
    world.count("purchases that reconcile lists", len(listed))
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
            message = _NUMBER.sub("N", entry["message"].rstrip("."))
            known = message in RUNBOOK or entry["message"] in RUNBOOK
            if message.startswith(_MISTAKES):
                findings.append(f"{node.name} logged a mistake of ours: {line[:3000]}")
            elif entry["level"].upper() in ("ERROR", "CRITICAL") and not known:
                findings.append(f"{node.name} logged an error that the runbook does not explain: {line[:1500]}")
