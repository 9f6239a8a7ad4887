"""The files of docs/deploy that are no proxy's: the unit and the environment."""

import shutil
import subprocess
from pathlib import Path

import pytest

from server.settings import VARIABLES, Settings

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
UNIT = (DEPLOY / "utter.service").read_text()


def variables() -> dict[str, str]:
    """What systemd reads from docs/deploy/environment."""
    lines = (DEPLOY / "environment").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    """An unknown word would be a warning and no failure, so nothing may be said at all."""
    if shutil.which("systemd-analyze") is None:
        pytest.fail("systemd is not installed. On Debian and Ubuntu: `sudo apt-get install systemd`.", pytrace=False)
    assert UNIT.count("/opt/utter/bin/utter ") == 2
    unit = tmp_path / "utter.service"
    unit.write_text(UNIT.replace("/opt/utter/bin/utter ", f"{shutil.which('true')} "))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_waits_longer_than_the_server_takes_to_leave() -> None:
    """A process that is killed cuts the speeches that it was still given time for."""
    grace = Settings.from_environ(variables()).shutdown_grace_seconds
    (stop,) = (int(line.split("=")[1]) for line in UNIT.splitlines() if line.startswith("TimeoutStopSec="))
    assert stop >= grace + 15


def test_the_environment_is_complete_and_within_the_units_reach() -> None:
    """Nothing that is needed is missing, nothing is misspelt, and audio goes where the unit may write."""
    named = variables()
    assert set(named) <= {variable.name for variable in VARIABLES}
    settings = Settings.from_environ(named)
    assert "StateDirectory=utter" in UNIT
    assert Path(settings.storage.root).is_relative_to("/var/lib/utter")
    assert settings.host == "127.0.0.1", "only the proxy is let in"
