"""Cloning a voice: the recording is uploaded, checked, enrolled at the provider (``enrollment.py``), and stored."""

import asyncio
import contextlib
import math
from uuid import UUID, uuid4

from server.audio import REFERENCE_SAMPLE_RATE_HZ, AudioError, Recording, read_recording
from server.contract import CloneFinalizeRequest, CloneUploadRequest
from server.database.connections import REFUSED, Connection
from server.errors import Invalid, NotFound, StorageUnavailable, UtterError
from server.jobs.enrollment import Enrollment, in_memory
from server.jobs.limits import count_made
from server.jobs.own import keep_voice, require_voice
from server.jobs.requirements import require_language, require_name
from server.objects import reference_key
from server.parts import Parts
from server.records import idempotency, purchases, removals, usage, voices
from server.records.usage import CLONE, Account
from server.records.voices import NewVoice, Voice
from server.storage import Bucket

UPLOAD_SECONDS = 300
LONGEST_RECORDING_BYTES = 10 * 1024 * 1024
SHORTEST_SECONDS, LONGEST_SECONDS = 3.0, 60.0
# Encoders add silence at both ends of what they are given, and round it up to whole frames.
PADDING_SECONDS = 0.2


async def upload_address(
    parts: Parts, user_id: UUID, request: CloneUploadRequest, base_url: str
) -> tuple[UUID, str, str]:
    """A new voice's id, the address that its recording is to be PUT to within five minutes, and the object's key.

    What is put there and never made into a voice goes a day later.
    """
    require_name(request.name)
    require_language(parts, request.language)
    parts.uploads.begin(user_id)
    voice_id = uuid4()
    key = reference_key(user_id, voice_id)
    async with parts.database.transaction() as connection:
        await removals.expect(connection, parts.settings.storage.bucket_references, key)
    link = await parts.storage.signed_put(
        Bucket.REFERENCES, key, expires_seconds=UPLOAD_SECONDS, base_url=base_url, size=request.size
    )
    return voice_id, link, key


async def create(parts: Parts, user_id: UUID, request: CloneFinalizeRequest, *, key_id: UUID | None = None) -> Voice:
    """The voice of this id: stored already, or made now from the recording that was uploaded.

    Args:
        key_id: The key that the request was signed in with, if it was one.

    Raises:
        Invalid: The recording is missing or cannot be used.
        NotFound: The id belongs to somebody else.
        ProviderError: Refused (400 or 502), not reached (503), or with an unknown end (504).
    """
    name, language = require_name(request.name), require_language(parts, request.language)
    async with parts.database.connection() as connection:
        known = await voices.find_any(connection, request.voice_id)
    if known is not None:
        if known.user_id != user_id:
            raise NotFound("This voice does not exist.")
        return require_voice(known)
    await _require_upload(parts, user_id, request.voice_id)
    account = Account(user_id, CLONE, key_id)
    async with parts.database.transaction() as connection:
        # Not while it is being made into a voice, nor before somebody had the time to try again.
        bucket, key = parts.settings.storage.bucket_references, reference_key(user_id, request.voice_id)
        await removals.expect(connection, bucket, key)
        if await _first_to_count(connection, account, request.voice_id):
            await count_made(parts, connection, account)
    abilities = parts.providers.abilities
    wanted = NewVoice(
        id=request.voice_id,
        user_id=user_id,
        name=name,
        reference_object_key=reference_key(user_id, request.voice_id),
        reference_transcript=request.transcript.strip(),
        language=language,
        source="uploaded",
        description=request.description,
        tts_provider=abilities.provider,
        provider_metadata={"consent": request.consent} if request.consent else {},
    )

    async def fetch() -> tuple[bytes, Recording]:
        data = await _read(parts, user_id, request.voice_id)
        return data, await asyncio.to_thread(require_recording, data)

    try:
        if abilities.enrolls:
            voice = await Enrollment(parts, wanted, fetch).run()
        else:
            async with in_memory(parts):
                await fetch()
            voice = await keep_voice(parts, wanted)
    except UtterError:
        with contextlib.suppress(*REFUSED):  # then it stays counted until tomorrow
            await _count_no_more(parts, account, request.voice_id)
        raise
    with contextlib.suppress(*REFUSED):
        async with parts.database.transaction() as connection:
            # Another caller may have been refused, and taken it back, while this one went on to buy it.
            if await _first_to_count(connection, account, request.voice_id):
                await usage.add_start(connection, account, 0)
    return voice


async def _first_to_count(connection: Connection, account: Account, voice_id: UUID) -> bool:
    """A voice is counted once, however often or at once it is asked for."""
    key = account.key_id.bytes if account.key_id else b""
    return await idempotency.remember(connection, account.user_id, f"clone {voice_id}", key, voice_id) is None


async def _count_no_more(parts: Parts, account: Account, voice_id: UUID) -> None:
    """Take back what was counted for a voice, unless it may have been bought."""
    async with parts.database.transaction() as connection:
        if purchases.may_be_bought(await purchases.find(connection, voice_id, locked=True)):
            return
        if counted := await idempotency.take(connection, account.user_id, f"clone {voice_id}"):
            key, made_at = counted
            of = Account(account.user_id, account.lane, UUID(bytes=key) if key else None)
            await usage.take_back_start(connection, of, 0, made_at)


async def _require_upload(parts: Parts, user_id: UUID, voice_id: UUID) -> None:
    key = reference_key(user_id, voice_id)
    uploaded = await parts.storage.head(Bucket.REFERENCES, key)
    if uploaded is None or not uploaded.size:
        raise Invalid("Audio file not uploaded.")
    if uploaded.size > LONGEST_RECORDING_BYTES:
        parts.metrics.refused("recordings")
        with contextlib.suppress(StorageUnavailable):  # then it goes after its day
            await parts.storage.delete(Bucket.REFERENCES, key)
        raise Invalid("The recording is larger than 10 MB. Please upload a shorter one.")


async def _read(parts: Parts, user_id: UUID, voice_id: UUID) -> bytes:
    try:
        return await parts.storage.read(
            Bucket.REFERENCES, reference_key(user_id, voice_id), limit=LONGEST_RECORDING_BYTES
        )
    except NotFound as exc:  # removed since it was looked at
        raise Invalid("Audio file not uploaded.") from exc


def require_recording(data: bytes) -> Recording:
    """What the recording is. Up to half a second of work: call it in a thread.

    Raises:
        Invalid: It is not what can be cloned from, with a sentence that says why.
    """
    try:
        recording = read_recording(data)
    except AudioError as exc:
        raise Invalid(str(exc)) from exc
    seconds, lossy = recording.seconds, recording.kind != "wav"
    if seconds < SHORTEST_SECONDS:
        shown = math.floor(seconds * 10) / 10  # never the limit itself
        raise Invalid(f"The recording is only {shown} seconds long. Please record at least 3 seconds of speech.")
    if seconds > LONGEST_SECONDS + (PADDING_SECONDS if lossy else 0.0):
        shown = math.ceil(seconds * 10) / 10
        raise Invalid(f"The recording is {shown} seconds long. Please use at most 60 seconds.")
    if lossy and 0 < recording.sample_rate_hz < REFERENCE_SAMPLE_RATE_HZ:
        raise Invalid(
            f"The recording has a sample rate of {recording.sample_rate_hz / 1000:g} kHz, and MP3 and M4A files need "
            "24 kHz or more. Please record it again at 24 kHz or more, or upload it as WAV, which may have any rate."
        )
    return recording
