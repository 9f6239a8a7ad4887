"""`python -m server dev`: the whole product on one machine, with nothing of the shell's environment that could bill.

The embedded database, local disk storage and the simulated providers, unless the command line says otherwise.
"""

import asyncio
import contextlib
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import msgspec

from server import logs, serve
from server.app import create_app
from server.database.migrations import MigrationError, migrate
from server.dev.demo import DEMO_USER, seed
from server.dev.postgres import PostgresError, running_postgres
from server.dev.session import demo_token, session_route
from server.dev.simulator import running_simulator
from server.settings import Settings
from server.startup import startup_problems

PROVIDER_VARIABLES = ("DASHSCOPE_", "MODAL_", "PROVIDER_DOWNLOAD_HOSTS")
# What the command line or this machine decides, whatever the shell says.
QWEN_AUDIO = "qwen-audio-3.0-tts-flash"
DECIDED_HERE = ("DATABASE_URL", "TTS_PROVIDER_MODE", "HOST", "PORT")


@dataclass(frozen=True, kw_only=True)
class DevOptions:
    """The command line of ``dev``."""

    host: str = "127.0.0.1"
    port: int = 8000
    data_dir: Path = Path(".dev")
    provider: str = "qwen"
    database_url: str | None = None
    real_provider: bool = False


def run(options: DevOptions, environ: Mapping[str, str]) -> int:
    """Start everything, serve until told to stop, stop everything."""
    options = replace(options, data_dir=options.data_dir.resolve())
    database = "the database of --database-url" if options.database_url else "an embedded PostgreSQL"
    providers = "the provider of your environment, which may bill you" if options.real_provider else "simulated speech"
    print(
        f"utter dev: {options.provider} mode with {providers}, {database}, audio and data in {options.data_dir}",
        flush=True,
    )
    options.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            url = options.database_url
            if url is None:
                postgres = stack.enter_context(running_postgres(options.data_dir, say=_say))
                url = postgres.url("postgres")
            with asyncio.Runner(loop_factory=serve.loop_factory()) as runner:
                return runner.run(_serve(options, environ, url))
    except (PostgresError, MigrationError) as exc:
        print(exc, file=sys.stderr)
        return 1


def _say(text: str) -> None:
    print(text, flush=True)


async def _serve(options: DevOptions, environ: Mapping[str, str], database_url: str) -> int:
    await migrate(database_url)
    async with contextlib.AsyncExitStack() as stack:
        providers = {name: value for name, value in environ.items() if name.startswith(PROVIDER_VARIABLES)}
        if not options.real_provider:
            simulator = await stack.enter_async_context(running_simulator())
            providers = simulator.environment()
        settings = _settings(options, environ, database_url, providers)
        logs.configure(settings.log_level, settings.log_format)
        problems = await startup_problems(settings)
        if problems:
            print("\n".join(problems), file=sys.stderr)
            return 1
        user_id = DEMO_USER
        if options.database_url is None:
            await seed(settings)
        server = serve.Server(
            create_app(settings, extra_routes=[session_route(settings, user_id)]),
            settings,
            started=lambda: _announce(options, settings, user_id, server.servers[0].sockets[0].getsockname()[1]),
        )
        await server.serve()
        return 0 if server.started else 1


def _settings(
    options: DevOptions, environ: Mapping[str, str], database_url: str, providers: Mapping[str, str]
) -> Settings:
    """The settings of this run. Variables that could bill or migrate something by accident are not looked at."""
    ours = {
        name: value
        for name, value in environ.items()
        if name not in DECIDED_HERE and not name.startswith(PROVIDER_VARIABLES)
    }
    secret = _kept_secret(options.data_dir / "secret")
    defaults = {
        "AUTH_JWT_SECRET": secret,
        "STORAGE_URL": (options.data_dir / "storage").as_uri(),
        "SERVE_PAGE": "true",
        "LOG_FORMAT": "text",
        "LOG_LEVEL": "info",
    }
    family = options.provider == "qwen-audio"
    models = dict.fromkeys(("QWEN_VC_TARGET_MODEL", "QWEN_VD_TARGET_MODEL"), QWEN_AUDIO) if family else {}
    decided = {
        **models,
        "DATABASE_URL": database_url,
        "TTS_PROVIDER_MODE": "qwen" if family else options.provider,
        "HOST": options.host,
        "PORT": str(options.port),
    }
    return Settings.from_environ({**defaults, **ours, **providers, **decided})


def _kept_secret(path: Path) -> str:
    """A secret of this data folder, so that tokens and links survive a restart."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
    return path.read_text().strip()


def _announce(options: DevOptions, settings: Settings, user_id: UUID, port: int) -> None:
    """Say where it is: on the port that it was given, where it asked for any."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"
    token = demo_token(settings, user_id)
    note = options.data_dir / "dev.json"
    note.write_bytes(msgspec.json.encode({"url": url, "token": token, "user_id": str(user_id)}))
    print(f"\n  page   {url}/\n  token  {token}\n  (both also in {note})\n", flush=True)
