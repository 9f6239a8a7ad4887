"""What objects are called, and whose they are.

The first folder of a key is its user's id. Rows of ``public`` have other writers, people among them where the
database publishes that schema. So a key that comes from a row is used only after ``own_key`` has let it pass: nobody
hears, sends or removes somebody else's audio by writing its name into a row of their own.
"""

import re
from typing import NamedTuple
from uuid import UUID

LONGEST_SEGMENT_BYTES = 200  # file systems allow 255, and what lies beside a file adds to its name

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_OURS = re.compile(rf"({_UUID})/(?:(preview_)?({_UUID})\.[a-z0-9]+|({_UUID})/reference\.wav)")


def audio_key(user_id: UUID, generation_id: UUID, suffix: str) -> str:
    """Where a generation's audio is stored; ``suffix`` names its format."""
    return f"{user_id}/{generation_id}.{suffix}"


def preview_key(user_id: UUID, task_id: UUID) -> str:
    """Where the audio of a designed voice's preview is stored."""
    return f"{user_id}/preview_{task_id}.wav"


def reference_key(user_id: UUID, voice_id: UUID) -> str:
    """Where a voice's recording is stored, whatever its format."""
    return f"{user_id}/{voice_id}/reference.wav"


def own_key(user_id: UUID, key: object) -> str | None:
    """``key`` where it names an object of this user, else None: also for what is no key at all.

    Letter by letter: object stores tell upper from lower case, and some file systems do not.
    """
    if not isinstance(key, str) or not key.startswith(f"{user_id}/"):
        return None
    try:
        key_segments(key)
    except ValueError:
        return None
    return key


class Named(NamedTuple):
    """What one of our own keys says: whose object it is, and the id of the row that it belongs to."""

    user_id: UUID
    generation_id: UUID | None = None
    preview_task_id: UUID | None = None
    voice_id: UUID | None = None


def named_by(key: str) -> Named | None:
    """The ids in a key as the functions above make it; None for any other."""
    if not (match := _OURS.fullmatch(key)):
        return None
    user_id, preview, row_id, voice_id = match.groups()
    if voice_id:
        return Named(UUID(user_id), voice_id=UUID(voice_id))
    return Named(UUID(user_id), **{"preview_task_id" if preview else "generation_id": UUID(row_id)})


def key_segments(key: str) -> list[str]:
    """The parts of a key, each of them fit to be a plain file name.

    Raises:
        ValueError: If the key could lead anywhere but below its bucket.
    """
    segments = key.split("/")
    for segment in segments:
        if (
            not segment
            or segment.startswith(".")
            or re.search(r"[\x00-\x1f\x7f\\:\ud800-\udfff]", segment)
            or len(segment.encode()) > LONGEST_SEGMENT_BYTES
        ):
            raise ValueError("An object's key is a relative path without dots in front of its parts.")
    return segments
