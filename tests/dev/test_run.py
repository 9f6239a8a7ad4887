"""`python -m server dev` says where it is."""

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx

from tests.support import wait_for


async def test_any_port_is_told_as_the_one_that_it_became(database_url: str, tmp_path: Path) -> None:
    options = ["--port", "0", "--database-url", database_url, "--data-dir", str(tmp_path / "data")]
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server", "dev", *options), env=environ, stdout=log, stderr=log
        )
    try:
        note = tmp_path / "data" / "dev.json"

        async def announced() -> bool:
            assert process.returncode is None, (tmp_path / "log").read_text()
            return note.exists() and bool(note.read_bytes())

        await wait_for(announced, 60.0)
        url = json.loads(note.read_text())["url"]
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/api/health")).json() == {"ok": True}
    finally:
        process.terminate()
        await process.wait()
