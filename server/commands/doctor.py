"""`python -m server doctor`: what of the provider is alive, which hosts answer, and what to set."""

import msgspec

from server import logs
from server.app import assembled
from server.commands.ending import ended
from server.jobs.examine import SAMPLE, Finding, examine, models_used, price
from server.settings import Settings

_SIGNS = {"ok": "ok    ", "gone": "GONE  ", "failed": "FAILED"}


def run(settings: Settings, *, speak: bool, as_json: bool) -> int:
    """Ask everything and print what came; 1 where something that this configuration needs does not work."""
    logs.configure("critical", settings.log_format)
    return ended(_ask(settings, speak=speak, as_json=as_json))


async def _ask(settings: Settings, *, speak: bool, as_json: bool) -> int:
    async with assembled(settings) as parts:
        if speak and not as_json:
            used = await models_used(parts)
            print(
                f"Lists and sockets cost nothing. Speaking {len(SAMPLE)} characters with each of {len(used)} models may"
                f" cost up to {price(used):.4f} USD."
            )
        findings = []
        async for finding in examine(parts, speak=speak):
            findings.append(finding)
            if not as_json:
                print(line(finding))
    if as_json:
        print(msgspec.json.encode({"findings": findings}).decode())
    return 1 if any(finding.needed and finding.state != "ok" for finding in findings) else 0


def line(finding: Finding) -> str:
    """One finding as a person reads it."""
    words = [_SIGNS[finding.state], finding.name, f"at {finding.host}" if finding.host else "", finding.detail]
    told = "  ".join(word for word in words if word)
    if finding.state != "ok" and not finding.needed:
        told += "  (nothing here needs it)"
    elif finding.state == "gone" and finding.advice:
        told += f"\n        {finding.advice}"
    return told
