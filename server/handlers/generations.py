"""/api/generations: the history, its audio, and starting over from an entry."""

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime
from typing import get_args
from urllib.parse import quote
from uuid import UUID

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from server.audio.captions import CaptionFormat, captions
from server.contract import (
    GenerationsAnswer,
    Ok,
    Pagination,
    RegenerateAnswer,
    SpokenWord,
    TaskStatus,
    WordsEvent,
    ZipRequest,
)
from server.errors import Invalid, NotFound
from server.handlers.links import answer_with_link, audio_filename, signed_link
from server.handlers.present import generation_entry
from server.handlers.requests import (
    bearer,
    json_response,
    outward,
    page_query,
    parts_of,
    path_uuid,
    query_choice,
    query_text,
    query_uuid,
    read_json,
    redirect,
)
from server.jobs import cancel, downloads
from server.parts import Parts
from server.records import history, words
from server.records.history import Entry
from server.records.search import Cursor, Filters
from server.storage import Bucket, content_disposition
from server.storage.zipped import Member, zipped

MOST_IDS = 100

_WHY_SILENT = {
    "pending": "This generation is not finished yet.",
    "processing": "This generation is not finished yet.",
    "failed": "This generation failed, so there is no audio.",
    "cancelled": "This generation was cancelled, so there is no audio.",
}


async def list_generations(request: Request) -> Response:
    """By pages, which are counted; or what is older, newer or named, which is not."""
    parts = parts_of(request)
    user_id = await bearer(request)
    asked = page_query(request, default_per_page=20)
    to = Filters(
        user_id=user_id,
        ids=_ids(request),
        before=_cursor(request, "before"),
        since=_cursor(request, "since"),
        search=query_text(request, "search"),
        words=query_text(request, "q"),
        voice_id=query_uuid(request, "voice_id"),
        status=query_choice(request, "status", get_args(TaskStatus)),
    )
    by_pages = to.before is None and to.since is None and to.ids is None
    async with parts.long_reads.turn(user_id), parts.database.connection() as connection:
        entries, found = await history.page(
            connection, to, limit=asked.per_page, offset=asked.offset if by_pages else 0, count=by_pages
        )
    if by_pages:
        pagination = Pagination.of(page=asked.page, per_page=asked.per_page, total=found.total)
    else:
        pagination = Pagination(page=1, per_page=asked.per_page, total=len(entries), pages=1)
    return json_response(
        GenerationsAnswer([generation_entry(parts, entry) for entry in entries], pagination, found.more)
    )


def _cursor(request: Request, name: str) -> Cursor | None:
    text = query_text(request, name)
    if text is None:
        return None
    created_at, _, generation_id = text.partition(",")
    try:
        return Cursor(msgspec.convert(created_at, datetime), UUID(generation_id))
    except ValueError as exc:  # a validation error is one
        raise Invalid(f"`{name}` must be an entry's `created_at`, a comma, and its `id`.") from exc


def _ids(request: Request) -> tuple[UUID, ...] | None:
    text = query_text(request, "ids")
    if text is None:
        return None
    try:
        ids = tuple(UUID(part) for part in text.split(","))
    except ValueError as exc:
        raise Invalid("`ids` must be UUIDs with commas between them.") from exc
    if len(ids) > MOST_IDS:
        raise Invalid(f"`ids` must have at most {MOST_IDS} entries.")
    return ids


async def download_several(request: Request) -> Response:
    """A ZIP of several generations' audio, in the order of the request, as it is read from the store."""
    parts = parts_of(request)
    user_id = await bearer(request)
    wanted = await read_json(request, ZipRequest)
    ids = list(dict.fromkeys(wanted.ids))
    async with parts.database.connection() as connection:
        entries, _ = await history.page(
            connection, Filters(user_id=user_id, ids=tuple(ids)), limit=len(ids), count=False
        )
    found = {entry.id: entry for entry in entries}
    if len(found) < len(ids):
        raise NotFound("One of these generations does not exist.")
    chosen = [found[generation_id] for generation_id in ids]
    for entry in chosen:
        if entry.status != "completed" or not entry.audio_object_key:
            raise Invalid(f"{_WHY_SILENT.get(entry.status, 'This generation has no audio.')} ({entry.id})")
    content = zipped(parts.storage, [_member(number, entry) for number, entry in enumerate(chosen, 1)])
    return await _made_meanwhile(content, "application/zip", "utter.zip")


def _member(number: int, entry: Entry) -> Member:
    """Named so that files lie in the order of the request, and one knows what is in them."""
    key = str(entry.audio_object_key)
    words = "-".join(re.findall(r"\w+", entry.text)[:6])[:48] or "speech"
    name = f"{number:02d}-{words}.{key.rpartition('.')[2]}"
    return Member(name, Bucket.GENERATIONS, key, entry.created_at)


