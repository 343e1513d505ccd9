"""Finds ROOT and reads its index, as any consumer may.

A network file system's client that has known a name for long may open the old index.json for up to a
minute after it was replaced; opening the folder first makes the change visible at once.
"""

import difflib
import errno
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLAGS = "give --root, ENVFABRIC_ROOT, or root in envfabric.toml."
PYTHON = "give root=…, set ENVFABRIC_ROOT, or write root in envfabric.toml."
"""How ROOT can be told to a command, and to a program that calls the client."""
CONFIG_FILES = (Path("envfabric.toml"), Path("/etc/envfabric/envfabric.toml"))
"""Where the settings are looked for when neither --config nor ENVFABRIC_CONFIG names them."""


_TRIES = 4


class EnvfabricError(RuntimeError):
    """An environment can't be used now; the message says why and what to do."""


class RootNotFound(EnvfabricError):
    """ROOT is not known, not mounted, or has no index."""


class UnknownEnvironment(EnvfabricError):
    """The index has no such id."""


class NotReady(EnvfabricError):
    """The environment is being built and nothing is served yet."""


class EnvironmentFailed(EnvfabricError):
    """The environment could not be built and nothing is served."""


def find_config(given: str | os.PathLike[str] | None = None) -> Path | None:
    """The settings file: `given`, else ENVFABRIC_CONFIG, else the first of `CONFIG_FILES` there is."""
    named = given or os.environ.get("ENVFABRIC_CONFIG")
    if named:
        return Path(named)
    return next((path for path in CONFIG_FILES if path.is_file()), None)


def find_root(
    root: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    advice: str = FLAGS,
) -> Path:
    """ROOT: the argument, else ENVFABRIC_ROOT, else `root` of the settings.

    Raises `RootNotFound`, with `advice` on how to tell it where that is asked.
    """
    named = root or os.environ.get("ENVFABRIC_ROOT")
    if named:
        return Path(named)
    path = find_config(config)
    if path is not None:
        try:
            value = tomllib.loads(path.read_text("utf-8")).get("root")
        except (OSError, ValueError) as error:
            raise RootNotFound(f"the settings {path} can't be read: {error}") from error
        if isinstance(value, str):
            return Path(value)
    raise RootNotFound(f"ROOT is not known: {advice}")


def read_index(root: Path) -> dict[str, Any]:
    """The index that is published under ROOT now. Raises `RootNotFound`, and `NotReady` before the first."""
    path = root / "index.json"
    try:
        os.close(os.open(root, os.O_RDONLY | os.O_DIRECTORY))
        content = json.loads(read_whole(path))
    except FileNotFoundError:
        if (root / ".envfabric.json").is_file():
            raise NotReady(f"{path} is not there yet: the daemon has not published anything.") from None
        raise RootNotFound(
            f"{path} is not there. Is the NAS mounted on this machine, and has the daemon published?"
        ) from None
    except (OSError, ValueError) as error:
        raise RootNotFound(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != 1:
        raise RootNotFound(f"{path} is of a form that this release does not know; update environment-fabric.")
    return content


def read_whole(path: Path) -> bytes:
    """The content of a file that others replace. Raises `OSError`."""
    for left in reversed(range(_TRIES)):
        try:
            return path.read_bytes()
        except OSError as error:
            # NFS says so of a file that was replaced between its opening and its reading: the name has another one now.
            if error.errno != errno.ESTALE or not left:
                raise
    raise AssertionError("the last try returns or raises")


def environment(index: Mapping[str, Any], spec_id: str) -> dict[str, Any]:
    """What the index says of one id. Raises `UnknownEnvironment`."""
    found = index["environments"].get(spec_id)
    if isinstance(found, dict):
        return found
    for problem in index["problems"]:
        if problem["path"].startswith(f"{spec_id}/"):
            raise UnknownEnvironment(f"{spec_id} is refused: {problem['message']}")
    known = sorted(index["environments"])
    same = [one for one in known if one.endswith(f"/{spec_id}")]
    close = same or difflib.get_close_matches(spec_id, known, n=3)
    hint = (
        f"Did you mean {' or '.join(close)}?"
        if close
        else f"Commit {spec_id}/pyproject.toml, or check the id."
    )
    if "/" not in spec_id and not close:
        hint = "An id is <workflow>/<node>."
    raise UnknownEnvironment(f"no environment {spec_id!r} in revision {str(index['revision'])[:12]}. {hint}")
