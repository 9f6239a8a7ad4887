"""Voices as rows: the library of one user."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import asyncpg
import msgspec

from server.database.connections import Connection
from server.objects import own_key
from server.records.search import like


class Voice(msgspec.Struct, frozen=True, kw_only=True):
    """One voice. A deleted one is still there for the history, and for a generation that is under way.

    Attributes:
        reference_object_key: Of a recording that is its user's own, else None.
        reference_is_foreign: The row names an object that is not its user's; nobody made it through this server.
        consent: What its maker said about the right to use it, when they made it.
        gone_from: The account (``Providers.account``) that said it does not have this voice.
        is_default: Its owner marked it: it speaks where a program names no voice.
    """

    id: UUID
    user_id: UUID
    name: str
    reference_object_key: str | None
    reference_is_foreign: bool
    reference_transcript: str | None
    language: str
    source: str
    description: str | None
    created_at: datetime
    tts_provider: str
    provider_voice_id: str | None
    provider_target_model: str | None
    provider_voice_kind: str | None
    gone_from: str | None
    consent: str | None
    deleted: bool
    preview_task_id: UUID | None
    is_default: bool


_VOICE = """
SELECT v.id, v.user_id, v.name, v.reference_object_key, v.reference_transcript,
       coalesce(v.language, 'Auto') AS language, v.source, v.description, v.created_at, v.tts_provider,
       v.provider_voice_id, v.provider_target_model, v.provider_voice_kind,
       v.provider_metadata ->> 'gone_from' AS gone_from, v.provider_metadata ->> 'consent' AS consent,
       v.deleted_at IS NOT NULL AS deleted, v.preview_task_id,
       EXISTS (SELECT FROM internal.default_voices d WHERE d.user_id = v.user_id AND d.voice_id = v.id) AS is_default
  FROM public.voices v
