"""The Ray executor: has each staging folder filled on a node of the cluster, and says which node it is.

It chooses the node itself: one with room, that was not found unfit or lost a moment ago, and of those the one with
the fewest builds. A node that can't build is passed over for a while; one that is lost is the build's to retry, in
another staging folder. Touches nothing of ROOT but its marker, which it reads.
"""

import json
import math
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from envfabric.build.environment import Lost
from envfabric.build.farm.link import Link, Unreachable, Words
from envfabric.build.farm.node import release
from envfabric.build.farm.words import Node, Refused, Site, Task, Word, filled_of, raise_word
from envfabric.build.filling import Filled, Order, Tell
from envfabric.build.scope import Scope, Stopped, current
from envfabric.build.uv import Uv
from envfabric.core.errors import Reason, SpecError, hidden
from envfabric.store.closures import Staging
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics

_UNFIT = 60.0
"""Seconds for which a node that can't build is not asked again."""
_WAS_LOST = 10.0
"""Seconds for which a node on which a build was lost gets no other: the cluster may not know yet that it is gone."""
_AGAIN = 5.0
"""Seconds for which a cluster that could not be reached is not asked again."""
_LOOK = 1.0
"""Seconds between two looks at the cluster's nodes while none has room."""
_GRACE = 10.0
"""Seconds that a node has to say that a build's time is over, and a task to end once it is cancelled."""
_MARGIN = 0.2
"""Seconds by which a node's limit is later than the daemon's own: whose time is over is told by the daemon."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the settings say of the farm."""

    address: str = "auto"
    cpus: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)
    per_node: int = 2


@dataclass(slots=True)
class _Shunned:
    """A node that gets no build for now."""

    until: float
    why: Refused | None
    """What makes it unfit; None where it was lost."""


