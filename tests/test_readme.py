"""The README says what is true today."""

import re
import tomllib
from pathlib import Path

from server.__main__ import _parser
from server.handlers.openapi import document
from server.settings import VARIABLES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SLOT = re.compile(r"{\w+}")


def test_the_settings_table_is_the_settings() -> None:
    """Every variable with its meaning and default, and no other."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+) \| (.+) \|$", README, re.MULTILINE)
    assert rows == [(variable.name, variable.meaning, variable.default) for variable in VARIABLES]


def test_every_file_it_points_at_is_there() -> None:
    """A link that leads nowhere costs a newcomer's patience."""
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_procfile_is_quoted_line_by_line() -> None:
    """What runs in production is explained."""
    for line in (ROOT / "Procfile").read_text().splitlines():
        assert f"`{line}`" in README


def test_every_command_it_names_exists() -> None:
    """`python -m server …` with a word that no parser knows would be a lie."""
    named = set(re.findall(r"python -m server ([a-z]+)", README))
    assert named <= set(_parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr, arg-type]
    assert {"dev", "serve", "migrate", "simulate", "token", "reconcile", "doctor", "renew"} == named


def test_the_changelog_ends_with_the_version_that_is_built() -> None:
    """What `--version` says is released, and what is coming stands above it."""
    headings = re.findall(
        r"^## \[([^\]]+)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == project["version"]
    assert all(date for _, date in headings[1:])


def test_its_two_examples_for_pages_are_six_lines_each() -> None:
    examples = re.findall(r"```js\n(.*?)```", README, re.DOTALL)
    assert [len(example.splitlines()) for example in examples] == [6, 6]


def test_it_lists_every_address() -> None:
    table = README.partition("## The addresses")[2].partition("\n## ")[0]
    described = {
        f"{method.upper()} {SLOT.sub(':id', path)}"
        for path, methods in document()["paths"].items()
        for method in methods
    }
    assert set(re.findall(r"`([A-Z]+ /\S+)`", table)) == described


def test_the_other_documents_at_the_top_name_what_is_there() -> None:
    """Links, and files by their path; those with a pattern or a blank to fill in are none."""
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text()
        paths = re.findall(r"\]\(([^)#]+)\)", text)
        paths += re.findall(r"`((?:\.ci|docs|server|sql|tests)/[\w./-]+)`", text)
        assert [path for path in paths if not (ROOT / path).exists()] == [], name
