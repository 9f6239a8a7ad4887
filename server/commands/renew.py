"""`python -m server renew`: voices whose model is gone are made again, after their number and price were shown."""

import asyncio
import sys
from collections.abc import Callable

from server import logs
from server.app import assembled
from server.commands.ending import ended
from server.errors import UtterError
from server.jobs.renew import Candidate, Kept, candidates, remake
from server.parts import Parts
from server.settings import Settings, speaks_by_tasks

# What the vendor's price list said of one creation (US dollars) when it was last read.
PRICES = {"qwen-tts": 0.01, "voice-enrollment": 0.01, "qwen-voice-design": 0.20}
# The provider takes a few creations a second; nobody waits for this, so it takes its time.
PAUSE_SECONDS = 0.5


def run(settings: Settings, *, everything: bool, model: str | None, dry_run: bool) -> int:
    """Make voices again; 1 where one of them could not be."""
    logs.configure("warning", settings.log_format)
    return ended(_run(settings, everything=everything, model=model, dry_run=dry_run))


async def _run(settings: Settings, *, everything: bool, model: str | None, dry_run: bool) -> int:
    async with assembled(settings) as parts:
        if not parts.providers.abilities.enrolls:
            print("In this mode the provider keeps no voices: there is nothing to make again.")
            return 0
        found = [candidate async for candidate in candidates(parts, model=model, everything=everything)]
        possible = [candidate for candidate in found if candidate.objection is None]
        print(announcement(settings, found))
        for candidate in found:
            if candidate.objection is not None:
                print(f"  {candidate.voice.id}  {candidate.voice.provider_target_model}: {candidate.objection}")
        if dry_run:
            return 0
        return await _make(parts, possible, _progress) if possible else 0


def announcement(settings: Settings, found: list[Candidate]) -> str:
    """How many voices, for which model, and what the provider may bill for them."""
    possible = sum(candidate.objection is None for candidate in found)
    target = settings.qwen_vc_target_model
    back = sum(candidate.remembered for candidate in found)
    each = "voice-enrollment" if speaks_by_tasks(target) else "qwen-tts"
    bought = [candidate for candidate in found if candidate.objection is None and not candidate.remembered]
    designed = 0 if speaks_by_tasks(target) else sum(not one.voice.reference_object_key for one in bought)
    price = PRICES[each] * (len(bought) - designed) + PRICES["qwen-voice-design"] * designed
    kept = len(found) - possible
    return (
        f"{possible} voices are to be made again for {target}; the provider may bill up to {price:.2f} USD for that"
        " (its price list decides)."
        + (f" {back} of them it knew before: where it still has them, they are put back for nothing." if back else "")
        + (f" {kept} cannot be made again:" if kept else "")
    )


async def _make(parts: Parts, wanted: list[Candidate], progress: Callable[[int, int], None]) -> int:
    """One after the other. What is interrupted goes on with the next call: a voice that is done is no candidate."""
    failed: list[str] = []
    kept = Kept(parts)
    for number, candidate in enumerate(wanted, start=1):
        try:
            await remake(parts, candidate.voice, kept)
        except UtterError as exc:
            failed.append(f"  {candidate.voice.id}: {exc.detail}")
        progress(number, len(wanted))
        await asyncio.sleep(PAUSE_SECONDS if number < len(wanted) else 0.0)
    print()
    print(f"{len(wanted) - len(failed)} voices were made again.")
    if failed:
        print("These were not; the same command tries them again:", *failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


def _progress(done: int, total: int) -> None:
    width = 30
    filled = width * done // total
    print(f"\r[{'#' * filled}{'.' * (width - filled)}] {done}/{total}", end="", flush=True)
