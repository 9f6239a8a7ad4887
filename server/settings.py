"""Everything the environment decides: read once per process, checked as a whole, never printed where it is secret."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

ProviderMode = Literal["qwen", "modal"]

VC_REALTIME = "qwen3-tts-vc-realtime-2026-01-15"
VD_REALTIME = "qwen3-tts-vd-realtime-2026-01-15"


class SettingsError(Exception):
    """The environment is wrong. ``problems`` names every wrong or missing variable, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


# What follows is not part of the environment; tests build their own. Each field's name is its own in all four classes.


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds after which we stop waiting for somebody."""

    queue_seconds: float = 300.0  # for a free place: a speech or preview that nobody has begun fails
    # At a provider
    connect_seconds: float = 10.0  # for a connection, its handshake included; also for a watcher's poll of a job
    starts_within_seconds: float = 60.0  # for a start that works, counted from the first one that failed
    first_delta_seconds: float = 30.0  # for the first audio after the text was sent
    silence_seconds: float = 30.0  # for the next message of a session
    session_seconds: float = 60.0  # for the end of a session, and so long again for each character:
    session_seconds_per_char: float = 0.2
    http_synthesis_seconds: float = 310.0  # for the answer to one piece that is not streamed
    download_seconds: float = 120.0  # for a finished file, all tries together
    customization_seconds: float = 90.0  # for a voice to be created or designed
    customization_broken_seconds: float = 20.0  # for one to turn up whose call broke off
    customization_in_flight_seconds: float = 310.0  # for one to turn up whose call was not answered in time
    stays_open_seconds: float = 1.0  # for a session to close again that is only tried
    deploying_seconds: float = 20.0  # for a new voice to be ready to speak, while a client waits for our answer
    design_deploying_seconds: float = 300.0  # for the same where nobody waits
    enrollment_seconds: float = 100.0  # for another request that is creating the same voice
    modal_submit_seconds: float = 60.0  # for a job to be taken
    modal_status_seconds: float = 0.8  # for a poll of a job while a client waits for our answer
    modal_request_seconds: float = 160.0  # for one answer of any kind
    modal_no_id_seconds: float = 180.0  # for a submission of which nobody has heard
    modal_job_seconds: float = 1800.0  # for a job to be done, from its submission on
    # Here
    request_database_seconds: float = 5.0  # for the database, while a client waits for our answer
    purchase_database_seconds: float = 30.0  # for the database to take what a provider has answered
    preview_storage_seconds: float = 120.0  # for the storage to take a preview that is paid for
    finalize_seconds: float = 86_400.0  # for the storage to take a speech
    lost_after_seconds: float = 15.0  # for a run's owner to say that it lives
    idle_run_seconds: float = 20.0  # for the job of a run that waits for one
    store_elsewhere_seconds: float = 10.0  # for the process that spoke to have stored it, before any other tries
    follower_stalled_seconds: float = 30.0  # for a client to read on
    head_seconds: float = 10.0  # for the head of a request
    unfollowed_seconds: float = 10.0  # for somebody to follow a speech that lasts only as long as it is followed
    door_wait_seconds: float = 15.0  # for a speech to begin whose client gives up soon
    # While leaving
    drain_seconds: float = 5.0  # for what is spoken to be stored, once nothing is being spoken any more
    leaving_database_seconds: float = 3.0  # for the database to take back what was being spoken


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Seconds between one time and the next. Of several the last one repeats."""

    spool_every_seconds: float = 0.03  # audio becomes durable
    renew_every_seconds: float = 1.0  # a process says that it lives
    sweep_every_seconds: float = 5.0  # what other processes left behind is looked for
    heartbeat_seconds: float = 15.0  # a silent stream says that it is there
    modal_watch_seconds: float = 30.0  # a job is polled that nobody else asks for
    modal_result_pauses_seconds: tuple[float, ...] = (1.0, 1.5, 2.25, 3.4, 5.0)  # a job's result is asked for
    watch_every_seconds: float = 5.0  # what piles up is read, for the metrics
    retirements_every_seconds: float = 10.0  # which models are gone is read, for what other processes have met
    doubted_model_seconds: float = 10.0  # one is asked again whose sessions open and close without a word
    deploying_look_seconds: float = 2.0  # a new voice is asked whether it is ready
    download_pauses_seconds: tuple[float, ...] = (0.5, 2.0)  # a piece's file is asked for


@dataclass(frozen=True, kw_only=True)
class Retentions:
    """Seconds for which something is kept that nobody works with any more."""

    keep_unstored_seconds: float = 604_800.0  # audio whose storing was given up, from then on
    keep_hidden_seconds: float = 86_400.0  # a task that its user has put away
    keep_purchases_seconds: float = 7_776_000.0  # what a speech has cost
    keep_objects_seconds: float = 3_600.0  # an object without a row: one may be about to be written


