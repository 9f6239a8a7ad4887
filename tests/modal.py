"""What tests of the second provider share: settings that look often, and voices with a recording."""

from typing import Any
from uuid import UUID

from server.audio import wav_header
from server.parts import Parts
from server.settings import Settings
from server.storage import Bucket
from tests.gateway import insert_voice
from tests.support import with_limits

TRANSCRIPT = "What the recording says."


def in_modal_mode(settings: Settings, **changes: Any) -> Settings:
    """The same server in the other mode. Keywords that name a deadline set it, all others set a setting.

    Nobody is in a hurry: what is watched is looked at every half minute, as in production, unless a test says more.
    """
    return with_limits(settings, tts_provider_mode="modal", **changes)


def recording(seconds: float = 4.0) -> bytes:
    """A WAV file of that length, as somebody might have uploaded it; what is in it does not matter here."""
    samples = bytes(int(seconds * 24_000) * 2)
    return wav_header(len(samples), 24_000) + samples


async def insert_modal_voice(
    parts: Parts,
    rows: Any,
    user_id: UUID,
    *,
    name: str = "Grace",
    audio: bytes | None = b"",
    transcript: str | None = TRANSCRIPT,
) -> UUID:
    """A voice of the job API, as cloning would have left it.

    Args:
        audio: Its recording; b"" takes one that will do, None leaves the voice without.
    """
    voice_id = await insert_voice(parts.settings.database_url, user_id, name=name, provider="modal")
    key = None if audio is None else f"{user_id}/{voice_id}/reference.wav"
    if audio is not None and key is not None:
        content = audio or recording()
        await parts.storage.put(Bucket.REFERENCES, key, content, content_type="audio/wav", size=len(content))
    await rows.execute(
        "UPDATE public.voices SET reference_object_key = $2, reference_transcript = $3 WHERE id = $1",
        voice_id,
        key,
        transcript,
    )
    return voice_id
