"""The non-streaming lane: bought piece by piece, fetched whole, heard at once, and never paid for twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.audio import parse_wav
from server.dev.simulator import Call, Simulator
from server.dev.simulator.serving import serving
from server.jobs import pieces, synthesize
from server.providers.qwen.text import count_characters
from server.records.speech import RESTARTED
from server.settings import Settings
from tests.audio.samples import tone, wav
from tests.end_to_end.hearing import Ears
from tests.gateway import Client, Gateway, insert_voice, process, running_gateway
from tests.handlers.wire import is_a_sentence, problem_of
from tests.support import make_settings, wait_for, with_limits
from tests.voices import purchase, purchase_in

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
MODEL = "qwen3-tts-vc-2026-01-22"
SECOND = "And here begins the second piece."
TEXT = "This is the first piece. " * 23 + SECOND + " It is spoken after the first." * 3


@pytest.fixture
def settings(database_url: str, simulator: Simulator, tmp_path: Path) -> Settings:
    """Settings of a server that takes another one for dead soon."""
    return with_limits(
        make_settings(database_url, simulator, tmp_path, qwen_starts_per_minute=100_000),
        http_synthesis_seconds=30.0,
        download_seconds=5.0,
        renew_every_seconds=0.3,
        lost_after_seconds=5.0,
        sweep_every_seconds=0.1,
    )


@pytest.fixture
async def voice_id(database_url: str, client: Client) -> UUID:
    """A cloned voice of that user that does not speak in real time."""
    return await insert_voice(database_url, client.user_id, model=MODEL)


@pytest.fixture
async def ears(gateway: Gateway) -> AsyncIterator[Ears]:
    """Somebody without a token at the server."""
    async with Ears(gateway.url) as anybody:
        yield anybody


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pieces, synthesize):
        monkeypatch.setattr(module, "pause_before_start", lambda _starts, *, throttled: 0.0)


def asked(simulator: Simulator) -> list[Call]:
    """The syntheses that were asked for, in order."""
    return [call for call in simulator.calls if call["surface"] == "http"]


async def metadata_of(rows: Rows, task: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = await rows.fetchval(
        "SELECT provider_metadata FROM public.generations WHERE id = $1", UUID(task["generation_id"])
    )
    return metadata


# --- spoken -----------------------------------------------------------------------------------------------------------


async def test_a_short_text_is_one_piece_with_all_its_facts(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, ears: Ears
) -> None:
    answer = await client.generate(voice_id, "Good evening.", language="English")
    heard = await ears.hear(answer["stream_url"])
    task = await client.ended(answer["task_id"])
    stored = await client.audio(answer["generation_id"])
    said = [event.data["provider_status"] for event in heard.tasks]
    order = ["provider_synthesizing", "provider_downloading", "provider_persisting", "finalizing", "completed"]
    assert [status for status in said if status in order] == sorted(
        (status for status in said if status in order), key=order.index
    )
    assert said[-1] == "completed"
    assert stored[44:] == heard.audio
    assert (task["audio"]["format"], task["audio"]["sample_rate"], task["audio"]["bytes"]) == (
        "wav",
        24_000,
        len(heard.audio),
    )
    [call] = asked(simulator)
    assert (call["text"], call["language"], call["model"]) == ("Good evening.", "English", MODEL)
    assert call["audio_bytes"] == len(heard.audio)
    kept = await metadata_of(rows, task)
    assert kept["request_id"].startswith("simulated-")
    assert kept["audio_id"] == f"audio_{kept['request_id']}"
    assert kept["expires_at"] > 1_700_000_000
    assert kept["usage"]["characters"] == 13
    assert kept["pieces"][0]["download"] == {"tries": 1, "host": "127.0.0.1", "http_status": 200, **_expiry(kept)}
    bought = await purchase(rows, answer["task_id"])
    assert bought is not None
    assert (bought["state"], bought["kind"], bought["request_id"]) == ("done", "http", kept["request_id"])
    assert "Signature" not in str(bought) + str(kept), "whoever has the address has the audio"


def _expiry(kept: dict[str, Any]) -> dict[str, Any]:
    return {"expires_at": kept["expires_at"]}


LONG = {
    "English": "Dr. Smith paid 1,234.56 dollars, and went home. " * 16,
    "German": "Am 3. Mai kam z. B. Frau Müller um 17.30 Uhr an. " * 16,
    "French": "« Où vas-tu ? » demanda-t-elle. Il répondit : « Là-bas ! » " * 16,
    "Chinese": "今天天气很好，我们去公园散步吧。你觉得怎么样？" * 16,
    "Japanese": "今日はとても良い天気ですね。公園へ散歩に行きましょう。" * 24,
    "Korean": "오늘은 날씨가 아주 좋습니다. 공원으로 산책하러 갑시다. " * 22,
    "Russian": "Сегодня очень хорошая погода, т. е. мы пойдём гулять. " * 14,
    "Auto": "A family of emoji: 👨‍👩‍👧‍👦 and a flag 🇩🇪, again. " * 18,
}


@pytest.mark.parametrize("language", LONG)
async def test_a_long_text_is_split_at_sentence_ends_and_joined_byte_for_byte(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, ears: Ears, language: str
) -> None:
    text = LONG[language].strip()
    answer = await client.generate(voice_id, text, language=language)
    heard = await ears.hear(answer["stream_url"])
    assert heard.end is not None
    assert heard.end["status"] == "completed", heard.end
    calls = asked(simulator)
    assert len(calls) > 1
    assert "".join(call["text"] for call in calls) == text
    assert all(count_characters(call["text"]) <= 600 for call in calls)
    assert all(call["text"].rstrip()[-1] in ".!?»。？" for call in calls)
    assert {call["language"] for call in calls} == {language}
    stored = await client.audio(answer["generation_id"])
    assert stored[44:] == heard.audio
    assert len(heard.audio) == sum(call["audio_bytes"] for call in calls)
    assert len(parse_wav(stored).samples) == len(heard.audio)
    kept = await metadata_of(rows, answer)
    assert kept["usage"]["characters"] == sum(call["billed_characters"] for call in calls)
    assert len(kept["pieces"]) == len(calls)
    states = await rows.fetch("SELECT part, state FROM internal.purchases ORDER BY part")
    assert [tuple(row) for row in states] == [(part, "done") for part in range(len(calls))]
    for offset in (1, 4_801, len(heard.audio) // 2, len(heard.audio) - 1):
        rest = await ears.hear(f"{answer['stream_url']}&offset={offset}", start=offset)
        assert rest.audio == heard.audio[offset:]


async def test_each_piece_is_heard_as_soon_as_it_is_there_and_followed_from_any_byte(
    client: Client, voice_id: UUID, simulator: Simulator, ears: Ears
) -> None:
    plan = simulator.behave("http", {"do": "hold"}, text_contains=SECOND)
    answer = await client.generate(voice_id, TEXT)
    await plan.held()
    first_bytes = asked(simulator)[0]["audio_bytes"]
    first = await ears.hear(answer["stream_url"], until=first_bytes)
    assert len(first.audio) == first_bytes
    middle = first_bytes // 3 | 1
    assert (
        await ears.hear(answer["stream_url"], {"Last-Event-ID": str(middle)}, start=middle, until=first_bytes)
    ).audio
    following = asyncio.create_task(ears.hear(answer["stream_url"], {"Last-Event-ID": str(middle)}, start=middle))
    plan.release()
    rest = await following
    assert first.audio[:middle] + rest.audio == (await client.audio(answer["generation_id"]))[44:]


async def test_a_piece_is_published_only_when_it_is_wholly_there(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    plan = simulator.behave("download", {"do": "hold"}, text_contains=SECOND)
    answer = await client.generate(voice_id, TEXT)
    await plan.held()
    first_bytes = asked(simulator)[0]["audio_bytes"]

    async def first_is_durable() -> bool:
        return bool(await rows.fetchval("SELECT byte_length = $1 FROM internal.runs", first_bytes))

    await wait_for(first_is_durable)
    assert (await client.task(answer["task_id"]))["audio"]["bytes"] == first_bytes
    plan.release()
    assert (await client.ended(answer["task_id"]))["status"] == "completed"


async def test_a_voice_of_this_lane_speaks_wav_whatever_the_server_prefers(
    client: Client, voice_id: UUID, rows: Rows
) -> None:
    answer = await client.generate(voice_id)
    await client.ended(answer["task_id"])
    row = await rows.fetchrow("SELECT output_format, audio_object_key, tts_provider FROM public.generations")
    assert row
    assert tuple(row) == ("wav", f"{client.user_id}/{answer['generation_id']}.wav", "qwen")


# --- other people's files ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def files(simulator: Simulator, *contents: bytes) -> AsyncIterator[None]:
    """The next pieces are these files."""

    async def serve(request: Request) -> Response:
        return Response(contents[int(request.path_params["number"])], media_type="audio/wav")

    async with serving(Starlette(routes=[Route("/{number}", serve)]), "127.0.0.1", 0) as port:
        for number in range(len(contents)):
            audio = {"url": f"http://127.0.0.1:{port}/{number}?Signature=s", "id": f"audio_{number}"}
            body = {"request_id": f"r{number}", "output": {"audio": audio}, "usage": {"characters": 7}}
            simulator.behave("http", {"do": "answer", "json": body})
        yield


async def test_samples_and_rate_are_those_of_the_file_wherever_they_stand_in_it(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    """A chunk before the samples, two channels, another rate: none of it is heard as noise."""
    mono = tone(1.0, 44_100)
    left_and_right = np.stack([mono, np.zeros_like(mono)], axis=1).astype("<i2")
    file = wav(left_and_right.tobytes(), sample_rate_hz=44_100, channels=2, before=b"LIST\x05\0\0\0INFOx\0")
    async with files(simulator, file):
        answer = await client.generate(voice_id, "Good evening.")
        task = await client.ended(answer["task_id"])
    stored = parse_wav(await client.audio(answer["generation_id"]))
    assert (stored.sample_rate_hz, stored.channels, stored.data_offset) == (44_100, 1, 44)
    assert np.abs(np.frombuffer(stored.samples, "<i2") - mono / 2).max() <= 1
    assert (task["audio"]["sample_rate"], task["audio"]["seconds"]) == (44_100, 1.0)


@pytest.mark.parametrize(
    ("contents", "code"),
    [
        ([b"<html>not a file</html>"], "unreadable_audio"),
        ([wav(b"")], "empty_audio"),
        ([wav(tone(1.0, 24_000).tobytes()), wav(tone(1.0, 16_000).tobytes(), sample_rate_hz=16_000)], "unfit_audio"),
    ],
    ids=["no audio file", "no samples", "pieces of two rates"],
)
async def test_a_file_that_cannot_be_joined_fails_the_speech_and_is_not_bought_again(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, contents: list[bytes], code: str
) -> None:
    async with files(simulator, *contents):
        answer = await client.generate(voice_id, TEXT)
        task = await client.ended(answer["task_id"])
    assert (task["status"], task["error_category"]) == ("failed", "provider_unavailable")
    assert is_a_sentence(task["error"])
    assert len(asked(simulator)) == len(contents)
    kept = await metadata_of(rows, answer)
    assert kept["error"]["code"] == code
    assert kept["request_id"] == f"r{len(contents) - 1}"


# --- the download -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("surface", "behaviour", "category", "code"),
    [
        ("http", {"expires_in_seconds": -1}, "provider_rejected", "download_expired"),
        ("download", {"do": "error", "code": "AccessDenied", "status": 403}, "provider_rejected", "download_refused"),
        ("download", {"do": "error", "code": "NoSuchKey", "status": 404}, "provider_rejected", "download_refused"),
        ("download", {"minimum_bytes": 65 * 1024 * 1024}, "provider_rejected", "download_too_large"),
        ("http", {"url_host": "elsewhere.example.com"}, "provider_rejected", "download_host_not_allowed"),
        ("http", {"url_host": "metadata.internal:80"}, "provider_rejected", "download_host_not_allowed"),
        ("download", {"do": "error", "status": 500}, "provider_unavailable", "download_failed"),
        ("download", {"truncate_bytes": 1000}, "provider_unavailable", "download_failed"),
    ],
    ids=["expired", "403", "vanished", "too large", "host", "inner host", "500 thrice", "cut short thrice"],
)
async def test_audio_that_cannot_be_fetched_fails_the_speech_and_is_not_bought_again(
    client: Client,
    voice_id: UUID,
    simulator: Simulator,
    rows: Rows,
    surface: Any,
    behaviour: dict[str, Any],
    category: str,
    code: str,
) -> None:
    simulator.behave(surface, behaviour, times=3)
    answer = await client.generate(voice_id)
    task = await client.ended(answer["task_id"])
    assert (task["status"], task["error_category"]) == ("failed", category)
    assert is_a_sentence(task["error"])
    assert len(asked(simulator)) == 1
    kept = await metadata_of(rows, answer)
    assert kept["error"]["code"] == code
    assert kept["request_id"].startswith("simulated-"), "what was paid for is named"
    assert {"tries", "expires_at"} <= kept["error"].keys()
    assert "/downloads/" not in str(kept)
    assert task["provider_request_id"] == kept["request_id"]


async def test_a_download_that_fails_once_is_tried_again(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    simulator.behave("download", {"do": "abort"})
    task = await client.ended((await client.generate(voice_id))["task_id"])
    assert task["status"] == "completed"
    assert len(asked(simulator)) == 1


# --- the synthesis ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [{"do": "hang"}, {"do": "abort"}, {"do": "html", "status": 504}])
async def test_an_answer_that_never_comes_is_not_asked_for_again(
    settings: Settings, database_url: str, simulator: Simulator, rows: Rows, behaviour: dict[str, Any]
) -> None:
    """It may have been billed, and nothing can tell."""
    simulator.behave("http", behaviour)
    impatient = with_limits(settings, http_synthesis_seconds=1.0)
    async with running_gateway(impatient) as gateway, gateway.client() as client:
        answer = await client.generate(await insert_voice(database_url, client.user_id, model=MODEL))
        task = await client.ended(answer["task_id"])
    assert (task["status"], task["error_category"]) == ("failed", "timeout")
    assert len(asked(simulator)) == 1
    assert (await purchase_in(rows, answer["task_id"], "unknown"))["attempt"] == 1


@pytest.mark.parametrize(
    ("code", "category"),
    [
        ("InternalError.Algo", "provider_unavailable"),
        ("DataInspectionFailed", "provider_rejected"),
        ("InvalidApiKey", "provider_rejected"),
        ("InvalidParameter", "provider_rejected"),
    ],
)
async def test_a_refusal_ends_the_speech_with_its_reason(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, code: str, category: str
) -> None:
    simulator.behave("http", {"do": "error", "code": code})
    answer = await client.generate(voice_id)
    task = await client.ended(answer["task_id"])
    assert (task["status"], task["error_category"]) == ("failed", category)
    assert (await metadata_of(rows, answer))["error"]["code"] == code
    assert len(asked(simulator)) == 1
    await purchase_in(rows, answer["task_id"], "refused")


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("where", ["This is the first", SECOND], ids=["first piece", "second piece"])
async def test_a_throttled_piece_is_asked_for_again_and_only_that(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, where: str
) -> None:
    simulator.behave("http", {"do": "error", "code": "Throttling.RateQuota"}, times=2, text_contains=where)
    answer = await client.generate(voice_id, TEXT)
    assert (await client.ended(answer["task_id"]))["status"] == "completed"
    calls = [call for call in asked(simulator) if call.get("code") is None]
    assert "".join(call["text"] for call in calls) == TEXT
    assert len(asked(simulator)) == len(calls) + 2
    part = 0 if where != SECOND else 1
    bought = await purchase(rows, answer["task_id"], part)
    assert bought is not None
    assert (bought["state"], bought["attempt"]) == ("done", 3)


@pytest.mark.usefixtures("_no_pauses")
async def test_a_provider_that_goes_on_throttling_is_given_up(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows
) -> None:
    simulator.behave("http", {"do": "error", "code": "Throttling.RateQuota"}, times=0)
    answer = await client.generate(voice_id, TEXT)
    task = await client.ended(answer["task_id"])
    assert (task["status"], task["error_category"]) == ("failed", "provider_unavailable")
    assert len(asked(simulator)) == 3
    assert len((await metadata_of(rows, answer))["attempts"]) == 3


async def test_a_second_piece_that_is_refused_fails_the_whole_speech(
    client: Client, voice_id: UUID, simulator: Simulator, ears: Ears
) -> None:
    simulator.behave("http", {"do": "error", "code": "DataInspectionFailed"}, text_contains=SECOND)
    answer = await client.generate(voice_id, TEXT)
    heard = await ears.hear(answer["stream_url"])
    assert heard.end is not None
    assert (heard.end["status"], heard.end["error_category"]) == ("failed", "provider_rejected")
    assert (await client.http.get(f"/api/generations/{answer['generation_id']}/audio")).status_code == 404


async def test_a_voice_that_the_provider_has_lost_is_marked_and_its_user_told_to_create_it_again(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    simulator.behave("http", {"do": "error", "code": "VoiceNotFound", "message": "Voice not found: x"}, times=2)
    task = await client.ended((await client.generate(voice_id))["task_id"])
    assert (task["status"], task["error_category"]) == ("failed", "provider_rejected")
    assert "create it again" in task["error"]
    body = {"voice_id": str(voice_id), "text": "Good evening."}
    problem_of(await client.http.post("/api/generate", json=body), 409, "conflict", says="re-clone")
    [voice] = (await client.http.get("/api/voices")).json()["voices"]
    assert (voice["compatible"], voice["streamable"]) == (False, False)
    assert len(asked(simulator)) == 2, "said once, it is not believed"


# --- cancelled and killed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surface", ["http", "download"])
async def test_a_cancel_in_the_middle_of_a_piece_ends_it_at_once(
    client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, ears: Ears, surface: Any
) -> None:
    plan = simulator.behave(surface, {"do": "hold"}, text_contains=SECOND)
    answer = await client.generate(voice_id, TEXT)
    await plan.held()
    following = asyncio.create_task(ears.hear(answer["stream_url"]))
    assert (await client.http.post(f"/api/tasks/{answer['task_id']}/cancel")).json()["cancelled"] is True
    heard = await following
    assert heard.end is not None
    assert heard.end["status"] == "cancelled"
    await purchase_in(rows, answer["task_id"], "unknown" if surface == "http" else "done", part=1)
    plan.release()
    for table in ("internal.runs", "internal.spool"):
        assert await rows.fetchval(f"SELECT count(*) FROM {table}") == 0
    assert len(asked(simulator)) == 2
    assert await rows.fetchval("SELECT status FROM public.generations") == "cancelled"


async def test_a_piece_of_a_speech_that_is_no_longer_ones_own_is_not_bought(
    gateway: Gateway, client: Client, voice_id: UUID, simulator: Simulator, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cancelled while this process could not hear of it."""
    turn = gateway.parts.providers.pieces.turn

    async def turn_and_be_overtaken(model: str, *, by: float | None) -> None:
        await turn(model, by=by)
        await answered.wait()
        await client.http.post(f"/api/tasks/{answer['task_id']}/cancel")
        ready.set()

    async def nobody_is_told(*_: Any) -> None:
        """The cancel's word to whoever speaks is late."""

    ready, answered = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(gateway.parts.leases, "drop", lambda _task_id: None)
    monkeypatch.setattr(gateway.parts.leases, "_renew", nobody_is_told)
    monkeypatch.setattr(gateway.parts.providers.pieces, "turn", turn_and_be_overtaken)
    answer = await client.generate(voice_id)
    answered.set()
    await ready.wait()
    await wait_for(lambda: not gateway.parts.leases.speaking)
    assert asked(simulator) == []
    assert await purchase(rows, answer["task_id"]) is None
    assert (await client.task(answer["task_id"]))["status"] == "cancelled"


