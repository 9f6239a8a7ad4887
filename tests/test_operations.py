"""docs/operations.md says what is there: its metrics, its log lines, its statements and its commands."""

import re
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from server.__main__ import _parser
from server.metrics import Metrics
from server.records import voices
from tests.gateway import Client, Gateway, insert_voice

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "operations.md").read_text()


def test_every_metric_is_explained_and_every_explained_one_exists() -> None:
    exposed = {
        re.sub(r"_(bucket|count|sum|created)$", "", name)
        for name in re.findall(r"^# TYPE (\S+)", Metrics().exposition().decode(), re.MULTILINE)
    }
    explained = set(re.findall(r"\butter_[a-z_]+\b", TEXT))
    assert {name.removesuffix("_total") for name in exposed} == {name.removesuffix("_total") for name in explained}


def test_every_log_line_is_one_that_the_server_writes() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    alarms = TEXT.partition("## Alarms")[2].partition("## ")[0]
    words = re.compile(r"[A-Za-z][a-z']* [a-z][A-Za-z0-9 ,:']*")
    quoted = [phrase for phrase in re.findall(r"`([^`]+)`", alarms) if words.fullmatch(phrase)]
    assert len(quoted) > 15
    assert [line for line in quoted if f'"{line}' not in source] == []


def test_every_command_exists() -> None:
    commands = re.findall(r"python -m server (\w+)((?: --[a-z-]+)*)", TEXT)
    assert {name for name, _ in commands} >= {"migrate", "reconcile", "simulate", "token"}
    helps = _parser().format_help()
    for name, options in commands:
        assert name in helps
        for option in options.split():
            if option not in ("--user", "--days"):
                _parser().parse_args([name, option])


def statements() -> list[str]:
    """Every statement that an operator is to copy."""
    blocks = [block.strip() for block in re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)]
    return blocks + re.findall(r'psql "\$DATABASE_URL" -c "([^"]+)"', TEXT)


@pytest.mark.parametrize("statement", statements(), ids=lambda statement: " ".join(statement.split())[:40])
async def test_every_statement_runs(rows: "asyncpg.Connection[asyncpg.Record]", statement: str) -> None:
    await rows.fetch(statement.replace("\n   ", "\n"))


async def test_voices_get_a_twin_for_modal_and_lose_it_again(
    rows: "asyncpg.Connection[asyncpg.Record]", database_url: str
) -> None:
    """With the recording and the transcript of the original, once however often one asks, and again after a while."""
    insert, remove, _forgive = (text for text in statements() if text.startswith(("INSERT", "UPDATE")))
    user_id = uuid4()
    voice_id = await insert_voice(database_url, user_id)
    await rows.execute("UPDATE public.voices SET reference_object_key = 'a/b/reference.wav'")
    await insert_voice(database_url, user_id, name="Without a recording")

    async def twins() -> list[tuple[str, str, UUID]]:
        found = await rows.fetch(
            "SELECT * FROM public.voices WHERE tts_provider = 'modal' AND deleted_at IS NULL AND user_id = $1", user_id
        )
        return [(row["name"], row["reference_object_key"], UUID(row["provider_metadata"]["twin_of"])) for row in found]

    for _ in range(2):
        assert await rows.execute(insert) == "INSERT 0 1"
        assert await rows.execute(insert) == "INSERT 0 0"
        assert await twins() == [("Ada", "a/b/reference.wav", voice_id)]
        assert await rows.execute(remove) == "UPDATE 1"
        assert await twins() == []


async def test_a_voice_that_was_taken_for_gone_comes_back(
    gateway: Gateway, client: Client, voice_id: UUID, rows: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await voices.mark_gone(rows, voice_id, gateway.parts.providers.account)
    body = {"voice_id": str(voice_id), "text": "Good evening."}
    refused = await client.http.post("/api/generate", json=body)
    assert refused.status_code == 409
    assert "The speech provider no longer has this voice" in TEXT
    assert refused.json()["detail"].startswith("The speech provider no longer has this voice")
    [forgive] = (text for text in statements() if "- 'gone_from'" in text)
    await rows.execute(forgive)
    assert (await client.generate(voice_id))["task_id"]