@dataclass(frozen=True, kw_only=True)
class Tries:
    """How often something is tried in all."""

    starts: int = 3  # of a speech at its provider, as long as nothing was heard
    downloads: int = 3  # of a finished file


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """Where objects live: ``kind`` 's3' (endpoint, region) or 'disk' (root, an absolute path)."""

    kind: Literal["s3", "disk"]
    root: str = ""
    endpoint: str | None = None
    region: str | None = None
    bucket_references: str = "references"
    bucket_generations: str = "generations"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The environment variables of the README's table, by their lower-case names. Secrets never show in ``repr``."""

    database_url: str = field(repr=False)
    tts_provider_mode: ProviderMode = "qwen"
    dashscope_api_key: str = field(default="", repr=False)
    dashscope_base_url: str = "https://dashscope-intl.aliyuncs.com"
    dashscope_ws_url: str = "wss://dashscope-intl.aliyuncs.com/api-ws/v1/realtime"
    dashscope_inference_ws_url: str = "wss://dashscope-intl.aliyuncs.com/api-ws/v1/inference"
    dashscope_region: str = "intl"
    dashscope_workspace: str | None = None
    provider_download_hosts: tuple[str, ...] = ("*.aliyuncs.com",)
    qwen_vc_target_model: str = VC_REALTIME
    qwen_vd_target_model: str = VD_REALTIME
    qwen_default_response_format: Literal["mp3", "wav"] = "mp3"
    qwen_max_text_chars: int = 2000
    qwen_starts_per_minute: int = 150
    modal_job_submit: str | None = None
    modal_job_status: str | None = None
    modal_job_result: str | None = None
    modal_job_cancel: str | None = None
    modal_endpoint_voice_design: str | None = None
    auth_jwt_secret: str | None = field(default=None, repr=False)
    auth_jwt_secret_previous: str | None = field(default=None, repr=False)
    auth_jwks_url: str | None = None
    auth_jwt_audience: str = "authenticated"
    stream_ticket_secret: str | None = field(default=None, repr=False)
    storage: StorageSettings
    public_base_url: str | None = None
    cors_allow_origins: tuple[str, ...] = ()
    designs_per_user_per_day: int = 20
    clones_per_user_per_day: int = 20
    preview_kept_hours: float = 24.0
    characters_per_user_per_day: int | None = None
    starts_per_user_per_minute: int | None = None
    metrics_token: str | None = field(default=None, repr=False)
    allow_generate_mode_toggle: bool = False
    serve_page: bool = False
    synthesis_concurrency: int = 200
    queue_limit: int = 1000
    streams_per_user: int = 500
    older_tasks_minutes: int = 30
    memory_for_audio: int = 512_000_000
    unstored_limit: int = 20_000_000_000
    connections_limit: int | None = None
    shutdown_notice_seconds: float = 0.0
    shutdown_grace_seconds: float = 20.0
    database_pool_size: int = 10
    host: str = "0.0.0.0"
    port: int = 8000
    log_level: str = "info"
    log_format: Literal["text", "json"] = "json"
    forwarded_allow_ips: str = "127.0.0.1"
    misspelt: tuple[str, ...] = ()
    deadlines: Deadlines = field(default_factory=Deadlines)
    intervals: Intervals = field(default_factory=Intervals)
    retentions: Retentions = field(default_factory=Retentions)
    tries: Tries = field(default_factory=Tries)

    @property
    def speakable_models(self) -> frozenset[str]:
        """Target models that this server knows how to speak with."""
        return KNOWN_MODELS | {self.qwen_vc_target_model, self.qwen_vd_target_model}

    @property
    def public_path(self) -> str:
        """What stands in front of every path as browsers see it; "" without a proxy that puts something there."""
        return urlsplit(self.public_base_url or "").path.rstrip("/")

    @property
    def weaknesses(self) -> list[str]:
        """What is allowed but unwise, one sentence each, for the log at start-up."""
        secrets = {"AUTH_JWT_SECRET": self.auth_jwt_secret, "STREAM_TICKET_SECRET": self.stream_ticket_secret}
        guessable = [
            f"{name} is shorter than {STRONG_SECRET_BYTES} bytes and could be guessed; a longer one is advised."
            for name, secret in secrets.items()
            if secret is not None and len(secret.encode()) < STRONG_SECRET_BYTES
        ]
        return [*guessable, *self.misspelt]

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read and check everything at once.

        Raises:
            SettingsError: With every problem found, not only the first.
        """
        return _Reader(environ).settings()


@dataclass(frozen=True)
class Variable:
    """One environment variable as the documentation shows it; ``default`` is in words where there is no value."""

    name: str
    default: str
    meaning: str

    @property
    def field(self) -> str:
        """The ``Settings`` field it becomes; a dot leads into ``StorageSettings``."""
        name = self.name.lower()
        return {"storage_url": "storage"}.get(name, name.replace("storage_bucket", "storage.bucket"))


LEAST_CONNECTIONS: Final = 4
STRONG_SECRET_BYTES: Final = 32  # RFC 7518 §3.2: an HS256 key is at least as long as the hash
# The family that speaks in tasks. Its models speak with cloned and designed voices alike.
TASK_MODELS = frozenset(
    {
        *("qwen-audio-3.0-tts-flash", "qwen-audio-3.0-tts-plus", "qwen-audio-3.1-tts-flash"),
        *("cosyvoice-v3-flash", "cosyvoice-v3-plus", "cosyvoice-v3.5-flash", "cosyvoice-v3.5-plus"),
    }
)
KNOWN_MODELS = TASK_MODELS | {VC_REALTIME, VD_REALTIME, "qwen3-tts-vc-2026-01-22", "qwen3-tts-vd-2026-01-26"}
# Source: Model Studio, the models' pages of 2026: these are offered in Beijing alone.
_CN_ONLY = re.compile(r"cosyvoice-v3\.5-")
_HOST_REGIONS = {
    "dashscope-intl.aliyuncs.com": "intl",
    "*.ap-southeast-1.maas.aliyuncs.com": "intl",
    "dashscope.aliyuncs.com": "cn",
    "*.cn-beijing.maas.aliyuncs.com": "cn",
}
_MODEL_FAMILY = re.compile(r"qwen[0-9.]*-tts-(vc|vd)-")
# What a model of the family that speaks in tasks is called, and what the ids of its voices begin with.
TASK_MODEL = re.compile(r"qwen-audio-[0-9.]+-tts-(flash|plus)|cosyvoice-v3(\.[0-9]+)?-(flash|plus)")
_HOST_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_REALTIME_PATH, _INFERENCE_PATH = "/api-ws/v1/realtime", "/api-ws/v1/inference"


# Source: PostgreSQL documentation, "Database Connection Control Functions". What our driver understands as libpq does;
# what changes nothing here (libpq's own ways, since deadlines and keepalives are ours, and what other clients read).
_LIBPQ_UNDERSTOOD = """
    host port dbname database user password passfile sslmode sslcert sslkey sslrootcert sslcrl sslpassword
    ssl_min_protocol_version ssl_max_protocol_version target_session_attrs krbsrvname gsslib options application_name