async def _made_meanwhile(content: AsyncGenerator[bytes, None], mime: str, filename: str) -> Response:
    """A file that is made while it is downloaded. What cannot be made at all is an answer, and not half a file."""
    first = await anext(content)

    async def body() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(content):
            yield first
            async for chunk in content:
                yield chunk

    disposition = content_disposition(filename)
    return StreamingResponse(
        body(),
        media_type=mime,
        headers={"Content-Disposition": disposition, "Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def get_audio(request: Request) -> Response:
    """Always a redirect, never the bytes: players follow it once with their token and then use the final address."""
    entry, key = await _audible_entry(request)
    return await answer_with_link(request, Bucket.GENERATIONS, key, audio_filename(entry.id, key))


async def get_mp3(request: Request) -> Response:
    """The audio as MP3: a redirect where that is what is stored, else the file itself."""
    entry, key = await _audible_entry(request)
    filename = audio_filename(entry.id, key)
    if not key.endswith(".wav"):
        return redirect(await signed_link(request, Bucket.GENERATIONS, key, filename))
    filename = f"{filename.removesuffix('.wav')}.mp3"
    if request.method == "HEAD":  # nothing is made for it
        headers = {"Content-Disposition": content_disposition(filename)}
        return Response(media_type="audio/mpeg", headers=headers)
    return await _made_meanwhile(downloads.as_mp3(parts_of(request).storage, key), "audio/mpeg", filename)


async def _audible_entry(request: Request) -> tuple[Entry, str]:
    """The entry that the address names, and the key of its audio."""
    parts = parts_of(request)
    user_id = await bearer(request)
    entry = await _own_entry(parts, user_id, path_uuid(request, "generation_id"))
    if entry.status != "completed" or not entry.audio_object_key:
        raise NotFound(_WHY_SILENT.get(entry.status, "This generation has no audio."))
    return entry, entry.audio_object_key


async def get_words(request: Request) -> Response:
    """All words that were told while it was spoken; none where the lane does not say when words are heard."""
    parts = parts_of(request)
    user_id = await bearer(request)
    entry = await _own_entry(parts, user_id, path_uuid(request, "generation_id"))
    async with parts.database.connection() as connection:
        batches = await words.since(connection, entry.id, 0, user_id)
    return json_response(WordsEvent([SpokenWord(*word) for batch in batches for word in batch]))


async def get_captions(request: Request) -> Response:
    """What was spoken as captions, where the lane has told when each word is heard."""
    parts = parts_of(request)
    user_id = await bearer(request)
    form: CaptionFormat = "srt" if request.url.path.endswith(".srt") else "vtt"
    entry = await _own_entry(parts, user_id, path_uuid(request, "generation_id"))
    async with parts.database.connection() as connection:
        batches = await words.since(connection, entry.id, 0, user_id)
    if not batches:
        raise NotFound("This generation has no captions: the lane of its voice does not say when words are heard.")
    mime = "application/x-subrip" if form == "srt" else "text/vtt"
    name = f'attachment; filename="utter-{entry.id}.{form}"'
    content = captions(batches, form).encode()
    return Response(content, media_type=f"{mime}; charset=utf-8", headers={"Content-Disposition": name})


async def delete_generation(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    await cancel.delete_generation(parts, user_id, path_uuid(request, "generation_id"))
    return json_response(Ok())


async def regenerate(request: Request) -> Response:
    parts = parts_of(request)
    user_id = await bearer(request)
    entry = await _own_entry(parts, user_id, path_uuid(request, "generation_id"))
    if entry.voice_id is None or entry.voice_deleted:
        raise Invalid("The voice of this generation no longer exists. Please choose another voice.")
    repeated = {
        name: value
        for name in ("format", "speed", "pitch", "volume")
        if (value := getattr(entry.asked, name)) is not None
    }
    fields = {"voice": entry.voice_id, "text": entry.text, "language": entry.language, **repeated}
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in fields.items())
    return json_response(
        RegenerateAnswer(
            voice_id=entry.voice_id,
            text=entry.text,
            language=entry.language,
            redirect_url=outward(request, f"/generate?{query}"),
            **repeated,
        )
    )


async def _own_entry(parts: Parts, user_id: UUID, generation_id: UUID) -> Entry:
    async with parts.database.connection() as connection:
        entry = await history.find(connection, generation_id, user_id)
    if entry is None:
        raise NotFound("This generation does not exist.")
    return entry
