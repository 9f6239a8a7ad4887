"""The demo user and two demo voices, so that a newcomer can speak at once. Only the embedded database has them."""

from uuid import UUID

import asyncpg

from server.database import prepare
from server.settings import Settings

DEMO_USER = UUID("00000000-0000-4000-8000-000000000001")
_CLONED = UUID("00000000-0000-4000-8000-00000000000c")
_DESIGNED = UUID("00000000-0000-4000-8000-00000000000d")


async def seed(settings: Settings) -> None:
    """Make the demo voices, if they are not there yet. The simulated provider knows them by their shape alone."""
    connection = await asyncpg.connect(settings.database_url, timeout=10.0)
    try:
        await prepare(connection)
        await connection.executemany(
            """INSERT INTO public.voices (id, user_id, name, reference_transcript, language, source, description,
                    tts_provider, provider_voice_id, provider_target_model, provider_voice_kind, provider_region)
               VALUES ($1, $2, $3, $4, 'English', $5, $6, 'qwen', $7, $8, $9, $10) ON CONFLICT (id) DO NOTHING""",
            [
                (
                    _CLONED,
                    DEMO_USER,
                    "Ada (cloned)",
                    "This is what the reference recording says.",
                    "uploaded",
                    "A demo voice, as if cloned from a recording",
                    "qwen-tts-vc-demo_ada-voice-20260101000000000-0001",
                    settings.qwen_vc_target_model,
                    "vc",
                    settings.dashscope_region,
                ),
                (
                    _DESIGNED,
                    DEMO_USER,
                    "Max (designed)",
                    None,
                    "designed",
                    "A demo voice, as if designed from a description",
                    "qwen-tts-vd-demo_max-voice-20260101000000000-0002",
                    settings.qwen_vd_target_model,
                    "vd",
                    settings.dashscope_region,
                ),
            ],
        )
    finally:
        await connection.close()