"""


def _voice(row: asyncpg.Record) -> Voice:
    fields = dict(row)
    named = fields.pop("reference_object_key")
    own = own_key(row["user_id"], named)
    return Voice(reference_object_key=own, reference_is_foreign=bool(named) and own is None, **fields)


async def page(
    connection: Connection,
    user_id: UUID,
    *,
    search: str | None,
    words: str | None = None,
    source: str | None,
    limit: int,
    offset: int,
) -> tuple[list[Voice], int]:
    """One page of the voices that are not deleted, newest first, and how many there are in all.

    Args:
        search: Found in the name.
        words: Each of them found in the name, language, kind (cloned or designed) or description.
    """
    where = (
        "v.user_id = $1 AND v.deleted_at IS NULL AND ($2::text IS NULL OR v.name ILIKE $2)"
        " AND ($3::text IS NULL OR v.source = $3)"
        " AND ($4::text[] IS NULL OR concat_ws(E'\\n', v.name, v.language, v.description,"
        " CASE v.source WHEN 'designed' THEN 'designed' ELSE 'cloned' END) ILIKE ALL ($4))"
    )
    patterns = [like(word) for word in words.split()] if words else None
    asked = (user_id, like(search) if search else None, source, patterns)
    total: int = await connection.fetchval(
        f"SELECT count(*) FROM public.voices v WHERE {where}",  # noqa: S608 - constants
        *asked,
    )
    rows = await connection.fetch(
        f"{_VOICE} WHERE {where} ORDER BY v.created_at DESC, v.id DESC LIMIT $5 OFFSET $6",
        *asked,
        limit,
        offset,
    )
    return [_voice(row) for row in rows], total


async def find(connection: Connection, voice_id: UUID, user_id: UUID) -> Voice | None:
    """A voice that can be used; None where it does not exist, was deleted, or belongs to somebody else."""
    row = await connection.fetchrow(
        f"{_VOICE} WHERE v.id = $1 AND v.user_id = $2 AND v.deleted_at IS NULL", voice_id, user_id
    )
    return _voice(row) if row else None


class NewVoice(msgspec.Struct, frozen=True, kw_only=True):
    """A voice to be stored, with everything that the provider said of it."""

    id: UUID
    user_id: UUID
    name: str
    reference_object_key: str
    reference_transcript: str
    language: str
    source: Literal["uploaded", "designed"]
    description: str | None
    tts_provider: str
    provider_voice_id: str | None = None
    provider_target_model: str | None = None
    provider_voice_kind: str | None = None
    provider_region: str | None = None
    provider_request_id: str | None = None
    provider_metadata: dict[str, Any] = {}
    preview_task_id: UUID | None = None


async def insert(connection: Connection, voice: NewVoice) -> Voice | None:
    """Store a voice. One that is there already (under this id, or from this preview) stays as it is.

    Returns:
        The voice under the id or from the preview; None where it belongs to somebody else.
    """
    await connection.execute(
        """INSERT INTO public.voices (id, user_id, name, reference_object_key, reference_transcript, language, source,
                description, tts_provider, provider_voice_id, provider_target_model, provider_voice_kind,
                provider_region, provider_request_id, provider_metadata, preview_task_id)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) ON CONFLICT DO NOTHING""",
        *(getattr(voice, field) for field in NewVoice.__struct_fields__),
    )
    row = await connection.fetchrow(
        f"{_VOICE} WHERE v.user_id = $3 AND (v.id = $1 OR v.preview_task_id = $2)",
        voice.id,
        voice.preview_task_id,
        voice.user_id,
    )
    return _voice(row) if row else None


async def put_renewed(connection: Connection, voice: NewVoice) -> Voice | None:
    """Put what the provider made in the place of what it knew the voice by, which is remembered. May be repeated.

    Returns:
        The voice; None where it belongs to somebody else.
    """
    await connection.execute(
        """UPDATE public.voices
              SET tts_provider = $3, provider_voice_id = $4, provider_target_model = $5, provider_voice_kind = $6,
                  provider_region = $7, provider_request_id = $8,
                  reference_object_key = coalesce(nullif($9, ''), reference_object_key),
                  reference_transcript = CASE WHEN $9 = '' THEN reference_transcript ELSE $10 END,
                  provider_metadata = (coalesce(provider_metadata, '{}') - 'gone_from') || jsonb_build_object(
                      'previous', coalesce(provider_metadata -> 'previous', '[]') || jsonb_build_object(
                          'voice', provider_voice_id, 'model', provider_target_model, 'kind', provider_voice_kind,
                          'provider', tts_provider, 'region', provider_region,
                          'gone_from', provider_metadata -> 'gone_from', 'until', now()))
            WHERE id = $1 AND user_id = $2 AND provider_voice_id IS DISTINCT FROM $4""",
        voice.id,
        voice.user_id,
        voice.tts_provider,
        voice.provider_voice_id,
        voice.provider_target_model,
        voice.provider_voice_kind,
        voice.provider_region,
        voice.provider_request_id,
        voice.reference_object_key,
        voice.reference_transcript,
    )
    row = await connection.fetchrow(f"{_VOICE} WHERE v.id = $1 AND v.user_id = $2", voice.id, voice.user_id)
    return _voice(row) if row else None


class Earlier(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider knew a voice by before it was made again.

    Attributes:
        gone_from: The account that had said it does not have it.
    """

    voice: str | None = None
    model: str | None = None
    kind: str | None = None
    provider: str | None = None
    region: str | None = None
    gone_from: str | None = None


async def earlier(connection: Connection, voice_ids: list[UUID]) -> dict[UUID, list[Earlier]]:
    """What the voices were known by before, the latest first. Voices that were never made again are absent."""
    rows = await connection.fetch(
        "SELECT id, provider_metadata -> 'previous' AS previous FROM public.voices"
        " WHERE id = ANY ($1) AND provider_metadata ? 'previous'",
        voice_ids,
    )
    return {row["id"]: [msgspec.convert(one, Earlier) for one in reversed(row["previous"])] for row in rows}


async def note_recording(connection: Connection, voice_id: UUID, object_key: str, transcript: str) -> None:
    """A voice is about to have this recording, in the place of none or of one that was lost."""
    await connection.execute(
        "UPDATE public.voices SET reference_object_key = $2, reference_transcript = $3 WHERE id = $1",
        voice_id,
        object_key,
        transcript,
    )


async def after(
    connection: Connection, place: tuple[datetime, UUID] | None, *, provider: str, limit: int
) -> list[Voice]:
    """Everybody's voices of a provider that are not deleted, oldest first, from behind ``place`` (creation and id)."""
    created_at, voice_id = place or (None, None)
    rows = await connection.fetch(
        f"""{_VOICE} WHERE v.deleted_at IS NULL AND v.tts_provider = $3
                AND ($1::timestamptz IS NULL OR (v.created_at, v.id) > ($1, $2::uuid))
            ORDER BY v.created_at, v.id LIMIT $4""",
        created_at,
        voice_id,
        provider,
        limit,
    )
    return [_voice(row) for row in rows]


class Speaking(msgspec.Struct, frozen=True, kw_only=True):
    """The voices of one model: how many there are, and the newest of them as the provider knows it."""

    model: str
    voices: int
    newest: str


