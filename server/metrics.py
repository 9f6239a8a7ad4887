"""What this process counts, for Prometheus. One registry per application, so that several can live in one process."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS_TO_FIRST_AUDIO = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0)


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
            "utter_unstored_bytes", "Speech that waits for the store, in bytes.", registry=self.registry
        )
        self._removals_failing = Gauge(
            "utter_removals_failing", "Objects that several tries could not remove.", registry=self.registry
        )
        self._refused = Counter(
            "utter_refused",
            "What was refused because there was too much of it, by what: heads, connections, crowded requests, streams,"
            " uploads.",
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