async def test_what_only_waited_for_its_turn_is_spoken_by_the_next_process(
    settings: Settings, database_url: str, simulator: Simulator, rows: Rows
) -> None:
    """Nothing of it had left the first one, so nothing can have been billed."""
    user_id = uuid4()
    voice_id = await insert_voice(database_url, user_id, model=MODEL)
    slow = replace(settings, qwen_starts_per_minute=1, shutdown_grace_seconds=0.1)
    async with running_gateway(slow) as leaving, leaving.client(user_id) as client:
        first = await client.generate(voice_id, "First.")
        await client.ended(first["task_id"])
        second = await client.generate(voice_id, "Second.")

        async def waits() -> bool:
            return bool(await rows.fetchval("SELECT state = 'queued' FROM internal.runs"))

        await wait_for(waits)
    assert [call["text"] for call in asked(simulator)] == ["First."]
    async with running_gateway(settings) as next_one, next_one.client(user_id) as client:
        task = await client.ended(second["task_id"])
    assert task["status"] == "completed", task["error"]
    assert [call["text"] for call in asked(simulator)] == ["First.", "Second."]


@pytest.mark.parametrize(
    "text",
    ["a" + " " * 1998 + "b", "One.\n" + "\n" * 1900 + "Two.", "One." + "!" * 1500 + " Two."],
    ids=["blanks", "lines", "marks"],
)
async def test_nothing_is_paid_for_a_piece_without_a_word(
    client: Client, voice_id: UUID, simulator: Simulator, text: str
) -> None:
    task = await client.ended((await client.generate(voice_id, text))["task_id"])
    assert task["status"] == "completed", task["error"]
    assert asked(simulator)
    assert all(any(map(str.isalnum, call["text"])) for call in asked(simulator))


