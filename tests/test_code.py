"""The code itself: lint, form, types and layers, so that one command checks everything."""

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from envfabric.service.settings import Settings, variables

PROJECT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", "."],
        ["ruff", "format", "--no-cache", "--check", "."],
        ["mypy", "--cache-dir=/dev/null", "--no-error-summary"],
        ["lint-imports", "--no-cache"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_tool_finds_nothing(command: list[str]) -> None:
    """ruff, mypy in strict mode and import-linter are content with all of the code."""
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_layer_check_can_fail(tmp_path: Path) -> None:
    """An import that goes up is found: the contracts name the rooms that there are."""
    text = (PROJECT / "pyproject.toml").read_text()
    layers = re.findall(
        r'"envfabric\.(\w+)(?: \| envfabric\.(\w+))?"', text.split("layers = [")[1].split("]")[0]
    )
    named = {name for pair in layers for name in pair if name} | {"client"}
    there = {path.parent.name for path in (PROJECT / "daemon/envfabric").glob("*/__init__.py")}
    assert named == there


def test_every_module_says_what_it_is_for() -> None:
    """Each module begins with a paragraph, and stays small enough to be read in one go."""
    for path in (PROJECT / "daemon").rglob("*.py"):
        text = path.read_text()
        assert text.startswith('"""'), path
        assert len(text.splitlines()) <= 400, f"{path} is crowded: split it"


def test_readme_names_every_setting() -> None:
    """Each setting stands in the README's table with its variable."""
    readme = (PROJECT / "README.md").read_text()
    for name in variables():
        assert f"`{name}`" in readme
    for name in Settings.model_fields:
        assert f"`{name}`" in readme or f"`{name}." in readme


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """pytest goes into every folder that has tests: a name that it skips by default would hide them all."""
    skipped = pytestconfig.getini("norecursedirs")
    folders = {path.parent.relative_to(PROJECT) for path in (PROJECT / "tests").rglob("test_*.py")}
    assert not [
        folder for folder in folders for part in folder.parts if any(fnmatch(part, one) for one in skipped)
    ]
