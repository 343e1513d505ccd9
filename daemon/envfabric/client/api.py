"""What a driver program calls: the interpreter of an environment, as the index serves it."""

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from envfabric.client.attempt import within
from envfabric.client.index import (
    PYTHON,
    EnvironmentFailed,
    NotReady,
    RootNotFound,
    UnknownEnvironment,
    environment,
    find_root,
    read_index,
)
from envfabric.client.wanted import DEFAULT_TIMEOUT

T = TypeVar("T")
_POLL_FIRST, _POLL_MOST = 0.1, 2.0


def python(
    spec_id: str,
    *,
    root: str | os.PathLike[str] | None = None,
    wait: float | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> str:
    """The path of the interpreter that serves `spec_id`.

    The path never changes its content; a later generation has another one. With `wait`, a missing id
    or one that is being built is waited for, up to so many seconds; `timeout` are those that the NAS may take for
    one answer. Raises `RootNotFound`, `UnknownEnvironment`, `NotReady` and `EnvironmentFailed`, each with what to do.
    """
    return served(spec_id, root, wait, limit=timeout)[0]


def answered(
    limit: float, look: Callable[[], T], where: str, give_back: Callable[[T], object] = lambda found: None
) -> T:
    """What a look at the NAS gives. Raises what it raises, and `RootNotFound` where it takes over `limit` seconds.

    In a thread: a mount whose server is gone keeps whoever looks at it for ever. What it gives after that is given
    to `give_back`.
    """
    found = within(limit, lambda: (look(),), f"envfabric {where}", lambda late: give_back(late[0]))
    if found is None:
        raise RootNotFound(
            f"{where} has not answered {os.uname().nodename} within {limit:g} s: is the NAS gone? A slow one gets "
            "longer by timeout=30 (envfabric.python, envfabric.lease), envfabric={'timeout': 30} "
            "(envfabric.runtime_env), or --timeout 30 (commands)."
        )
    return found[0]


def served(
    spec_id: str, root: str | os.PathLike[str] | None, wait: float | None, *, limit: float = DEFAULT_TIMEOUT
) -> tuple[str, dict[str, Any]]:
    """Path and index entry of `spec_id`, as `python` finds them, each look within `limit` seconds."""
    place = find_root(root, advice=PYTHON)
    deadline = time.monotonic() + (wait or 0.0)
    pause = _POLL_FIRST
    while True:
        left = deadline - time.monotonic()
        try:
            index = answered(limit, lambda: read_index(place), str(place))
            return _look(index, spec_id, patient=left > 0)
        except (NotReady, UnknownEnvironment):
            if left <= 0:
                raise
        time.sleep(min(pause, max(left, 0.0)))
        pause = min(pause * 1.5, _POLL_MOST)


def _look(index: dict[str, Any], spec_id: str, *, patient: bool) -> tuple[str, dict[str, Any]]:
    """What the index serves; to the `patient` an older generation is not enough while a newer is made."""
    entry = environment(index, spec_id)
    path = index["python"].get(spec_id)
    under_way = entry["state"] in {"pending", "building"}
    if path is not None and not (under_way and patient):
        return path, entry
    if under_way:
        raise NotReady(
            f"{spec_id} is {entry['state']} and nothing of it is served yet. Wait for it with wait=…, or look "
            "at `envfabric status`."
        )
    raise EnvironmentFailed(_failure(spec_id, entry))


def _failure(spec_id: str, entry: dict[str, Any]) -> str:
    error = entry["error"] or {"reason": "internal", "message": "no reason is given", "log": None}
    log = f" Log: {error['log']}" if error["log"] else ""
    return f"{spec_id} failed ({error['reason']}): {error['message']}{log}"
