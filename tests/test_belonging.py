"""`make check FILE=…` finds the tests that would notice a mistake in the file."""

from pathlib import Path

import pytest

from tests.belonging import ALSO, ALWAYS, ROOT, belonging_to, main


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("server/audio/mp4.py", {"tests/audio/test_mp4.py", ALWAYS}),
        ("server/page/dom.js", {"tests/handlers/test_page.py", "tests/page"}),
        ("sql/0001_core_tables.up.sql", {"tests/database/test_migrations.py"}),
        ("tests/audio/test_wav.py", {"tests/audio/test_wav.py", ALWAYS}),
        ("tests/page/ear.js", {"tests/page"}),
    ],
)
def test_a_file_and_its_tests(file: str, tests: set[str]) -> None:
    """By its name, by who imports it, and by the table."""
    assert (ROOT / file).exists()
    assert tests <= set(belonging_to(file))


def test_who_imports_a_module_belongs_to_it() -> None:
    """Whatever the file with the test is called."""
    assert "tests/providers/test_pacing.py" in belonging_to("server/errors.py")


def test_every_module_has_a_test_that_would_notice() -> None:
    """A module that no test knows by name or import is named in the table, with those that go through it."""
    modules = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "server").rglob("*.py"))]
    assert [file for file in modules if not file.endswith("__init__.py") and set(belonging_to(file)) == {ALWAYS}] == []


def test_the_table_names_tests_and_files_that_are_there() -> None:
    """A renamed file takes its row along."""
    tests = {test for tests in ALSO.values() for test in tests}
    assert sorted(test for test in tests if not (ROOT / test).exists()) == []
    assert [pattern for pattern in ALSO if not list(ROOT.glob(pattern))] == []


def test_a_name_that_is_no_file_is_answered_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """`make check` without FILE, or with a folder."""
    for arguments in ([], ["--"], ["server", "--"], [str(Path("nowhere.py")), "--"]):
        assert main(arguments) == 2
        assert "make check FILE=" in capsys.readouterr().out
