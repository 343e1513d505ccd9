"""Whether Ray can run in an environment, asked before Ray is: it would hang, or run the wrong thing, without a word.

A worker whose interpreter is missing or has no ray is started again for ever, and its task never ends; with
another Ray it runs and fails somewhere. Reads ROOT and writes nothing; `starts` is all that runs anything.
"""

import json
import os
import platform
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envfabric.client.index import EnvironmentFailed, RootNotFound, find_config

MATCH_LEVEL = "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"
"""Ray's own variable: `minor` lets patch versions of Python differ."""
_START = """
import sys
print(".".join(map(str, sys.version_info[:3])))
try:
    import ctypes
except ImportError:
    sys.argv[1:] = []
for library in sys.argv[1:]:
    ctypes.CDLL(library)
"""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is known of the cluster's Ray and Python, in full; None for what is not known."""

    ray: str | None
    python: str | None
    source: str
    """Where that is known from, for messages."""


def of_this_process(source: str) -> Cluster | None:
    """The cluster as this process says: Ray connects no two versions of itself. None where ray isn't imported."""
    version = getattr(sys.modules.get("ray"), "__version__", None)
    return None if version is None else Cluster(version, platform.python_version(), source)


def of_settings(config: str | os.PathLike[str] | None = None) -> Cluster:
    """The cluster as `[ray]` of the settings says, or the ENVFABRIC_RAY__… variables; unknown by default."""
    told: dict[str, Any] = {}
    path = find_config(config)
    if path is not None:
        try:
            found = tomllib.loads(path.read_text("utf-8")).get("ray")
            told = found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            # ROOT was found in another way, and its settings are not this reader's to judge.
            path = None
    version = os.environ.get("ENVFABRIC_RAY__VERSION") or told.get("version")
    python = os.environ.get("ENVFABRIC_RAY__PYTHON") or told.get("python")
    return Cluster(version, python, f"[ray] of {path}" if path else "ENVFABRIC_RAY__…")


def closure_told(root: Path, name: str) -> dict[str, Any]:
    """What a closure's metadata.json says. Raises `RootNotFound` and `EnvironmentFailed` where it is not there."""
    path = root / "store" / name / "metadata.json"
    try:
        # A client of a network file system then sees the newest names.
        os.close(os.open(root / "store", os.O_RDONLY | os.O_DIRECTORY))
    except OSError as error:
        raise RootNotFound(
            f"{root}/store can't be read ({error.strerror}). Is the NAS mounted at {root} on this machine "
            f"({os.uname().nodename})?"
        ) from None
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise EnvironmentFailed(
            f"{root}/store/{name} is not there: it was collected, or the digest is wrong. Ask anew for what is "
            "served: envfabric.runtime_env(id), or `envfabric which ID`."
        ) from None
    except (OSError, ValueError) as error:
        raise EnvironmentFailed(f"{path} can't be read: {error}") from error
    if not isinstance(told, dict):
        raise EnvironmentFailed(f"{path} is damaged: run `envfabric verify --repair`.")
    return told


def refuse_unfit(spec_id: str, ray: str | None, python: str | None, cluster: Cluster) -> None:
    """Raises `EnvironmentFailed` where the environment has no ray, another one, or another minor of Python.

    Another patch version of Python is let pass: Ray prints that they differ, and runs (`other_patch`).
    """
    if ray is None:
        line = f"ray=={cluster.ray}" if cluster.ray else "ray==<the cluster's version>"
        raise EnvironmentFailed(
            f'{spec_id} has no ray: a Ray task in it would hang. Add "{line}" to its dependencies.'
        )
    if cluster.ray is not None and ray != cluster.ray:
        raise EnvironmentFailed(
            f"{spec_id} has ray {ray}, and the cluster runs {cluster.ray} (by {cluster.source}): both must be the "
            f'same. Write "ray=={cluster.ray}" in its dependencies and commit it.'
        )
    if python is not None and cluster.python is not None and _minor(python) != _minor(cluster.python):
        raise EnvironmentFailed(
            f"{spec_id} has Python {python}, and the cluster runs {cluster.python} (by {cluster.source}): Ray needs "
            f'the same minor version. Write python = "{_minor(cluster.python)}" in its [tool.envfabric] and commit it.'
        )


