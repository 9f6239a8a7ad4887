"""/api/generations: the history, its audio, and starting over from an entry."""

import io
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from server.audio import mp3_duration_seconds
from server.dev.simulator import Simulator
from server.settings import Settings
from server.storage import Bucket
from tests.gateway import Client, Gateway, insert_voice, running_gateway
from tests.handlers.wire import problem_of
from tests.support import wait_for, with_limits

Rows: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

NOWHERE = "user/nothing.mp3"


async def insert_generation(rows: Rows, user_id: UUID, text: str = "Good evening.", **columns: Any) -> UUID:
    """A generation as another process would have left it, completed unless the columns say otherwise."""
    values = {"user_id": user_id, "text": text, "status": "completed", "tts_provider": "qwen", **columns}
    names = ", ".join(values)
    places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
    generation_id: UUID = await rows.fetchval(
        f"INSERT INTO public.generations ({names}) VALUES ({places}) RETURNING id", *values.values()
    )
    return generation_id


async def history(client: Client, **query: Any) -> dict[str, Any]:
    response = await client.http.get("/api/generations", params=query)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def texts(client: Client, **query: Any) -> list[str]:
    return [entry["text"] for entry in (await history(client, **query))["generations"]]


# --- the list ---------------------------------------------------------------------------------------------------------


async def test_an_entry_has_the_members_of_the_contract(client: Client, voice_id: UUID) -> None:
    answer = await client.generate(voice_id, "Guten Abend.", language="german")
    await client.ended(answer["task_id"])
    shown = await history(client)
    assert shown["pagination"] == {"page": 1, "per_page": 20, "total": 1, "pages": 1}
    (entry,) = shown["generations"]
    assert entry.pop("created_at").endswith("Z")
    assert 0 < entry.pop("duration_seconds") < 60
    assert 0 < entry.pop("generation_time_seconds") < 60
    assert entry == {
        "id": answer["generation_id"],
        "voice_id": str(voice_id),
        "voice_name": "Ada",
        "text": "Guten Abend.",
        "audio_path": f"/api/generations/{answer['generation_id']}/audio",
        "language": "German",
        "status": "completed",
        "error_message": None,
        "tts_provider": "qwen",
        "output_format": "mp3",
        "client": None,
    }


@pytest.mark.usefixtures("unspoken")
async def test_durations_are_null_until_they_are_known(client: Client, voice_id: UUID) -> None:
    await client.generate(voice_id)
    (entry,) = (await history(client))["generations"]
    assert (entry["duration_seconds"], entry["generation_time_seconds"]) == (None, None)
    assert entry["status"] == "processing"


async def test_durations_are_numbers_or_null_whatever_the_columns_hold(client: Client, rows: Rows) -> None:
    """Another system's columns may be numeric, which PostgreSQL's drivers hand out as strings or decimals."""
    for column in ("duration_seconds", "generation_time_seconds"):
        await rows.execute(f"ALTER TABLE public.generations ALTER COLUMN {column} TYPE numeric")
    for value in ("12.50", "3", "NaN", "0"):
        await rows.execute(
            f"""INSERT INTO public.generations (user_id, text, status, duration_seconds, generation_time_seconds)
                VALUES ($1, $2, 'completed', {f"'{value}'"}::numeric, NULL)""",
            client.user_id,
            value,
        )
    shown = {entry["text"]: entry["duration_seconds"] for entry in (await history(client))["generations"]}
    assert shown == {"12.50": 12.5, "3": 3, "NaN": None, "0": 0}


async def test_time_taken_is_the_time_between_the_rows(client: Client, voice_id: UUID, rows: Rows) -> None:
    answer = await client.generate(voice_id)
    await client.ended(answer["task_id"])
    row = await rows.fetchrow(
        """SELECT generation_time_seconds, extract(epoch FROM completed_at - created_at)::float8 AS taken
             FROM public.generations"""
    )
    assert row
    assert row["generation_time_seconds"] == pytest.approx(row["taken"], abs=1e-6)


