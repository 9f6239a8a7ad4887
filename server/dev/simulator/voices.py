"""The voices and models that the simulated DashScope knows."""

import hashlib
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from .refusals import VOICE_LIMIT_EXCEEDED, Refusal

Kind = Literal["vc", "vd"]

PRESETS = frozenset({"Cherry", "Chelsie", "Ethan", "Serena", "Dylan", "Jada", "Sunny", "Nofish", "Jennifer", "Ryan"})
"""Preset voices; only the flash models speak with them."""

_CUSTOM_MODEL = re.compile(r"qwen3-tts-(?P<kind>vc|vd)(?P<realtime>-realtime)?-\d{4}-\d{2}-\d{2}")
_PRESET_MODEL = re.compile(r"qwen3-tts-(instruct-)?flash(?P<realtime>-realtime)?(-\d{4}-\d{2}-\d{2})?")
_TASK_MODEL = re.compile(r"qwen-audio-3\.[01]-tts-(flash|plus)|cosyvoice-v3(\.5)?-(flash|plus)")
_CUSTOM_VOICE = re.compile(r"qwen-tts-(?P<kind>vc|vd)-.+")


@dataclass(frozen=True)
class Model:
    """What a model's name tells. ``kind`` is None for the models of preset voices; ``tasks`` speak in tasks, with
    cloned and designed voices alike."""

    name: str
    kind: Kind | None
    realtime: bool
    tasks: bool = False


def model_of(name: str) -> Model | None:
    """The model of this name, or None where there is none."""
    if match := _CUSTOM_MODEL.fullmatch(name):
        return Model(name, "vc" if match["kind"] == "vc" else "vd", bool(match["realtime"]))
    if _TASK_MODEL.fullmatch(name):
        return Model(name, None, realtime=False, tasks=True)
    if match := _PRESET_MODEL.fullmatch(name):
        return Model(name, None, bool(match["realtime"]))
    return None


@dataclass(frozen=True)
class Voice:
    """A voice that was created here."""

    id: str
    kind: Kind
    target_model: str
    language: str
    created_at: datetime
    prompt: str = ""
    preview_text: str = ""
    deploying: int = 0
    status: str = "OK"


