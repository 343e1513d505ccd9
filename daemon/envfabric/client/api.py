"""What a driver program calls: the interpreter of an environment, as the index serves it."""

import os
import time
from typing import Any

from envfabric.client.index import (
    EnvironmentFailed,
    NotReady,
    UnknownEnvironment,
    environment,
    find_root,
    read_index,
)

_POLL_FIRST, _POLL_MOST = 0.1, 2.0


def python(spec_id: str, *, root: str | os.PathLike[str] | None = None, wait: float | None = None) -> str:
    """The path of the interpreter that serves `spec_id`.

    The path never changes its content; a later generation has another one. With `wait`, a missing id
    or one that is being built is waited for, up to so many seconds. Raises `RootNotFound`,
    `UnknownEnvironment`, `NotReady` and `EnvironmentFailed`, each with what to do.
    """
    return served(spec_id, root, wait)[0]


def served(
    spec_id: str, root: str | os.PathLike[str] | None, wait: float | None
) -> tuple[str, dict[str, Any]]:
    """Path and index entry of `spec_id`, as `python` finds them."""
    place = find_root(root)
    deadline = time.monotonic() + (wait or 0.0)
    pause = _POLL_FIRST
    while True:
        left = deadline - time.monotonic()
        try:
            return _look(read_index(place), spec_id, patient=left > 0)
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
