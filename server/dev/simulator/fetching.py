"""Where the simulated customization gets a recording from, and how it writes times."""

import base64
import binascii
import re
from datetime import datetime

import httpx

from .refusals import Refusal

_DATA_URL = re.compile(r"data:(audio/[a-z0-9.+-]+);base64,(.*)", re.IGNORECASE | re.DOTALL)
_MOST_AUDIO_BYTES = 10 * 1024 * 1024
_FETCH_SECONDS = 10.0


def moment_of(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")


async def audio_bytes(where: str) -> bytes:
    """The recording in a data URL or at a web address."""
    if match := _DATA_URL.fullmatch(where):
        if len(where) > _MOST_AUDIO_BYTES:
            raise Refusal("InvalidParameter", "audio.data must stay under 10 MB.")
        try:
            return base64.b64decode(match[2], validate=True)
        except binascii.Error:
            raise Refusal("Audio.DecoderError", "audio.data is not valid Base64.") from None
    if not where.startswith(("https://", "http://")):
        raise Refusal("InvalidParameter", "audio.data must be a data URL of audio, or a web address.")
    try:
        async with (
            httpx.AsyncClient(timeout=_FETCH_SECONDS, follow_redirects=True, trust_env=False) as client,
            client.stream("GET", where) as response,
        ):
            response.raise_for_status()
            data = bytearray()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > _MOST_AUDIO_BYTES:
                    raise Refusal("InvalidParameter", "The audio must stay under 10 MB.")
            return bytes(data)
    except (httpx.HTTPError, httpx.InvalidURL):
        raise Refusal("InvalidParameter", "The audio could not be fetched.") from None
