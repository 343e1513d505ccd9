"""What the steps come to in figures: requests for closures, builds, and what is in the store.

Belongs to the loop's thread; a figure that can't be kept is told and stops nothing.
"""

from envfabric.build.environment import Built
from envfabric.loop.realise import Located, Made
from envfabric.specs.tree import SpecRef
from envfabric.store.usage import Usage
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics


class Counting:
    """The figures of one loop's steps."""

    def __init__(self, usage: Usage, metrics: Metrics) -> None:
        self._usage = usage
        self._metrics = metrics
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

    def closure(self, name: str) -> None:
        """A closure is served: it belongs on the account. Raises `OSError` where it can't be walked."""
        if not self._usage.known(name):
            self._usage.add(name)