class Farm:
    """Fills staging folders on a Ray cluster's nodes. Safe for threads."""

    elsewhere = True

    def __init__(self, site: Callable[[], Site], terms: Terms, metrics: Metrics) -> None:
        """`site` gives what nodes are compared with, as it is now."""
        self._site = site
        self._terms = terms
        self._metrics = metrics
        self._log = logs.get()
        self._stopping = threading.Event()
        self._link: Link | None = None
        self._linking = threading.Lock()
        self._failed: tuple[float, str] = (-math.inf, "")
        self._running: Counter[str] = Counter()
        self._shunned: dict[str, _Shunned] = {}
        self._changed = threading.Condition()

    def fill(self, order: Order, staging: Staging, tell: Tell) -> Filled:
        """As `Filling.fill`, on a node; raises `Lost` where what became of it there is not known."""
        while True:
            link = self._connected()
            try:
                node = self._take_node(link)
            except Unreachable as error:
                raise self._unreachable(error) from None
            try:
                return self._fill(link, node, order, staging, tell)
            except Refused as refused:
                self._shun(node, _UNFIT, refused)
                self._metrics.farm_refusals.inc()
                self._log.warning("a node can't build", node=node.name, why=str(refused))
            except Lost:
                self._shun(node, _WAS_LOST, None)
                self._metrics.farm_lost.inc()
                raise
            finally:
                with self._changed:
                    self._running[node.id] -= 1
                    self._changed.notify_all()

    def stop(self) -> None:
        """Leaves the cluster, which ends what runs there, and lets nothing begin any more."""
        self._stopping.set()
        if (link := self._link) is not None:
            link.close()
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # The cluster.

    def _connected(self) -> Link:
        """The link to the cluster, a new one where the last is lost. Raises `SpecError` (internal), `Stopped`."""
        with self._linking:
            if self._stopping.is_set():
                raise Stopped
            if self._link is not None and not self._link.lost:
                return self._link
            failed, why = self._failed
            if time.monotonic() < failed + _AGAIN:
                # Hundreds of builds need not each find it out by themselves.
                raise self._unreachable(Unreachable(why))
            self._link = link = Link(self._terms.address)
            if self._stopping.is_set():
                link.close()
            try:
                link.ready()
            except Unreachable as error:
                self._failed = time.monotonic(), str(error)
                raise self._unreachable(error) from None
            # A cluster of the same nodes may be another one.
            with self._changed:
                self._shunned.clear()
            self._log.info("the farm's cluster is reached", address=self._terms.address)
            return link

    def _unreachable(self, error: Unreachable) -> Exception:
        if self._stopping.is_set():
            return Stopped()
        return SpecError(
            Reason.INTERNAL,
            f"the Ray cluster of the build farm ({self._terms.address}) can't be reached: {error}. Check that Ray runs "
            "on the daemon's host and farm.address is right; the build is tried again by itself.",
        )

    # The node.

    def _take_node(self, link: Link) -> Node:
        """A node with room for a build, counted as one more there. Waits for it.

        Raises `Unreachable`, `SpecError` where no node will do, and what the step's scope does.
        """
        scope = current()
        with scope.ended_by(self._wake):
            while True:
                scope.check("waiting for a node of the farm")
                nodes = link.nodes()
                with self._changed:
                    if self._stopping.is_set():
                        raise Stopped
                    if (node := self._choose(nodes)) is not None:
                        self._running[node.id] += 1
                        return node
                    self._changed.wait(max(0.0, min(_LOOK, scope.deadline - time.monotonic())))

    def _choose(self, nodes: list[Node]) -> Node | None:
        """The node for the next build; None where all that would do are full for now. Raises `SpecError`."""
        wanted = {"CPU": self._terms.cpus, **self._terms.resources}
        able = [one for one in nodes if _covers(one.total, wanted)]
        if not able:
            told = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items())
            raise SpecError(
                Reason.INTERNAL,
                f"none of the cluster's {len(nodes)} nodes has what a build is given by the settings ({told}). Change "
                "farm.cpus or farm.resources, or start a node that has it; the build is tried again by itself.",
            )
        now = time.monotonic()
        self._shunned = {key: one for key, one in self._shunned.items() if one.until > now}
        unfit = [why for one in able if (why := self._unfit(one)) is not None]
        if len(unfit) == len(able):
            others = f" ({len(able) - 1} other nodes can't build either)" if len(able) > 1 else ""
            raise SpecError(
                unfit[0].reason,
                f"no node of the cluster can build: {unfit[0]}{others}. The build is tried again by itself.",
            )
        free = [
            one
            for one in able
            if one.id not in self._shunned and self._running[one.id] < self._terms.per_node
        ]
        # Where others' tasks leave room first: a build would wait for them.
        return min(
            free,
            key=lambda one: (not _covers(one.free, wanted), self._running[one.id], one.name),
            default=None,
        )

    def _unfit(self, node: Node) -> Refused | None:
        shunned = self._shunned.get(node.id)
        return None if shunned is None else shunned.why

    def _shun(self, node: Node, seconds: float, why: Refused | None) -> None:
        with self._changed:
            self._shunned[node.id] = _Shunned(time.monotonic() + seconds, why)

    # The build.

    def _fill(self, link: Link, node: Node, order: Order, staging: Staging, tell: Tell) -> Filled:
        scope = current()
        left = scope.deadline - time.monotonic()
        order = replace(order, log=f"{order.log}# on node {node.name}\n")
        task = Task(self._site(), order, str(staging.folder), left + _MARGIN)
        asked = {
            "node": node.id,
            # It is shown in Ray's dashboard, as the task itself is not.
            "name": f"envfabric build {order.recipe.spec}",
            "cpus": self._terms.cpus,
            "resources": dict(self._terms.resources),
            "release": release(),
            "task": task.packed(),
        }
        self._log.info("build on node", spec=order.recipe.spec, node=node.name)
        try:
            key, words = link.submit(asked)
        except Unreachable as error:
            raise self._unreachable(error) from None
        ended = False
        try:
            with scope.ended_by(lambda: words.put({})):
                while True:
                    word = self._next(words, scope)
                    ended = not word.keys() & {"phase", "log"}
                    if (phase := word.get("phase")) is not None:
                        tell(str(phase))
                    elif (line := word.get("log")) is not None:
                        self._log_line(line, node)
                    elif (told := word.get("filled")) is not None:
                        return filled_of(told)
                    else:
                        self._raise(word, node, scope)
        finally:
            if not ended:
                link.cancel(key)
                self._until_over(words)
            link.forget(key)

    def _next(self, words: Words, scope: Scope) -> Word:
        """The next word of a hand. Raises what the scope does, and `Stopped`."""
        while True:
            if scope.ended or self._stopping.is_set():
                raise Stopped
            # After its time the node has a while to say what it was at.
            left = scope.deadline + _GRACE - time.monotonic()
            try:
                word = words.get(timeout=None if math.isinf(left) else max(0.0, left))
            except queue.Empty:
                scope.check("a build on a node")
                continue
            if "said" in word:
                said: Word = json.loads(word["said"])
                return said
            if word.keys() & {"lost", "broken"}:
                return word
            if "over" in word:
                return {"lost": "its task ended without a word"}

    def _raise(self, word: Word, node: Node, scope: Scope) -> None:
        if self._stopping.is_set():
            raise Stopped
        if "broken" in word:
            last = str(word["broken"]).strip().splitlines()[-1]
            raise Refused(
                Reason.INTERNAL,
                f"node {node.name} can't run the build's task ({last}): install "
                f"environment-fabric[daemon]=={release()} in Ray's Python there",
            )
        if "lost" in word:
            raise Lost(f"the build on node {node.name} was lost: {word['lost']}")
        if word.get("error") == "spec" and word["reason"] == Reason.TIMEOUT:
            scope.check("a build on a node", word["output"])
        raise_word(word)
        raise Lost(f"the build on node {node.name} ended with words that are not known")

    def _until_over(self, words: Words) -> None:
        """Waits for the end of a task that was cancelled: until then its slot is taken, and its folder held."""
        deadline = time.monotonic() + _GRACE
        while (left := deadline - time.monotonic()) > 0 and not self._stopping.is_set():
            try:
                if words.get(timeout=left).keys() & {"over", "lost", "broken"}:
                    return
            except queue.Empty:
                return

    def _log_line(self, line: Mapping[str, str], node: Node) -> None:
        told = {name: value for name, value in line.items() if name not in {"event", "level"}}
        level = line.get("level", "")
        write = self._log.warning if level in {"warning", "error"} else self._log.info
        write(str(line.get("event", "")), **told, node=node.name)


def site_of(uv: Uv, epoch: int, workers: int) -> Site:
    """What nodes are compared with and told, as it is now; `workers` as in `Site`. Raises `OSError`."""
    secrets = dict(uv.secrets)
    path = secrets.pop("NETRC", None)
    return Site(
        root=str(uv.root.path),
        marker=uv.root.marker.read_bytes(),
        uid=os.geteuid(),
        uv_version=uv.version(),
        epoch=epoch,
        index=uv.index,
        workers=workers,
        secrets=secrets,
        # The file lies on this host.
        netrc=None if path is None else Path(path).read_text("utf-8", "replace"),
        hidden=hidden(),
    )


def _covers(has: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(has.get(name, 0.0) >= amount for name, amount in wanted.items())
