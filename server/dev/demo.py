"""The demo user and two demo voices of the mode, so that a newcomer can speak at once.

Only the embedded database has them. Each mode has its own: after a switch the other mode's are still listed, as
voices that cannot speak at the moment.
"""

from uuid import UUID

import asyncpg
import msgspec

from server.auth.tokens import Tickets
from server.database.connections import Connection, prepare
from server.dev.simulator.speech import Speech, wav_file
from server.settings import ProviderMode, Settings, speaks_by_tasks
from server.storage import Bucket
from server.storage.open import open_store

DEMO_USER = UUID("00000000-0000-4000-8000-000000000001")
TRANSCRIPT = "Good evening. I am a demo voice, and this is what my reference recording says, from beginning to end."


class _DemoVoice(msgspec.Struct, frozen=True, kw_only=True):
    """One demo voice. ``provider_voice_id`` is None where a recording is all that the provider needs."""

    id: UUID
    name: str
    source: str
    description: str
    provider: ProviderMode
    provider_voice_id: str | None = None
    model: str | None = None
    kind: str | None = None
    region: str | None = None

    @property
    def reference_object_key(self) -> str:
        return f"{DEMO_USER}/{self.id}/reference.wav"


def _voices(settings: Settings) -> list[_DemoVoice]:
    """Both modes' voices. The simulated providers know them by their shape alone."""
    return [
        _DemoVoice(
            id=UUID("00000000-0000-4000-8000-00000000000c"),
            name="Ada (cloned)",
            source="uploaded",
            description="A demo voice, as if cloned from a recording",
            provider="qwen",
            provider_voice_id=_voice_id("vc", "demo_ada", 1, settings.qwen_vc_target_model),
            model=settings.qwen_vc_target_model,
            kind="vc",
            region=settings.dashscope_region,
        ),
        _DemoVoice(
            id=UUID("00000000-0000-4000-8000-00000000000d"),
            name="Max (designed)",
            source="designed",
            description="A demo voice, as if designed from a description",
            provider="qwen",
            provider_voice_id=_voice_id("vd", "demo_max", 2, settings.qwen_vd_target_model),
            model=settings.qwen_vd_target_model,
            kind="vd",
            region=settings.dashscope_region,
        ),
        _DemoVoice(
            id=UUID("00000000-0000-4000-8000-00000000001c"),
            name="Grace (cloned)",
            source="uploaded",
            description="A demo voice of the job API, as if cloned from a recording",
            provider="modal",
        ),
        _DemoVoice(
            id=UUID("00000000-0000-4000-8000-00000000001d"),
            name="Alan (designed)",
            source="designed",
            description="A demo voice of the job API, as if designed from a description",
            provider="modal",
        ),
    ]


def _voice_id(kind: str, name: str, number: int, model: str) -> str:
    """An id of the shape that the simulated provider gives for this model."""
    if speaks_by_tasks(model):
        return f"{model}-{name.replace('_', '')}-{number:032x}"
    return f"qwen-tts-{kind}-{name}-voice-20260101000000000-{number:04}"


async def seed(settings: Settings) -> None:
    """Make the demo voices of the active mode, recordings included, if they are not there yet."""
    wanted = [voice for voice in _voices(settings) if voice.provider == settings.tts_provider_mode]
    connection = await asyncpg.connect(settings.database_url, timeout=10.0)
    try:
        await prepare(connection)
        for voice in wanted:
            await _insert(connection, voice)
    finally:
        await connection.close()
    await _record(settings, wanted)


async def _insert(connection: Connection, voice: _DemoVoice) -> None:
    await connection.execute(
        """INSERT INTO public.voices (id, user_id, name, reference_object_key, reference_transcript, language, source,
                description, tts_provider, provider_voice_id, provider_target_model, provider_voice_kind,
                provider_region)
           VALUES ($1, $2, $3, $4, $5, 'English', $6, $7, $8, $9, $10, $11, $12)
           ON CONFLICT (id) DO UPDATE SET reference_object_key = excluded.reference_object_key,
                reference_transcript = excluded.reference_transcript,
                provider_voice_id = excluded.provider_voice_id,
                provider_target_model = excluded.provider_target_model""",
        voice.id,
        DEMO_USER,
        voice.name,
        voice.reference_object_key,
        TRANSCRIPT,
        voice.source,
        voice.description,
        voice.provider,
        voice.provider_voice_id,
        voice.model,
        voice.kind,
        voice.region,
    )


async def _record(settings: Settings, wanted: list[_DemoVoice]) -> None:
    """Store what each voice says of itself, in the sound that the simulated provider gives it where it can."""
    speech = Speech()
    try:
        async with open_store(settings.storage, Tickets.from_settings(settings).storage_link_key) as storage:
            for voice in wanted:
                if await storage.head(Bucket.REFERENCES, voice.reference_object_key) is None:
                    sound = voice.provider_voice_id or voice.name
                    wav = wav_file(await speech.samples(TRANSCRIPT, sound, "English"))
                    await storage.put(
                        Bucket.REFERENCES, voice.reference_object_key, wav, content_type="audio/wav", size=len(wav)
                    )
    finally:
        speech.close()