def other_patch(spec_id: str, python: str | None, cluster: Cluster) -> str | None:
    """What is said where an environment has another patch version of the cluster's Python; None where it has not."""
    if python is None or cluster.python is None or python == cluster.python:
        return None
    if _minor(python) != _minor(cluster.python) or cluster.python.count(".") < 2:
        return None
    return (
        f"{spec_id} has Python {python}, and the cluster runs {cluster.python} (by {cluster.source}): tasks and actors "
        "run, and Ray prints a version mismatch; it refuses the driver of a job that `ray job submit` starts in the "
        f'environment. Write python = "{cluster.python}" in its [tool.envfabric] and commit it, or give the job the '
        f"env_var {MATCH_LEVEL}=minor."
    )


START_WITHIN = 60.0
"""Seconds that an interpreter may take to start and load ray's library, of which a cold mount has to read 40 MB."""


def refuse_absent(python: str, ray: bool = False) -> None:
    """Raises `EnvironmentFailed` where this machine can't run an interpreter, or, asked for, no ray lies beside it."""
    if not os.access(python, os.X_OK):
        raise EnvironmentFailed(_why_not(python))
    if ray and not _beside(python, "ray/__init__.py"):
        raise EnvironmentFailed(
            f"{Path(python).parents[1]} has lost its ray, which its metadata.json lists: a task in it would hang. "
            "Run `envfabric verify --repair`."
        )


def starts(python: str, timeout: float, made_for: str | None = None, *, libraries: bool = True) -> str:
    """The version that an interpreter says of itself.

    Raises `EnvironmentFailed` where it does not start here, is not the minor version that its packages were
    `made_for`, or can't load its ray. Of the packages only ray's own library is loaded, by a child process: made
    for another processor or C library, it would end each worker at its start. Loading it runs code of a package:
    without `libraries` only the interpreter is started.
    """
    # `which`, which a shell may call for each command, need not wait for it.
    import subprocess

    host = os.uname().nodename
    beside = _beside(python, "ray/_raylet.so") if libraries else []
    command = [python, "-I", "-S", "-c", _START, *map(str, beside)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailed(
            f"{python} can't be run on {host}: {error}. Is its base interpreter {os.path.realpath(python)} made for "
            f"this machine ({platform.machine()})?"
        ) from error
    found, why = done.stdout.strip(), done.stderr.strip()[-300:].rpartition("\n")[2]
    if done.returncode and not found:
        raise EnvironmentFailed(f"{python} does not start on {host} (exit code {done.returncode}): {why}")
    if made_for is not None and _minor(found) != _minor(made_for):
        raise EnvironmentFailed(
            f"{python} is Python {found} on {host}, and its packages are for {made_for}: the base interpreter "
            f"{os.path.realpath(python)} is another one there. Install the same on every node, or let the daemon "
            "use interpreters below ROOT/pythons (setting pythons)."
        )
    if done.returncode:
        raise EnvironmentFailed(
            f"{python} can't load its ray on {host} ({platform.machine()}, {'-'.join(platform.libc_ver())}): {why}. "
            "It was built for another processor or C library: build on a machine like the nodes."
        )
    return found


def _why_not(python: str) -> str:
    host = os.uname().nodename
    try:
        target = os.readlink(python)
    except FileNotFoundError:
        return (
            f"{python} is not there on {host}. Is the NAS mounted at the same path on this machine, and is the "
            "closure still in the store?"
        )
    except OSError:
        return f"{python} can't be run on {host}: it may be mounted noexec, or not be yours to read."
    return (
        f"{python} can't be run on {host}: its base interpreter {target} is missing there. Nodes need it at the same "
        "path: install it, or let the daemon use interpreters below ROOT/pythons (setting pythons)."
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _beside(python: str, name: str) -> list[Path]:
    """The files of that name among an interpreter's packages."""
    found = (Path(python).parents[1] / "lib").glob(f"python3*/site-packages/{name}")
    return [one for one in found if one.exists()]
