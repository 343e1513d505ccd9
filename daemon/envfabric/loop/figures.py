"""The gauges: what is served and what is on disk, from the board and the account; the room that ROOT has; its leases.

Each is set by the loop, or by a standby's look, and never by a scrape. Nothing is walked; what is asked of ROOT is
one statvfs, and one status for each leased closure.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path

from envfabric.index.document import Entry, Index
from envfabric.store.leases import Leased
from envfabric.store.usage import Usage
from envfabric.telemetry.metrics import STATES, USES, Metrics


def show_figures(metrics: Metrics, usage: Usage, entries: Mapping[str, Entry]) -> None:
    """Sets the gauges of the store and of the specs' states."""
    totals = usage.totals()
    # Thousands of specs share a few closures.
    served = Counter(one.serving for one in entries.values() if one.serving)
    logical = sum(times * usage.logical(digest) for digest, times in served.items())
    metrics.store_closures.set(totals.closures)
    metrics.store_inodes.set(totals.inodes)
    metrics.store_physical_bytes.set(totals.physical_bytes)
    metrics.store_logical_bytes.set(logical)
    metrics.disk_saved_bytes.set(logical - totals.physical_bytes)
    _show_states(metrics, entries)


def show_published(metrics: Metrics, index: Index) -> None:
    """Sets the gauges of an index that was found on ROOT: a start finds its predecessor's, a standby the writer's."""
    # Since a restart nothing may have been published, and the index is no older for that.
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        metrics.index_last_publish.set(datetime.fromisoformat(index.published_at).timestamp())
    _show_states(metrics, index.entries)


def show_room(metrics: Metrics, root: Path) -> float:
    """Sets the gauges of ROOT's file system; gives the share of space or inodes that is free, whichever is less, in
    percent. Raises `OSError`; the gauges stay as they were then."""
    status = os.statvfs(root)
    metrics.root_size_bytes.set(status.f_blocks * status.f_frsize)
    metrics.root_free_bytes.set(status.f_bavail * status.f_frsize)
    metrics.root_inodes.set(status.f_files)
    metrics.root_free_inodes.set(status.f_favail if status.f_files else 0)
    shares = [(status.f_bavail, status.f_blocks), (status.f_favail, status.f_files)]
    # Some file systems do not count inodes.
    return min((100 * free / every for free, every in shares if every), default=100.0)


def show_leases(
    metrics: Metrics,
    leased: Mapping[str, Leased],
    served: Collection[str],
    built: Callable[[str], float | None],
) -> None:
    """Sets the gauges of the leases: how many, whose, and of what age is what they hold.

    `leased` is one look at the leases by closure, `served` names what the index serves, `built` says when a closure
    was built, or that it is not in the store; what it raises goes through, before any gauge is set.
    """
    held = {name: one.held for name, one in leased.items() if one.held}
    times = {name: built(name) for name in held}
    uses = Counter(
        "absent" if at is None else "served" if name in served else "superseded" for name, at in times.items()
    )
    metrics.leases.set(sum(map(len, held.values())))
    metrics.lease_hosts.set(len({one.host for all_of_one in held.values() for one in all_of_one}))
    for use in USES:
        metrics.leased_closures.labels(use).set(uses[use])
    metrics.leased_oldest.set(min((at for at in times.values() if at is not None), default=0.0))


def _show_states(metrics: Metrics, entries: Mapping[str, Entry]) -> None:
    counts: Counter[str] = Counter(entry.state for entry in entries.values())
    for state in STATES:
        metrics.specs.labels(state).set(counts[state])