class VoiceBook:
    """The account's voices, in memory.

    A voice that has the right shape but was not created here is spoken with all the same (a restarted simulation has
    forgotten what it created), unless ``strict``; one that was deleted here never is.
    """

    def __init__(self, *, limit: int = 1000, strict: bool = False) -> None:
        self.limit, self.strict = limit, strict
        self._voices: dict[str, Voice] = {}
        self._deleted: set[str] = set()
        self._created = 0

    def create(
        self,
        kind: Kind,
        preferred_name: str,
        target_model: str,
        language: str,
        prompt: str = "",
        preview_text: str = "",
    ) -> Voice:
        """Add a voice under a new id.

        Raises:
            Refusal: When the account has as many voices of this kind as it may have.
        """
        if len(self.newest_first(kind)) >= self.limit:
            raise Refusal("Throttling.AllocationQuota", VOICE_LIMIT_EXCEEDED)
        self._created += 1
        now = datetime.now(UTC)
        moment = now.strftime("%Y%m%d%H%M%S") + f"{now.microsecond // 1000:03d}"
        tail = hashlib.sha256(f"{self._created} {preferred_name} {moment}".encode()).hexdigest()[:4]
        voice = Voice(
            id=f"qwen-tts-{kind}-{preferred_name}-voice-{moment}-{tail}",
            kind=kind,
            target_model=target_model,
            language=language,
            created_at=now,
            prompt=prompt,
            preview_text=preview_text,
        )
        self._voices[voice.id] = voice
        return voice

    def enroll(
        self,
        kind: Kind,
        prefix: str,
        target_model: str,
        language: str,
        *,
        prompt: str = "",
        preview_text: str = "",
        deploying: int = 0,
        status: str = "OK",
    ) -> Voice:
        """Add a voice of the run-task family, whose id begins with its model.

        Raises:
            Refusal: When the account has as many voices of the family as it may have.
        """
        if len(self.enrolled()) >= self.limit:
            raise Refusal("Throttling.AllocationQuota", VOICE_LIMIT_EXCEEDED)
        self._created += 1
        tail = hashlib.sha256(f"{self._created} {prefix}".encode()).hexdigest()[:32]
        voice = Voice(
            id=f"{target_model}{'-vd' if kind == 'vd' else ''}-{prefix}-{tail}",
            kind=kind,
            target_model=target_model,
            language=language,
            created_at=datetime.now(UTC),
            prompt=prompt,
            preview_text=preview_text,
            deploying=deploying,
            status=status,
        )
        self._voices[voice.id] = voice
        return voice

    def enrolled(self) -> list[Voice]:
        """All voices of the run-task family, newest first."""
        return [voice for voice in reversed(self._voices.values()) if _TASK_MODEL.match(voice.id)]

    def look(self, voice_id: str) -> Voice | None:
        """A voice of the run-task family; each look brings one that is being prepared nearer to its end."""
        voice = self._voices.get(voice_id)
        if voice is None or not _TASK_MODEL.match(voice_id):
            return None
        if voice.deploying:
            self._voices[voice_id] = replace(voice, deploying=voice.deploying - 1)
        return voice

    def forgotten(self, voice_id: str) -> Voice | None:
        """A voice of that family by its shape alone, which an earlier simulation may have made."""
        match = _TASK_MODEL.match(voice_id)
        model = model_of(match[0]) if match else None
        if model is None or voice_id in self._voices or self.can_speak(voice_id, model) != "yes":
            return None
        return Voice(id=voice_id, kind="vc", target_model=model.name, language="", created_at=datetime.now(UTC))

    def find(self, voice_id: str, kind: Kind) -> Voice | None:
        """The voice of this id and kind that was created here, if it is still there."""
        voice = self._voices.get(voice_id)
        return voice if voice is not None and voice.kind == kind and not _TASK_MODEL.match(voice_id) else None

    def newest_first(self, kind: Kind) -> list[Voice]:
        """All voices of a kind."""
        ours = [voice for voice in reversed(self._voices.values()) if not _TASK_MODEL.match(voice.id)]
        return [voice for voice in ours if voice.kind == kind]

    def delete(self, voice_id: str, kind: Kind) -> bool:
        """Remove a voice; False where there was none."""
        if self.find(voice_id, kind) is None:
            return False
        del self._voices[voice_id]
        self._deleted.add(voice_id)
        return True

    def dismiss(self, voice_id: str) -> bool:
        """Remove a voice of the run-task family; False where there was none."""
        if self.look(voice_id) is None:
            return False
        del self._voices[voice_id]
        self._deleted.add(voice_id)
        return True

    def can_speak(self, voice_id: str, model: Model) -> Literal["yes", "mismatch", "unknown"]:
        """Whether this voice speaks with this model: it must have been created for exactly this one."""
        if model.tasks:
            return self._speaks_in_tasks(voice_id, model)
        if model.kind is None:
            return "yes" if voice_id in PRESETS else "mismatch"
        voice = self._voices.get(voice_id)
        if voice is not None:
            return "yes" if voice.target_model == model.name else "mismatch"
        shape = _CUSTOM_VOICE.fullmatch(voice_id)
        if (shape is not None and shape["kind"] != model.kind) or voice_id in PRESETS:
            return "mismatch"
        if shape is None or self.strict or voice_id in self._deleted:
            return "unknown"
        return "yes"

    def _speaks_in_tasks(self, voice_id: str, model: Model) -> Literal["yes", "mismatch", "unknown"]:
        """An id of this family begins with the model that it was enrolled for."""
        if voice_id in self._voices:
            voice = self._voices[voice_id]
            usable = voice.target_model == model.name and not voice.deploying and voice.status == "OK"
            return "yes" if usable else "mismatch"
        if voice_id in self._deleted or self.strict or not voice_id.startswith(f"{model.name}-"):
            return "unknown"
        return "yes"

    def language_of(self, voice_id: str) -> str:
        """The ISO code of the language that a voice was created with, empty where unknown."""
        voice = self._voices.get(voice_id)
        return voice.language if voice is not None else ""
