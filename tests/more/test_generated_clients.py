"""Clients that others generate from the OpenAPI document, typed and unmodified: a voice is cloned and speaks."""

import asyncio
import json
from pathlib import Path

import pytest

from server.audio import mp3_duration_seconds
from tests.gateway import Client, Gateway
from tests.more.test_clients import environment, in_thread, install_node, with_node
from tests.voices import recording

TEXT = "Good evening, and welcome."


@pytest.fixture
async def folder(client: Client, tmp_path: Path) -> Path:
    """Where a client is generated: the document as the server serves it, and a recording to make a voice from."""
    (tmp_path / "openapi.json").write_text((await client.http.get("/api/openapi.json")).text)
    (tmp_path / "recording.wav").write_bytes(recording())
    return tmp_path


def spoken(folder: Path, said: str, entry: dict[str, object]) -> None:
    """The program heard a speech in the voice that it made, and knew every type on the way."""
    told = json.loads(said.splitlines()[-1])
    assert told["audio_url"] == entry["audio_path"]
    assert told["created_at"].startswith(str(entry["created_at"])[:19])
    assert (entry["text"], entry["voice_name"]) == (TEXT, "Ada")
    assert mp3_duration_seconds((folder / "speech.mp3").read_bytes()) == pytest.approx(
        entry["duration_seconds"], abs=0.1
    )
    assert told["refused"] == ["validation", "Please enter text to speak"]


PYTHON = """
import json, os, pathlib, time
import httpx
from utter_client import AuthenticatedClient
from utter_client.api.history import get_api_generations_generation_id_audio as get_audio
from utter_client.api.speaking import post_api_generate as generate
from utter_client.api.tasks import get_api_tasks_task_id as get_task
from utter_client.api.voices import post_api_clone_finalize as finalize, post_api_clone_upload_url as upload_url
from utter_client.models import (
    CloneFinalizeAnswer, CloneFinalizeRequest, CloneFinalizeRequestLanguage, CloneUploadAnswer, CloneUploadRequest,
    CloneUploadRequestLanguage, GenerateAnswer, GenerateRequest, LinkAnswer, Problem, SpeechResult, SpeechTask,
    SpeechTaskStatus,
)

client = AuthenticatedClient(base_url=os.environ["URL"], token=os.environ["TOKEN"])
transcript = "Something that was said."
place = upload_url.sync(client=client, body=CloneUploadRequest(
    name="Ada", language=CloneUploadRequestLanguage.ENGLISH, transcript=transcript))
assert isinstance(place, CloneUploadAnswer), place
httpx.put(place.upload_url, content=pathlib.Path("recording.wav").read_bytes()).raise_for_status()
voice = finalize.sync(client=client, body=CloneFinalizeRequest(
    voice_id=place.voice_id, name="Ada", language=CloneFinalizeRequestLanguage.ENGLISH, transcript=transcript))
assert isinstance(voice, CloneFinalizeAnswer), voice
answer = generate.sync(client=client, body=GenerateRequest(voice_id=voice.id, text=os.environ["TEXT"]))
assert isinstance(answer, GenerateAnswer), answer
while True:
    task = get_task.sync(answer.task_id, client=client)
    assert isinstance(task, SpeechTask), task
    if task.status not in (SpeechTaskStatus.PENDING, SpeechTaskStatus.PROCESSING):
        break
    time.sleep(0.1)
assert task.status == SpeechTaskStatus.COMPLETED, task
assert isinstance(task.result, SpeechResult)
assert task.generation_id
link = get_audio.sync(task.generation_id, client=client.with_headers({"Accept": "application/json"}))
assert isinstance(link, LinkAnswer), link
pathlib.Path("speech.mp3").write_bytes(httpx.get(httpx.URL(os.environ["URL"]).join(link.url)).raise_for_status().content)
refused = generate.sync(client=client, body=GenerateRequest(voice_id=voice.id, text=" "))
assert isinstance(refused, Problem), refused
print(json.dumps({
    "audio_url": task.result.audio_url, "created_at": task.created_at.isoformat(),
    "refused": [refused.category.value, refused.detail],
}))
"""


