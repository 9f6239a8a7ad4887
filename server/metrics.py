"""What this process counts, for Prometheus. One registry per application, so that several can live in one process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.errors import Category

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS_TO_FIRST_AUDIO = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0)
_SHORT_WAITS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

PROVIDERS = ("qwen", "modal")
POOLS = ("requests", "spool", "leases")
# What may be too much of, in the words of whoever refuses.
REFUSALS = (
    *("heads", "bodies", "connections", "crowded", "requests_of_one", "keys", "streams", "streams_of_one"),
    *("uploads_of_one", "recordings", "reads", "reads_of_one", "queue", "queue_of_one", "memory", "unstored"),
    *("designs_of_one", "clones_of_one", "characters_of_one", "starts_of_one"),
)
# Source: RFC 6455 §7.4.1; 1006 is a connection that broke without a word. Others appear when they are met.
CLOSE_CODES = ("1000", "1001", "1006", "1007", "1008", "1011", "1013")


class Metrics:
    """The product's own numbers; each method is one thing that happens."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._tasks = Counter(
            "utter_tasks",
            "Tasks that ended in this process, by how.",
            ["provider", "status", "category"],
            registry=self.registry,
        )
        self._first_audio = Histogram(
            "utter_first_audio_seconds",
            "From the request to the first audio of a speech.",
            ["provider"],
            buckets=_SECONDS_TO_FIRST_AUDIO,
            registry=self.registry,
        )
        self._sessions = Gauge(
            "utter_active_sessions", "Speeches under way in this process.", ["provider"], registry=self.registry
        )
        self._streams = Gauge("utter_active_streams", "Clients that follow a speech here.", registry=self.registry)
        self._queue_depth = Gauge("utter_queue_depth", "Jobs that wait and could start.", registry=self.registry)
        self._finalize_retries = Counter(
            "utter_finalize_retries", "Times that storing finished audio was put off.", registry=self.registry
        )
        self._modal_polls = Counter(
            "utter_modal_looks",
            "Status checks of Modal jobs, by who asked (poll, watcher) and what was seen.",
            ["by", "seen"],
            registry=self.registry,
        )

        self._memory = Gauge(
            "utter_audio_memory_bytes", "What live speeches of this process have reserved.", registry=self.registry
        )
        self._unstored = Gauge(
            "utter_unstored_bytes",
            "Speech of all processes that waits for the store, in bytes.",
            registry=self.registry,
        )
        self._removals_failing = Gauge(
            "utter_removals_failing", "Objects that several tries could not remove.", registry=self.registry
        )
        self._refused = Counter(
            "utter_refused",
            "What was refused because there was too much of it, by what: heads, bodies, connections, streams, uploads.",
            ["what"],
            registry=self.registry,
        )

        self._retired = Gauge(
            "utter_model_retired",
            "1 for each model or service that the speech provider no longer offers, 0 once it does again.",
            ["model"],
            registry=self.registry,
        )
        self._seen_retired: frozenset[str] = frozenset()

        self._waiting = Gauge(
            "utter_waiting_starts", "Speeches that nobody has begun, in all processes.", registry=self.registry
        )
        self._waited = Gauge(
            "utter_waiting_start_seconds", "How long the first of them has waited.", registry=self.registry
        )
        self._oldest_beat = Gauge(
            "utter_oldest_beat_seconds",
            "How long ago the most silent process that holds speeches said that it lives.",
            registry=self.registry,
        )
        self._database_wait = Histogram(
            "utter_database_wait_seconds",
            "How long was waited for a connection of a pool.",
            ["pool"],
            buckets=_SHORT_WAITS,
            registry=self.registry,
        )
        self._spool_lag = Gauge(
            "utter_spool_lag_seconds",
            "For how long the statement that keeps live speech has been under way.",
            registry=self.registry,
        )
        self._spool_behind = Gauge(
            "utter_spool_behind_bytes", "Live speech of this process that is not kept yet.", registry=self.registry
        )
        self._loop_lag = Histogram(
            "utter_event_loop_lag_seconds",
            "How late the event loop was, four times a second.",
            buckets=_SHORT_WAITS,
            registry=self.registry,
        )
        self._closes = Counter(
            "utter_provider_closes",
            "Sessions that the speech provider closed before their end, by its code.",
            ["code"],
            registry=self.registry,
        )
        self._throttles = Counter(
            "utter_provider_throttles", "Times that the speech provider asked us to slow down.", registry=self.registry
        )
        self._pace = Gauge(
            "utter_pace_share",
            "How much of its full rate each model may be started at; throttles halve it.",
            ["model"],
            registry=self.registry,
        )
        self._voices = Gauge(
            "utter_voices_in_use",
            "Voices that the provider keeps for this service, cloned (vc) and designed (vd).",
            ["kind"],
            registry=self.registry,
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """A series that begins with its first event shows no increase at it, so whatever can be named is there."""
        for provider in PROVIDERS:
            self._first_audio.labels(provider)
            self._sessions.labels(provider)
            self._tasks.labels(provider, "completed", "")
            self._tasks.labels(provider, "cancelled", "cancelled")
            for category in get_args(Category):
                if category != "cancelled":
                    self._tasks.labels(provider, "failed", category)
        for by in ("poll", "watcher"):
            for seen in ("running", "completed", "failed", "status_error"):
                self._modal_polls.labels(by, seen)
        for what in REFUSALS:
            self._refused.labels(what)
        for pool in POOLS:
            self._database_wait.labels(pool)
        for code in CLOSE_CODES:
            self._closes.labels(code)
        for kind in ("vc", "vd"):
            self._voices.labels(kind)

    def waiting(self, starts: int, seconds: float) -> None:
        self._waiting.set(starts)
        self._waited.set(seconds)

    def oldest_beat(self, seconds: float) -> None:
        self._oldest_beat.set(seconds)

    def database_waited(self, pool: str, seconds: float) -> None:
        self._database_wait.labels(pool).observe(seconds)

    def spool_lag(self, seconds: Callable[[], float], behind: Callable[[], int]) -> None:
        """Whom to ask, at each scrape, for how long the spool's statement has been under way, and for what it lacks."""
        self._spool_lag.set_function(seconds)
        self._spool_behind.set_function(behind)

    def loop_lag(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)

    def provider_closed(self, code: int) -> None:
        self._closes.labels(str(code)).inc()

    def provider_throttled(self) -> None:
        self._throttles.inc()

    def pace(self, model: str, share: float) -> None:
        self._pace.labels(model).set(share)

    def voices(self, kind: str, count: int) -> None:
        self._voices.labels(kind).set(count)

    def models_offered(self, names: tuple[str, ...]) -> None:
        """Those that this configuration needs, as far as nobody has been told otherwise."""
        for name in names:
            self._retired.labels(name)

    def models_retired(self, names: frozenset[str]) -> None:
        """Which models and services are gone at the moment."""
        self._seen_retired |= names
        for name in self._seen_retired:
            self._retired.labels(name).set(name in names)

    def refused(self, what: str) -> None:
        """Somebody was turned away because there was too much of something."""
        self._refused.labels(what).inc()

    def task_ended(self, provider: str, status: str, category: str) -> None:
        self._tasks.labels(provider, status, category).inc()

    def first_audio(self, provider: str, seconds: float) -> None:
        self._first_audio.labels(provider).observe(seconds)

    @contextmanager
    def session(self, provider: str) -> Iterator[None]:
        """Count one speech under way while the context is open."""
        with self._sessions.labels(provider).track_inprogress():
            yield

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count one follower while the context is open."""
        with self._streams.track_inprogress():
            yield

    def queue_depth(self, jobs: int) -> None:
        self._queue_depth.set(jobs)

    def memory_reserved(self, size: int) -> None:
        self._memory.set(size)

    def unstored(self, size: int) -> None:
        self._unstored.set(size)

    def removals_failing(self, count: int) -> None:
        self._removals_failing.set(count)

    def finalize_retried(self) -> None:
        self._finalize_retries.inc()

    def modal_polled(self, by: str, seen: str) -> None:
        self._modal_polls.labels(by, seen).inc()

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
