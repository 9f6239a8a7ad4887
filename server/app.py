"""The composition root: settings become parts, parts an application. Its routes are the table of contents."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from server.announce import Announcer
from server.auth import Authenticator, Tickets
from server.database import REFUSED, Database, Listener
from server.following import Following
from server.handlers import clone, design, generate, generations, openapi, service, stream, tasks, voices
from server.handlers.edge import Edge, exception_handlers
from server.handlers.objects import object_routes
from server.handlers.page import page_routes
from server.handlers.requests import parts_of
from server.jobs.design import make_preview
from server.jobs.finalize import finalize
from server.jobs.modal import cancel_modal, watch_modal
from server.jobs.remove import remove
from server.jobs.synthesize import synthesize
from server.leases import Leases
from server.live import LiveAudio
from server.metrics import Metrics
from server.parts import Parts
from server.providers.modal import Modal
from server.providers.pacing import Pacer
from server.providers.qwen_customization import QwenCustomization
from server.providers.qwen_http import QwenHttp
from server.providers.qwen_realtime import QwenRealtime
from server.providers.resolver import Providers
from server.queue import (
    DEFAULT,
    DEFAULT_CONCURRENCY,
    DRAIN_SECONDS,
    SYNTHESIS,
    WATCHING,
    WATCHING_CONCURRENCY,
    Queue,
)
from server.records.speech import (
    CANCEL_MODAL_JOB,
    COLLECT_MODAL_JOB,
    FINALIZE_JOB,
    PREVIEW_JOB,
    REMOVE_JOB,
    SYNTHESIZE_JOB,
    WATCH_MODAL_JOB,
)
from server.settings import Settings
from server.spool import SpoolWriter
from server.storage.open import open_store
from server.sweep import Sweeper

logger = logging.getLogger(__name__)

MODAL_LIMITS = httpx.Limits(max_connections=500, max_keepalive_connections=50)


def create_app(settings: Settings, *, extra_routes: Sequence[Route] = ()) -> Starlette:
    """The application. Nothing is connected before its lifespan begins.

    Args:
        extra_routes: What only ``dev`` serves.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with assembled(settings) as parts, working(parts):
            app.state.parts = parts
            app.state.authenticator = parts.authenticator
            yield

    app = Starlette(
        routes=[
            Route("/api/generate", generate.generate, methods=["POST"]),
            Route("/api/generate/stream", stream.post_stream, methods=["POST"]),
            Route("/api/generate/stream", stream.get_stream, methods=["GET"]),
            Route("/api/tasks/{task_id}", tasks.get_task, methods=["GET"]),
            Route("/api/tasks/{task_id}", tasks.delete_task, methods=["DELETE"]),
            Route("/api/tasks/{task_id}/cancel", tasks.cancel_task, methods=["POST"]),
            Route("/api/generations", generations.list_generations, methods=["GET"]),
            Route("/api/generations/{generation_id}", generations.delete_generation, methods=["DELETE"]),
            Route("/api/generations/{generation_id}/audio", generations.get_audio, methods=["GET"]),
            Route("/api/generations/{generation_id}/regenerate", generations.regenerate, methods=["POST"]),
            Route("/api/voices", voices.list_voices, methods=["GET"]),
            Route("/api/voices/design", design.save, methods=["POST"]),
            Route("/api/voices/design/preview", design.preview, methods=["POST"]),
            Route("/api/voices/{voice_id}", voices.delete_voice, methods=["DELETE"]),
            Route("/api/voices/{voice_id}/preview", voices.get_preview, methods=["GET"]),
            Route("/api/clone/upload-url", clone.upload_url, methods=["POST"]),
            Route("/api/clone/finalize", clone.finalize, methods=["POST"]),
            Route("/api/health", service.health, methods=["GET"]),
            Route("/api/ready", service.ready, methods=["GET"]),
            Route("/api/languages", service.languages, methods=["GET"]),
            Route("/api/me", service.me, methods=["GET"]),
            Route("/api/openapi.json", openapi.describe, methods=["GET"]),
            Route("/metrics", service.metrics, methods=["GET"]),
            *object_routes(lambda request: parts_of(request).storage, cors_allow_origins=settings.cors_allow_origins),
            *extra_routes,
            *page_routes(settings),
        ],
        middleware=[Middleware(Edge, settings=settings)],
        lifespan=lifespan,
        exception_handlers=exception_handlers,
    )
    app.router.redirect_slashes = False  # an unknown address is a 404, not a way built from the Host header
    app.state.settings = settings
    return app


