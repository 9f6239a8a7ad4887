"""Reading an answer's body only as far as we are willing to keep it."""

import httpx


class TooMuchError(Exception):
    """A body is longer than we are willing to keep."""


async def read_at_most(response: httpx.Response, most_bytes: int) -> bytes:
    """The whole body of a streamed response.

    Raises:
        TooMuchError: As soon as it is known to be longer than ``most_bytes``.
    """
    announced = response.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most_bytes:
        raise TooMuchError
    parts, length = [], 0
    async for part in response.aiter_bytes():
        length += len(part)
        if length > most_bytes:
            raise TooMuchError
        parts.append(part)
    return b"".join(parts)
