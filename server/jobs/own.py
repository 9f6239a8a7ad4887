"""What belongs to a user, or the words that say why it is not there."""

from uuid import UUID

from server.errors import NotFound
from server.parts import Parts
from server.records import tasks, voices
from server.records.tasks import SpeechTask
from server.records.voices import NewVoice, Voice


async def require_task(parts: Parts, user_id: UUID, task_id: UUID) -> SpeechTask:
    """The user's own task that is not hidden.

    Raises:
        NotFound: No such task, or somebody else's.
    """
    async with parts.database.connection() as connection:
        return shown(await tasks.find(connection, task_id, user_id))


def shown(task: SpeechTask | None) -> SpeechTask:
    """A user's own task that is not hidden.

    Raises:
        NotFound: There is none, or its user has put it away.
    """
    if task is None or task.hidden:
        raise NotFound("This task does not exist.")
    return task


def require_voice(voice: Voice | None) -> Voice:
    """A voice that was stored, now or before.

    Raises:
        NotFound: It belongs to somebody else, or its user has deleted it.
    """
    if voice is None:
        raise NotFound("This voice does not exist.")
    if voice.deleted:
        raise NotFound("This voice was deleted. Please create a new one.")
    return voice


async def keep_voice(parts: Parts, wanted: NewVoice) -> Voice:
    """The voice, stored now or before.

    Raises:
        NotFound: As ``require_voice``.
    """
    async with parts.database.transaction() as connection:
        return require_voice(await voices.insert(connection, wanted))