async def test_a_process_that_dies_in_the_first_piece_leaves_it_undecided_and_nobody_asks_again(
    settings: Settings, database_url: str, simulator: Simulator, rows: Rows, tmp_path: Path
) -> None:
    user_id = uuid4()
    voice_id = await insert_voice(database_url, user_id, model=MODEL)
    plan = simulator.behave("http", {"do": "hold"})
    async with process(settings, simulator, tmp_path / "victim.log") as victim:
        async with victim.client(user_id) as client:
            answer = await client.generate(voice_id)
        await plan.held()
        await victim.kill()
    plan.release()
    async with running_gateway(settings) as survivor, survivor.client(user_id) as client:
        task = await client.ended(answer["task_id"])
    assert (task["status"], task["error_category"]) == ("failed", "timeout")
    assert len(asked(simulator)) == 1
    bought = await purchase(rows, answer["task_id"])
    assert bought is not None
    assert bought["state"] == "calling", "reconciliation lists it once its lease has lapsed"


async def test_a_process_that_dies_after_the_first_piece_fails_the_speech_as_on_the_other_lane(
    settings: Settings, database_url: str, simulator: Simulator, rows: Rows, tmp_path: Path
) -> None:
    user_id = uuid4()
    voice_id = await insert_voice(database_url, user_id, model=MODEL)
    plan = simulator.behave("http", {"do": "hold"}, text_contains=SECOND)
    async with process(settings, simulator, tmp_path / "victim.log") as victim:
        async with victim.client(user_id) as client:
            answer = await client.generate(voice_id, TEXT)
        await plan.held()

        async def first_is_durable() -> bool:
            return bool(await rows.fetchval("SELECT byte_length > 0 FROM internal.runs"))

        await wait_for(first_is_durable)
        await victim.kill()
    plan.release()
    async with running_gateway(settings) as survivor, survivor.client(user_id) as client:
        task = await client.ended(answer["task_id"])
    assert (task["status"], task["error"]) == ("failed", RESTARTED)
    assert len(asked(simulator)) == 2


