"""A NAS folder becomes ROOT: its folders, the probe, and last of all the marker; and whose specs it serves.

The marker is what makes a folder a ROOT, so it is written when everything else has been proven: what a
refusal or a crash leaves behind before that are empty folders of ours, which the next try takes over.
"""

import os
import uuid
from pathlib import Path

from envfabric.core.errors import ConfigError
from envfabric.store.files import Files
from envfabric.store.mounts import refusal
from envfabric.store.probe import MOST_LINKS, Probe, is_leftover, probe
from envfabric.store.root import (
    FOLDERS,
    MARKER,
    Root,
    check_path,
    check_schema,
    now,
    read_marker,
    write_marker,
)


def prepare(path: Path, files: Files, most_links: int = MOST_LINKS) -> tuple[Root, Probe]:
    """Prepares a NAS folder and proves that it can hold a fabric; does no harm to one that does.

    Gives what the probe found, with up to `most_links` hard links tried. Raises `ConfigError` where the
    folder can't be used, with what to do about it; it then has no marker, unless it had one before.
    """
    root = Root(check_path(path))
    try:
        prepared = root.marker.exists()
        taken = [] if prepared else _taken(root.path)
    except OSError as error:
        raise refusal(root.path, error, "reading it") from error
    if prepared:
        check_schema(root)
    if taken:
        raise ConfigError(
            f"{root.path} has no {MARKER} but holds {', '.join(taken)}; choose an empty folder, or mount "
            "the NAS that belongs there."
        )
    try:
        # A ROOT that was there a moment ago is not made again: its NAS was lost.
        if not prepared:
            for folder in (*reversed(root.path.parents), root.path):
                files.make_folder(folder)
        for name in FOLDERS:
            files.make_folder(root.path / name)
    except OSError as error:
        raise refusal(root.path, error, "making its folders") from error
    found = probe(root, files, most_links)
    try:
        if not root.marker.exists():
            write_marker(root, files, {"fabric": uuid.uuid4().hex, "created_at": now()})
    except OSError as error:
        raise refusal(root.path, error, "writing its marker") from error
    return root, found


def init_root(path: Path, files: Files) -> Root:
    """`prepare` for those who don't look at what the probe found. Raises `ConfigError`."""
    return prepare(path, files)[0]


def _taken(path: Path) -> list[str]:
    """Our names in a folder without a marker; what an init leaves that failed or was killed does not count."""
    names = {*FOLDERS, "index.json"} & set(os.listdir(path)) if path.is_dir() else set()
    return sorted(name for name in names if not (path / name).is_dir() or _holds_something(path / name))


def _holds_something(folder: Path) -> bool:
    names = os.listdir(folder)
    # write_marker's file on its way, see there.
    return any(not is_leftover(name) and not name.startswith(f".{MARKER}.") for name in names)


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