async def test_pages_are_newest_first_and_count_everything(client: Client, rows: Rows) -> None:
    numbered = [f"text {number}" for number in range(23)]
    for age, text in enumerate(numbered):
        created_at = datetime(2026, 1, 1, tzinfo=UTC) - timedelta(minutes=age)
        await insert_generation(rows, client.user_id, text, created_at=created_at)
    await insert_generation(rows, uuid4(), "Somebody else's")
    assert await texts(client) == numbered[:20]
    assert await texts(client, page=2) == numbered[20:]
    assert await texts(client, page=3, per_page=5) == numbered[10:15]
    assert await texts(client, per_page=100) == numbered
    for query, pagination in (
        ({}, {"page": 1, "per_page": 20, "total": 23, "pages": 2}),
        ({"page": 5, "per_page": 5}, {"page": 5, "per_page": 5, "total": 23, "pages": 5}),
        ({"page": 1_000_000}, {"page": 1_000_000, "per_page": 20, "total": 23, "pages": 2}),
        ({"search": "nothing like it"}, {"page": 1, "per_page": 20, "total": 0, "pages": 1}),
        ({"page": "", "per_page": ""}, {"page": 1, "per_page": 20, "total": 23, "pages": 2}),
    ):
        assert (await history(client, **query))["pagination"] == pagination
    assert await texts(client, page=3) == []


async def test_a_page_that_is_none_is_400(client: Client) -> None:
    for address in ("/api/generations", "/api/voices"):
        for name in ("page", "per_page"):
            for value in ("0", "-1", "1000000000", "abc", "1e2", "1.0", "+1", "0x1", "\uff11", "1 2", "[]"):
                response = await client.http.get(address, params={name: value})
                problem_of(response, 400, "validation", says=f"`{name}` must be a whole number from 1 to ")
        response = await client.http.get(address, params={"per_page": "101"})
        problem_of(response, 400, "validation", says="100")


async def test_status_filters_and_all_means_no_filter(client: Client, rows: Rows) -> None:
    statuses = ["pending", "processing", "completed", "failed", "cancelled"]
    for status in statuses:
        await insert_generation(rows, client.user_id, status, status=status)
    for status in statuses:
        assert await texts(client, status=status) == [status]
    assert len(await texts(client, status="all")) == len(await texts(client, status="")) == 5
    response = await client.http.get("/api/generations?status=queued")
    problem_of(response, 400, "validation", says="pending, processing, completed, failed, cancelled")


async def test_search_means_the_text_and_its_characters_are_plain(client: Client, rows: Rows) -> None:
    spoken = ["100% sure", "100 sure", "snake_case", "snakeXcase", "a:b & c+d", "back\\slash", "Grüße", "two\nlines"]
    for age, text in enumerate(spoken):
        created_at = datetime(2026, 1, 1, tzinfo=UTC) - timedelta(minutes=age)
        await insert_generation(rows, client.user_id, text, created_at=created_at)
    for search, found in (
        ("%", ["100% sure"]),
        ("0%", ["100% sure"]),
        ("_", ["snake_case"]),
        ("\\", ["back\\slash"]),
        ("\\%", []),
        ("A:B & C+D", ["a:b & c+d"]),
        ("SURE", ["100% sure", "100 sure"]),
        ("grÜSSE", []),
        ("GRÜ", ["Grüße"]),
        ("two\nlines", ["two\nlines"]),
        (" ", spoken),
    ):
        assert await texts(client, search=search) == found, search
    encoded_by_a_form = await client.http.get("/api/generations?search=a%3Ab+%26+c%2Bd&status=completed")
    assert [entry["text"] for entry in encoded_by_a_form.json()["generations"]] == ["a:b & c+d"]


async def test_a_deleted_voice_keeps_its_name(client: Client, voice_id: UUID, rows: Rows) -> None:
    await insert_generation(rows, client.user_id, voice_id=voice_id)
    await rows.execute("UPDATE public.voices SET deleted_at = now()")
    (entry,) = (await history(client))["generations"]
    assert (entry["voice_id"], entry["voice_name"]) == (str(voice_id), "Ada")


async def test_a_voice_whose_row_is_gone_has_no_name(client: Client, voice_id: UUID, rows: Rows) -> None:
    await insert_generation(rows, client.user_id, voice_id=voice_id)
    await rows.execute("DELETE FROM public.voices")
    (entry,) = (await history(client))["generations"]
    assert (entry["voice_id"], entry["voice_name"]) == (None, None)


