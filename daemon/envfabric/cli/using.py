"""Who uses which closure, by the leases in force: for `status`. Reads leases and generations, and changes nothing.

What time it is on the file server can't be asked without writing: the newest mtime of what the daemon writes (a
minute old at most where one runs) says how late it is at least. What is over by that is not told; what is over by this
machine's clock alone, which may be wrong, is told as that.
"""

import contextlib
import functools
import os
import pwd
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from envfabric.client.findings import DEFAULT_TIMEOUT, Finding, within
from envfabric.core.errors import StoreError
from envfabric.core.ids import is_id, shown
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.leases import Held, Leases
from envfabric.store.root import Root

_WRITTEN = ("staging", "locks", "history", "state", "index.json")
"""Of the daemon alone: a consumer may give a lease whatever time it likes."""


def in_use(index: Mapping[str, Any], root: Root, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
    """Every closure in the store that is leased now, whether a spec serves it or not.

    `closures` has for each its `closure`, the ids that it `serves`, and its `leases`. `error` is why it can't be
    known, and None where it is: also where that took longer than `timeout` seconds.
    """
    return _in_time(timeout, lambda: _in_use(index, root))


def in_use_of(
    index: Mapping[str, Any], root: Root, spec_id: str, timeout: float = DEFAULT_TIMEOUT
) -> dict[str, Any]:
    """As `in_use`, for the closures of one spec: what it serves, and what its retained generations have.

    Each has the numbers of its `generations` instead.
    """
    return _in_time(timeout, lambda: _in_use_of(index, root, spec_id))


def _in_time(seconds: float, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a look tells; a mount that hangs must not keep the rest of `status` from its reader."""
    told: list[dict[str, Any]] = []

    def run() -> list[Finding]:
        told.append(look())
        return []

    wrong, _ = within(seconds, "users", run)
    return {"error": wrong[0].found, "closures": []} if wrong else told[0]


def _in_use(index: Mapping[str, Any], root: Root) -> dict[str, Any]:
    serves: dict[str, list[str]] = {}
    for spec_id, entry in index["environments"].items():
        serves.setdefault(entry["serving"], []).append(spec_id)
    now = _at_least(root)
    try:
        found = [
            {
                "closure": shown(name, 300),
                "serves": serves.get(name, []),
                "leases": [_told(one, now) for one in leased.held],
            }
            for name, leased in Leases(root, Files()).survey(now).items()
            # A lease on a name that is no closure claims nothing.
            if leased.held and os.path.lexists(root.closure(name))
        ]
    except StoreError as error:
        return {"error": str(error), "closures": []}
    return {"error": None, "closures": found}


def _in_use_of(index: Mapping[str, Any], root: Root, spec_id: str) -> dict[str, Any]:
    files = Files()
    leases, generations = Leases(root, files), Generations(root, files)
    entry = index["environments"][spec_id]
    numbers: dict[str, list[int]] = {} if entry["serving"] is None else {entry["serving"]: []}
    now = _at_least(root)
    try:
        for number in sorted(generations.numbers(spec_id) if is_id(spec_id) else (), reverse=True):
            name = generations.name_of(spec_id, number)
            if name is not None:
                numbers.setdefault(name, []).append(number)
        found = [
            {"closure": shown(name, 300), "generations": of, "leases": [_told(one, now) for one in held]}
            for name, of in numbers.items()
            if (held := leases.on(name, now).held)
        ]
    except StoreError as error:
        return {"error": str(error), "closures": []}
    except OSError as error:
        return {
            "error": f"the generations of {spec_id} can't be read: {error}",
            "closures": [],
        }
    return {"error": None, "closures": found}


def _at_least(root: Root) -> float:
    """The file server's time, as far as it can be seen."""
    seen = [0.0]
    for name in _WRITTEN:
        with contextlib.suppress(OSError):
            seen.append(os.stat(root.path / name).st_mtime)
    return max(seen)


def _told(one: Held, at_least: float) -> dict[str, Any]:
    now = max(at_least, time.time())
    return {
        "what": one.what,
        "host": one.host,
        "user": None if one.uid is None else _user(one.uid),
        "pid": one.pid,
        "since": None if one.since is None else _moment(one.since),
        "renewed": _moment(one.renewed),
        "seconds_ago": round(max(0.0, now - one.renewed), 1),
        "ttl": one.ttl,
        # None: by this machine's clock alone it is not any more.
        "in_force": True if one.until >= now else None,
        "holder": one.holder,
    }


@functools.cache
def _user(uid: int) -> str:
    """A user's name, or number where this machine knows no name for it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _moment(seconds: float) -> str:
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        # Somebody has set a time of their own that no calendar has.
        return f"{seconds:.0f}"
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