async def test_openapi_python_client(client: Client, gateway: Gateway, folder: Path) -> None:
    """Its types hold under mypy's strict eyes, and it leaves nothing of a JSON out."""
    interpreter = await asyncio.to_thread(environment, folder, "openapi-python-client", "mypy")
    (folder / "speak.py").write_text(PYTHON)
    programs = interpreter.parent
    words = ("generate", "--path", "openapi.json", "--output-path", "utter_client", "--meta", "none")
    path = {"PATH": f"{programs}:/usr/bin:/bin"}
    generated = await in_thread(programs / "openapi-python-client", *words, cwd=folder, environ=path)
    assert [line for line in generated.splitlines() if "omitted" in line and "subrip" not in line] == []
    await in_thread(interpreter, "-m", "mypy", "--strict", "--follow-imports=silent", "speak.py", cwd=folder)
    said = await in_thread(
        *(interpreter, "speak.py"), cwd=folder, environ={"URL": gateway.url, "TOKEN": client.token, "TEXT": TEXT}
    )
    [entry] = (await client.http.get("/api/generations")).json()["generations"]
    spoken(folder, said, entry)


TYPESCRIPT = """
import { readFile, writeFile } from "node:fs/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./utter.js";

const { BASE: baseUrl, TOKEN, TEXT } = process.env as Record<string, string>;
const api = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${TOKEN}` } });
const told = { name: "Ada", language: "English", transcript: "Something that was said." } as const;
const place = await api.POST("/api/clone/upload-url", { body: told });
if (!place.data) throw new Error(place.error.detail);
const put = await fetch(place.data.upload_url, { method: "PUT", body: await readFile("recording.wav") });
if (!put.ok) throw new Error(await put.text());
const voice = await api.POST("/api/clone/finalize", { body: { ...told, voice_id: place.data.voice_id } });
if (!voice.data) throw new Error(voice.error.detail);
const answer = await api.POST("/api/generate", { body: { voice_id: voice.data.id, text: TEXT!, language: "Auto" } });
if (!answer.data) throw new Error(answer.error.detail);
let task: components["schemas"]["TaskAnswer"];
do {
  await new Promise((done) => setTimeout(done, 100));
  const asked = await api.GET("/api/tasks/{task_id}", { params: { path: { task_id: answer.data.task_id } } });
  if (!asked.data) throw new Error(asked.error.detail);
  task = asked.data;
} while (task.status === "pending" || task.status === "processing");
if (task.type !== "generate") throw new Error(task.type);
const audio_url: string = task.result!.audio_url; // told by the type alone
const link = await api.GET("/api/generations/{generation_id}/audio", {
  params: { path: { generation_id: task.generation_id! } }, headers: { Accept: "application/json" },
});
if (!link.data) throw new Error(link.error?.detail);
await writeFile("speech.mp3", Buffer.from(await (await fetch(new URL(link.data.url, baseUrl))).arrayBuffer()));
const refused = await api.POST("/api/generate", { body: { voice_id: voice.data.id, text: " ", language: "Auto" } });
console.log(JSON.stringify({
  audio_url, created_at: task.created_at, refused: [refused.error!.category, refused.error!.detail],
}));
"""
OPTIONS = {
    "compilerOptions": {
        "strict": True,
        "noUncheckedIndexedAccess": True,
        "module": "nodenext",
        "target": "es2022",
        "types": ["node"],
        "skipLibCheck": True,
    },
    "files": ["speak.ts"],
}


async def test_openapi_typescript(client: Client, gateway: Gateway, folder: Path) -> None:
    """Its types hold under the compiler's strict eyes; a task is told by its type."""
    (folder / "speak.ts").write_text(TYPESCRIPT)
    (folder / "tsconfig.json").write_text(json.dumps(OPTIONS))
    packages = ("openapi-typescript", "openapi-fetch", "typescript@5", "@types/node")
    await asyncio.to_thread(install_node, folder, *packages)
    environ = with_node(folder)
    await in_thread("npx", "openapi-typescript", "openapi.json", "-o", "utter.d.ts", cwd=folder, environ=environ)
    await in_thread("npx", "tsc", "--project", "tsconfig.json", cwd=folder, environ=environ)
    said = await in_thread(
        *("node", "speak.js"),
        cwd=folder,
        environ={**environ, "BASE": gateway.url, "TOKEN": client.token, "TEXT": TEXT},
    )
    [entry] = (await client.http.get("/api/generations")).json()["generations"]
    spoken(folder, said, entry)
