"""`envfabric.runtime_env`: an environment as a Ray runtime_env, refused here where it would hang there.

It names the interpreter twice: py_executable for every node, and the plugin's key (docs/ray.md) for those that
have it, which check and lease. Reads ROOT and writes nothing.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from envfabric.client import fitting
from envfabric.client.api import answered, served
from envfabric.client.index import EnvironmentFailed, RootNotFound, find_root
from envfabric.client.wanted import DEFAULT_TIMEOUT, KEY, Wanted, is_id, parse, refuse_together

_STARTED: set[str] = set()
"""Interpreters that were started by this process: none changes, so none has to be again for every task."""


def runtime_env(
    spec_id: str,
    *,
    root: str | os.PathLike[str] | None = None,
    wait: float | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """A Ray runtime_env that runs tasks and actors in `spec_id`, with what its spec adds to it.

    `overrides` are other keys of the runtime_env: env_vars are merged with the spec's, anything else takes
    the place of the spec's, and None leaves it out; `envfabric={"ttl": …}` sets the plugin's options. "id@digest"
    asks for that closure, whatever is served now.

    Raises what `python` raises, `EnvironmentFailed` for an environment in which a Ray task would hang or run
    wrongly (no ray, another Ray or Python than the cluster's, no such interpreter on this machine), and
    `ValueError` for overrides that can't be combined with an environment.
    """
    refuse_together(overrides)
    options = overrides.pop(KEY, None) or {}
    if not isinstance(options, Mapping):
        raise ValueError(  # noqa: TRY004 - as for everything that can't be combined
            f"{KEY}={options!r}: these are options, such as {{'ttl': 60}}; the id is the first argument."
        )
    if not is_id(spec_id):
        # The index says what is near to it. Not waited for: it will never be one.
        served(spec_id, root, None, limit=DEFAULT_TIMEOUT)
    wanted = parse({"id": spec_id, **options})
    python, digest, told = _proved(wanted, root, wait)
    _refuse_other(overrides.get("py_executable"), python)
    place = python.removesuffix(f"/store/{digest}/.venv/bin/python")
    added = {name: value for name, value in told["runtime_env"].items() if value and name != "env_vars"}
    given = overrides.pop("env_vars", None) or {}
    together = {
        "py_executable": python,
        KEY: replace(wanted, digest=digest, root=place).told(),
        **added,
        **overrides,
        "env_vars": inside(python, {**told["runtime_env"].get("env_vars", {}), **given}),
    }
    return {name: value for name, value in together.items() if value is not None}


def inside(python: str, env_vars: Mapping[str, str]) -> dict[str, str]:
    """`env_vars` by which child processes, and the driver of `ray job submit`, find the environment first.

    Ray puts a node's own value in the place of ${PATH}. Another environment of the same ROOT, which a job has
    and a task of it does not, is taken out of PATH.
    """
    folder, store = os.path.dirname(python), python.rpartition("/store/")[0] + "/store/"
    path = env_vars.get("PATH", "${PATH}")
    others = [one for one in path.split(os.pathsep) if not one.startswith(store)]
    return {**env_vars, "VIRTUAL_ENV": os.path.dirname(folder), "PATH": os.pathsep.join([folder, *others])}


def told_of(root: Path, wanted: Wanted) -> dict[str, Any]:
    """ray_version, python_version and runtime_env of a closure, the last as a generation of the id has it.

    Raises `RootNotFound` and `EnvironmentFailed` where the closure is not there.
    """
    closure = fitting.closure_told(root, str(wanted.digest))
    told = {"ray_version": closure.get("ray_version"), "python_version": closure.get("python_version")}
    return {**told, "runtime_env": _added_by(root / "generations" / wanted.id, wanted.digest)}


def _proved(
    wanted: Wanted, root: str | os.PathLike[str] | None, wait: float | None
) -> tuple[str, str, dict[str, Any]]:
    """What `_found` finds, once it is certain that it runs here. Raises `EnvironmentFailed` and `RootNotFound`."""
    python, digest, told = _found(wanted, root or wanted.root, wait)
    cluster = fitting.of_this_process("this driver") or fitting.of_settings()
    fitting.refuse_unfit(wanted.id, told["ray_version"], told["python_version"], cluster)
    answered(wanted.timeout, lambda: fitting.refuse_absent(python, ray=True), python)
    if python not in _STARTED:
        # It takes longer than an answer of the NAS, and has a message of its own where it takes too long.
        answered(
            fitting.START_WITHIN + wanted.timeout,
            lambda: fitting.starts(python, fitting.START_WITHIN, told["python_version"]),
            python,
        )
        _STARTED.add(python)
    return python, digest, told


def _found(
    wanted: Wanted, root: str | os.PathLike[str] | None, wait: float | None
) -> tuple[str, str, dict[str, Any]]:
    """The interpreter, the closure's name and what is known of it: what is served, or the digest asked for."""
    if wanted.digest is None:
        path, entry = served(wanted.id, root, wait, limit=wanted.timeout)
        return path, path.split("/")[-4], entry
    place = Path(os.path.abspath(find_root(root)))
    told = answered(wanted.timeout, lambda: told_of(place, wanted), str(place))
    return f"{place}/store/{wanted.digest}/.venv/bin/python", wanted.digest, told


def _added_by(generations: Path, digest: str | None) -> dict[str, Any]:
    """What the newest generation that has this closure adds to a runtime_env; nothing where none has it any more.

    Raises `RootNotFound` where it can't be read: a task without its spec's variables would be another one.
    """
    try:
        numbers = sorted((one for one in os.listdir(generations) if one.isdecimal()), key=int, reverse=True)
    except FileNotFoundError:
        # The spec was removed, and with it what it added.
        return {}
    except OSError as error:
        raise RootNotFound(f"{generations} can't be read: {error.strerror}") from error
    for number in numbers:
        try:
            told = json.loads((generations / number / "metadata.json").read_bytes())
            if Path(os.readlink(generations / number / ".venv")).parent.name == digest:
                found: dict[str, Any] = told.get("runtime_env") or {}
                return found
        except (FileNotFoundError, ValueError, AttributeError):
            # Collected or replaced meanwhile.
            continue
        except OSError as error:
            raise RootNotFound(f"{generations / number} can't be read: {error.strerror}") from error
    return {}


def _refuse_other(py_executable: str | None, python: str) -> None:
    """A wrapper around the interpreter is as good; another interpreter is not."""
    if py_executable is not None and python not in py_executable.split():
        raise EnvironmentFailed(
            f"py_executable={py_executable!r} is another interpreter than the environment's, {python}: leave it "
            "out, or write a command with that path in it."
        )
