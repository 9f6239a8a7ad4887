"""What the composition root puts together, and hands to handlers and jobs."""

import asyncio
from dataclasses import dataclass, field

from server.account.retirements import Retirements
from server.account.watch import Watch
from server.admission.limits import AudioMemory, LongReads, Requests, Streams, Unstored, Uploads
from server.admission.readiness import Readiness
from server.auth.keyring import KeyRing
from server.auth.tokens import Authenticator, Tickets
from server.database.announce import Announcer
from server.database.connections import Database, Listener
from server.database.queue import Queue
from server.metrics import Metrics
from server.providers.pacing import Pacer
from server.providers.resolver import Providers
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
from server.storage import ObjectStore

RECORDINGS_AT_ONCE = 8
STORED_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Parts:
    """One process's parts, alive from start-up to shutdown.

    Attributes:
        stopping: Set when the server has been told to stop: streams end, nothing new is taken.
        storing: Held by whoever uploads spoken audio.
        recordings: Held by whoever has an uploaded recording in memory: at most 10 MB, and what is made of it.
    """

    settings: Settings
    database: Database
    listener: Listener
    queue: Queue
    announcer: Announcer
    endings: Endings
    leases: Leases
    speeches: Speeches
    pacer: Pacer
    live: LiveAudio
    spool: SpoolWriter
    progress: ProgressWriter
    kept: KeptLogs
    following: Following
    polled: PolledTasks
    storage: ObjectStore
    providers: Providers
    authenticator: Authenticator
    keyring: KeyRing
    tickets: Tickets
    metrics: Metrics
    readiness: Readiness
    retirements: Retirements
    watch: Watch
    requests: Requests
    streams: Streams
    uploads: Uploads
    long_reads: LongReads
    memory: AudioMemory
    unstored: Unstored
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    storing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(STORED_AT_ONCE))
    recordings: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(RECORDINGS_AT_ONCE))

    @property
    def generations_bucket(self) -> str:
        """The bucket's own name, as removal records keep it."""
        return self.settings.storage.bucket_generations