async def test_a_failure_tells_its_reason_in_the_history(client: Client, voice_id: UUID, simulator: Simulator) -> None:
    simulator.behave("realtime", {"do": "close", "at": "audio", "code": 1011})
    task = await client.ended((await client.generate(voice_id))["task_id"])
    (entry,) = (await history(client))["generations"]
    assert (entry["status"], entry["error_message"]) == ("failed", task["error"])


# --- the audio --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def completed(client: Client, voice_id: UUID) -> str:
    """A generation of that user whose audio is stored."""
    answer = await client.generate(voice_id)
    await client.ended(answer["task_id"])
    return str(answer["generation_id"])


async def test_audio_is_a_redirect_and_never_the_bytes(client: Client, completed: str) -> None:
    for method in ("GET", "HEAD"):
        for headers in ({}, {"Range": "bytes=0-"}, {"Sec-Fetch-Dest": "audio"}, {"Accept": "audio/*"}):
            response = await client.http.request(method, f"/api/generations/{completed}/audio", headers=headers)
            assert (response.status_code, response.content) == (302, b"")
            assert response.headers["cache-control"] == "no-store"
            assert "completed" not in response.headers["location"]


async def test_the_signed_link_works_for_anybody_as_often_as_they_like(
    client: Client, completed: str, gateway: Gateway
) -> None:
    """With no token, a good one or a bad one; in part; and after somebody broke a download off."""
    link = (await client.http.get(f"/api/generations/{completed}/audio")).headers["location"]
    whole = await client.audio(completed)
    assert len(whole) > 2000
    async with httpx.AsyncClient(base_url=gateway.url) as anybody:
        for token in (None, client.headers["Authorization"], "Bearer nonsense"):
            response = await anybody.get(link, headers={"Authorization": token} if token else {})
            assert (response.status_code, response.content) == (200, whole)
            assert response.headers["content-type"] == "audio/mpeg"
            assert response.headers["accept-ranges"] == "bytes"
            assert response.headers["content-disposition"] == f'attachment; filename="utter-{completed}.mp3"'
        for asked, start, stop in (("bytes=0-", 0, len(whole)), ("bytes=100-199", 100, 200), ("bytes=-10", -10, None)):
            response = await anybody.get(link, headers={"Range": asked})
            assert (response.status_code, response.content) == (206, whole[start:stop])
        async with anybody.stream("GET", link):
            pass  # the page learns the final address this way, and takes no byte
        assert (await anybody.get(link)).content == whole


async def test_audio_is_had_as_mp3_whatever_it_is_stored_as(
    client: Client, voice_id: UUID, completed: str, rows: Rows, gateway: Gateway
) -> None:
    stored = await client.http.get(f"/api/generations/{completed}/audio.mp3", follow_redirects=True)
    assert stored.content == await client.audio(completed)
    answer = await client.generate(voice_id, format="wav")
    await client.ended(answer["task_id"])
    address = f"/api/generations/{answer['generation_id']}/audio.mp3"
    made = await client.http.get(address)
    assert (made.status_code, made.headers["content-type"]) == (200, "audio/mpeg")
    assert made.headers["content-disposition"] == f'attachment; filename="utter-{answer["generation_id"]}.mp3"'
    (entry, _) = (await history(client))["generations"]
    assert mp3_duration_seconds(made.content) == pytest.approx(entry["duration_seconds"], abs=0.15)
    head = await client.http.head(address)
    assert (head.status_code, head.content) == (200, b"")
    async with gateway.client() as stranger:
        problem_of(await stranger.http.get(address), 404, "not_found")
    broken = await insert_generation(rows, client.user_id, audio_object_key=f"{client.user_id}/nothing.wav")
    problem_of(await client.http.get(f"/api/generations/{broken}/audio.mp3"), 404, "not_found")


