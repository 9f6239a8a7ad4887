"""Stored audio in another format than it is stored in."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from server.audio import AudioError, WavAsMp3
from server.errors import NotFound
from server.storage import Bucket, ObjectStore, in_parts


async def as_mp3(storage: ObjectStore, key: str) -> AsyncGenerator[bytes, None]:
    """A stored WAV as MP3, encoded while it is read and taken: memory holds one part of it.

    Raises:
        NotFound: If the object is not there or is no WAV file, before anything is handed out.
        StorageUnavailable: Whenever the store fails; what was handed out until then is no whole file.
    """
    encoder = WavAsMp3()
    try:
        async with aclosing(in_parts(storage, Bucket.GENERATIONS, key)) as chunks:
            async for chunk in chunks:
                if frames := await asyncio.to_thread(encoder.feed, chunk):
                    yield frames
        yield await asyncio.to_thread(encoder.finish)
    except AudioError as exc:
        raise NotFound("The stored audio cannot be read, so there is no MP3 of it.") from exc