async def test_a_voice_that_is_deleted_meanwhile_finishes_what_it_says(
    client: Client, voice_id: UUID, simulator: Simulator
) -> None:
    plan = simulator.behave("http", {"do": "hold"}, text_contains=SECOND)
    answer = await client.generate(voice_id, TEXT)
    await plan.held()
    assert (await client.http.delete(f"/api/voices/{voice_id}")).json() == {"ok": True}
    plan.release()
    assert (await client.ended(answer["task_id"]))["status"] == "completed"
    [entry] = (await client.http.get("/api/generations")).json()["generations"]
    assert entry["voice_name"] == "Ada"


async def test_raw_audio_of_this_lane_is_a_growing_file_and_then_a_redirect(
    client: Client, voice_id: UUID, simulator: Simulator, ears: Ears
) -> None:
    plan = simulator.behave("http", {"do": "hold"}, text_contains=SECOND)
    answer = await client.generate(voice_id, TEXT)
    await plan.held()
    listening = asyncio.create_task(ears.hear_audio(answer["stream_url"]))
    plan.release()
    growing, whole = await listening
    stored = await client.audio(answer["generation_id"])
    assert whole
    assert growing[44:] == stored[44:]
    async with ears.open(f"{answer['stream_url']}&as=audio") as response:
        assert response.status_code == 302