async def test_a_link_that_was_changed_is_refused(client: Client, completed: str, gateway: Gateway) -> None:
    link = (await client.http.get(f"/api/generations/{completed}/audio")).headers["location"]
    path, _, query = link.partition("?")
    fields = {name: values[0] for name, values in parse_qs(query).items()}
    async with httpx.AsyncClient(base_url=gateway.url) as anybody:
        for changed in (
            {**fields, "expires": str(int(fields["expires"]) + 1)},
            {**fields, "signature": "A" * len(fields["signature"])},
            {**fields, "filename": "other.mp3"},
            {},
        ):
            problem_of(await anybody.get(path, params=changed), 403, "unauthorized", says="link")
        problem_of(await anybody.get(path.replace(completed, str(uuid4())) + "?" + query), 403, "unauthorized")


async def test_audio_is_404_until_it_is_stored_and_where_there_will_be_none(client: Client, rows: Rows) -> None:
    for status, says in (
        ("pending", "not finished yet"),
        ("processing", "not finished yet"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
        ("completed", "no audio"),
    ):
        generation_id = await insert_generation(rows, client.user_id, status=status)
        problem_of(await client.http.get(f"/api/generations/{generation_id}/audio"), 404, "not_found", says=says)


async def test_what_is_unknown_or_somebody_elses_is_the_same_404(
    gateway: Gateway, client: Client, completed: str
) -> None:
    async with gateway.client() as stranger:
        for asking, generation_id in ((client, uuid4()), (stranger, completed)):
            for method, address in (("GET", "/audio"), ("DELETE", ""), ("POST", "/regenerate")):
                response = await asking.http.request(method, f"/api/generations/{generation_id}{address}")
                assert problem_of(response, 404, "not_found") == "This generation does not exist."
    assert len(await client.audio(completed)) > 0


async def test_an_id_that_is_no_uuid_is_400(client: Client) -> None:
    for method, address in (("GET", "/audio"), ("DELETE", ""), ("POST", "/regenerate")):
        response = await client.http.request(method, f"/api/generations/7{address}")
        problem_of(response, 400, "validation", says="generation id")


# --- deleting ---------------------------------------------------------------------------------------------------------


async def test_delete_removes_row_and_object(client: Client, completed: str, gateway: Gateway, rows: Rows) -> None:
    key = f"{client.user_id}/{completed}.mp3"
    assert await gateway.parts.storage.head(Bucket.GENERATIONS, key)
    response = await client.http.delete(f"/api/generations/{completed}")
    assert (response.status_code, response.json()) == (200, {"ok": True})
    assert await texts(client) == []
    problem_of(await client.http.get(f"/api/generations/{completed}/audio"), 404, "not_found")
    problem_of(await client.http.delete(f"/api/generations/{completed}"), 404, "not_found")

    async def gone() -> bool:
        return not await rows.fetchval("SELECT count(*) FROM internal.removals")

    await wait_for(gone)
    assert await gateway.parts.storage.head(Bucket.GENERATIONS, key) is None


async def test_delete_cancels_what_still_runs(
    client: Client, voice_id: UUID, simulator: Simulator, gateway: Gateway, rows: Rows
) -> None:
    held = simulator.behave("realtime", {"do": "hold", "after_deltas": 2})
    answer = await client.generate(voice_id)
    await held.held()
    assert (await client.http.delete(f"/api/generations/{answer['generation_id']}")).json() == {"ok": True}
    task = await client.task(answer["task_id"])
    assert (task["status"], task["error"], task["generation_id"]) == ("cancelled", "Cancelled by user", None)
    assert await texts(client) == []
    for table in ("internal.runs", "internal.spool"):
        assert not await rows.fetchval(f"SELECT count(*) FROM {table}")
    await wait_for(lambda: not gateway.parts.leases.speaking)
    held.release()


async def test_an_object_that_cannot_be_deleted_is_recorded_until_the_sweep_has_removed_it(
    settings: Settings, database_url: str, rows: Rows
) -> None:
    """A folder in place of the file is what even root cannot unlink."""
    quick = with_limits(settings, sweep_every_seconds=0.05)
    async with running_gateway(quick) as gateway, gateway.client() as client:
        answer = await client.generate(await insert_voice(database_url, client.user_id))
        await client.ended(answer["task_id"])
        key = f"{client.user_id}/{answer['generation_id']}.mp3"
        file = Path(settings.storage.root, "generations", key)
        file.unlink()
        file.mkdir()
        assert (await client.http.delete(f"/api/generations/{answer['generation_id']}")).json() == {"ok": True}
        assert await texts(client) == []

        async def tried() -> bool:
            return not await rows.fetchval("SELECT count(*) FROM internal.procrastinate_jobs")

        await wait_for(tried)
        record = await rows.fetchrow("SELECT bucket, object_key, reason FROM internal.removals")
        assert record
        assert tuple(record) == ("generations", key, "generation deleted")
        file.rmdir()
        file.write_bytes(b"audio that must go")
        await rows.execute("UPDATE internal.removals SET next_at = now() - interval '1 second'")

        async def gone() -> bool:
            return not await rows.fetchval("SELECT count(*) FROM internal.removals")

        await wait_for(gone)
        assert not file.exists()


# --- starting over ----------------------------------------------------------------------------------------------------


async def test_regenerate_answers_what_a_form_needs_escaped(client: Client, voice_id: UUID, rows: Rows) -> None:
    text = '50% off & more? a=b+c #1 \u00fc \U0001f600\n"quoted" / ../'
    generation_id = await insert_generation(rows, client.user_id, text, voice_id=voice_id, language="German")
    response = await client.http.post(f"/api/generations/{generation_id}/regenerate")
    assert response.status_code == 200
    answer = response.json()
    address = answer.pop("redirect_url")
    assert answer == {"voice_id": str(voice_id), "text": text, "language": "German"}
    parts = urlsplit(address)
    assert parts.path == "/generate"
    assert not parts.fragment
    assert address.isascii()
    assert not set(' +"\n') & set(address)
    assert parse_qs(parts.query, strict_parsing=True) == {
        "voice": [str(voice_id)],
        "text": [text],
        "language": ["German"],
    }


async def test_regenerate_is_400_where_the_voice_is_gone_or_deleted(client: Client, voice_id: UUID, rows: Rows) -> None:
    deleted = await insert_generation(rows, client.user_id, voice_id=voice_id)
    without = await insert_generation(rows, client.user_id)
    await rows.execute("UPDATE public.voices SET deleted_at = now()")
    for generation_id in (deleted, without):
        response = await client.http.post(f"/api/generations/{generation_id}/regenerate")
        problem_of(response, 400, "validation", says="choose another voice")


# --- what is older, newer or named ------------------------------------------------------------------------------------


def cursor(entry: dict[str, Any]) -> str:
    return f"{entry['created_at']},{entry['id']}"


async def test_a_list_is_walked_down_and_what_is_new_is_fetched_alone(client: Client, rows: Rows) -> None:
    """By cursors: whatever comes or goes at the top meanwhile, nothing is shown twice and nothing is left out."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(7):  # in pairs of one moment, where the id decides
        created_at = moment - timedelta(minutes=number // 2, microseconds=number // 2)
        await insert_generation(rows, client.user_id, f"text {number}", created_at=created_at)
    await insert_generation(rows, uuid4(), "Somebody else's", created_at=moment)
    everything = (await history(client, per_page=100))["generations"]
    walked: list[dict[str, Any]] = []
    answer = await history(client, per_page=3)
    while True:
        walked += answer["generations"]
        await insert_generation(rows, client.user_id, "In between")
        if not answer["more"]:
            break
        answer = await history(client, per_page=3, before=cursor(walked[-1]))
        assert answer["pagination"] == {"page": 1, "per_page": 3, "total": len(answer["generations"]), "pages": 1}
    assert walked == everything
    newer = await history(client, since=cursor(walked[0]), per_page=2)
    assert [entry["text"] for entry in newer["generations"]] == ["In between"] * 2
    assert newer["more"] is True
    newest = newer["generations"][0]
    assert (await history(client, since=cursor(newest)))["generations"] == []


async def test_entries_are_asked_for_by_their_ids(client: Client, rows: Rows) -> None:
    ids = [str(await insert_generation(rows, client.user_id, text)) for text in ("a", "b", "c")]
    foreign = await insert_generation(rows, uuid4(), "Somebody else's")
    found = (await history(client, ids=f"{ids[0]},{ids[2]},{foreign},{uuid4()}"))["generations"]
    assert {entry["id"] for entry in found} == {ids[0], ids[2]}


async def test_what_is_no_cursor_and_no_id_is_400(client: Client) -> None:
    for query, says in (
        ({"before": "yesterday"}, "`created_at`, a comma, and its `id`"),
        ({"since": f"2026-01-01T00:00:00Z,{7}"}, "`created_at`, a comma, and its `id`"),
        ({"before": f",{uuid4()}"}, "`created_at`, a comma, and its `id`"),
        ({"ids": "1,2"}, "UUIDs"),
        ({"ids": ",".join(str(uuid4()) for _ in range(101))}, "at most 100"),
        ({"voice_id": "Ada"}, "`voice_id` must be a UUID"),
    ):
        problem_of(await client.http.get("/api/generations", params=query), 400, "validation", says=says)


async def test_a_list_is_narrowed_by_words_voice_and_state(
    client: Client, database_url: str, voice_id: UUID, rows: Rows
) -> None:
    """``q`` looks into text and voice, with every character plain, in pages and by cursors alike."""
    bea = await insert_voice(database_url, client.user_id, name="Bea 100%")
    for text, voice, status in (
        ("Of Ada", voice_id, "completed"), ("Said by somebody", bea, "completed"), ("Never said", bea, "failed"),
        ("Nobody's 100%", None, "completed"),
    ):  # fmt: skip
        await insert_generation(rows, client.user_id, text, voice_id=voice, status=status)
    late = f"2999-01-01T00:00:00Z,{uuid4()}"
    for extra in ({}, {"before": late}):
        for query, found in (
            ({"q": "ada"}, {"Of Ada"}),
            ({"q": "100%"}, {"Said by somebody", "Never said", "Nobody's 100%"}),
            ({"q": "1_0"}, set()),
            ({"q": "bea", "status": "failed"}, {"Never said"}),
            ({"voice_id": str(bea)}, {"Said by somebody", "Never said"}),
            ({"voice_id": str(uuid4())}, set()),
            ({"search": "said", "voice_id": str(bea)}, {"Said by somebody", "Never said"}),
            ({"search": "bea"}, set()),
        ):
            assert set(await texts(client, **query, **extra)) == found, (query, extra)


# --- several at once --------------------------------------------------------------------------------------------------


async def test_several_are_downloaded_as_one_zip(client: Client, voice_id: UUID) -> None:
    said = ["First: the one & only!", "Second", "مرحبا بك"]
    answers = [await client.generate(voice_id, text) for text in said]
    for answer in answers:
        await client.ended(answer["task_id"])
    ids = [answer["generation_id"] for answer in answers]
    response = await client.http.post("/api/generations/zip", json={"ids": [ids[2], ids[0], ids[1], ids[0]]})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/zip"
    assert response.headers["content-disposition"] == 'attachment; filename="utter.zip"'
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["01-مرحبا-بك.mp3", "02-First-the-one-only.mp3", "03-Second.mp3"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        for name, generation_id in zip(archive.namelist(), (ids[2], ids[0], ids[1]), strict=True):
            assert archive.read(name) == await client.audio(generation_id)


async def test_a_zip_of_what_is_not_there_is_an_answer_and_no_file(
    gateway: Gateway, client: Client, completed: str, rows: Rows
) -> None:
    async def asked(*ids: object, by: Client = client) -> httpx.Response:
        return await by.http.post("/api/generations/zip", json={"ids": [str(generation_id) for generation_id in ids]})

    failed = await insert_generation(rows, client.user_id, status="failed")
    lost = await insert_generation(rows, client.user_id, audio_object_key=f"{client.user_id}/nothing.mp3")
    problem_of(await asked(), 400, "validation", says="`ids` must have at least 1 entry")
    problem_of(await asked(*(uuid4() for _ in range(51))), 400, "validation", says="at most 50")
    problem_of(await asked(completed, uuid4()), 404, "not_found", says="does not exist")
    problem_of(await asked(completed, failed), 400, "validation", says=str(failed))
    problem_of(await asked(lost), 404, "not_found")
    async with gateway.client() as stranger:
        problem_of(await asked(completed, by=stranger), 404, "not_found")
    with pytest.raises(httpx.RemoteProtocolError):  # half a file must not look like a whole one
        await asked(completed, lost)
