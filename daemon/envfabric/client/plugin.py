"""The Ray runtime_env plugin: on every node it checks an environment before Ray starts a worker in it, and leases it.

Lives in the runtime_env agent of each node, in the node's own Python, turned on by

    RAY_RUNTIME_ENV_PLUGINS='[{"class": "envfabric.client.plugin.EnvfabricPlugin"}]'

before `ray start` (docs/ray.md). The one module that imports ray. The agent runs all runtime_envs of the node in
one event loop, so nothing here touches the NAS but in a thread, and nobody waits for that thread without an end.
"""

import logging
import os
import platform
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray._private.runtime_env.plugin import RuntimeEnvPlugin

from envfabric.client import fitting, runtime
from envfabric.client.api import served
from envfabric.client.attempt import Attempt
from envfabric.client.index import (
    EnvfabricError,
    EnvironmentFailed,
    RootNotFound,
    UnknownEnvironment,
    find_root,
)
from envfabric.client.leases import Lease, present
from envfabric.client.wanted import KEY, Wanted, parse, refuse_together
from envfabric.client.watch import Watch

if TYPE_CHECKING:
    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray.runtime_env import RuntimeEnv

_ALL = 1 << 60
"""Bytes that each environment is said to take: more than Ray's cache has, so an unused one is let go at once."""

_ADVICE = (
    f'export ENVFABRIC_ROOT before `ray start` on {os.uname().nodename}, or give root in the value: {{"id": …, '
    '"digest": …, "root": "/mnt/nas"}.'
)
"""Nobody gives a node an argument."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """An environment that was checked on this node, and is leased."""

    python: str
    env_vars: dict[str, str]
    """The spec's, for values that were written by hand."""
    held: Lease | Watch
    """A watch alone where no lease was wanted."""

    @property
    def well(self) -> bool:
        """Whether it was there when it was looked at last, and that is not too long ago."""
        return self.held.present if isinstance(self.held, Lease) else self.held.well

    def look_soon(self) -> None:
        """Has it looked at now, in its thread."""
        if isinstance(self.held, Lease):
            self.held.renew_soon()
        else:
            self.held.look_soon()

    def give_back(self) -> None:
        """Ends the lease, or the watch. May take as long as the NAS does, up to the lease's timeout."""
        if isinstance(self.held, Lease):
            self.held.release()
        else:
            self.held.end()


class EnvfabricPlugin(RuntimeEnvPlugin):
    """What the agent calls."""

    name = KEY
    # Before pip, uv and conda, which are refused with it: after them it would refuse what was installed for minutes.
    priority = 5

    def __init__(self) -> None:
        self._under_way: dict[str, Attempt[_Ready]] = {}
        self._ready: dict[str, _Ready] = {}

    @staticmethod
    def validate(runtime_env_dict: dict[str, Any]) -> None:
        """Refuses, without a look at any file, what can't be meant. Raises `ValueError`."""
        parse(runtime_env_dict[KEY])
        refuse_together(runtime_env_dict)

    def get_uris(self, runtime_env: "RuntimeEnv") -> list[str]:
        """The environment that is asked for, which Ray counts the uses of; called for every runtime_env there is."""
        try:
            value = _of(runtime_env, KEY)
            uri = None if value is None else parse(value).uri(_of(runtime_env, "py_executable"))
        except ValueError:
            # Raised here it would break the agent's counting; `validate` says it in a moment.
            return []
        return [] if uri is None else [uri]

    async def create(
        self,
        uri: str | None,
        runtime_env: "RuntimeEnv",
        context: "RuntimeEnvContext",
        logger: logging.Logger,
    ) -> int:
        """Leases an environment and checks that this node can run it. Raises `EnvfabricError`, which Ray tells."""
        wanted = parse(runtime_env[KEY])
        key = uri or f"{wanted.root or ''}/{wanted.id}"
        attempt = self._under_way.get(key)
        # Ray tries again when it has failed: one that still hangs is waited for, and not begun once more.
        if attempt is None or attempt.failed or not attempt.joined():
            # The client has put the spec's variables beside its py_executable, those of the generation that it meant.
            by_hand = not wanted.named_by(_of(runtime_env, "py_executable"))
            work = partial(_prepare, wanted, by_hand) if uri else partial(_undecided, wanted)
            attempt = self._under_way[key] = Attempt(work, _Ready.give_back, f"envfabric {wanted.id}")
        try:
            ready = await attempt.result(wanted.timeout)
        except TimeoutError:
            raise EnvironmentFailed(
                f"{wanted.id}: the NAS{f' at {wanted.root}' if wanted.root else ''} has not answered "
                f"{os.uname().nodename} within {wanted.timeout:g} s. Check the mount there; for a slow one, set "
                f"timeout: envfabric.runtime_env({wanted.id!r}, {KEY}={{'timeout': 30}})."
            ) from None
        finally:
            # One that hangs stays, for the next try.
            if attempt.ended and self._under_way.get(key) is attempt:
                del self._under_way[key]
        before, self._ready[key] = self._ready.get(key), ready
        if before is not None and before is not ready:
            # Ray counts uses, and not how often it asked: nobody else would ever give this one back.
            _let_go(before)
        logger.info("%s runs from %s", wanted.id, ready.python)
        return _ALL

    def modify_context(
        self,
        uris: list[str],
        runtime_env: "RuntimeEnv",
        context: "RuntimeEnvContext",
        logger: logging.Logger,
    ) -> None:
        """Lets workers start in the environment. Raises `EnvironmentFailed` where it has gone since it was checked."""
        ready = self._ready[uris[0]]
        if not ready.well:
            # Ray asks only this of an environment that is in use on the node already: a worker would hang. Where the
            # NAS was away for one look, the next one finds it back before Ray's next try, a second later.
            ready.look_soon()
            raise EnvironmentFailed(
                f"{ready.python} was there and is not any more, or the NAS does not answer {os.uname().nodename}, or "
                "take the renewals of its lease. Check the mount there; then try again."
            )
        given = (runtime_env.py_executable() or "").split()
        # A job's py_executable is inherited by a task that asks for another environment: the key counts. Put into
        # the runtime_env, too, where Ray's own plugin for it comes after this one and takes it from.
        wrapped = ready.python in given
        context.py_executable = runtime_env["py_executable"] = " ".join(given) if wrapped else ready.python
        context.env_vars = runtime.inside(ready.python, {**ready.env_vars, **context.env_vars})

    def delete_uri(self, uri: str, logger: logging.Logger) -> int:
        """Gives the lease back: nothing on this node uses the environment any more."""
        ready = self._ready.pop(uri, None)
        if ready is not None:
            _let_go(ready)
        return _ALL


