"""The composition root: settings become parts, parts an application. Its routes are the table of contents."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from server.account.pace import AccountLedger
from server.account.retirements import Retirements
from server.account.watch import Watch
from server.admission.clients import connections_limit, share_of_one
from server.admission.limits import AudioMemory, LongReads, Requests, Streams, Unstored, Uploads
from server.admission.readiness import Readiness
from server.auth.keyring import KeyRing
from server.auth.tokens import Authenticator, Tickets
from server.database.announce import Announcer
from server.database.connections import Database, Listener
from server.database.queue import Queue
from server.handlers import (
    clone,
    design,
    generate,
    generations,
    keys,
    openai,
    openapi,
    profile,
    service,
    stream,
    tasks,
    usage,
    voices,
)
from server.handlers.edge import Edge, exception_handlers
from server.handlers.objects import object_routes
from server.handlers.page import page_routes
from server.handlers.proxies import TrustedProxies
from server.handlers.requests import parts_of
from server.handlers.resources import resources
from server.lifecycle import working
from server.metrics import Metrics
from server.parts import Parts
from server.providers.modal.api import Modal
from server.providers.pacing import Pacer
from server.providers.qwen.customization import QwenCustomization
from server.providers.qwen.inference import QwenInference
from server.providers.qwen.pieces import QwenHttp
from server.providers.qwen.realtime import QwenRealtime
from server.providers.qwen.voice_enrollment import VoiceEnrollment
from server.providers.resolver import Providers, account_of
from server.relay.endings import Endings
from server.relay.following import Following
from server.relay.kept import KeptLogs
from server.relay.leases import Leases
from server.relay.live import LiveAudio
from server.relay.polled import PolledTasks
from server.relay.progress import ProgressWriter
from server.relay.speeches import Speeches
from server.relay.spool import SpoolWriter
from server.settings import Settings
from server.storage.open import open_store


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
            Route("/api/generations/zip", generations.download_several, methods=["POST"]),
            Route("/api/generations/{generation_id}", generations.delete_generation, methods=["DELETE"]),
            Route("/api/generations/{generation_id}/audio.mp3", generations.get_mp3, methods=["GET"]),
            Route("/api/generations/{generation_id}/words", generations.get_words, methods=["GET"]),
            Route("/api/generations/{generation_id}/captions.vtt", generations.get_captions, methods=["GET"]),
            Route("/api/generations/{generation_id}/captions.srt", generations.get_captions, methods=["GET"]),
            Route("/api/generations/{generation_id}/audio", generations.get_audio, methods=["GET"]),
            Route("/api/generations/{generation_id}/regenerate", generations.regenerate, methods=["POST"]),
            Route("/api/voices", voices.list_voices, methods=["GET"]),
            Route("/api/voices/design", design.save, methods=["POST"]),
            Route("/api/voices/design/preview", design.preview, methods=["POST"]),
            Route("/api/voices/{voice_id}", voices.change_voice, methods=["PATCH"]),
            Route("/api/voices/{voice_id}", voices.delete_voice, methods=["DELETE"]),
            Route("/api/voices/{voice_id}/renew", voices.renew_voice, methods=["POST"]),
            Route("/api/voices/{voice_id}/preview", voices.get_preview, methods=["GET"]),
            Route("/api/clone/upload-url", clone.upload_url, methods=["POST"]),
            Route("/api/clone/finalize", clone.finalize, methods=["POST"]),
            Route("/api/keys", keys.create, methods=["POST"]),
            Route("/api/keys", keys.list_keys, methods=["GET"]),
            Route("/api/keys/{key_id}", keys.delete_key, methods=["DELETE"]),
            Route("/api/usage", usage.get_usage, methods=["GET"]),
            Route("/v1/audio/speech", openai.speech, methods=["POST"]),
            Route("/v1/audio/voices", openai.list_voices, methods=["GET"]),
            Route("/v1/models", openai.list_models, methods=["GET"]),
            Route("/v1/models/{model}", openai.get_model, methods=["GET"]),
            Route("/api/health", service.health, methods=["GET"]),
            Route("/api/ready", service.ready, methods=["GET"]),
            Route("/api/languages", service.languages, methods=["GET"]),
            Route("/api/me", profile.me, methods=["GET"]),
            Route("/api/profile", profile.change, methods=["PATCH"]),
            Route("/api/openapi.json", openapi.describe, methods=["GET"]),
            Route("/metrics", service.metrics, methods=["GET"]),
            *object_routes(lambda request: parts_of(request).storage, cors_allow_origins=settings.cors_allow_origins),
            *extra_routes,
            *page_routes(settings),
        ],
        middleware=[
            Middleware(TrustedProxies, trusted_hosts=settings.forwarded_allow_ips),
            Middleware(Edge, settings=settings),
        ],
        lifespan=lifespan,
        exception_handlers=exception_handlers,
    )
    app.router.routes[:] = resources(app.router.routes)
    app.router.redirect_slashes = False  # an unknown address is a 404, not a redirect built from the Host header
    app.state.settings = settings
    return app


def _http(connections: int, authorities: ssl.SSLContext) -> httpx.AsyncClient:
    """A client for one purpose, with so many connections at once; redirects are for those who expect them.

    The way out (``HTTP_PROXY``, ``HTTPS_PROXY``, ``NO_PROXY``) is the environment's, as for sockets and the store.

    Args:
        authorities: Whom to believe. Reading them takes some 10 ms, so all clients share one reading.
    """
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=min(20, connections))
    return httpx.AsyncClient(timeout=10.0, limits=limits, follow_redirects=False, verify=authorities)


@contextlib.asynccontextmanager
async def assembled(settings: Settings) -> AsyncIterator[Parts]:
    """Open everything in order, and close it in the reverse order. Nothing is done by itself yet."""
    metrics = Metrics()
    authorities = httpx.create_ssl_context()  # those of SSL_CERT_FILE, where it is set
    tickets = Tickets.from_settings(settings)
    async with (
        # One a purpose: what hangs for minutes must not keep from a connection what was paid for, or who signs in.
        _http(settings.synthesis_concurrency, authorities) as synthesis,
        _http(100, authorities) as downloads,
        _http(100, authorities) as customization,
        _http(5, authorities) as key_sets,
        _http(500, authorities) as modal,
        _http(100, authorities) as modal_results,
        open_store(settings.storage, tickets.storage_link_key) as storage,
        Database.open(
            settings.database_url,
            size=settings.database_pool_size,
            acquire_seconds=settings.deadlines.request_database_seconds,
            waited=metrics.database_waited,
        ) as database,
    ):
        listener = Listener(settings.database_url, database.pulse)
        queue = Queue(database, listener)
        announcer = Announcer(database)
        live = LiveAudio()
        pacer = Pacer(AccountLedger(database, account_of(settings), settings.qwen_starts_per_minute, metrics))
        leases = Leases(
            database,
            listener,
            renew_every_seconds=settings.intervals.renew_every_seconds,
            lost_after_seconds=settings.deadlines.lost_after_seconds,
        )
        spool = SpoolWriter(
            database.for_spool,
            leases.owner,
            announcer,
            metrics,
            every_seconds=settings.intervals.spool_every_seconds,
        )
        providers = Providers(
            settings,
            realtime=QwenRealtime(settings, pacer),
            inference=QwenInference(settings, pacer),
            modal=Modal(settings, modal, downloads=modal_results),
            customization=QwenCustomization(settings, customization),
            enrollment=VoiceEnrollment(settings, customization),
            pieces=QwenHttp(settings, synthesis, pacer, downloads=downloads),
        )
        readiness = Readiness(database, storage, queue)
        readiness.troubles["model_retired"] = lambda: bool(providers.retired)
        memory = AudioMemory(metrics, settings.memory_for_audio)
        unstored = Unstored(metrics, settings.unstored_limit)
        readiness.troubles["unstored"] = lambda: unstored.full
        targets = (settings.qwen_vc_target_model, settings.qwen_vd_target_model)
        metrics.models_offered(targets)
        watch = Watch(
            database, metrics, providers.account, targets, every_seconds=settings.intervals.watch_every_seconds
        )
        readiness.troubles["throttled"] = lambda: watch.throttled
        readiness.troubles["voices_full"] = lambda: watch.voices_full
        yield Parts(
            settings=settings,
            database=database,
            listener=listener,
            queue=queue,
            announcer=announcer,
            endings=Endings(database, announcer, metrics),
            leases=leases,
            speeches=Speeches(settings.synthesis_concurrency),
            pacer=pacer,
            live=live,
            spool=spool,
            progress=ProgressWriter(database, announcer, every_seconds=settings.intervals.spool_every_seconds),
            kept=KeptLogs(database, spool, leases.owner, memory.remember),
            following=Following(database, listener, live, announcer, leases.works_on),
            polled=PolledTasks(database),
            storage=storage,
            providers=providers,
            authenticator=Authenticator.from_settings(settings, key_sets),
            keyring=KeyRing(database),
            tickets=tickets,
            metrics=metrics,
            readiness=readiness,
            watch=watch,
            retirements=Retirements(
                database, providers, metrics, every_seconds=settings.intervals.retirements_every_seconds
            ),
            requests=Requests(metrics, per_user=share_of_one(connections_limit(settings.connections_limit))),
            streams=Streams(metrics, per_user=settings.streams_per_user),
            uploads=Uploads(metrics),
            long_reads=LongReads(metrics, at_once=max(1, settings.database_pool_size // 3)),
            memory=memory,
            unstored=unstored,
        )