@contextlib.asynccontextmanager
async def assembled(settings: Settings) -> AsyncIterator[Parts]:
    """Open everything in order, and close it in the reverse order. Nothing is done by itself yet."""
    metrics = Metrics()
    tickets = Tickets.from_settings(settings)
    async with (
        httpx.AsyncClient(timeout=10.0, follow_redirects=False, trust_env=False) as http,
        # Its requests may hang for minutes each, and must not keep others from a connection.
        httpx.AsyncClient(limits=MODAL_LIMITS, follow_redirects=False, trust_env=False) as modal_http,
        open_store(settings.storage, tickets.storage_link_key) as storage,
        Database.open(
            settings.database_url,
            size=settings.database_pool_size,
            acquire_seconds=settings.deadlines.request_database_seconds,
        ) as database,
    ):
        listener = Listener(settings.database_url)
        queue = Queue(database, listener)
        announcer = Announcer(database)
        live = LiveAudio()
        pacer = Pacer(settings.qwen_starts_per_minute)
        leases = Leases(database, listener, settings.deadlines)
        yield Parts(
            settings=settings,
            database=database,
            listener=listener,
            queue=queue,
            announcer=announcer,
            leases=leases,
            live=live,
            spool=SpoolWriter(database, announcer, metrics),
            following=Following(database, listener, live, announcer),
            storage=storage,
            providers=Providers(
                settings,
                realtime=QwenRealtime(settings, pacer),
                modal=Modal(settings, modal_http),
                customization=QwenCustomization(settings, http),
                pieces=QwenHttp(settings, http, pacer),
            ),
            authenticator=Authenticator.from_settings(settings, http),
            tickets=tickets,
            metrics=metrics,
        )


@contextlib.asynccontextmanager
async def working(parts: Parts) -> AsyncIterator[None]:
    """Run jobs and keep everything current; at the end, speeches that run are given their grace."""
    queue, settings = parts.queue, parts.settings
    sweeper = Sweeper(parts.database, queue, parts.announcer, parts.metrics, settings.deadlines)
    queue.register(SYNTHESIZE_JOB, partial(synthesize, parts))
    queue.register(FINALIZE_JOB, partial(finalize, parts))
    queue.register(REMOVE_JOB, partial(remove, parts))
    queue.register(PREVIEW_JOB, partial(make_preview, parts))
    queue.register(WATCH_MODAL_JOB, partial(watch_modal, parts))
    queue.register(COLLECT_MODAL_JOB, partial(synthesize, parts))
    queue.register(CANCEL_MODAL_JOB, partial(cancel_modal, parts))
    async with (
        background(parts.listener.run, parts.announcer.run, parts.spool.run, parts.following.run, parts.leases.run),
        background(sweeper.run),
        asyncio.TaskGroup() as group,
    ):
        synthesis = group.create_task(queue.work(SYNTHESIS, concurrency=settings.synthesis_concurrency))
        default = group.create_task(queue.work(DEFAULT, concurrency=DEFAULT_CONCURRENCY))
        watching = group.create_task(queue.work(WATCHING, concurrency=WATCHING_CONCURRENCY))
        try:
            yield
        finally:
            await _drain(parts, synthesis, default)
            watching.cancel()


async def _drain(parts: Parts, synthesis: asyncio.Task[None], default: asyncio.Task[None]) -> None:
    """Let what speaks finish within its grace, then store what is there to be stored."""
    stop(parts)
    started = time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(parts.settings.shutdown_grace_seconds + DRAIN_SECONDS):
            await _until_spoken(parts, synthesis)
    synthesis.cancel()
    with contextlib.suppress(TimeoutError, *REFUSED):
        async with asyncio.timeout(DRAIN_SECONDS):
            while await _waiting(parts):  # noqa: ASYNC110 - what is waited for happens in the database
                await asyncio.sleep(0.05)
    parts.queue.stop(DEFAULT)
    await asyncio.wait({default}, timeout=DRAIN_SECONDS + 1.0)
    parts.database.wait_no_more()
    default.cancel()
    logger.info("drained", extra={"seconds": round(time.monotonic() - started, 1)})


async def _until_spoken(parts: Parts, synthesis: asyncio.Task[None]) -> None:
    """Until the worker has ended. One that does not, though nobody speaks, waits for a database that is gone."""
    silent_seconds, step_seconds = 0.0, 0.25
    while not synthesis.done() and silent_seconds < DRAIN_SECONDS:
        await asyncio.wait({synthesis}, timeout=step_seconds)
        silent_seconds = 0.0 if parts.leases.speaking else silent_seconds + step_seconds


async def _waiting(parts: Parts) -> int:
    async with parts.database.connection() as connection:
        return await parts.queue.depth(connection, DEFAULT)


def stop(parts: Parts) -> None:
    """Take nothing new, and end the open streams; their browsers come back to the next process.

    What speaks has its grace from now on: readers that read nothing may hold up the rest of the shutdown meanwhile.
    """
    if parts.stopping.is_set():
        return
    parts.stopping.set()
    parts.queue.stop(SYNTHESIS)
    parts.queue.stop(WATCHING)
    parts.following.wake_all()
    asyncio.get_running_loop().call_later(parts.settings.shutdown_grace_seconds, parts.leases.release)


@contextlib.asynccontextmanager
async def background(*loops: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run endless loops beside the block. One that fails is said and started again: nothing here may die quietly."""
    async with asyncio.TaskGroup() as group:
        tasks_ = [group.create_task(_again_and_again(loop)) for loop in loops]
        try:
            yield
        finally:
            for task in tasks_:
                task.cancel()


async def _again_and_again(loop: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await loop()
        except Exception:
            logger.exception("background loop failed, starting it again")
        await asyncio.sleep(0.5)
