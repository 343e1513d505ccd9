"""What the steps come to in figures: requests for closures, builds, and what is in the store.

Builds are told to the audit trail one by one, all else as sums, by `figures`; metrics are for those who scrape them.

Belongs to the loop's thread; a figure that can't be kept is told and stops nothing.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from envfabric.build.environment import Built
from envfabric.index.document import Entry
from envfabric.loop.steps import Located, Made
from envfabric.specs.tree import SpecRef
from envfabric.store.usage import Usage
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics


class Counting:
    """The figures of one loop's steps."""

    def __init__(
        self, usage: Usage, metrics: Metrics, note: Callable[..., None] = lambda event, **details: None
    ) -> None:
        """`note` takes events for the audit trail, see store/history."""
        self._usage = usage
        self._metrics = metrics
        self._note = note
        self._requests = self._hits = 0
        self._log = logs.get()
        self._counted: dict[str, str] = {}

    def forget(self, spec_id: str) -> None:
        """The spec's content is looked into anew: it counts as another request."""
        self._counted.pop(spec_id, None)

    def request(self, ref: SpecRef, *, hit: bool) -> None:
        """A spec's content needed a closure; a `hit` was in the store."""
        # Once for each content: those who wait for another's build come by here twice.
        if self._counted.get(ref.id) != ref.tree:
            self._counted[ref.id] = ref.tree
            self._requests += 1
            self._hits += int(hit)
            self._metrics.closure_requests.inc()
            self._metrics.closure_hits.inc(int(hit))

    def build(self, work: Located, built: Made) -> None:
        """A build has ended, or a validation, which counts for nothing here."""
        if not isinstance(built, Built):
            return
        log = self._log.bind(spec=work.id, commit=work.request.commit, digest=work.digest)
        try:
            self._usage.add(built.name, built.inodes)
        except OSError as error:
            # The closure is whole; what could not be counted now is counted at the next start.
            log.warning("closure not counted", error=str(error))
        for phase, seconds in built.phases.items():
            self._metrics.build_duration.labels(phase).observe(seconds)
        if built.link_fallbacks:
            self._metrics.link_fallbacks.inc(built.link_fallbacks)
            log.warning(
                "files were copied, not linked: they take their space once for each environment",
                copied=built.link_fallbacks,
                linked=built.linked,
            )
        log.info("built", closure=built.name, seconds=round(built.phases["total"], 3))
        self._note(
            "built",
            spec=work.id,
            commit=work.request.commit,
            closure=built.name,
            seconds={phase: round(seconds, 3) for phase, seconds in built.phases.items()},
            linked=built.linked,
            copied=built.link_fallbacks,
            bytes=sum(built.inodes.values()),
        )

    def figures(self, entries: Mapping[str, Entry]) -> dict[str, Any]:
        """What the audit trail keeps of the store and of the specs' states now, and of the requests since it was last
        asked."""
        totals = self._usage.totals()
        served = Counter(one.serving for one in entries.values() if one.serving)
        told = {
            "requests": self._requests,
            "hits": self._hits,
            "logical_bytes": sum(times * self._usage.logical(name) for name, times in served.items()),
            "physical_bytes": totals.physical_bytes,
            "closures": totals.closures,
            "states": dict(Counter(str(one.state) for one in entries.values())),
        }
        self._requests = self._hits = 0
        return told

    def closure(self, name: str) -> None:
        """A closure is served: it belongs on the account. Raises `OSError` where it can't be walked."""
        if not self._usage.known(name):
            self._usage.add(name)
