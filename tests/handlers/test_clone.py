"""POST /api/clone/upload-url and /api/clone/finalize: what they take, what they refuse, and in which words."""

import asyncio
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from server.admission.limits import UPLOADS_PER_USER
from server.audio import parse_wav
from server.dev.simulator import Simulator
from server.dev.simulator.refusals import FREE_QUOTA_EXCEEDED, REFUSALS, VOICE_LIMIT_EXCEEDED
from server.jobs import enrollment
from server.objects import named_by, reference_key
from server.parts import RECORDINGS_AT_ONCE
from server.records import purchases, removals
from server.settings import VC_REALTIME, Deadlines, Settings
from server.storage import Bucket
from tests.audio.samples import box, mp3, tone, wav
from tests.gateway import Client, Gateway, running_gateway
from tests.handlers.wire import counted, is_a_sentence, problem_of
from tests.support import wait_for, with_limits
from tests.voices import TRANSCRIPT, billed, cloned, creations, finalize, listed, listings, purchase, recording, upload

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def m4a(seconds: float, sample_rate_hz: int = 48_000) -> bytes:
    """The boxes of an M4A file that tell how long it is; there is no sound in it."""
    duration = round(seconds * sample_rate_hz)
    header = box(b"mvhd", struct.pack(">IIIII", 0, 0, 0, sample_rate_hz, duration), bytes(80))
    media = box(b"mdhd", struct.pack(">IIIIII", 0, 0, 0, sample_rate_hz, duration, 0))
    kind = box(b"hdlr", struct.pack(">II4s", 0, 0, b"soun"), bytes(13))
    entry = struct.pack(">6xH8xHHHHI", 1, 1, 16, 0, 0, sample_rate_hz << 16)
    table = box(b"stbl", box(b"stsd", struct.pack(">II", 0, 1), box(b"mp4a", entry)))
    track = box(b"trak", box(b"mdia", media, kind, box(b"minf", table)))
    return box(b"ftyp", b"M4A \0\0\0\0") + box(b"moov", header, track) + box(b"mdat", bytes(20_000))


async def voices_in(rows: Rows) -> int:
    count: int = await rows.fetchval("SELECT count(*) FROM public.voices")
    return count


# --- the way that a browser takes -------------------------------------------------------------------------------------


async def test_a_recording_becomes_a_voice_with_everything_the_provider_said(
    client: Client, simulator: Simulator, rows: Rows
) -> None:
    voice_id = await upload(client, recording())
    answer = await finalize(client, voice_id, description="My own voice")
    assert answer.status_code == 200
    assert answer.json() == {"id": voice_id, "name": "Ada"}
    [call] = creations(simulator)
    stored = await rows.fetchrow("SELECT * FROM public.voices")
    assert stored
    assert dict(stored) == {
        "created_at": stored["created_at"],
        "id": UUID(voice_id),
        "user_id": client.user_id,
        "name": "Ada",
        "reference_object_key": f"{client.user_id}/{voice_id}/reference.wav",
        "reference_transcript": TRANSCRIPT,
        "language": "English",
        "source": "uploaded",
        "description": "My own voice",
        "tts_provider": "qwen",
        "provider_voice_id": call["voice"],
        "provider_target_model": VC_REALTIME,
        "provider_voice_kind": "vc",
        "provider_region": "intl",
        "provider_request_id": "simulated-00000001",
        "provider_metadata": {},
        "deleted_at": None,
        "preview_task_id": None,
    }
    [voice] = await listed(client)
    assert (voice["id"], voice["source"], voice["compatible"], voice["streamable"]) == (
        voice_id,
        "uploaded",
        True,
        True,
    )


async def test_the_provider_gets_the_name_the_language_and_the_words(client: Client, simulator: Simulator) -> None:
    voice_id = await upload(client, recording())
    assert (await finalize(client, voice_id, language="gErMaN", transcript="Guten Tag.")).status_code == 200
    [call] = creations(simulator)
    assert (call["language"], call["text"], call["model"]) == ("de", "Guten Tag.", VC_REALTIME)
    assert call["preferred_name"].isalnum()
    assert len(call["preferred_name"]) == 16


async def test_auto_leaves_the_language_to_the_provider(client: Client, simulator: Simulator) -> None:
    voice_id = await upload(client, recording())
    assert (await finalize(client, voice_id, language="Auto", transcript="")).status_code == 200
    [call] = creations(simulator)
    assert "language" not in call
    assert call["text"] == ""


