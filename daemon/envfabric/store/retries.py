"""When failed specs are tried again, and how often they were: kept on the NAS, so that a restart or
another writer goes on waiting where this one stopped instead of storming a registry that is down.

Times are the wall clock of the writer's host: a clock that is off costs a retry too early or too late.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from envfabric.store.files import Files
from envfabric.store.root import Root

FIRST, MOST = 10.0, 600.0
"""Seconds before the first retry of a failure that can pass, doubled each time, and the most."""
JITTER = 0.2
"""The share by which a retry comes sooner or later than that: what failed together does not come back together."""


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed spec's content is tried again (seconds since 1970), and how often it was."""

    tree: str
    due: float
    attempts: int


def delay(attempts: int, drawn: float, first: float = FIRST, most: float = MOST) -> float:
    """Seconds until the next try of what was tried again `attempts` times; `drawn` is a random number from 0 to 1.

    `first` are the seconds of the first time, `most` the most without the jitter.
    """
    # The power is bounded: what failed five thousand times would be no float any more.
    return min(first * 2.0 ** min(attempts, 32), most) * (1 + JITTER * (2 * drawn - 1))


def read_retries(root: Root) -> dict[str, Retry]:
    """The retries that were kept, by spec id; none where nothing was, or nothing that is understood.

    Raises `OSError`.
    """
    try:
        raw = json.loads(_path(root).read_bytes())
        return {
            str(spec_id): Retry(str(tree), _soon(float(due)), int(attempts))
            for spec_id, (tree, due, attempts) in raw["retries"].items()
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return {}


def _soon(due: float) -> float:
    """A time that is not further away than any that is set here: the clock that it was read off may have been off."""
    latest = time.time() + MOST * (1 + JITTER)
    return min(due, latest) if math.isfinite(due) else latest


def write_retries(root: Root, files: Files, retries: Mapping[str, Retry]) -> None:
    """Keeps all retries, in one file. Raises `StoreError` and `OSError`."""
    root.require_marker()
    content = {
        "schema": 1,
        "retries": {spec_id: [one.tree, one.due, one.attempts] for spec_id, one in sorted(retries.items())},
    }
    files.write_atomic(_path(root), json.dumps(content).encode(), durable=False, via=root.staging)


def _path(root: Root) -> Path:
    return root.state / "retries.json"
