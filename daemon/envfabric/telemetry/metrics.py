"""Every metric that the daemon exports, in one registry of its own.

Base units, `_total` on counters, no spec id as a label; known label values exist from the
start, so that a rate over them works before the first failure. What is shown was counted by the loop when it
happened: a scrape touches neither ROOT nor the repository, only this process's own lines in /proc.
"""

import platform
from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from envfabric.core.errors import Reason

PHASES = ("resolve", "sync", "bytecode", "seal", "validate", "total")
STATES = ("pending", "building", "ready", "stale", "failed")
USES = ("served", "superseded", "absent")
"""What a leased closure is to the index: named in it, not any more, or not in the store at all."""
DRIFTS = ("closure", "seal", "generation", "link")
"""What of the published can be found not to be as it was left: see loop/drift."""
BUILD_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800)
PUBLISH_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """The daemon's metrics. One instance for each daemon; tests make their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        # process_*: a start time that changes is how a restart by the watchdog is seen.
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"envfabric_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(f"envfabric_{name}", text, labels, registry=registry)

        def histogram(
            name: str, text: str, buckets: tuple[float, ...], labels: Iterable[str] = ()
        ) -> Histogram:
            return Histogram(f"envfabric_{name}", text, labels, buckets=buckets, registry=registry)

        self.build_info = gauge("build_info", "Versions of the running daemon.", ["version", "uv", "python"])
        self.reconciles = counter(
            "reconciles",
            "Looks at the repository that found a new revision, or failed.",
        )
        self.reconcile_failures = counter("reconcile_failures", "Looks at the repository that failed.")
        self.reconcile_duration = histogram(
            "reconcile_duration_seconds", "Time to read and plan a revision.", PUBLISH_BUCKETS
        )
        self.reconcile_last_success = gauge(
            "reconcile_last_success_timestamp_seconds", "When the repository was last looked at with success."
        )
        self.fetches = counter("fetches", "Fetches from a remote spec repository that were begun.")
        self.fetch_failures = counter("fetch_failures", "Fetches from a remote spec repository that failed.")
        self.revision_held_back = gauge(
            "revision_held_back", "1 while the newest revision is not made true until somebody acts, else 0."
        )
        self.builds = counter("builds", "Closures that were attempted to be built.")
        self.build_failures = counter(
            "build_failures", "Specs whose content could not be made ready, by reason.", ["reason"]
        )
        self.build_duration = histogram(
            "build_duration_seconds", "Time of a build's phases.", BUILD_BUCKETS, ["phase"]
        )
        self.drift = counter(
            "drift",
            "Published things that were found to be gone or not as they were left, by kind.",
            ["kind"],
        )
        self.farm_lost = counter(
            "farm_lost_builds", "Builds that were under way on a node of the farm when it was lost."
        )
        self.farm_refusals = counter(
            "farm_refusals", "Times that a node of the farm was found unfit to build."
        )
        self.builds_in_progress = gauge("builds_in_progress", "Builds running now.")
        self.build_queue_length = gauge(
            "build_queue_length", "Specs, questions to uv and closures that wait for a slot."
        )
        self.closure_requests = counter("closure_requests", "Times a spec's content needed a closure.")
        self.closure_hits = counter("closure_hits", "Times that closure was already in the store.")
        self.store_logical_bytes = gauge(
            "store_logical_bytes", "Bytes that every served spec would take on disk alone."
        )
        self.store_physical_bytes = gauge(
            "store_physical_bytes", "Bytes on disk of the inodes under store/, each counted once."
        )
        self.disk_saved_bytes = gauge("disk_saved_bytes", "Logical less physical bytes.")
        self.store_closures = gauge("store_closures", "Sealed closures in the store.")
        self.store_inodes = gauge("store_inodes", "Distinct inodes under store/.")
        self.link_fallbacks = counter("link_fallbacks", "Files that were copied where a hardlink was wanted.")
        self.bytecode_linked = counter(
            "bytecode_linked",
            "Compiled files that environments built on the daemon's host got from bytecode/.",
        )
        self.bytecode_compiled = counter(
            "bytecode_compiled", "Sources that had to be compiled for them, as bytecode/ had nothing of them."
        )
        self.bytecode_inodes = gauge(
            "bytecode_inodes", "Compiled files in bytecode/, as the collector's last walk over it found them."
        )
        self.bytecode_bytes = gauge(
            "bytecode_bytes", "Bytes on disk of those; most are in store_physical_bytes, too, by their links."
        )
        self.root_size_bytes = gauge("root_size_bytes", "Size of ROOT's file system.")
        self.root_free_bytes = gauge("root_free_bytes", "Bytes of it that the daemon's user may still take.")
        self.root_inodes = gauge(
            "root_inodes", "Inodes that ROOT's file system can have; 0 where it does not count them."
        )
        self.root_free_inodes = gauge("root_free_inodes", "Those that the daemon's user may still take.")
        self.specs = gauge("specs", "Specs of the revision by state.", ["state"])
        self.commit_to_publish = histogram(
            "commit_to_publish_seconds",
            "From first sight of a commit to the index that makes its change true.",
            PUBLISH_BUCKETS,
        )
        self.index_last_publish = gauge(
            "index_last_publish_timestamp_seconds", "When index.json was last replaced."
        )
        self.writer = gauge("writer", "1 while this daemon writes to ROOT, 0 while it stands by.")
        self.leases = gauge("leases", "Leases that are in force.")
        self.lease_hosts = gauge("lease_hosts", "Hosts that hold a lease in force, by what the leases say.")
        self.leased_closures = gauge(
            "leased_closures", "Closures that are leased, by what the index has of them.", ["use"]
        )
        self.leased_oldest = gauge(
            "leased_oldest_built_timestamp_seconds",
            "When the oldest of the leased closures was built; 0 where none is leased.",
        )
        self.gc_runs = counter("gc_runs", "Collections that have ended.")
        self.gc_failures = counter("gc_failures", "Collections that ended with an error.")
        self.gc_last_success = gauge(
            "gc_last_success_timestamp_seconds", "When a collection last ended well; 0 before the first."
        )
        self.gc_removed = counter("gc_removed", "Closures removed by the collector.")
        self.gc_reclaimed = counter("gc_reclaimed_bytes", "Bytes on disk given back by the collector.")
        for reason in Reason:
            self.build_failures.labels(reason.value)
        for phase in PHASES:
            self.build_duration.labels(phase)
        for state in STATES:
            self.specs.labels(state)
        for kind in DRIFTS:
            self.drift.labels(kind)
        for use in USES:
            self.leased_closures.labels(use)

    def describe(self, version: str, uv: str) -> None:
        """Sets the versions that `build_info` shows."""
        self.build_info.labels(version, uv, platform.python_version()).set(1)