async def test_the_upload_address_is_absolute_and_needs_no_token(client: Client) -> None:
    asked = {"name": "Ada", "language": "English", "transcript": TRANSCRIPT}
    answer = (await client.http.post("/api/clone/upload-url", json=asked)).json()
    assert answer.keys() == {"voice_id", "upload_url", "object_key"}
    assert answer["object_key"] == f"{client.user_id}/{answer['voice_id']}/reference.wav"
    assert answer["upload_url"].startswith(f"{client.url}/api/storage/references/{answer['object_key']}?")
    async with httpx.AsyncClient() as anybody:
        put = await anybody.put(answer["upload_url"], content=b"x", headers={"Content-Type": "audio/x-m4a"})
    assert (put.status_code, put.headers["content-type"]) == (200, "application/json")


async def test_asking_for_an_address_makes_nothing_yet(client: Client, rows: Rows, simulator: Simulator) -> None:
    await client.http.post("/api/clone/upload-url", json={"name": "Ada", "language": "English", "transcript": ""})
    assert await voices_in(rows) == 0
    assert simulator.calls == []


async def test_a_repeated_finalize_answers_the_same_voice_and_pays_once(
    client: Client, simulator: Simulator, rows: Rows
) -> None:
    """Also under another name and after the recording has gone: what is bought is bought."""
    voice_id = await upload(client, recording())
    first = await finalize(client, voice_id)
    again = await finalize(client, voice_id, name="Somebody else", transcript="Other words.")
    assert first.json() == again.json() == {"id": voice_id, "name": "Ada"}
    assert len(creations(simulator)) == billed(simulator) == 1


async def test_a_deleted_voice_is_not_finalized_back_into_a_library_where_nobody_sees_it(
    client: Client, simulator: Simulator
) -> None:
    voice_id = await upload(client, recording())
    assert (await finalize(client, voice_id)).status_code == 200
    await client.http.delete(f"/api/voices/{voice_id}")
    problem_of(await finalize(client, voice_id), 404, "not_found", says="was deleted")
    assert await listed(client) == []
    assert len(creations(simulator)) == 1


# --- what is no recording ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "Audio file not uploaded."),
        (b"MZ this is no recording" * 1000, "WAV, MP3 or M4A"),
        (b"OggS" + bytes(5000), "WAV, MP3 or M4A"),
        (b"\x1a\x45\xdf\xa3" + bytes(5000), "WAV, MP3 or M4A"),
        (b"RIFF\0\0\0\0WAVE", "no audio"),
        (recording(2.97), "2.9 seconds long. Please record at least 3 seconds"),
        (recording(60.04), "60.1 seconds long. Please use at most 60 seconds"),
        (mp3(2.0), "at least 3 seconds"),
        (m4a(61.0), "at most 60 seconds"),
        (recording(4.0) + bytes(10 * 1024 * 1024), "larger than 10 MB"),
    ],
    ids=["empty", "not audio", "ogg", "webm", "header", "short", "long", "short mp3", "long m4a", "large"],
)
async def test_what_cannot_be_cloned_from_is_refused_before_any_call(
    client: Client, simulator: Simulator, rows: Rows, content: bytes, says: str
) -> None:
    voice_id = await upload(client, content)
    problem_of(await finalize(client, voice_id), 400, "validation", says=says)
    assert simulator.calls == []
    assert await voices_in(rows) == 0
    assert await purchase(rows, voice_id) is None


async def test_a_recording_that_is_too_large_is_not_kept(client: Client, gateway: Gateway) -> None:
    voice_id = await upload(client, recording(4.0) + bytes(10 * 1024 * 1024))
    problem_of(await finalize(client, voice_id), 400, "validation", says="larger than 10 MB")
    assert await gateway.parts.storage.head(Bucket.REFERENCES, reference_key(client.user_id, UUID(voice_id))) is None
    assert await counted(client.http, "recordings") == 1
    assert problem_of(await finalize(client, voice_id), 400, "validation") == "Audio file not uploaded."


async def test_more_recordings_than_there_is_memory_for_wait_and_are_refused_in_the_end(
    client: Client, gateway: Gateway, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrollment, "MEMORY_SECONDS", 0.2)
    buying = simulator.behave("customization", {"do": "hold"}, action="create", times=RECORDINGS_AT_ONCE)
    several = [await upload(client, recording()) for _ in range(RECORDINGS_AT_ONCE)]
    asked = [asyncio.create_task(finalize(client, voice_id)) for voice_id in several]
    await buying.held(RECORDINGS_AT_ONCE)
    one_more = await upload(client, recording())
    response = await finalize(client, one_more)
    problem_of(response, 503, "overloaded", says="Many voices are being created")
    assert int(response.headers["retry-after"]) > 0
    assert await counted(client.http, "recordings") == 1
    buying.release()
    assert [(await one).status_code for one in asked] == [200] * RECORDINGS_AT_ONCE
    assert (await finalize(client, one_more)).status_code == 200