"""
_LIBPQ_DROPPED = """
    channel_binding connect_timeout keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout
    gssencmode gssdelegation sslcompression sslsni sslnegotiation sslcertmode sslcrldir sslkeylogfile require_auth
    requirepeer client_encoding load_balance_hosts hostaddr min_protocol_version max_protocol_version
    fallback_application_name
    pgbouncer pool_timeout pool_mode pool_size connection_limit socket_timeout statement_cache_size sslaccept
    sslidentity prepared_statements prepare_threshold prepareThreshold supa uselibpqcompat schema
"""
_LIBPQ_WORDS = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}
_LIBPQ_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")


def read_database_address(value: str) -> tuple[str, list[str]]:
    """The URL with the parameters that our driver takes, and what is wrong with them, each as the end of a sentence.

    What the driver would stumble over when it connects would be taken for a database that cannot be reached.
    """
    parts = urlsplit(value)
    given = parse_qsl(parts.query, keep_blank_values=True)
    kept = [(name, content) for name, content in given if name in _LIBPQ_UNDERSTOOD.split()]
    unknown = {name for name, _ in given if name not in (_LIBPQ_UNDERSTOOD + _LIBPQ_DROPPED).split()}
    problems = [f"has parameters that nobody knows: {', '.join(sorted(unknown))}"] if unknown else []
    for name, content in kept:
        words = _LIBPQ_WORDS.get(name)
        if words and content not in words:
            problems.append(f"must have {_any_of(words)} as its {name}")
        if name in _LIBPQ_FILES and content and not Path(content).expanduser().is_file():
            problems.append(f"names a file as its {name} that is not there")
    return urlunsplit(parts._replace(query=urlencode(kept))), problems


def model_family(model: str) -> Literal["vc", "vd"] | None:
    """The kind of voice that a target model of the qwen-tts family is for; None for a model of another family."""
    match = _MODEL_FAMILY.match(model)
    return cast(Literal["vc", "vd"], match[1]) if match else None


def speaks_by_tasks(model: str) -> bool:
    """Whether a model belongs to the family that speaks in tasks, by its name; dated snapshots of one do, too."""
    return TASK_MODEL.match(model) is not None


def suits_kind(model: str, kind: str | None) -> bool:
    """Whether a model speaks with cloned (``vc``) or designed (``vd``) voices, as asked."""
    return kind in ("vc", "vd") and (speaks_by_tasks(model) or model_family(model) == kind)


def region_of(host: str) -> str | None:
    """The region a DashScope host belongs to; None where the name does not tell (loopback, a proxy of one's own)."""
    return next((region for pattern, region in _HOST_REGIONS.items() if fnmatchcase(host, pattern)), None)


def socket_url(base_url: str, path: str = _REALTIME_PATH) -> str:
    """A socket's address beside a REST base: ``https`` becomes ``wss``, ``http`` becomes ``ws``."""
    return "ws" + base_url.removeprefix("http") + path


# One row a variable, so that the documentation can be held against it.
# fmt: off
VARIABLES: tuple[Variable, ...] = (
    Variable("DATABASE_URL", "required", "PostgreSQL ≥ 14, reached over a session-mode connection"),
    Variable("TTS_PROVIDER_MODE", "`qwen`", "`qwen` or `modal`: what clone, design and generate use"),
    Variable("DASHSCOPE_API_KEY", "required in qwen mode", "key for the Qwen provider"),
    Variable("DASHSCOPE_BASE_URL", "`https://dashscope-intl.aliyuncs.com`",
             "REST base of the Qwen provider, without `/compatible-mode`"),
    Variable("DASHSCOPE_WS_URL", "derived from the base: `wss://…/api-ws/v1/realtime`", "realtime endpoint"),
    Variable("DASHSCOPE_INFERENCE_WS_URL", "derived from the base: `wss://…/api-ws/v1/inference`",
             "socket of the Qwen-Audio and CosyVoice models; the workspace's own host is recommended"),
    Variable("DASHSCOPE_REGION", "`intl`", "`intl` or `cn`; must agree with the base"),
    Variable("DASHSCOPE_WORKSPACE", "none", "workspace named in every call to the Qwen provider"),
    Variable("PROVIDER_DOWNLOAD_HOSTS", "`*.aliyuncs.com`",
             "comma-separated hosts that a provider's audio URL may point at"),
    Variable("QWEN_VC_TARGET_MODEL", "`qwen3-tts-vc-realtime-2026-01-15`",
             "model that new cloned voices are created for"),
    Variable("QWEN_VD_TARGET_MODEL", "`qwen3-tts-vd-realtime-2026-01-15`",
             "model that new designed voices are created for"),
    Variable("QWEN_DEFAULT_RESPONSE_FORMAT", "`mp3`", "`mp3` or `wav`: what new speech is made of"),
    Variable("QWEN_MAX_TEXT_CHARS", "`2000`", "longest text, in UTF-16 code units, in every mode"),
    Variable("QWEN_STARTS_PER_MINUTE", "`150`",
             "provider sessions that all processes on this database start a minute, for each model"),
    Variable("MODAL_JOB_SUBMIT", "required in modal mode", "Modal endpoint that takes a job"),
    Variable("MODAL_JOB_STATUS", "required in modal mode", "Modal endpoint that tells how a job stands"),
    Variable("MODAL_JOB_RESULT", "required in modal mode", "Modal endpoint that hands out a job's audio"),
    Variable("MODAL_JOB_CANCEL", "none", "Modal endpoint that cancels a job; without it cancelling stays local"),
    Variable("MODAL_ENDPOINT_VOICE_DESIGN", "required in modal mode", "Modal endpoint that designs a voice"),
    Variable("AUTH_JWT_SECRET", "this or `AUTH_JWKS_URL`", "HS256 secret of the sign-in service's tokens"),
    Variable("AUTH_JWT_SECRET_PREVIOUS", "none",
             "the secret before `AUTH_JWT_SECRET` was exchanged: its tokens are accepted as well"),
    Variable("AUTH_JWKS_URL", "none", "JWKS address for RS256 and ES256 tokens"),
    Variable("AUTH_JWT_AUDIENCE", "`authenticated`", "audience (`aud`) that a token must name"),
    Variable("STREAM_TICKET_SECRET", "derived from `AUTH_JWT_SECRET`",
             "signs stream tickets and local storage links; required where only `AUTH_JWKS_URL` is set"),
    Variable("STORAGE_URL", "required",
             "`s3://?endpoint=…&region=…` (credentials come from the usual AWS variables) or `file:///path`"),
    Variable("STORAGE_BUCKET_REFERENCES", "`references`", "bucket of the recordings that voices were cloned from"),
    Variable("STORAGE_BUCKET_GENERATIONS", "`generations`", "bucket of spoken audio"),
    Variable("PUBLIC_BASE_URL", "taken from the request", "how browsers reach this server, for absolute links"),
    Variable("FORWARDED_ALLOW_IPS", "`127.0.0.1`",
             "comma-separated proxies whose `X-Forwarded-*` headers are believed"),
    Variable("CORS_ALLOW_ORIGINS", "none", "comma-separated origins of pages on other hosts"),
    Variable("DESIGNS_PER_USER_PER_DAY", "`20`", "previews of designed voices that one person may have made a UTC day"),
    Variable("CLONES_PER_USER_PER_DAY", "`20`", "voices that one person may have cloned a UTC day"),
    Variable("PREVIEW_KEPT_HOURS", "`24`", "how long a preview that nobody saved can be saved; then it is given back"),
    Variable("CHARACTERS_PER_USER_PER_DAY", "none", "characters that one person may have spoken a UTC day"),
    Variable("STARTS_PER_USER_PER_MINUTE", "none", "speeches that one person may start a minute"),
    Variable("METRICS_TOKEN", "none",
             "bearer token for `/metrics`; without it only loopback and private addresses are answered"),
    Variable("ALLOW_GENERATE_MODE_TOGGLE", "`false`", 'lets a staging page offer "Realtime / Standard"'),
    Variable("SERVE_PAGE", "`false`", "serves the page at `/` (`dev` does so by itself)"),
    Variable("SYNTHESIS_CONCURRENCY", "`200`", "realtime sessions that one process may hold"),
    Variable("QUEUE_LIMIT", "`1000`",
             "waiting syntheses above which a request is answered 503; one person may fill half of it"),
    Variable("MEMORY_FOR_AUDIO", "`512MB`", "bytes that live speeches may reserve in one process; beyond, texts wait"),
    Variable("UNSTORED_LIMIT", "`20GB`", "bytes that may wait for the store before texts are answered 503"),
    Variable("OLDER_TASKS_MINUTES", "`30`",
             "after which an active task that nothing here works on ends; `1440` where an older system still works"),
    Variable("STREAMS_PER_USER", "`500`", "streams that one person may have open in one process; 429 beyond"),
    Variable("CONNECTIONS_LIMIT", "half of the files that may be open",
             "clients that may be connected to one process; beyond, only health, readiness and cancel are served. "
             "Requests of one person are answered a quarter as many at once, 429 beyond"),
    Variable("SHUTDOWN_NOTICE_SECONDS", "`0`",
             "how long `/api/ready` says 503 on SIGTERM before anything ends: one interval of your balancer's probe"),
    Variable("SHUTDOWN_GRACE_SECONDS", "`20`", "how long running syntheses may finish on SIGTERM"),
    Variable("DATABASE_POOL_SIZE", "`10`", "database connections of one process, at least 4, plus one that listens"),
    Variable("HOST", "`0.0.0.0`", "address to listen on"),
    Variable("PORT", "`8000`", "port to listen on"),
    Variable("LOG_LEVEL", "`info`", "`debug`, `info`, `warning`, `error` or `critical`"),
    Variable("LOG_FORMAT", "`json`", "`text` or `json`"),
)
# fmt: on


# How alike a name must be to one of ours to be pointed out; shorter ones are too much like anybody's.
_ALIKE, _LONG_ENOUGH = 0.86, 8


def misspelt(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Variables that nobody reads but that look like one of ours which is not set, one sentence each."""
    names = set(environ)  # of what is not ours the names alone
    ours = {variable.name for variable in VARIABLES}
    present = {name for name in ours & names if environ[name].strip()}
    unset = [name for name in ours - present if len(name) >= _LONG_ENOUGH]
    found = []
    for name in sorted(names - ours):
        # Servers that put their own name in front of every variable are many.
        plain = name.upper().removeprefix("UTTER_")
        meant = [plain] if plain in ours else difflib.get_close_matches(plain, unset, n=1, cutoff=_ALIKE)
        if meant and meant[0] not in present:
            found.append(f"{name} is set, and nothing here reads it: is {meant[0]} meant?")
    return tuple(found)


_Word = TypeVar("_Word", bound=str)
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}


class _Reader:
    """Reads variables one by one and collects what is wrong with them; a wrong one reads as its default meanwhile.

    Blank counts as unset: deployment templates often pass ``NAME=`` for what nobody filled in. No value of a secret,
    and no URL (it may hold a password), is repeated in a problem.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []

    def settings(self) -> Settings:
        mode: ProviderMode = self.word("TTS_PROVIDER_MODE", ("qwen", "modal"))
        base_url, region = self.dashscope_base_and_region()
        settings = Settings(
            database_url=self.database_url(),
            tts_provider_mode=mode,
            dashscope_api_key=self.header_value(
                "DASHSCOPE_API_KEY", required="TTS_PROVIDER_MODE is qwen" if mode == "qwen" else None
            )
            or "",
            dashscope_base_url=base_url,
            dashscope_ws_url=self.socket_address("DASHSCOPE_WS_URL", base_url, _REALTIME_PATH, region),
            dashscope_inference_ws_url=self.socket_address(
                "DASHSCOPE_INFERENCE_WS_URL", base_url, _INFERENCE_PATH, region
            ),
            dashscope_region=region,
            dashscope_workspace=self.header_value("DASHSCOPE_WORKSPACE"),
            provider_download_hosts=self.download_hosts(),
            qwen_vc_target_model=self.target_model("QWEN_VC_TARGET_MODEL", "vc", "cloned", region),
            qwen_vd_target_model=self.target_model("QWEN_VD_TARGET_MODEL", "vd", "designed", region),
            qwen_default_response_format=self.word("QWEN_DEFAULT_RESPONSE_FORMAT", ("mp3", "wav")),
            qwen_max_text_chars=self.whole_number("QWEN_MAX_TEXT_CHARS", 1, 100_000),
            qwen_starts_per_minute=self.whole_number("QWEN_STARTS_PER_MINUTE", 1, 100_000),
            modal_job_submit=self.modal_url("MODAL_JOB_SUBMIT", mode),
            modal_job_status=self.modal_url("MODAL_JOB_STATUS", mode),
            modal_job_result=self.modal_url("MODAL_JOB_RESULT", mode),
            modal_job_cancel=self.url("MODAL_JOB_CANCEL"),
            modal_endpoint_voice_design=self.modal_url("MODAL_ENDPOINT_VOICE_DESIGN", mode),
            auth_jwt_secret=self.text("AUTH_JWT_SECRET"),
            auth_jwt_secret_previous=self.text("AUTH_JWT_SECRET_PREVIOUS"),
            auth_jwks_url=self.url("AUTH_JWKS_URL"),
            auth_jwt_audience=self.text("AUTH_JWT_AUDIENCE") or _DEFAULTS["auth_jwt_audience"],
            stream_ticket_secret=self.text("STREAM_TICKET_SECRET"),
            storage=self.storage(),
            public_base_url=self.public_base_url(),
            cors_allow_origins=self.origins(),
            designs_per_user_per_day=self.whole_number("DESIGNS_PER_USER_PER_DAY", 0, 1_000_000),
            clones_per_user_per_day=self.whole_number("CLONES_PER_USER_PER_DAY", 0, 1_000_000),
            preview_kept_hours=self.decimal("PREVIEW_KEPT_HOURS", 0, 87_600, "hours"),
            characters_per_user_per_day=self.optional_number("CHARACTERS_PER_USER_PER_DAY", 0, 1_000_000_000),
            starts_per_user_per_minute=self.optional_number("STARTS_PER_USER_PER_MINUTE", 0, 1_000_000),
            metrics_token=self.text("METRICS_TOKEN"),
            allow_generate_mode_toggle=self.flag("ALLOW_GENERATE_MODE_TOGGLE"),
            serve_page=self.flag("SERVE_PAGE"),
            synthesis_concurrency=self.whole_number("SYNTHESIS_CONCURRENCY", 1, 10_000),
            queue_limit=self.whole_number("QUEUE_LIMIT", 0, 1_000_000),
            older_tasks_minutes=self.whole_number("OLDER_TASKS_MINUTES", 1, 1_000_000),
            memory_for_audio=self.bytes_of("MEMORY_FOR_AUDIO"),
            unstored_limit=self.bytes_of("UNSTORED_LIMIT"),
            streams_per_user=self.whole_number("STREAMS_PER_USER", 1, 100_000),
            connections_limit=self.optional_number("CONNECTIONS_LIMIT", 1, 1_000_000),
            shutdown_notice_seconds=self.decimal("SHUTDOWN_NOTICE_SECONDS", 0, 600, "seconds"),
            shutdown_grace_seconds=self.decimal("SHUTDOWN_GRACE_SECONDS", 0, 3600, "seconds"),
            # The spool and the leases have one each; a job's transaction and a request may need one at the same time.
            database_pool_size=self.whole_number("DATABASE_POOL_SIZE", LEAST_CONNECTIONS, 500),
            host=self.text("HOST") or _DEFAULTS["host"],
            port=self.whole_number("PORT", 0, 65_535),
            log_level=self.word("LOG_LEVEL", ("debug", "info", "warning", "error", "critical")),
            log_format=self.word("LOG_FORMAT", ("text", "json")),
            forwarded_allow_ips=self.forwarded_allow_ips(),
            misspelt=misspelt(self.environ),
        )
        self.check_secrets(settings)
        if self.problems:
            raise SettingsError([*self.problems, *settings.misspelt])
        return settings

    # Kinds of values

    def text(self, name: str) -> str | None:
        return self.environ.get(name, "").strip() or None

    def missing(self, name: str, why: str = "") -> None:
        self.problems.append(f"{name} is missing{': ' + why if why else ''}.")

    def wrong(self, name: str, rule: str) -> None:
        self.problems.append(f"{name} {rule}.")

    def word(self, name: str, words: tuple[_Word, ...]) -> _Word:
        value = self.text(name)
        if value is None:
            return cast(_Word, _DEFAULTS[name.lower()])
        for word in words:
            if value.lower() == word:
                return word
        self.wrong(name, f"must be {_any_of(words)}, not {value!r}")
        return cast(_Word, _DEFAULTS[name.lower()])

    def whole_number(self, name: str, low: int, high: int) -> int:
        value = self.text(name)
        default: int = _DEFAULTS[name.lower()]
        if value is None:
            return default
        # The pattern is narrower than int(): no signs, underscores or digits of other scripts, and no endless ones.
        if re.fullmatch(r"[0-9]{1,12}", value) and low <= int(value) <= high:
            return int(value)
        self.wrong(name, f"must be a whole number from {low} to {high}, not {value!r}")
        return default

    def bytes_of(self, name: str) -> int:
        """A size such as 512MB: a whole number, with kB, MB or GB (thousands of thousands) behind it, or without."""
        value = self.text(name)
        default: int = _DEFAULTS[name.lower()]
        if value is None:
            return default
        match = re.fullmatch(r"([0-9]{1,12}) ?([kKMG]?)B?", value)
        if match and int(match[1]) > 0:
            return int(match[1]) * {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}[match[2]]
        self.wrong(name, f"must be a size such as 512MB or 20GB, not {value!r}")
        return default

    def optional_number(self, name: str, low: int, high: int) -> int | None:
        return self.whole_number(name, low, high) if self.text(name) else None

    def decimal(self, name: str, low: int, high: int, of: str) -> float:
        value = self.text(name)
        default: float = _DEFAULTS[name.lower()]
        if value is None:
            return default
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) and low <= float(value) <= high:
            return float(value)
        self.wrong(name, f"must be a number of {of} from {low} to {high}, not {value!r}")
        return default

    def flag(self, name: str) -> bool:
        value = self.text(name)
        default: bool = _DEFAULTS[name.lower()]
        if value is None:
            return default
        if value.lower() in {"true", "1", "yes", "on"}:
            return True
        if value.lower() not in {"false", "0", "no", "off"}:
            self.wrong(name, f"must be true or false, not {value!r}")
        return False

    def words(self, name: str) -> list[str]:
        """A comma-separated list, without its blank items."""
        return [item for part in (self.text(name) or "").split(",") if (item := part.strip())]

    def header_value(self, name: str, *, required: str | None = None) -> str | None:
        """A text that travels in a request header, so one that no header can hold is refused here."""
        value = self.text(name)
        if value is None:
            if required:
                self.missing(name, f"it is required where {required}")
            return None
        if not re.fullmatch(r"[!-~]+", value):
            self.wrong(name, "holds a blank or another character that cannot stand in a request header")
        return value

    def split_url(self, name: str, value: str, schemes: tuple[str, ...]) -> SplitResult | None:
        """The parts of an absolute URL with a host; None after noting what is wrong with it."""
        rule = f"must be a URL that starts with {_any_of([scheme + '://' for scheme in schemes])}"
        try:
            parts = urlsplit(value)
            _ = parts.port  # raises where it is no number
        except ValueError:
            self.wrong(name, rule)
            return None
        if parts.scheme not in schemes or not parts.hostname or not re.fullmatch(r"[!-~]+", value):
            self.wrong(name, rule)
            return None
        if parts.username is not None or parts.password is not None:
            self.wrong(name, "must not hold a user name or a password")
            return None
        return parts

    def url(self, name: str, *, required: str | None = None) -> str | None:
        value = self.text(name)
        if value is None:
            if required:
                self.missing(name, f"it is required where {required}")
            return None
        return value if self.split_url(name, value, ("https", "http")) else None

    # Variables with rules of their own

    def database_url(self) -> str:
        value = self.text("DATABASE_URL")
        if value is None:
            self.missing("DATABASE_URL", "it names the PostgreSQL that this server works on")
            return ""
        try:
            parts = urlsplit(value)
            # A list of hosts (libpq's way) has several ports, which urlsplit cannot read as one number.
            usable = "," in parts.netloc or parts.port is None or parts.port > 0
        except ValueError:
            usable = False
        if not usable or parts.scheme not in {"postgresql", "postgres"}:
            self.wrong("DATABASE_URL", "must be a URL that starts with postgresql:// or postgres://")
            return value
        address, problems = read_database_address(value)
        for problem in problems:
            self.wrong("DATABASE_URL", problem)
        return address

    def dashscope_base_and_region(self) -> tuple[str, str]:
        region: str = self.word("DASHSCOPE_REGION", ("intl", "cn"))
        value = self.text("DASHSCOPE_BASE_URL") or _DEFAULTS["dashscope_base_url"]
        parts = self.split_url("DASHSCOPE_BASE_URL", value, ("https", "http"))
        if parts is None or not parts.hostname:
            return _DEFAULTS["dashscope_base_url"], region
        if "/compatible-mode" in value:
            self.wrong(
                "DASHSCOPE_BASE_URL",
                "must not contain /compatible-mode: that interface cannot speak; give the host alone",
            )
        elif parts.query or parts.fragment:
            self.wrong("DASHSCOPE_BASE_URL", "must not hold a query or a fragment")
        self.check_region("DASHSCOPE_BASE_URL", parts, region)
        # The vendor's SDK writes its base with /api/v1; both spellings mean the same address.
        return value.rstrip("/").removesuffix("/api/v1"), region

    def socket_address(self, name: str, base_url: str, path: str, region: str) -> str:
        value = self.text(name)
        if value is None:
            return socket_url(base_url, path)
        parts = self.split_url(name, value, ("wss", "ws"))
        if parts is None:
            return value
        if parts.query or parts.fragment:
            self.wrong(name, "must not hold a query or a fragment: the address alone is wanted")
        self.check_region(name, parts, region)
        return value

    def check_region(self, name: str, parts: SplitResult, region: str) -> None:
        host = parts.hostname or ""
        actual = region_of(host)
        if actual is None:
            return
        if actual != region:
            self.wrong(name, f"points at the region {actual}, but DASHSCOPE_REGION is {region}; keys are bound to one")
        if parts.scheme in {"http", "ws"}:
            self.wrong(name, f"must start with {parts.scheme}s://, since the key would be sent without encryption")

    def download_hosts(self) -> tuple[str, ...]:
        hosts = [host.lower().strip("[]") for host in self.words("PROVIDER_DOWNLOAD_HOSTS")]
        for host in hosts:
            if not _HOST_NAME.fullmatch(host) and not _is_address(host):
                self.wrong(
                    "PROVIDER_DOWNLOAD_HOSTS",
                    f"must list host names such as media.example.com or *.example.com, without scheme and port; "
                    f"{host!r} is none",
                )
        return tuple(hosts) or _DEFAULTS["provider_download_hosts"]

    def target_model(self, name: str, kind: Literal["vc", "vd"], voices: str, region: str) -> str:
        value = self.text(name)
        if value is None:
            return cast(str, _DEFAULTS[name.lower()])
        if not suits_kind(value, kind):
            self.wrong(
                name,
                f"must be a model for {voices} voices (qwen3-tts-{kind}-…, qwen-audio-…-tts-… or cosyvoice-v3…),"
                f" not {value!r}",
            )
        elif _CN_ONLY.match(value) and region != "cn":
            self.wrong(name, f"names {value}, which the region {region} does not offer; it needs DASHSCOPE_REGION=cn")
        elif (
            kind == "vd" and speaks_by_tasks(value) and region != "cn" and not self.text("MODAL_ENDPOINT_VOICE_DESIGN")
        ):
            self.wrong(
                name,
                f"names {value}, for which the region {region} designs no voices: set MODAL_ENDPOINT_VOICE_DESIGN too,"
                " whose previews are then enrolled as clones",
            )
        return value

    def modal_url(self, name: str, mode: ProviderMode) -> str | None:
        return self.url(name, required="TTS_PROVIDER_MODE is modal" if mode == "modal" else None)

    def storage(self) -> StorageSettings:
        references = self.bucket("STORAGE_BUCKET_REFERENCES", "references")
        generations = self.bucket("STORAGE_BUCKET_GENERATIONS", "generations")
        value = self.text("STORAGE_URL")
        nowhere = StorageSettings(kind="disk")
        rule = "must be s3://?endpoint=…&region=… or file:///an/absolute/path"
        if value is None:
            self.missing("STORAGE_URL", "it says where audio is kept, as s3://?endpoint=…&region=… or file:///path")
            return nowhere
        try:
            parts = urlsplit(value)
        except ValueError:
            self.wrong("STORAGE_URL", rule)
            return nowhere
        if "@" in parts.netloc:
            self.wrong("STORAGE_URL", "must not hold credentials; they are read from the usual AWS variables")
            return nowhere
        if parts.scheme == "file":
            root = unquote(parts.path)
            plain = not parts.query and not parts.fragment and "\0" not in root
            if parts.netloc not in {"", "localhost"} or not root.startswith("/") or not plain:
                self.wrong("STORAGE_URL", rule)
                return nowhere
            return StorageSettings(kind="disk", root=root, bucket_references=references, bucket_generations=generations)
        if parts.scheme != "s3":
            self.wrong("STORAGE_URL", rule)
            return nowhere
        if parts.netloc or parts.path.strip("/") or parts.fragment:
            self.wrong("STORAGE_URL", f"{rule}; buckets have variables of their own")
            return nowhere
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(options.keys() - {"endpoint", "region"}):
            self.wrong("STORAGE_URL", f"knows the options endpoint and region, not {_any_of(unknown)}")
        endpoint = options.get("endpoint") or None
        if endpoint:
            self.split_url("The endpoint of STORAGE_URL", endpoint, ("https", "http"))
        return StorageSettings(
            kind="s3",
            endpoint=endpoint and endpoint.rstrip("/"),
            region=options.get("region") or None,
            bucket_references=references,
            bucket_generations=generations,
        )

    def bucket(self, name: str, default: str) -> str:
        value = self.text(name) or default
        if not _BUCKET_NAME.fullmatch(value) or ".." in value:
            self.wrong(name, f"must be a bucket's name (letters, digits, dots, dashes), not {value!r}")
        return value

    def public_base_url(self) -> str | None:
        value = self.url("PUBLIC_BASE_URL")
        if value and ("?" in value or "#" in value):
            self.wrong("PUBLIC_BASE_URL", "must not hold a query or a fragment")
        elif value and urlsplit(value).path.strip("/") and self.flag("SERVE_PAGE"):
            self.wrong("PUBLIC_BASE_URL", "must not have a path where SERVE_PAGE is on: the page lives at the top")
        return value and value.rstrip("/")

    def origins(self) -> tuple[str, ...]:
        return tuple(origin for item in self.words("CORS_ALLOW_ORIGINS") if (origin := self.origin(item)) is not None)

    def origin(self, value: str) -> str | None:
        """An origin as browsers send it: lower case, no default port, no slash at its end."""
        if value == "*":
            return value
        parts = self.split_url("CORS_ALLOW_ORIGINS", value, ("https", "http"))
        if parts is None:
            return None
        if parts.path not in {"", "/"} or parts.query or parts.fragment:
            self.wrong("CORS_ALLOW_ORIGINS", f"must list origins such as https://app.example.com; {value!r} has a path")
            return None
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        default_port = {"http": 80, "https": 443}[parts.scheme]
        port = "" if parts.port in {None, default_port} else f":{parts.port}"
        return f"{parts.scheme}://{host}{port}"

    def forwarded_allow_ips(self) -> str:
        items = self.words("FORWARDED_ALLOW_IPS")
        for item in items:
            if item != "*" and not _is_address(item):
                self.wrong("FORWARDED_ALLOW_IPS", f"must list IP addresses, networks or *; {item!r} is none")
        return ",".join(items) or _DEFAULTS["forwarded_allow_ips"]

    def check_secrets(self, settings: Settings) -> None:
        if not settings.auth_jwt_secret and not self.text("AUTH_JWKS_URL"):
            self.problems.append(
                "AUTH_JWT_SECRET or AUTH_JWKS_URL is missing: without one of them nobody's token can be checked."
            )
        if self.text("AUTH_JWKS_URL") and not settings.auth_jwt_secret and not settings.stream_ticket_secret:
            self.missing(
                "STREAM_TICKET_SECRET", "it is required where only AUTH_JWKS_URL is set, and the same in every process"
            )


def _any_of(words: tuple[str, ...] | list[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _is_address(text: str) -> bool:
    """Whether it is an IP address or network."""
    try:
        ip_network(text, strict=False) if "/" in text else ip_address(text)
    except ValueError:
        return False
    return True