def _of(runtime_env: Mapping[str, Any], name: str) -> Any:
    """What a runtime_env has under a name, or None: Ray's own `get` has no types."""
    return runtime_env.get(name)


def _prepare(wanted: Wanted, by_hand: bool, alive: Callable[[float], None]) -> _Ready:
    """Leases a closure and proves that it can be run here. Raises `EnvfabricError`."""
    root = _root(wanted)
    python = f"{root}/store/{wanted.digest}/.venv/bin/python"
    told = fitting.closure_told(root, str(wanted.digest))
    ray_version, python_version = told.get("ray_version"), told.get("python_version")
    cluster = fitting.Cluster(ray.__version__, platform.python_version(), f"the Ray of {os.uname().nodename}")
    fitting.refuse_unfit(wanted.id, ray_version, python_version, cluster)
    variables = runtime.added_by(root, wanted, alike=True).get("env_vars") or {} if by_hand else {}
    began = Watch.now()
    held = _lease(wanted, python, root) if wanted.lease else None
    try:
        # After the lease: what is there now stays.
        fitting.refuse_absent(python, ray=True)
        # So far it was whether the NAS answers. This takes longer where all nodes of a cluster begin at once.
        alive(fitting.START_WITHIN + wanted.timeout)
        fitting.starts(python, fitting.START_WITHIN, python_version)
    except BaseException:
        if held is not None:
            held.release()
        raise
    if held is not None:
        return _Ready(python, variables, held)
    watch = Watch(partial(present, root, python), wanted.ttl, f"envfabric {wanted.id}")
    watch.start(began)
    return _Ready(python, variables, watch)


def _lease(wanted: Wanted, python: str, root: Path) -> Lease:
    what = f"{wanted.id}, Ray {ray.__version__} on {os.uname().nodename}"
    try:
        # Not by `lease`, which gives up on a NAS that hangs: each of Ray's tries would then wait for all of that anew.
        return Lease(root, str(wanted.digest), python, wanted.ttl, what, wanted.timeout).take(python)
    except EnvfabricError as error:
        if isinstance(error, EnvironmentFailed | UnknownEnvironment | RootNotFound):
            raise
        # Not run without one by itself: the closure could be collected under its workers.
        raise EnvironmentFailed(
            f"{error} Where that can't be had, envfabric.runtime_env({wanted.id!r}, {KEY}={{'lease': False}}) runs "
            "without one: then only what a generation serves is kept."
        ) from error


def _undecided(wanted: Wanted, alive: Callable[[float], None]) -> _Ready:
    """Refuses a value without a digest, with the one that is meant now. Raises `EnvfabricError`.

    Which one it is has to be the same on all nodes and for all tries, so it is decided once, by the driver.
    """
    root = _root(wanted)
    # Longer than anybody waits for this thread, as Ray's next try goes on with it.
    digest = served(wanted.id, root, None, limit=fitting.START_WITHIN + wanted.timeout)[0].split("/")[-4]
    raise EnvironmentFailed(
        f'runtime_env["{KEY}"] = "{wanted.id}" has no digest. In Python, envfabric.runtime_env("{wanted.id}"); for '
        f"`ray job submit` and YAML take what `envfabric runtime-env {wanted.id}` prints, or, to stay with what is "
        f'served now, "{wanted.id}@{digest}".'
    )


def _root(wanted: Wanted) -> Path:
    root = Path(os.path.abspath(wanted.root or find_root(advice=_ADVICE)))
    if not (root / ".envfabric.json").is_file():
        raise EnvironmentFailed(
            f"{root}/.envfabric.json is not there: is the NAS mounted at {root} on {os.uname().nodename}? Mount it "
            "there, at the same path as everywhere."
        )
    return root


def _let_go(ready: _Ready) -> None:
    """Gives it back without waiting for it."""
    threading.Thread(target=ready.give_back, name="envfabric release", daemon=True).start()


__all__ = ["EnvfabricError", "EnvfabricPlugin"]
