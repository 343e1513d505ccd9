"""ROOT: its layout on the NAS, its marker, and the checks before anything is written to it.

A folder becomes a ROOT in store/prepare.py; here it is opened and read. Only `write_marker` changes
anything, and only the marker.
"""

import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from envfabric.core.errors import ConfigError, StoreError, root_characters_are_valid
from envfabric.store.files import Files

MARKER = ".envfabric.json"
SCHEMA = 1
"""The form of everything on ROOT that this release knows and writes."""
_HEAD = re.compile(rb'\s*\{\s*"schema"\s*:\s*([0-9]{1,9})\b')
FOLDERS = (
    "bytecode",
    "envs",
    "failures",
    "generations",
    "history",
    "leases",
    "locks",
    "pythons",
    "requests",
    "staging",
    "state",
    "store",
    "trash",
    "uv_cache",
)


@dataclass(frozen=True, slots=True)
class Root:
    """The paths of the contract below one ROOT."""

    path: Path

    def __getattr__(self, name: str) -> Path:
        # One attribute for each folder of the layout: root.store, root.uv_cache …
        if name in FOLDERS:
            return self.path / name
        raise AttributeError(name)

    @property
    def marker(self) -> Path:
        """What `envfabric init` wrote: an unmounted NAS looks like an empty folder without it."""
        return self.path / MARKER

    @property
    def index(self) -> Path:
        """The index that consumers read."""
        return self.path / "index.json"

    def closure(self, digest: str) -> Path:
        """A closure's sealed folder."""
        return self.path / "store" / digest

    def python(self, digest: str) -> str:
        """The interpreter of a closure, as consumers are given it."""
        return f"{self.path}/store/{digest}/.venv/bin/python"

    def require_marker(self) -> None:
        """Raises `StoreError` where ROOT is not there now: not mounted, or another folder."""
        try:
            present = self.marker.is_file()
        except OSError as error:
            raise StoreError(f"{self.path} can't be read: {error.strerror}. Check the NAS mount.") from error
        if not present:
            raise StoreError(
                f"{self.path} has no {MARKER}: is the NAS mounted? Nothing is written until it is back."
            )


def open_root(path: Path) -> Root:
    """ROOT as prepared earlier. Raises `ConfigError` where it was not."""
    root = Root(check_path(path))
    try:
        prepared = root.marker.is_file()
    except OSError as error:
        raise ConfigError(f"{root.marker} can't be read: {error.strerror}") from error
    if not prepared:
        raise ConfigError(
            f"{root.path} was not prepared (no {MARKER}). Mount the NAS, or run: envfabric init {root.path}"
        )
    check_schema(root)
    return root


def check_schema(root: Root) -> dict[str, object]:
    """The marker's content, where neither it nor the index is of a newer form. Raises `ConfigError`.

    An older release takes a newer index for a spoilt one, and would publish its own over it.
    """
    content = read_marker(root)
    try:
        schema = schema_of(root.index)
    except FileNotFoundError:
        return content
    except OSError as error:
        raise ConfigError(f"{root.index} can't be read: {error.strerror}") from error
    if schema is not None and schema > SCHEMA:
        raise ConfigError(
            f"{root.index} is of a newer version (schema {schema}, known: {SCHEMA}), and nothing was changed. "
            "Use the release that wrote it, or see docs/operations.md for the way back."
        )
    return content


def schema_of(path: Path) -> int | None:
    """The form that a file on ROOT says it is of; None where it says nothing. Raises `OSError`."""
    with path.open("rb") as file:
        # Every release writes it first: of a large file a few bytes are read.
        found = _HEAD.match(file.read(64))
    return int(found[1]) if found else None


def check_path(path: Path) -> Path:
    """ROOT's absolute path. Raises `ConfigError` for one that consumers could not use."""
    absolute = Path(os.path.abspath(path))
    if not root_characters_are_valid(absolute):
        raise ConfigError(
            f"{absolute} has characters besides A-Z a-z 0-9 / . _ - ; Ray passes interpreter paths through a "
            "shell unquoted. Choose another folder."
        )
    real = absolute.resolve()
    for folder in dict.fromkeys((absolute, *absolute.parents, real, *real.parents)):
        if os.path.exists(folder / "pyproject.toml"):
            raise ConfigError(
                f"{folder}/pyproject.toml would be taken by uv for a workspace around every build. Choose a "
                "folder with no pyproject.toml in it or above it."
            )
    return absolute


def read_marker(root: Root) -> dict[str, object]:
    """The marker's content. Raises `ConfigError` where it can't be understood."""
    try:
        content = json.loads(root.marker.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{root.marker} can't be read: {error}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ConfigError(
            f"{root.marker} is of another version (schema {schema}, known: {SCHEMA}); use the release that wrote it."
        )
    return dict(content)


def write_marker(root: Root, files: Files, content: dict[str, object]) -> None:
    """Replaces the marker. Raises `OSError`."""
    text = json.dumps({"schema": SCHEMA, **content}, indent=2)
    # By way of staging/, which a mount point that lost its NAS does not have, and which recovery empties.
    files.write_atomic(root.marker, text.encode(), via=root.staging)


def now(later: float = 0.0) -> str:
    """The time, or the one `later` seconds from now, as it is written in every file: UTC, ISO 8601."""
    moment = datetime.now(UTC) + timedelta(seconds=later)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
