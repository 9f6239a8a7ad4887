"""The shortest way through the product: text in, speech heard, the same speech stored."""

import base64
from uuid import UUID

from tests.gateway import Client


async def test_a_text_is_heard_as_events_and_stored_byte_for_byte(client: Client, voice_id: UUID) -> None:
    """What a follower heard is what the history keeps."""
    answer = await client.generate(voice_id, "Good evening, everybody.")
    heard = b""
    async with client.events(answer["stream_url"]) as events:
        async for event in events:
            if event.name == "response.audio.delta":
                heard += base64.b64decode(event.data["delta"])
                assert event.id == str(len(heard))
            elif event.terminal:
                assert event.data["status"] == "completed"
    assert heard
    assert await client.audio(answer["generation_id"]) == heard
