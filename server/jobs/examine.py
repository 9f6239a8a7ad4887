"""Asking the provider, service by service, what is alive: cheap questions first, and none that costs without a word."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from server.errors import ProviderError, ProviderTimeout
from server.parts import Parts
from server.providers.lanes import INFERENCE, REALTIME, lane_of
from server.providers.modal.api import NOT_CONFIGURED
from server.providers.qwen.errors import OPENED_AND_CLOSED, ModelRetired, silently_retired
from server.providers.speech import AudioDelta, SpeechRequest
from server.records import retired, voices
from server.records.voices import Speaking

# What is said with ``--speak``: ten characters, whatever the language.
SAMPLE = "Good day. "
# US dollars per 10,000 characters, as the vendor's list had it; the dearest of the models that we know.
DOLLARS_PER_10_000 = 0.287

State = Literal["ok", "gone", "failed"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one question brought.

    Attributes:
        needed: This configuration does not work without it.
        advice: What to set or to do; empty where there is nothing.
    """

    name: str
    host: str
    state: State
    detail: str = ""
    needed: bool = True
    advice: str = ""


async def examine(parts: Parts, *, speak: bool) -> AsyncIterator[Finding]:
    """Ask everything that is configured, in order.

    Args:
        speak: Also speak ten characters with one voice of each model; see ``price``.
    """
    settings = parts.settings
    async with parts.database.connection() as connection:
        used = await voices.models(connection)
    if settings.dashscope_api_key:
        async for finding in _services(parts):
            yield finding
        for model in sorted(
            {settings.qwen_vc_target_model, settings.qwen_vd_target_model, *(one.model for one in used)}
        ):
            yield await _socket(parts, model, sum(one.voices for one in used if one.model == model))
        if speak:
            for one in used:
                yield await _speaks(parts, one)
    if settings.modal_job_status:
        yield await _modal(parts)


def price(used: list[Speaking]) -> float:
    """What ``--speak`` may cost at most, in US dollars."""
    return len(used) * len(SAMPLE) * DOLLARS_PER_10_000 / 10_000


async def models_used(parts: Parts) -> list[Speaking]:
    async with parts.database.connection() as connection:
        return await voices.models(connection)


async def _services(parts: Parts) -> AsyncIterator[Finding]:
    """Each service that makes voices is asked for its list, which costs nothing."""
    settings, providers = parts.settings, parts.providers
    kept = providers.voices_kept()
    names = {"vc": "qwen-voice-enrollment", "vd": "qwen-voice-design", "enrolled": "voice-enrollment"}
    needed = {providers.clone_service, providers.design_service} if providers.abilities.enrolls else set()
    for kind, listed in kept.items():
        name = names[kind]

        async def ask(listed: AsyncIterator[object] = listed) -> None:
            await anext(listed, None)

        variable = "QWEN_VD_TARGET_MODEL" if name == providers.design_service else "QWEN_VC_TARGET_MODEL"
        advice = f"Set {variable} to a model of another service, such as qwen-audio-3.0-tts-flash."
        yield await _asked(parts, name, settings.dashscope_base_url, ask, needed=name in needed, advice=advice)


async def _socket(parts: Parts, model: str, count: int) -> Finding:
    settings = parts.settings
    wanted = model == settings.qwen_vc_target_model

    async def knock() -> None:
        if speaker := parts.providers.spoken(model):
            await speaker.knock(model)

    finding = await _asked(
        parts,
        model,
        _address(parts, model),
        knock,
        needed=wanted or count > 0,
        advice=(
            "Set QWEN_VC_TARGET_MODEL to a model that is alive, then run `python -m server renew --all`."
            if wanted
            else f"Run `python -m server renew --model {model}`."
        ),
    )
    asked = "" if lane_of("qwen", model) is REALTIME else "; the model itself answers only to --speak"
    detail = finding.detail or f"{count} voices{asked}"
    return msgspec.structs.replace(finding, detail=detail)


async def _speaks(parts: Parts, used: Speaking) -> Finding:
    name, speaker = f"speech with {used.model}", parts.providers.spoken(used.model)
    if speaker is None:
        return Finding(name=name, host="", state="ok", detail="not tried: this lane has no socket", needed=False)

    async def say() -> None:
        async with speaker.speak(SpeechRequest(text=SAMPLE, voice=used.newest, model=used.model)) as speech:
            async for event in speech:
                if isinstance(event, AudioDelta):
                    return

    return await _asked(
        parts,
        name,
        _address(parts, used.model),
        say,
        model=used.model,
        advice=f"Run `python -m server renew --model {used.model}`.",
    )


async def _modal(parts: Parts) -> Finding:
    async def ask() -> None:
        try:
            await parts.providers.modal.poll("doctor", within_seconds=parts.settings.deadlines.connect_seconds)
        except ProviderTimeout:
            raise
        except ProviderError as exc:
            # It does not know this job, and has said so: it is there.
            if "http_status" not in exc.diagnostics or exc.diagnostics.get("code") == NOT_CONFIGURED:
                raise

    needed = parts.settings.tts_provider_mode == "modal"
    return await _asked(parts, "modal", parts.settings.modal_job_status or "", ask, needed=needed, advice="")


async def _asked(
    parts: Parts,
    name: str,
    address: str,
    ask: Callable[[], Awaitable[None]],
    *,
    advice: str,
    needed: bool = True,
    model: str | None = None,
) -> Finding:
    """One question; what it brought is also kept for every process."""
    host = urlsplit(address).netloc
    try:
        await _asked_twice(parts, ask)
    except ModelRetired as exc:
        await parts.retirements.note(exc, model or name)
        return Finding(name=name, host=host, state="gone", detail=_why(exc), needed=needed, advice=advice)
    except ProviderError as exc:
        return Finding(name=name, host=host, state="failed", detail=f"{exc.detail} {_why(exc)}".strip(), needed=needed)
    async with parts.database.transaction() as connection:
        await retired.forget(connection, parts.providers.account, model or name)
    return Finding(name=name, host=host, state="ok", needed=needed)


async def _asked_twice(parts: Parts, ask: Callable[[], Awaitable[None]]) -> None:
    """Ask, and again after a while where a session opened and closed without a word."""
    try:
        await ask()
    except ProviderError as exc:
        if exc.diagnostics.get("code") != OPENED_AND_CLOSED:
            raise
    else:
        return
    await asyncio.sleep(parts.settings.intervals.doubted_model_seconds)
    try:
        await ask()
    except ProviderError as exc:
        if exc.diagnostics.get("code") != OPENED_AND_CLOSED:
            raise
        raise silently_retired(exc.diagnostics) from exc


def _why(exc: ProviderError) -> str:
    known = [
        f"{name} {exc.diagnostics[name]}"
        for name in ("code", "http_status", "close_code", "request_id")
        if exc.diagnostics.get(name)
    ]
    return f"({', '.join(known)})" if known else ""


def _address(parts: Parts, model: str) -> str:
    lane, settings = lane_of("qwen", model), parts.settings
    sockets = {REALTIME: settings.dashscope_ws_url, INFERENCE: settings.dashscope_inference_ws_url}
    return sockets.get(lane, settings.dashscope_base_url) if lane else settings.dashscope_base_url
