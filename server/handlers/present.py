"""Rows in the words of the contract."""

from urllib.parse import quote

from msgspec import UNSET, UnsetType

from server.contract import GenerateAnswer, GenerationEntry, TaskAnswer, TaskAudio, VoiceEntry
from server.jobs.modal import Seen
from server.parts import Parts
from server.records.history import Entry
from server.records.tasks import SpeechTask
from server.records.voices import Voice

BITS_PER_SAMPLE = 16


def minutes_estimated(characters: int) -> float:
    """The estimate that people see for a text of so many characters."""
    return max(0.1, round(characters / 375, 1))


def can_be_streamed(parts: Parts, task: SpeechTask) -> bool:
    """Tasks of Qwen stream in either mode and on both lanes; a job API's audio exists only when it is whole."""
    return (
        task.type == "generate"
        and task.generation_id is not None
        and parts.providers.abilities_of(task.provider).streams
    )


def stream_url(parts: Parts, task: SpeechTask) -> str | UnsetType:
    """A fresh address for an ``EventSource``; UNSET where there is nothing (more) to be heard."""
    return UNSET if task.status in ("failed", "cancelled") else _stream_address(parts, task)


def _stream_address(parts: Parts, task: SpeechTask) -> str | UnsetType:
    if not can_be_streamed(parts, task) or task.generation_id is None:
        return UNSET
    ticket = parts.tickets.mint(user_id=task.user_id, task_id=task.id, generation_id=task.generation_id)
    return f"{parts.settings.public_path}/api/generate/stream?task_id={task.id}&ticket={quote(ticket, safe='')}"


def generate_answer(parts: Parts, task: SpeechTask) -> GenerateAnswer:
    """What the request that made the task is answered, and the same to one that repeats it later."""
    return GenerateAnswer(
        task_id=task.id,
        generation_id=task.generation_id,
        status="processing",
        estimated_duration_minutes=minutes_estimated(task.text_length),
        stream_url=_stream_address(parts, task),
    )


def task_answer(parts: Parts, task: SpeechTask, seen: Seen | None = None) -> TaskAnswer:
    """Args:
    seen: What the provider's job looked like to this very request.
    """
    return TaskAnswer(
        id=task.id,
        type=task.type,
        status=task.status,
        result=_result(parts, task),
        error=task.error,
        error_category=task.error_category,
        generation_id=task.generation_id,
        created_at=task.created_at,
        completed_at=task.completed_at,
        provider=task.provider,
        provider_status=task.provider_status,
        provider_poll_count=task.provider_poll_count,
        provider_request_id=task.request_id,
        modal_status=seen.modal_status if seen else None,
        modal_elapsed_seconds=seen.elapsed_seconds if seen else None,
        modal_poll_count=task.modal_poll_count,
        stream_url=stream_url(parts, task),
        audio=_audio(task),
    )


def audio_address(parts: Parts, generation_id: object) -> str:
    return f"{parts.settings.public_path}/api/generations/{generation_id}/audio"


def _result(parts: Parts, task: SpeechTask) -> dict[str, object] | UnsetType:
    if task.status != "completed":
        return UNSET
    # The column takes any JSON, and other systems have written it.
    result: object = task.result
    known: dict[str, object] = result if isinstance(result, dict) else {}
    if task.type == "generate" and task.generation_id:
        return {**known, "audio_url": audio_address(parts, task.generation_id)}
    return known or UNSET


def _audio(task: SpeechTask) -> TaskAudio | UnsetType:
    audio_format = task.audio_format
    if task.type != "generate" or audio_format is None:
        return UNSET
    rate = task.sample_rate_hz * BITS_PER_SAMPLE if audio_format.header_bytes else task.bits_per_second
    seconds: float | None = task.duration_seconds
    if seconds is None and not task.byte_length:
        seconds = 0.0
    elif seconds is None and rate:
        seconds = round(task.byte_length * 8 / rate, 3)
    return TaskAudio(
        format=audio_format.name,
        mime=audio_format.mime,
        sample_rate=task.sample_rate_hz,
        header_bytes=audio_format.header_bytes,
        bytes=task.byte_length,
        seconds=seconds,
    )


def generation_entry(parts: Parts, entry: Entry) -> GenerationEntry:
    return GenerationEntry(
        id=entry.id,
        voice_id=entry.voice_id,
        voice_name=entry.voice_name,
        text=entry.text,
        audio_path=audio_address(parts, entry.id),
        duration_seconds=entry.duration_seconds,
        language=entry.language,
        status=entry.status,
        generation_time_seconds=entry.generation_time_seconds,
        error_message=entry.error_message,
        created_at=entry.created_at,
        tts_provider=entry.tts_provider,
        output_format=entry.output_format,
        client=entry.asked.client,
    )


def voice_entry(parts: Parts, voice: Voice) -> VoiceEntry:
    objection = parts.providers.objection(voice)
    return VoiceEntry(
        id=voice.id,
        name=voice.name,
        reference_transcript=voice.reference_transcript,
        language=voice.language,
        source=voice.source,
        description=voice.description,
        consent=voice.consent,
        created_at=voice.created_at,
        tts_provider=voice.tts_provider,
        provider_voice_id=voice.provider_voice_id,
        provider_target_model=voice.provider_target_model,
        provider_voice_kind=voice.provider_voice_kind,
        compatible=objection is None,
        streamable=parts.providers.streams(voice),
        varies=list(parts.providers.varies(voice)),
        incompatible_reason=objection,
        default=voice.is_default,
    )
