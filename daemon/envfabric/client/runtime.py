"""`envfabric.runtime_env`: an environment as a Ray runtime_env, refused here where it would hang there.

It names the interpreter twice: py_executable for every node, and the plugin's key (docs/ray.md) for those that
have it, which check and lease. Reads ROOT and writes nothing.
"""

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from envfabric.client import fitting
from envfabric.client.api import answered, served
from envfabric.client.index import PYTHON, EnvironmentFailed, RootNotFound, find_root, read_index
from envfabric.client.wanted import KEY, Wanted, is_id, parse, refuse_together

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
    `ValueError` for overrides that can't be combined with an environment. Another patch version of the cluster's
    Python is a warning.
    """
    refuse_together(overrides)
    options = overrides.pop(KEY, None) or {}
    if not isinstance(options, Mapping):
        raise ValueError(  # noqa: TRY004 - as for everything that can't be combined
            f"{KEY}={options!r}: these are options, such as {{'ttl': 60}}; the id is the first argument."
        )
    if not is_id(spec_id):
        # The index says what is near to it. Not waited for: it will never be one.
        served(spec_id, root, None)
    wanted = parse({"id": spec_id, **options})
    python, digest, told = _proved(wanted, root, wait)
    if near := fitting.other_patch(wanted.id, told["python_version"], _cluster()):
        warnings.warn(near, stacklevel=2)
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


def _told_of(root: Path, wanted: Wanted) -> dict[str, Any]:
    """ray_version, python_version and runtime_env of a closure, the last as a generation of the id has it.

    Raises `RootNotFound` and `EnvironmentFailed` where the closure is not there, or not the id's.
    """
    closure = fitting.closure_told(root, str(wanted.digest))
    told = {"ray_version": closure.get("ray_version"), "python_version": closure.get("python_version")}
    return {**told, "runtime_env": added_by(root, wanted)}


def _cluster() -> fitting.Cluster:
    return fitting.of_this_process("this driver") or fitting.of_settings()


def _proved(
    wanted: Wanted, root: str | os.PathLike[str] | None, wait: float | None
) -> tuple[str, str, dict[str, Any]]:
    """What `_found` finds, once it is certain that it runs here. Raises `EnvironmentFailed` and `RootNotFound`."""
    python, digest, told = _found(wanted, root or wanted.root, wait)
    fitting.refuse_unfit(wanted.id, told["ray_version"], told["python_version"], _cluster())
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
    place = Path(os.path.abspath(find_root(root, advice=PYTHON)))
    told = answered(wanted.timeout, lambda: _told_of(place, wanted), str(place))
    return f"{place}/store/{wanted.digest}/.venv/bin/python", wanted.digest, told


def added_by(root: Path, wanted: Wanted, *, alike: bool = False) -> dict[str, Any]:
    """What the newest generation of the id that has this closure adds to a runtime_env, or the one that is asked for.

    Nothing where the id is gone, and with it what it added. Raises `EnvironmentFailed` where no generation of an id
    that there is has the closure, which may be another's; and, where they have to be `alike`, where the env_vars of
    several differ; `RootNotFound` where it can't be known: a task without its spec's variables would be another one.
    """
    found = _generations(root / "generations" / wanted.id, wanted)
    if found:
        newest = max(found)
        variables = {number: one.get("env_vars") or {} for number, one in found.items()}
        if alike and any(one != variables[newest] for one in variables.values()):
            # Which one is meant has to be the same on all nodes, whenever they are asked.
            numbers = " and ".join(map(str, sorted(found)))
            raise EnvironmentFailed(
                f"generations {numbers} of {wanted.id} have this closure, and other env_vars: say which one. Take what "
                f'`envfabric runtime-env {wanted.id}` prints, or write {{"id": "{wanted.id}", "digest": '
                f'"{wanted.digest}", "generation": {newest}}}.'
            )
        return found[newest]
    if wanted.generation is None and wanted.id not in read_index(root)["environments"]:
        return {}
    asked = "no generation" if wanted.generation is None else f"no generation {wanted.generation}"
    raise EnvironmentFailed(
        f"{wanted.id} has {asked} with the closure {wanted.digest}: that is another spec's, or the generation was "
        f"collected. `envfabric history {wanted.id}` shows what there is; `envfabric runtime-env {wanted.id}` prints "
        "what is served."
    )


def _generations(folder: Path, wanted: Wanted) -> dict[int, dict[str, Any]]:
    """What each retained generation that has the closure adds, by number. Raises `RootNotFound`."""
    try:
        numbers = [int(one) for one in os.listdir(folder) if one.isdecimal()]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RootNotFound(f"{folder} can't be read: {error.strerror}") from error
    found = {}
    for number in numbers:
        if wanted.generation not in {None, number}:
            continue
        try:
            told = json.loads((folder / str(number) / "metadata.json").read_bytes())
            if Path(os.readlink(folder / str(number) / ".venv")).parent.name == wanted.digest:
                found[number] = dict(told.get("runtime_env") or {})
        except (FileNotFoundError, ValueError, AttributeError):
            # Collected or replaced meanwhile.
            continue
        except OSError as error:
            raise RootNotFound(f"{folder / str(number)} can't be read: {error.strerror}") from error
    return found


def _refuse_other(py_executable: str | None, python: str) -> None:
    """A wrapper around the interpreter is as good; another interpreter is not."""
    if py_executable is not None and python not in py_executable.split():
        raise EnvironmentFailed(
            f"py_executable={py_executable!r} is another interpreter than the environment's, {python}: leave it "
            "out, or write a command with that path in it."
        )
