"""Speech on the non-streaming lane: a text in pieces, each of them bought, fetched whole, and heard at once.

To the pipeline it is a source like any other. What is its own is that every piece is a purchase, claimed before the
call leaves: whether an unanswered one was billed nobody knows, so it is never sent twice.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from typing import Any

from server.audio import AudioError, parse_wav, to_mono_pcm16
from server.database.connections import Connection
from server.errors import NothingToSpeak, ProviderError, ProviderRejected, ProviderTimeout, ProviderUnavailable
from server.jobs.buying import record_failure, say_unknown
from server.parts import Parts
from server.providers.qwen.pieces import SpokenPiece
from server.providers.qwen.text import split_text
from server.providers.speech import (
    SpeechEnd,
    SpeechEvent,
    SpeechRequest,
    SpeechStatus,
    Take,
    WholeSpeech,
    may_start_again,
    pause_before_start,
)
from server.records import purchases, runs
from server.records.speech import Assignment
from server.text import has_letters

_DELTA_BYTES = 16 * 1024
_BLANKS = re.compile(r"\s{3,}")


def pieces_of(text: str) -> list[str]:
    """What is sent of a text, in order: nothing is paid for blanks, nor refused for a piece without a word."""
    pieces = split_text(_BLANKS.sub(lambda run: "\n\n" if run[0].count("\n") > 1 else run[0][0], text))
    return [piece for piece in pieces if any(map(str.isalnum, piece))] or pieces


class InPieces:
    """The non-streaming lane as a source of one assignment's speech."""

    def __init__(self, parts: Parts, assignment: Assignment) -> None:
        self._parts = parts
        self._assignment = assignment

    def speak(self, request: SpeechRequest, _take: Take | None = None, /) -> "_Speech":
        return _Speech(self._parts, self._assignment, request)


class _Speech(WholeSpeech):
    """One text on its way, piece by piece."""

    def __init__(self, parts: Parts, assignment: Assignment, request: SpeechRequest) -> None:
        self._parts = parts
        self._assignment = assignment
        self._request = request
        self._facts: dict[str, Any] = {"pieces": []}
        self.text_sent = False
        super().__init__()

    def facts(self) -> dict[str, Any]:
        usage: dict[str, int] = {}
        for piece in self._facts["pieces"]:
            for name, count in piece.get("usage", {}).items():
                usage[name] = usage.get(name, 0) + count
        last = self._facts["pieces"][-1] if self._facts["pieces"] else {}
        named = {name: last[name] for name in ("request_id", "audio_id", "expires_at") if name in last}
        return {**self._facts, **named, "usage": usage, "audio_bytes": self.audio_bytes}

    async def _speak(self) -> AsyncGenerator[SpeechEvent, None]:
        rate: int | None = None
        for part, text in enumerate(pieces_of(self._request.text)):
            yield SpeechStatus("provider_synthesizing")
            piece = await self._bought(part, text)
            yield SpeechStatus("provider_downloading")
            samples, rate = await self._fetched(piece, rate)
            yield SpeechStatus("provider_persisting", rate)
            for delta in self._cut(samples, _DELTA_BYTES):
                yield delta
        yield SpeechEnd(self.facts())

    async def _fetched(self, piece: SpokenPiece, rate: int | None) -> tuple[bytes, int]:
        """The samples of a piece and their rate, which is that of all pieces. Errors name what was paid for."""
        self._facts["pieces"].append(piece.facts())
        try:
            fetched = await self._parts.providers.pieces.download(piece)
            self._facts["pieces"][-1] = {**piece.facts(), "download": fetched.facts}
            wav = parse_wav(fetched.wav)
            samples = await asyncio.to_thread(to_mono_pcm16, wav)
            if not samples and not has_letters(self._request.text):
                raise NothingToSpeak(diagnostics={"code": "empty_audio"})
            if not samples:
                raise ProviderUnavailable(
                    "The speech provider handed out empty audio. Please try again.",
                    diagnostics={"code": "empty_audio"},
                )
            if rate is not None and rate != wav.sample_rate_hz:
                # Joining is appending: a piece of another rate would be heard at the wrong speed.
                raise ProviderUnavailable(
                    "The speech provider handed out audio that does not fit together. Please try again.",
                    diagnostics={"code": "unfit_audio"},
                )
        except AudioError as exc:
            raise ProviderUnavailable(diagnostics={**piece.facts(), "code": "unreadable_audio"}) from exc
        except ProviderError as exc:
            exc.diagnostics = {**piece.facts(), **exc.diagnostics}
            raise
        return samples, wav.sample_rate_hz

    async def _bought(self, part: int, text: str) -> SpokenPiece:
        """One piece, spoken. After the first piece a start is tried again here, since others have heard the rest."""
        starts = 0
        while True:
            try:
                piece = await self._buy(part, text)
            except ProviderError as exc:
                starts += 1
                self.text_sent = bool(exc.diagnostics.get("text_sent", True))
                again = part > 0 and may_start_again(exc, text_sent=self.text_sent, bytes_heard=0)
                if not again or starts >= self._parts.settings.tries.starts:
                    raise
                await asyncio.sleep(pause_before_start(starts, throttled=exc.throttled))
            else:
                self.text_sent = True
                return piece

    async def _buy(self, part: int, text: str) -> SpokenPiece:
        subject, user_id = self._assignment.task_id, self._assignment.user_id

        async def claim(connection: Connection) -> int | None:
            if not await runs.holds(connection, subject, self._assignment.attempt, self._parts.leases.owner):
                # Taken over or cancelled while the database was away; the row has the words that its user reads.
                raise ProviderRejected(diagnostics={"code": "fenced", "text_sent": False})
            return await purchases.claim(connection, subject, kind="http", user_id=user_id, part=part)

        # Before the claim: what only waits for its turn has not left us, and anybody may take it over.
        # The first piece begins the speech; of the others each may wait as long as a speech may.
        later = time.monotonic() + self._parts.settings.deadlines.queue_seconds
        by = later if part else self._request.start_by
        await self._parts.providers.pieces.turn(self._assignment.provider_target_model or "", by=by)
        attempt = await self._parts.database.patiently(claim)
        if attempt is None:
            raise ProviderTimeout(
                "An earlier attempt to speak this did not finish. Please try again.",
                diagnostics={"code": "piece_undecided", "part": part},
            )
        try:
            piece = await self._parts.providers.pieces.synthesize(
                text=text, voice=self._request.voice, model=self._request.model, language=self._request.language
            )
        except ProviderError as exc:
            await record_failure(self._parts, subject, attempt, exc, part=part)
            raise
        except asyncio.CancelledError:
            await say_unknown(self._parts, subject, attempt, part=part)
            raise
        await self._parts.database.patiently(
            purchases.decide,
            subject,
            "done",
            attempt=attempt,
            part=part,
            request_id=piece.request_id or None,
            outcome=piece.facts(),
        )
        return piece
