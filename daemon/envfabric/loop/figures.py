"""The gauges of what is served and what is on disk, from the board and the account; nothing is walked or asked."""

from collections import Counter
from collections.abc import Mapping

from envfabric.index.document import Entry
from envfabric.store.usage import Usage
from envfabric.telemetry.metrics import STATES, Metrics


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
    counts: Counter[str] = Counter(entry.state for entry in entries.values())
    for state in STATES:
        metrics.specs.labels(state).set(counts[state])