async def test_what_was_uploaded_and_made_no_voice_goes_after_a_day(
    settings: Settings, rows: Rows, simulator: Simulator
) -> None:
    sweeping = with_limits(settings, sweep_every_seconds=0.1)
    async with running_gateway(sweeping) as gateway, gateway.client() as client:
        forgotten, refused, kept = [await upload(client, recording(4.0 + number)) for number in range(3)]
        simulator.behave("customization", {"do": "error", "code": "InvalidParameter"}, action="create")
        assert (await finalize(client, refused)).status_code == 400
        assert (await finalize(client, kept)).status_code == 200
        due = await rows.fetch("SELECT next_at - now() AS left FROM internal.removals")
        assert len(due) == 3
        assert all(23.9 < row["left"].total_seconds() / 3600 <= 24.0 for row in due)
        async with gateway.parts.database.connection() as connection:
            assert await removals.recorded(connection) == [], "nothing is left over yet"

        async def left() -> set[str]:
            stored = gateway.parts.storage.list(Bucket.REFERENCES)
            return {str(key.voice_id) async for each in stored if (key := named_by(each.key))}

        assert await left() == {forgotten, refused, kept}
        await rows.execute("UPDATE internal.removals SET next_at = now() - interval '1 second'")

        async def gone() -> bool:
            return not await rows.fetchval("SELECT count(*) FROM internal.removals")

        await wait_for(gone)
        assert await left() == {kept}


CASES = Path(__file__).parent.parent / "cases"


@pytest.mark.parametrize(
    "file",
    [
        "list-odd-nopad.wav",
        "smpl-claims36-has32.wav",
        "bw64.wav",
        "rifx.wav",
        "id3-wav.wav",
        "ape40k-front.mp3",
        "zeros17k.mp3",
        "aac.qta",
    ],
)
async def test_odd_but_good_recordings_are_accepted(client: Client, simulator: Simulator, file: str) -> None:
    """And the provider, which is less patient than we are, is given what it can read."""
    voice_id = await upload(client, (CASES / file).read_bytes(), mime="application/octet-stream")
    answer = await finalize(client, voice_id)
    assert answer.status_code == 200, answer.text
    assert billed(simulator) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id3-aac.mp3", "The recording must be a WAV, MP3 or M4A file. This one is AAC without a container."),
        ("alac.m4a", "This M4A file holds Apple Lossless (ALAC) audio, which cannot be used. Please save it as M4A"),
        ("amr.3gp", "This 3GP file holds AMR audio, which cannot be used. Please save it as M4A (AAC) or WAV"),
        ("opus.mp4", "This MP4 file holds Opus audio, which cannot be used. Please save it as M4A (AAC) or WAV"),
        (mp3(4.0, 16_000), "a sample rate of 16 kHz, and MP3 and M4A files need 24 kHz or more."),
        (mp3(4.0, 22_050), "a sample rate of 22.05 kHz"),
        (m4a(4.0, 16_000), "a sample rate of 16 kHz"),
        (recording(4.0).replace(b"\1\0\1\0", b"\7\0\1\0", 1), "holds µ-law audio"),
    ],
    ids=["AAC", "ALAC", "AMR", "Opus", "16 kHz MP3", "22 kHz MP3", "16 kHz M4A", "µ-law"],
)
async def test_what_the_file_itself_tells_is_refused_before_the_provider_is_asked(
    client: Client, simulator: Simulator, rows: Rows, content: str | bytes, says: str
) -> None:
    voice_id = await upload(client, content if isinstance(content, bytes) else (CASES / content).read_bytes())
    problem_of(await finalize(client, voice_id), 400, "validation", says=says)
    assert simulator.calls == []
    assert await purchase(rows, voice_id) is None


