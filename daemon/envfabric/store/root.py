"""ROOT: its layout on the NAS, its marker, and the checks before anything is written to it."""

import contextlib
import json
import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from envfabric.core.errors import ConfigError, StoreError, root_characters_are_valid
from envfabric.store.files import Files

MARKER = ".envfabric.json"
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


def init_root(path: Path, files: Files) -> Root:
    """Prepares a NAS folder and proves that it can hold a fabric; does no harm to one that does.

    Raises `ConfigError` where the folder can't be used, with what to do about it.
    """
    root = Root(check_path(path))
    try:
        if root.marker.exists():
            read_marker(root)
            taken = []
        else:
            taken = _taken(root.path)
    except OSError as error:
        raise ConfigError(f"{root.path} can't be read: {error.strerror}") from error
    if taken:
        raise ConfigError(
            f"{root.path} has no {MARKER} but holds {', '.join(taken)}; choose an empty folder, or mount "
            "the NAS that belongs there."
        )
    try:
        files.make_folder(root.path)
        for name in FOLDERS:
            files.make_folder(root.path / name)
        probe_links(root)
        if not root.marker.exists():
            write_marker(root, files, {"fabric": uuid.uuid4().hex, "created_at": now()})
    except OSError as error:
        raise ConfigError(f"{root.path} can't be prepared: {error}") from error
    return root


def _taken(path: Path) -> list[str]:
    """Our names in a folder without a marker; empty folders, of an init that failed, do not count."""
    names = {*FOLDERS, "index.json"} & set(os.listdir(path)) if path.is_dir() else set()
    return sorted(name for name in names if not (path / name).is_dir() or os.listdir(path / name))


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
    read_marker(root)
    return root


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
    if schema != 1:
        raise ConfigError(
            f"{root.marker} is of another version (schema {schema}, known: 1); use the release that wrote it."
        )
    return dict(content)


def write_marker(root: Root, files: Files, content: dict[str, object]) -> None:
    """Replaces the marker."""
    text = json.dumps({"schema": 1, **content}, indent=2)
    files.write_atomic(root.marker, text.encode())


def check_source(root: Root, root_commits: list[str], spec_path: str) -> bool:
    """Whether ROOT is recorded as serving this source; False where nothing is recorded yet.

    A repository has several root commits once an unrelated history was merged; the recorded one counts.
    Raises `ConfigError` for another source.
    """
    recorded = read_marker(root).get("source")
    if not isinstance(recorded, dict):
        return False
    if recorded.get("root_commit") in root_commits and recorded.get("path") == spec_path:
        return True
    raise ConfigError(
        f"{root.path} serves the repository that began with {str(recorded.get('root_commit'))[:12]} "
        f"(path {recorded.get('path') or '.'!r}), not the one that began with {root_commits[0][:12]} "
        f"(path {spec_path or '.'!r}). Use the right --root, or hand it over with --adopt."
    )


def claim_source(root: Root, files: Files, root_commits: list[str], spec_path: str, adopt: bool) -> None:
    """Records whose specs ROOT serves. Raises `ConfigError` for another source without `adopt`."""
    try:
        if check_source(root, root_commits, spec_path):
            return
    except ConfigError:
        if not adopt:
            raise
    source = {"root_commit": root_commits[0], "path": spec_path}
    write_marker(root, files, {**read_marker(root), "source": source})


def probe_links(root: Root) -> None:
    """Proves that files of uv_cache/ can be hardlinked into store/, or raises `ConfigError`."""
    name = f".probe.{uuid.uuid4().hex}"
    source, target = root.uv_cache / name, root.store / name
    try:
        source.write_bytes(b"probe")
        os.link(source, target)
        linked = source.stat().st_ino == target.stat().st_ino
    except OSError as error:
        raise ConfigError(
            f"{root.path} can't hardlink from uv_cache/ to store/: {error.strerror}. Both must be one file "
            "system that has hard links."
        ) from error
    finally:
        for path in (source, target):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    if not linked:
        raise ConfigError(f"{root.path}: a hardlink became a copy. Choose a file system that has hard links.")


def now(later: float = 0.0) -> str:
    """The time, or the one `later` seconds from now, as it is written in every file: UTC, ISO 8601."""
    moment = datetime.now(UTC) + timedelta(seconds=later)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
