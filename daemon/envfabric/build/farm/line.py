"""The line of builds that wait for a node: who is next, and which node it gets.

First come, first served, and who has to go elsewhere has its place again. Only the first in line asks the cluster for
its nodes, so that a thousand that wait ask as often as one. A node that can't build is passed over for a while; one
where builds fail at once, for a cause that may be its own, for as long as there are others: being free again so soon
it would get every next build. Knows only what it is told, and touches no file.
"""

import bisect
import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from envfabric.build.farm.words import Node, Refused
from envfabric.build.scope import Scope, Stopped, current
from envfabric.core.errors import Reason, SpecError
from envfabric.telemetry import logs

_UNFIT = 60.0
"""Seconds for which a node that can't build is not asked again."""
_WAS_LOST = 10.0
"""Seconds for which a node on which a build was lost gets no other: the cluster may not know yet that it is gone."""
_FAILED = 5.0
"""Seconds for which a node gets no build after one failed there; twice as many after each more, up to `_UNFIT`."""
_LOOK = 1.0
"""Seconds between two looks at the cluster's nodes while none has room."""
_LONG = 60.0
"""Seconds after which the log tells that a build waits for room."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the settings say of the farm."""

    address: str = "auto"
    cpus: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)
    per_node: int = 2

    @property
    def wanted(self) -> dict[str, float]:
        """What a build takes of a node, as Ray counts it."""
        return {"CPU": self.cpus, **self.resources}


@dataclass(slots=True)
class _Shunned:
    """A node that gets no build for now."""

    until: float
    why: Refused | None = None
    """What makes it unfit."""
    failed: bool = False
    """Whether builds fail there, which may be their own fault as well."""