async def test_many_at_once_hold_a_bounded_number_of_recordings(
    client: Client, gateway: Gateway, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty finalizes of one recording read it once; fifteen of different ones take turns."""
    most = reads = 0
    parts = gateway.parts
    kind = type(parts.storage)
    read = kind.read

    async def counted(*arguments: Any, **named: Any) -> bytes:
        nonlocal most, reads
        reads += 1
        most = max(most, RECORDINGS_AT_ONCE - parts.recordings._value)
        return await read(*arguments, **named)

    monkeypatch.setattr(kind, "read", counted)
    one = await upload(client, recording())
    answers = await asyncio.gather(*(finalize(client, one) for _ in range(60)))
    assert {answer.status_code for answer in answers} == {200}
    assert (reads, billed(simulator)) == (1, 1)
    several = [await upload(client, recording()) for _ in range(15)]
    answers = await asyncio.gather(*(finalize(client, voice_id) for voice_id in several))
    assert {answer.status_code for answer in answers} == {200}
    assert 1 <= most <= RECORDINGS_AT_ONCE
    assert parts.recordings._value == RECORDINGS_AT_ONCE


async def test_what_an_encoder_adds_is_not_held_against_a_recording(client: Client) -> None:
    """A minute of speech is a little more than a minute of MP3."""
    voice_id = await upload(client, mp3(60.0), mime="audio/mpeg")
    assert (await finalize(client, voice_id)).status_code == 200
    longer = await upload(client, mp3(60.5), mime="audio/mpeg")
    problem_of(await finalize(client, longer), 400, "validation", says="at most 60 seconds")


async def test_nothing_uploaded_is_said_so(client: Client, simulator: Simulator) -> None:
    assert problem_of(await finalize(client, uuid4()), 400, "validation") == "Audio file not uploaded."
    assert simulator.calls == []


async def test_somebody_elses_recording_is_as_good_as_none(gateway: Gateway, client: Client) -> None:
    voice_id = await upload(client, recording())
    async with gateway.client() as stranger:
        refused = await finalize(stranger, voice_id)
        assert problem_of(refused, 400, "validation") == "Audio file not uploaded."
        assert (await finalize(client, voice_id)).status_code == 200
        problem_of(await finalize(stranger, voice_id), 404, "not_found", says="does not exist")
        assert await listed(stranger) == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": ""}, "`name`"),
        ({"name": "   "}, "name"),
        ({"name": "\u200b\u2060"}, "Please give the voice a name"),
        ({"name": "x" * 101}, "`name` must have at most 100"),
        ({"name": 7}, "`name` must be a string"),
        ({"language": "Klingon"}, "language is not supported"),
        ({"transcript": "x" * 2001}, "`transcript` must have at most 2000"),
        ({"transcript": "a\0b"}, "cannot be stored"),
        ({"voice_id": "no uuid"}, "`voice_id` must be a UUID"),
    ],
)
async def test_bad_input_is_refused_at_both_doors(client: Client, fields: dict[str, Any], says: str) -> None:
    body = {"voice_id": str(uuid4()), "name": "Ada", "language": "English", "transcript": TRANSCRIPT, **fields}
    doors = ["finalize"] if "voice_id" in fields else ["upload-url", "finalize"]
    for door in doors:
        problem_of(await client.http.post(f"/api/clone/{door}", json=body), 400, "validation", says=says)


# --- what is one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "mime"),
    [(mp3(4.0), "audio/mpeg"), (m4a(4.0), "audio/x-m4a"), (mp3(4.0, 44_100, channels=2), "audio/wav")],
    ids=["mp3", "m4a", "mp3 that is called wav"],
)
async def test_the_bytes_tell_the_format_whatever_it_is_called(
    client: Client, simulator: Simulator, content: bytes, mime: str
) -> None:
    voice_id = await upload(client, content, mime=mime)
    answer = await finalize(client, voice_id)
    assert answer.status_code == 200, answer.text
    assert billed(simulator) == 1


@pytest.mark.parametrize(
    "content",
    [
        recording(4.0, 8_000),
        recording(4.0, 44_100, channels=2),
        recording(4.0, 48_000, channels=6),
        wav((tone(4.0, 16_000).astype("<i4") << 16).tobytes(), sample_rate_hz=16_000, bits=32),
        wav((tone(4.0, 48_000).astype("f4") / 32_768).tobytes(), sample_rate_hz=48_000, bits=32, tag=3),
        wav(tone(4.0, 24_000).tobytes(), before=b"LIST" + struct.pack("<I", 6) + b"INFOxx", data_size=0xFFFFFFFF),
    ],
    ids=["telephone", "stereo", "surround", "32 bit", "float", "a recorder's header"],
)
async def test_a_wav_of_any_rate_and_width_is_made_fit_and_kept_as_it_came(
    gateway: Gateway, client: Client, simulator: Simulator, content: bytes
) -> None:
    """The simulated provider refuses what the real one does: less than 24 kHz, several channels, other widths."""
    voice_id = await upload(client, content)
    answer = await finalize(client, voice_id)
    assert answer.status_code == 200, answer.text
    key = f"{client.user_id}/{voice_id}/reference.wav"
    assert await gateway.parts.storage.read(Bucket.REFERENCES, key, limit=20_000_000) == content
    sent = creations(simulator)[0]["audio_characters"]
    samples = round(parse_wav(content).duration_seconds * 24_000) * 2
    assert sent == len("data:audio/wav;base64,") + 4 * ((44 + samples + 2) // 3)


async def test_the_longest_recording_stays_under_the_limit_of_the_providers_data_url(
    client: Client, simulator: Simulator
) -> None:
    """Ten megabytes of samples are twenty times less once they are what the provider wants."""
    voice_id = await upload(client, recording(54.0, 96_000))
    assert (await finalize(client, voice_id)).status_code == 200
    assert creations(simulator)[0]["audio_characters"] < 4_000_000


async def test_a_file_that_fits_here_and_not_into_the_providers_data_url_is_refused_in_words(
    client: Client, simulator: Simulator, rows: Rows
) -> None:
    """An MP3 with a picture in it: 9 MB here, 12 MB in Base64."""
    picture = b"ID3\x04\x00\x00" + bytes([9 * 1024 * 1024 >> 21 & 0x7F, 9 * 1024 * 1024 >> 14 & 0x7F, 0, 0])
    voice_id = await upload(client, picture + bytes(9 * 1024 * 1024) + mp3(4.0), mime="audio/mpeg")
    problem_of(await finalize(client, voice_id), 400, "provider_rejected", says="too large")
    assert simulator.calls == []
    assert await voices_in(rows) == 0


# --- what the provider refuses ----------------------------------------------------------------------------------------

_BETTER_RECORDING = {"InvalidParameter", "DataInspectionFailed", *(code for code in REFUSALS if code[:5] == "Audio")}
_NOT_NOW = {code for code, (status, _) in REFUSALS.items() if status >= 500 or "hrottling" in code or "imit" in code}


async def test_every_refusal_is_a_sentence_with_the_right_status_and_leaves_no_voice(
    client: Client, simulator: Simulator, rows: Rows
) -> None:
    voice_id = await upload(client, recording())
    for code, (_, message) in REFUSALS.items():
        simulator.behave("customization", {"do": "error", "code": code}, action="create")
        answer = await finalize(client, voice_id)
        if code in _BETTER_RECORDING:
            detail = problem_of(answer, 400, "provider_rejected")
        elif (code in _NOT_NOW and code != "Audio.DurationLimitError") or code in (
            "insufficient_quota",
            "ClientDisconnect",
        ):
            detail = problem_of(answer, 503, "provider_unavailable")
        else:
            detail = problem_of(answer, 502, "provider_rejected")
        assert message not in detail, code
        bought = await purchase(rows, voice_id)
        assert bought is not None, code
        assert (bought["state"], bought["outcome"]["diagnostics"]["code"]) == ("refused", code)
    assert billed(simulator) == 0
    assert await voices_in(rows) == 0
    assert (await finalize(client, voice_id)).status_code == 200, "nothing was bought, so it may be tried again"
    assert billed(simulator) == 1


async def test_a_refusal_that_lasts_is_the_same_refusal_each_time(
    gateway: Gateway, client: Client, simulator: Simulator, rows: Rows
) -> None:
    """A wrong key, a bill or an outage meets every call alike; none of them makes the purchase doubtful."""
    for code in REFUSALS:
        # As a day later: a service that was refused as gone is asked again, and its user may clone again.
        await rows.execute("DELETE FROM internal.retired_models")
        await rows.execute("DELETE FROM internal.usage")
        await gateway.parts.retirements.refresh()
        simulator.behave("customization", {"do": "error", "code": code}, times=0)
        voice_id = await upload(client, recording())
        first, second = [await finalize(client, voice_id) for _ in range(2)]
        assert first.status_code == second.status_code != 504, code
        assert first.json()["detail"] == second.json()["detail"], code
        bought = await purchase(rows, voice_id)
        assert bought is not None, code
        assert bought["state"] == "refused", code
        if first.json()["category"] == "provider_rejected":
            assert listings(simulator) == 0, "there is nothing to be looked for"
        simulator.reset()


@pytest.mark.parametrize(
    "look",
    [
        None,
        {"do": "error", "code": "AccessDenied"},
        {"do": "error", "code": "InvalidApiKey"},
        {"do": "error", "code": "Throttling"},
        {"do": "empty"},
        {"do": "html", "status": 502},
        {"do": "abort"},
    ],
    ids=["seen at once", "no access", "wrong key", "throttled", "empty body", "another 502", "broken off"],
)
async def test_a_gateway_that_fails_may_hide_a_voice_which_is_adopted_however_looking_for_it_went(
    client: Client, simulator: Simulator, look: dict[str, Any] | None
) -> None:
    """What a look-up meets says nothing about the call that it was to clear up."""
    simulator.behave("customization", {"do": "html", "status": 502, "effect": True}, action="create")
    voice_id = await upload(client, recording())
    problem_of(await finalize(client, voice_id), 503, "provider_unavailable")
    if look:
        simulator.behave("customization", look, times=2, action="list")
        for _ in range(2):
            assert (await finalize(client, voice_id)).status_code in (502, 503, 504)
    assert (await finalize(client, voice_id)).status_code == 200
    assert len(creations(simulator)) == billed(simulator) == 1


async def test_who_was_turned_away_at_the_door_need_not_look_for_a_voice(client: Client, simulator: Simulator) -> None:
    """A key may be allowed to create voices and not to list them: one throttle must not lock a voice out for good."""
    simulator.behave("customization", {"do": "error", "code": "Throttling"}, action="create")
    simulator.behave("customization", {"do": "error", "code": "AccessDenied"}, action="list", times=0)
    voice_id = await upload(client, recording())
    problem_of(await finalize(client, voice_id), 503, "provider_unavailable")
    assert (await finalize(client, voice_id)).status_code == 200
    assert listings(simulator) == 0


@pytest.mark.parametrize(
    "model", ["qwen3-tts-vc", "Qwen3-TTS-VC-Realtime-2026-01-15", "qwen-voice-enrollment", "", None]
)
async def test_an_odd_spelling_of_a_model_does_not_hide_a_voice_of_ours(
    client: Client, simulator: Simulator, settings: Settings, model: str | None
) -> None:
    """The name is ours alone; and the voice was made for the model that was asked for."""
    voice_id = await upload(client, recording())
    simulator.behave("customization", {"do": "abort", "effect": False}, action="create")
    problem_of(await finalize(client, voice_id), 504, "timeout")
    ours = {"voice": f"qwen-tts-vc-{purchases.provider_name(UUID(voice_id))}-voice-8", "target_model": model}
    simulator.behave("customization", {"do": "answer", "json": {"output": {"voice_list": [ours]}}}, action="list")
    assert (await finalize(client, voice_id)).status_code == 200
    [voice] = await listed(client)
    assert (voice["provider_voice_id"], voice["compatible"]) == (ours["voice"], True)
    assert len(creations(simulator)) == 1


@pytest.mark.parametrize(
    "said",
    [
        {"status": 400, "json": {"code": "Inval\0id", "message": "x\0y", "request_id": "a\0b"}},
        {"status": 200, "json": {"output": {"voice": "qwen-tts-vc-x-voice-1"}, "request_id": "a\0b"}},
    ],
)
async def test_what_the_database_cannot_hold_of_an_answer_is_left_out(
    client: Client, simulator: Simulator, rows: Rows, said: dict[str, Any]
) -> None:
    simulator.behave("customization", {"do": "answer", **said}, action="create")
    voice_id = await upload(client, recording())
    assert (await finalize(client, voice_id)).status_code in (200, 400, 502)
    bought = await purchase(rows, voice_id)
    assert bought is not None
    assert (bought["state"], bought["request_id"]) == ("done" if said["status"] == 200 else "refused", "ab")


@pytest.mark.parametrize(
    "broken", [{"do": "abort"}, {"do": "html", "status": 502}], ids=["connection broken", "gateway failed"]
)
async def test_what_somebody_in_between_broke_is_waited_out_before_it_is_called_again(
    settings: Settings, simulator: Simulator, broken: dict[str, Any]
) -> None:
    """A router or a gateway has given up, while the provider may go on working."""
    deadlines = Deadlines(customization_broken_seconds=15.0)
    async with running_gateway(replace(settings, deadlines=deadlines)) as gateway, gateway.client() as client:
        voice_id = await upload(client, recording())
        simulator.behave("customization", {**broken, "effect": False}, action="create")
        assert (await finalize(client, voice_id)).status_code in (503, 504)
        simulator.behave("customization", {"do": "answer", "json": {"output": {"voice_list": []}}}, action="list")
        again = asyncio.create_task(finalize(client, voice_id))
        await simulator.until(lambda _: listings(simulator) == 1)
        name = purchases.provider_name(UUID(voice_id))
        simulator.voices.create("vc", name, settings.qwen_vc_target_model, "en")  # now the provider has finished
        assert (await again).status_code == 200
    assert len(creations(simulator)) == 1


async def test_a_list_without_an_end_proves_nothing(client: Client, simulator: Simulator) -> None:
    """Whose voice is not in the part that one has seen may still have one."""
    simulator.behave("customization", {"do": "abort", "effect": False}, action="create")
    voice_id = await upload(client, recording())
    problem_of(await finalize(client, voice_id), 504, "timeout")
    for page in range(200):
        strangers = [{"voice": f"qwen-tts-vc-x{page}_{number}-voice-1"} for number in range(100)]
        page_of_many = {"output": {"voice_list": strangers, "total_count": 10}}
        simulator.behave("customization", {"do": "answer", "json": page_of_many}, action="list")
    problem_of(await finalize(client, voice_id), 504, "timeout")
    assert len(creations(simulator)) == 1


async def test_a_lying_model_or_kind_is_not_stored(client: Client, simulator: Simulator, settings: Settings) -> None:
    """A voice is made for the model that was asked for; one of the other kind under our name is not ours."""
    answer = {"output": {"voice": "qwen-tts-vc-x-voice-1", "target_model": "qwen3-tts-vd-realtime-2026-01-15"}}
    simulator.behave("customization", {"do": "answer", "json": answer}, action="create")
    assert (await finalize(client, await upload(client, recording()))).status_code == 200
    assert (await listed(client))[0]["compatible"] is True
    voice_id = await upload(client, recording())
    simulator.behave("customization", {"do": "abort"}, action="create")
    problem_of(await finalize(client, voice_id), 504, "timeout")
    name = purchases.provider_name(UUID(voice_id))
    theirs = [
        {"voice": f"qwen-tts-vd-{name}-voice-9", "target_model": "qwen3-tts-vd-realtime-2026-01-15"},
        {"voice": ""},
        {"voice": "odd", "target_model": 5},
        {"voice": f"qwen-tts-vc-{name}-voice-8", "target_model": settings.qwen_vc_target_model, "gmt_create": 7},
    ]
    simulator.behave("customization", {"do": "answer", "json": {"output": {"voice_list": theirs}}}, action="list")
    assert (await finalize(client, voice_id)).status_code == 200
    assert (await listed(client))[0]["provider_voice_id"] == f"qwen-tts-vc-{name}-voice-8"


@pytest.mark.parametrize(
    ("behaviour", "status", "category", "says"),
    [
        ({"do": "empty"}, 502, "provider_rejected", "refused"),
        ({"do": "html"}, 503, "provider_unavailable", "Please try again"),
        ({"do": "error", "code": "Throttling.AllocationQuota", "message": VOICE_LIMIT_EXCEEDED}, 502, "", "operator"),
        ({"do": "error", "code": "Throttling.AllocationQuota", "message": FREE_QUOTA_EXCEEDED}, 502, "", "operator"),
        ({"do": "error", "code": "Audio.PreprocessError"}, 400, "", "10 to 20 seconds of clear speech"),
        ({"do": "error", "code": "InvalidApiKey", "envelope": "openai"}, 502, "", "operator"),
    ],
    ids=["empty body", "html", "too many voices", "free tier", "little speech", "wrong key"],
)
async def test_odd_refusals(
    client: Client, simulator: Simulator, behaviour: dict[str, Any], status: int, category: Any, says: str
) -> None:
    simulator.behave("customization", behaviour)
    voice_id = await upload(client, recording())
    problem_of(await finalize(client, voice_id), status, category or "provider_rejected", says=says)
    assert await listed(client) == []


async def test_what_the_provider_itself_finds_wrong_with_a_recording(client: Client, simulator: Simulator) -> None:
    """Silence passes our own checks; nobody speaks in it."""
    voice_id = await upload(client, wav(bytes(24_000 * 2 * 4)))
    detail = problem_of(await finalize(client, voice_id), 400, "provider_rejected", says="clear speech")
    assert is_a_sentence(detail)
    assert billed(simulator) == 0


async def test_a_provider_that_cannot_be_reached_is_503_and_the_next_try_is_free(
    settings: Settings, simulator: Simulator
) -> None:
    unreachable = replace(settings, dashscope_base_url="http://127.0.0.1:1")
    async with running_gateway(unreachable) as gateway, gateway.client() as client:
        voice_id = await upload(client, recording())
        problem_of(await finalize(client, voice_id), 503, "provider_unavailable")
    async with running_gateway(settings) as gateway, gateway.client(client.user_id) as client:
        assert (await finalize(client, voice_id)).status_code == 200
    assert billed(simulator) == 1


@pytest.mark.parametrize("behaviour", [{"do": "hang"}, {"do": "abort"}, {"do": "html", "status": 504, "effect": True}])
async def test_an_answer_that_never_comes_is_504_and_the_next_finalize_adopts_the_voice(
    settings: Settings, simulator: Simulator, rows: Rows, behaviour: dict[str, Any]
) -> None:
    simulator.behave("customization", behaviour, action="create")
    patience = replace(settings, deadlines=Deadlines(customization_seconds=0.5))
    async with running_gateway(patience) as gateway, gateway.client() as client:
        voice_id = await upload(client, recording())
        problem_of(await finalize(client, voice_id), 504, "timeout")
        bought = await purchase(rows, voice_id)
        assert bought is not None
        assert bought["state"] == "unknown"
        assert await listed(client) == []
        assert (await finalize(client, voice_id)).status_code == 200
        [voice] = await listed(client)
    [call] = creations(simulator)
    assert voice["provider_voice_id"] == call["voice"]
    assert (billed(simulator), listings(simulator)) == (1, 1)


async def test_an_unknown_creation_is_not_repeated_while_the_provider_does_not_list_its_voices(
    settings: Settings, simulator: Simulator
) -> None:
    patience = replace(settings, deadlines=Deadlines(customization_seconds=0.5))
    async with running_gateway(patience) as gateway, gateway.client() as client:
        voice_id = await upload(client, recording())
        simulator.behave("customization", {"do": "hang"}, action="create")
        problem_of(await finalize(client, voice_id), 504, "timeout")
        for behaviour in ({"do": "error", "code": "SystemError"}, {"do": "hang"}):
            simulator.behave("customization", behaviour, action="list")
            problem_of(await finalize(client, voice_id), 504, "timeout", says="will not pay twice")
        assert len(creations(simulator)) == 1
        assert (await finalize(client, voice_id)).status_code == 200
    assert len(creations(simulator)) == billed(simulator) == 1


async def test_a_creation_that_may_still_be_carried_out_is_not_repeated(
    settings: Settings, simulator: Simulator, rows: Rows
) -> None:
    """We have hung up, and the provider is still at it: its own calls last up to five minutes."""
    patience = replace(settings, deadlines=Deadlines(customization_seconds=0.5))
    async with running_gateway(patience) as gateway, gateway.client() as client:
        voice_id = await upload(client, recording())
        plan = simulator.behave("customization", {"do": "hold"}, action="create")
        problem_of(await finalize(client, voice_id), 504, "timeout", says="will not pay twice")
        for _ in range(3):
            problem_of(await finalize(client, voice_id), 504, "timeout", says="try again in a few minutes")
            await rows.execute("UPDATE internal.purchases SET updated_at = now() - interval '10 minutes'")
        assert len(creations(simulator)) == 1
        plan.release()
        await simulator.until(lambda _: billed(simulator) == 1)
        assert (await finalize(client, voice_id)).status_code == 200
    assert len(creations(simulator)) == billed(simulator) == 1


@pytest.mark.parametrize(
    ("behaviour", "in_flight_seconds"),
    [({"do": "hang", "effect": False}, 0.0), ({"do": "abort", "effect": False}, 3600.0)],
    ids=["after the longest that the provider may be at it", "at once where the provider has broken off"],
)
async def test_a_creation_that_was_never_carried_out_is_made_by_the_next_finalize(
    settings: Settings, simulator: Simulator, behaviour: dict[str, Any], in_flight_seconds: float
) -> None:
    deadlines = Deadlines(customization_seconds=0.5, customization_in_flight_seconds=in_flight_seconds)
    async with running_gateway(replace(settings, deadlines=deadlines)) as gateway, gateway.client() as client:
        voice_id = await upload(client, recording())
        simulator.behave("customization", behaviour, action="create")
        problem_of(await finalize(client, voice_id), 504, "timeout")
        answers = await asyncio.gather(*(finalize(client, voice_id) for _ in range(3)))
        assert [answer.status_code for answer in answers] == [200] * 3
    assert billed(simulator) == 1


async def test_what_its_maker_said_about_the_right_to_a_voice_is_kept_with_it(client: Client) -> None:
    said = "This is my own voice."
    voice_id = await cloned(client, consent=said)
    (voice,) = (await client.http.get("/api/voices")).json()["voices"]
    assert (voice["id"], voice["consent"]) == (voice_id, said)


# --- what may be uploaded ---------------------------------------------------------------------------------------------


async def test_a_size_that_was_told_is_the_only_one_that_is_taken(client: Client) -> None:
    asked = {"name": "Ada", "language": "English", "transcript": TRANSCRIPT, "size": 4}
    link = (await client.http.post("/api/clone/upload-url", json=asked)).json()["upload_url"]
    async with httpx.AsyncClient() as anybody:
        for content in (b"12345", b"123"):
            problem_of(await anybody.put(link, content=content), 400, "validation", says="size")
        assert await counted(client.http, "bodies") == 2
        problem_of(await anybody.put(link.replace("size=4", "size=5"), content=b"12345"), 403, "unauthorized")
        problem_of(await anybody.put(link.replace("&size=4", ""), content=b"12345"), 403, "unauthorized")
        assert (await anybody.put(link, content=b"1234")).status_code == 200


async def test_a_size_that_nobody_may_upload_is_refused(client: Client) -> None:
    for size in (0, 50 * 1024 * 1024 + 1):
        asked = {"name": "Ada", "language": "English", "transcript": TRANSCRIPT, "size": size}
        problem_of(await client.http.post("/api/clone/upload-url", json=asked), 400, "validation", says="size")


async def test_nobody_gets_more_addresses_within_an_hour_than_a_person_needs(gateway: Gateway, client: Client) -> None:
    asked = {"name": "Ada", "language": "English", "transcript": TRANSCRIPT}
    for _ in range(UPLOADS_PER_USER):
        assert (await client.http.post("/api/clone/upload-url", json=asked)).status_code == 200
    response = await client.http.post("/api/clone/upload-url", json=asked)
    problem_of(response, 429, "overloaded", says="many recordings")
    assert int(response.headers["retry-after"]) > 3000
    async with gateway.client() as other:
        assert (await other.http.post("/api/clone/upload-url", json=asked)).status_code == 200
    assert gateway.parts.metrics.registry.get_sample_value("utter_refused_total", {"what": "uploads_of_one"}) == 1.0
