"""The shapes of every request, response and event (docs/api.md). Validation and OpenAPI both come from here.

An attribute that may be absent on the wire is ``UNSET`` by default; one that may be null says ``None``.
"""

from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from server.errors import Category

TaskType = Literal["generate", "design_preview", "clone"]
Moment = Annotated[datetime, Meta(tz=True)]
TaskStatus = Literal["pending", "processing", "completed", "failed", "cancelled"]
# What rows hold is answered as it is; these say to readers of the document which words there are.
Provider = Annotated[str, Meta(extra_json_schema={"enum": ["modal", "qwen"]})]
Source = Annotated[str, Meta(extra_json_schema={"enum": ["designed", "uploaded"]})]
VoiceKind = Annotated[str, Meta(extra_json_schema={"enum": ["vc", "vd"]})]
Address = Annotated[str, Meta(extra_json_schema={"format": "uri-reference"})]
Base64 = Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64"})]


class Problem(Struct, frozen=True):
    """Every error: a sentence for a person, a word for a program, and the id under which the log has it."""

    detail: str
    category: Category
    request_id: str


class Ok(Struct, frozen=True):
    ok: bool = True


class Pagination(Struct, frozen=True):
    page: int
    per_page: int
    total: int
    pages: int

    @classmethod
    def of(cls, *, page: int, per_page: int, total: int) -> "Pagination":
        return cls(page, per_page, total, max(1, -(-total // per_page)))


# --- generate and tasks -----------------------------------------------------------------------------------------------


Format = Literal["mp3", "wav"]
Factor = Annotated[float, Meta(ge=0.5, le=2.0)]
Volume = Annotated[int, Meta(ge=0, le=100)]


class GenerateRequest(Struct, frozen=True):
    """A text to be spoken. What is absent below ``language`` is left to the voice's lane."""

    voice_id: UUID
    text: str
    language: str = "Auto"
    format: Format | UnsetType | None = UNSET
    speed: Factor | UnsetType | None = UNSET
    pitch: Factor | UnsetType | None = UNSET
    volume: Volume | UnsetType | None = UNSET


class GenerateAnswer(Struct, frozen=True, kw_only=True):
    task_id: UUID
    generation_id: UUID | None
    status: TaskStatus
    is_long_running: bool = True
    estimated_duration_minutes: float
    stream_url: Address | UnsetType = UNSET


class TaskAudio(Struct, frozen=True, kw_only=True):
    """What is known of a task's audio. ``bytes`` counts payload, as every offset does; ``seconds`` is null until the
    first audio has told its rate."""

    format: Format
    mime: str
    sample_rate: int
    header_bytes: int
    bytes: int
    seconds: float | None


class SpeechResult(Struct, frozen=True, kw_only=True):
    """``result`` of a completed ``generate`` task: the address that leads to its audio."""

    audio_url: Address


class PreviewResult(Struct, frozen=True, kw_only=True):
    """``result`` of a completed ``design_preview`` task: a link to its audio, which needs no token."""

    audio_url: Address
    object_key: str


class RenewalResult(Struct, frozen=True, kw_only=True):
    """``result`` of a completed ``clone`` task: the voice that was made again."""

    voice_id: UUID


class TaskAnswer(Struct, frozen=True, kw_only=True):
    id: UUID
    type: TaskType
    status: TaskStatus
    result: dict[str, Any] | UnsetType = UNSET
    error: str | None
    error_category: str | None
    generation_id: UUID | None
    created_at: Moment
    completed_at: Moment | None
    provider: Provider
    provider_status: str | None
    provider_poll_count: int
    provider_request_id: str | None
    modal_status: str | None
    modal_elapsed_seconds: float | None
    modal_poll_count: int
    stream_url: Address | UnsetType = UNSET
    audio: TaskAudio | UnsetType = UNSET


class CancelAnswer(Struct, frozen=True):
    cancelled: bool
    task_id: UUID
    status: TaskStatus | UnsetType = UNSET


class DeltaEvent(Struct, frozen=True):
    """Data of a ``response.audio.delta`` event: at most 16 KiB of audio in base64."""

    delta: Base64


class SpokenWord(Struct, frozen=True):
    text: str
    start_ms: int
    end_ms: int


class WordsEvent(Struct, frozen=True):
    """Data of a ``words`` event: words that are heard, with their times from the beginning of the speech."""

    words: list[SpokenWord]


# --- history ----------------------------------------------------------------------------------------------------------


class GenerationEntry(Struct, frozen=True, kw_only=True):
    id: UUID
    voice_id: UUID | None
    voice_name: str | None
    text: str
    audio_path: Address
    duration_seconds: float | None
    language: str
    status: TaskStatus
    generation_time_seconds: float | None
    error_message: str | None
    created_at: Moment
    tts_provider: Provider
    output_format: str | None
    client: str | None


class GenerationsAnswer(Struct, frozen=True):
    """``more`` says that there are further ones of the same kind. Of what was asked for by ``before``, ``since`` or
    ``ids`` nothing is counted: ``pagination`` speaks of this answer alone."""

    generations: list[GenerationEntry]
    pagination: Pagination
    more: bool


class ZipRequest(Struct, frozen=True):
    ids: Annotated[list[UUID], Meta(min_length=1, max_length=50)]


class LinkAnswer(Struct, frozen=True, kw_only=True):
    """A link that needs no token, for whoever asks with ``Accept: application/json``; seconds until it ends."""

    url: Address
    expires_in: int


class RegenerateAnswer(Struct, frozen=True):
    voice_id: UUID
    text: str
    language: str
    redirect_url: Address
    format: str | UnsetType = UNSET
    speed: float | UnsetType = UNSET
    pitch: float | UnsetType = UNSET
    volume: int | UnsetType = UNSET


# --- clone and design -------------------------------------------------------------------------------------------------

VoiceName = Annotated[str, Meta(min_length=1, max_length=100)]
Transcript = Annotated[str, Meta(max_length=2000)]
Description = Annotated[str, Meta(max_length=2000)]


class CloneUploadRequest(Struct, frozen=True, kw_only=True):
    name: VoiceName
    language: str
    transcript: Transcript
    description: Description | None = None
    size: Annotated[int, Meta(ge=1, le=50 * 1024 * 1024)] | None = None


class CloneUploadAnswer(Struct, frozen=True, kw_only=True):
    voice_id: UUID
    upload_url: Address
    object_key: str


class CloneFinalizeRequest(Struct, frozen=True, kw_only=True):
    voice_id: UUID
    name: VoiceName
    language: str
    transcript: Transcript
    description: Description | None = None
    consent: Annotated[str, Meta(max_length=500)] | None = None


class CloneFinalizeAnswer(Struct, frozen=True):
    id: UUID
    name: str


DesignText = Annotated[str, Meta(min_length=1, max_length=500)]


class DesignPreviewRequest(Struct, frozen=True, kw_only=True):
    text: DesignText
    language: str
    instruct: DesignText


class RenewAnswer(Struct, frozen=True):
    task_id: UUID
    status: TaskStatus = "processing"


class DesignPreviewAnswer(Struct, frozen=True):
    task_id: UUID
    status: TaskStatus = "pending"


class DesignSaveRequest(Struct, frozen=True, kw_only=True):
    name: VoiceName
    text: DesignText
    language: str = "Auto"
    instruct: DesignText
    task_id: UUID | None = None


class DesignSaveAnswer(Struct, frozen=True, kw_only=True):
    id: UUID
    name: str
    description: str | None
    language: str
    source: Source
    preview_url: Address


# --- voices -----------------------------------------------------------------------------------------------------------


class VoiceEntry(Struct, frozen=True, kw_only=True):
    id: UUID
    name: str
    reference_transcript: str | None
    language: str
    source: Source
    description: str | None
    consent: str | None
    created_at: Moment
    tts_provider: Provider
    provider_voice_id: str | None
    provider_target_model: str | None
    provider_voice_kind: VoiceKind | None
    compatible: bool
    streamable: bool
    varies: list[Literal["speed", "pitch", "volume"]]
    incompatible_reason: str | None
    default: bool


class VoiceChange(Struct, frozen=True, kw_only=True):
    """What is to be different about a voice; what is absent stays."""

    name: VoiceName | UnsetType = UNSET
    default: bool | UnsetType = UNSET


class VoicesAnswer(Struct, frozen=True):
    voices: list[VoiceEntry]
    pagination: Pagination


# --- the OpenAI-shaped door -------------------------------------------------------------------------------------------


class VoiceById(Struct, frozen=True):
    id: str


class SpeechWanted(Struct, frozen=True, kw_only=True):
    """What OpenAI's speech endpoint takes. ``model`` and whatever else a client sends is ignored."""

    input: str
    voice: str | VoiceById | None = None
    response_format: str | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4.0)] | None = None
    instructions: str | None = None
    stream_format: Literal["audio", "sse"] | None = None

    @property
    def voice_name(self) -> str:
        """The voice as it was named, by its name or its id; empty where none was."""
        return (self.voice.id if isinstance(self.voice, VoiceById) else self.voice or "").strip()


OpenAIErrorType = Literal[
    "invalid_request_error", "authentication_error", "not_found_error", "rate_limit_error", "server_error"
]


class OpenAIError(Struct, frozen=True, kw_only=True):
    message: str
    type: OpenAIErrorType
    param: str | None
    code: str | None


class OpenAIProblem(Struct, frozen=True):
    """Every error under ``/v1``."""

    error: OpenAIError


class OpenAIDeltaEvent(Struct, frozen=True, kw_only=True):
    """The next audio in base64, where ``stream_format`` is ``sse``."""

    type: Literal["speech.audio.delta"] = "speech.audio.delta"
    audio: Base64


class OpenAITokens(Struct, frozen=True, kw_only=True):
    """``input_tokens`` are the characters of the text."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class OpenAIDoneEvent(Struct, frozen=True, kw_only=True):
    """The last event of a speech that is whole."""

    type: Literal["speech.audio.done"] = "speech.audio.done"
    usage: OpenAITokens


class SpeakingVoice(Struct, frozen=True, kw_only=True):
    id: UUID
    name: str
    object: Literal["voice"] = "voice"
    language: str
    default: bool


class SpeakingVoices(Struct, frozen=True):
    voices: list[SpeakingVoice]


class Model(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "utter"


class ModelList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


# --- keys -------------------------------------------------------------------------------------------------------------


class KeyRequest(Struct, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=100)]
    expires_in_days: Annotated[int, Meta(ge=1, le=3650)] | None = None


class KeyEntry(Struct, frozen=True, kw_only=True):
    """A key as it is listed. ``prefix`` is what it begins with; the rest is known to nobody but its owner."""

    id: UUID
    name: str
    prefix: str
    created_at: Moment
    last_used_at: Moment | None
    expires_at: Moment | None


class KeyCreated(Struct, frozen=True, kw_only=True):
    """A new key, shown this once."""

    id: UUID
    name: str
    prefix: str
    key: str
    created_at: Moment
    expires_at: Moment | None


class KeysAnswer(Struct, frozen=True):
    keys: list[KeyEntry]


# --- usage ------------------------------------------------------------------------------------------------------------


class UsageDay(Struct, frozen=True, kw_only=True):
    """What was used on one UTC day, on one lane, with one key; ``key_id`` is null for a sign-in token."""

    day: date
    lane: str
    key_id: UUID | None
    characters: int
    seconds: float
    starts: int


class UsageLimits(Struct, frozen=True, kw_only=True):
    characters_per_day: int | None
    starts_per_minute: int | None
    designs_per_day: int
    clones_per_day: int


class UsageAnswer(Struct, frozen=True):
    days: list[UsageDay]
    limits: UsageLimits


# --- the rest ---------------------------------------------------------------------------------------------------------


class ReadyAnswer(Struct, frozen=True):
    database: bool
    migrations: bool | None
    workers: bool
    storage: bool
    degraded: list[str]


class Capabilities(Struct, frozen=True, kw_only=True):
    supports_generate: bool = True
    supports_generate_stream: bool
    supports_design: bool
    default_generate_mode: Literal["stream", "task"]
    allow_generate_mode_toggle: bool
    max_text_chars: int


class Transcription(Struct, frozen=True):
    enabled: bool = False
    provider: str = "none"
    model: str = ""


class LanguagesAnswer(Struct, frozen=True, kw_only=True):
    languages: list[str]
    default: str = "Auto"
    provider: Provider
    capabilities: Capabilities
    transcription: Transcription = Transcription()


class SignedInUser(Struct, frozen=True):
    id: UUID


class Profile(Struct, frozen=True, kw_only=True):
    """The user's row of ``public.profiles``, where the database has that table."""

    id: UUID
    handle: str | None
    display_name: str | None
    avatar_url: str | None
    subscription_tier: str | None
    credits_remaining: float | None
    created_at: Moment | None
    updated_at: Moment | None


class ProfileChange(Struct, frozen=True, kw_only=True):
    """What is to be different about a profile; what is absent stays, an empty text or null empties."""

    display_name: Annotated[str, Meta(max_length=100)] | UnsetType | None = UNSET
    handle: Annotated[str, Meta(pattern="^([A-Za-z0-9_]{3,30})?$")] | UnsetType | None = UNSET
    avatar_url: Annotated[str, Meta(max_length=2000, pattern="^(https?://[^\\s]+)?$")] | UnsetType | None = UNSET


class ProfileAnswer(Struct, frozen=True):
    profile: Profile


class MeAnswer(Struct, frozen=True):
    signed_in: bool
    user: SignedInUser | None = None
    profile: Profile | None = None