class Line:
    """The builds that wait, and what is known of the nodes. Safe for threads."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int]] = []
        """Each with the number that its step got when it first came, and its own; in order."""
        self._numbers = itertools.count()
        self._came: WeakKeyDictionary[Scope, int] = WeakKeyDictionary()
        self._running: Counter[str] = Counter()
        self._shunned: dict[str, _Shunned] = {}
        self._failures: Counter[str] = Counter()
        """Builds by node that failed there at once, one after the other."""
        self._stopped = False

    @contextlib.contextmanager
    def node(self, ask: Callable[[], list[Node] | None]) -> Iterator[Node]:
        """A node with room, on which one build more is counted while the block runs. Waits for its turn and for it.

        `ask` gives the cluster's live nodes, None where they are not known for now. Raises what it does, `SpecError`
        where no node will do, and what the step's scope does.
        """
        node = self._take(ask)
        try:
            yield node
        finally:
            with self._changed:
                self._running[node.id] -= 1
                self._changed.notify_all()

    def has_other(self, node: Node, nodes: list[Node]) -> bool:
        """Whether a build that waits on a node, for others' tasks, could begin on another one at once."""
        with self._changed:
            return any(
                one.id != node.id and _covers(one.free, self._terms.wanted) for one in self._free(nodes)
            )

    def refused(self, node: Node, why: Refused) -> None:
        """The node can't build."""
        self._shun(node, _Shunned(time.monotonic() + _UNFIT, why))

    def lost(self, node: Node) -> None:
        """A build was lost there."""
        self._shun(node, _Shunned(time.monotonic() + _WAS_LOST))

    def failed(self, node: Node) -> None:
        """A build failed there at once, for a cause that may be the node's."""
        with self._changed:
            self._failures[node.id] += 1
            seconds = min(_UNFIT, _FAILED * 2 ** (self._failures[node.id] - 1))
        self._shun(node, _Shunned(time.monotonic() + seconds, failed=True))

    def done(self, node: Node) -> None:
        """A build was done there: what failed before was not the node's fault, or is over."""
        with self._changed:
            self._failures.pop(node.id, None)
            if node.id in self._shunned and self._shunned[node.id].failed:
                del self._shunned[node.id]
                self._changed.notify_all()

    def forget(self) -> None:
        """A cluster of the same nodes may be another one."""
        with self._changed:
            self._shunned.clear()
            self._failures.clear()

    def stop(self) -> None:
        """Lets nobody wait any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _shun(self, node: Node, how: _Shunned) -> None:
        with self._changed:
            held = self._shunned.get(node.id)
            # Of two builds there the weaker word does not end the stronger one: unfit stays unfit.
            if held is None or held.until <= how.until or (held.why is None and how.why is not None):
                self._shunned[node.id] = how

    def _take(self, ask: Callable[[], list[Node] | None]) -> Node:
        scope = current()
        # Entered before the lock is held, and left after it: ending the scope takes it.
        with scope.ended_by(self._wake):
            with self._changed:
                number = next(self._numbers)
                ticket = self._came.setdefault(scope, number), number
                bisect.insort(self._waiting, ticket)
            try:
                return self._wait(ask, ticket, scope)
            finally:
                with self._changed:
                    self._waiting.remove(ticket)
                    self._changed.notify_all()

    def _wait(self, ask: Callable[[], list[Node] | None], ticket: tuple[int, int], scope: Scope) -> Node:
        telling: float | None = None
        while True:
            with self._changed:
                while self._waiting[0] != ticket:
                    self._check(scope)
                    self._changed.wait()
            self._check(scope)
            if telling is None:
                telling = time.monotonic() + _LONG
            nodes = ask()
            with self._changed:
                self._check(scope)
                if self._waiting[0] != ticket:
                    # One that came earlier has to go elsewhere, and is back.
                    continue
                if nodes is not None and (node := self._choose(nodes)) is not None:
                    self._running[node.id] += 1
                    return node
                if time.monotonic() >= telling:
                    telling += 10 * _LONG
                    logs.get().info("builds wait for room on the farm", builds=len(self._waiting))
                self._changed.wait(_LOOK)

    def _check(self, scope: Scope) -> None:
        if self._stopped:
            raise Stopped
        scope.check("waiting for a node of the farm")

    def _choose(self, nodes: list[Node]) -> Node | None:
        """The node for the next build; None where all that would do are full for now. Raises `SpecError`."""
        wanted = self._terms.wanted
        able = [one for one in nodes if _covers(one.total, wanted)]
        if not able:
            told = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items())
            raise SpecError(
                Reason.INTERNAL,
                f"none of the cluster's {len(nodes)} nodes has what a build is given by the settings ({told}). Change "
                "farm.cpus or farm.resources, or start a node that has it; the build is tried again by itself.",
            )
        self._forget_what_is_over()
        unfit = [how.why for one in able if (how := self._shunned.get(one.id)) and how.why is not None]
        if len(unfit) == len(able):
            others = f" ({len(able) - 1} other nodes can't build either)" if len(able) > 1 else ""
            raise SpecError(
                unfit[0].reason,
                f"no node of the cluster can build: {unfit[0]}{others}. The build is tried again by itself.",
            )
        # Where others' tasks leave room first, as `has_other` looks: else a build that waits would be sent there and
        # back. Then where none failed.
        return min(
            self._free(able),
            key=lambda one: (
                not _covers(one.free, wanted),
                self._failures[one.id] > 0,
                self._running[one.id],
                one.name,
            ),
            default=None,
        )

    def _free(self, nodes: list[Node]) -> list[Node]:
        """Those on which the settings let one build more run, and that are not shunned."""
        self._forget_what_is_over()
        able = [one for one in nodes if _covers(one.total, self._terms.wanted)]
        kept = [one for one in able if one.id not in self._shunned]
        if not kept:
            # It fails on all of them: then it is not the node, and nothing is won by waiting.
            kept = [one for one in able if self._shunned[one.id].failed]
        return [one for one in kept if self._running[one.id] < self._terms.per_node]

    def _forget_what_is_over(self) -> None:
        now = time.monotonic()
        self._shunned = {key: one for key, one in self._shunned.items() if one.until > now}

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _covers(has: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(has.get(name, 0.0) >= amount for name, amount in wanted.items())