async def models(connection: Connection) -> list[Speaking]:
    """The models that the provider's voices were made for, the most used first. Reads all voices: for a command."""
    rows = await connection.fetch(
        """SELECT provider_target_model AS model, count(*)::int AS voices,
                  (array_agg(provider_voice_id ORDER BY created_at DESC))[1] AS newest
             FROM public.voices
            WHERE tts_provider = 'qwen' AND deleted_at IS NULL AND provider_target_model IS NOT NULL
              AND provider_voice_id IS NOT NULL
            GROUP BY 1 ORDER BY 2 DESC, 1"""
    )
    return [Speaking(**dict(row)) for row in rows]


async def find_any(connection: Connection, voice_id: UUID) -> Voice | None:
    """A voice, deleted or not, whoever it belongs to."""
    row = await connection.fetchrow(f"{_VOICE} WHERE v.id = $1", voice_id)
    return _voice(row) if row else None


async def saved_from(connection: Connection, preview_task_id: UUID, user_id: UUID) -> Voice | None:
    """The voice that was saved from a preview, deleted or not."""
    row = await connection.fetchrow(
        f"{_VOICE} WHERE v.preview_task_id = $1 AND v.user_id = $2", preview_task_id, user_id
    )
    return _voice(row) if row else None


async def delete(connection: Connection, voice_id: UUID, user_id: UUID) -> bool:
    """Hide a voice everywhere but in the history. Its reference stays, and so does what is being spoken with it."""
    deleted = await connection.fetchval(
        """UPDATE public.voices SET deleted_at = now()
            WHERE id = $1 AND user_id = $2 AND deleted_at IS NULL RETURNING true""",
        voice_id,
        user_id,
    )
    return bool(deleted)


async def named(connection: Connection, user_id: UUID, name: str, *, at_most: int = 20) -> list[Voice]:
    """The user's voices of that name, however it is capitalised, newest first."""
    rows = await connection.fetch(
        f"""{_VOICE} WHERE v.user_id = $1 AND v.deleted_at IS NULL AND lower(v.name) = lower($2)
            ORDER BY v.created_at DESC LIMIT $3""",
        user_id,
        name,
        at_most,
    )
    return [_voice(row) for row in rows]


async def newest(connection: Connection, user_id: UUID, *, at_most: int = 500) -> list[Voice]:
    """The user's voices that are not deleted: the default one first, then the newest."""
    mine = f"{_VOICE} WHERE v.user_id = $1 AND v.deleted_at IS NULL"
    # Two look-ups: sorted by what is computed for each, all of somebody's voices would be read for the first few.
    rows = await connection.fetch(
        f"""SELECT * FROM (
               ({mine} AND v.id = (SELECT d.voice_id FROM internal.default_voices d WHERE d.user_id = $1))
               UNION ALL ({mine} ORDER BY v.created_at DESC, v.id DESC LIMIT $2)) v
             ORDER BY is_default DESC, created_at DESC, id DESC""",  # noqa: S608 - constants
        user_id,
        at_most,
    )
    found = {row["id"]: _voice(row) for row in rows}
    return list(found.values())[:at_most]


async def change(
    connection: "Connection", voice_id: UUID, user_id: UUID, *, name: str | None, default: bool | None
) -> Voice | None:
    """Rename a voice, or make it its owner's default, or no longer. What is None stays. Call it in a transaction.

    Returns:
        The voice as it is afterwards; None where it does not exist, was deleted, or belongs to somebody else.
    """
    there = await connection.fetchval(
        """UPDATE public.voices SET name = coalesce($3, name)
            WHERE id = $1 AND user_id = $2 AND deleted_at IS NULL RETURNING true""",
        voice_id,
        user_id,
        name,
    )
    if not there:
        return None
    if default:
        await connection.execute(
            """INSERT INTO internal.default_voices (user_id, voice_id) VALUES ($1, $2)
               ON CONFLICT (user_id) DO UPDATE SET voice_id = excluded.voice_id""",
            user_id,
            voice_id,
        )
    elif default is False:
        await connection.execute(
            "DELETE FROM internal.default_voices WHERE user_id = $1 AND voice_id = $2", user_id, voice_id
        )
    return await find(connection, voice_id, user_id)


async def mark_gone(connection: Connection, voice_id: UUID, account: str) -> None:
    """A provider's account no longer has this voice: it cannot speak there until its user creates it again."""
    await connection.execute(
        """UPDATE public.voices
              SET provider_metadata = coalesce(provider_metadata, '{}') || jsonb_build_object('gone_from', $2::text)
            WHERE id = $1""",
        voice_id,
        account,
    )
