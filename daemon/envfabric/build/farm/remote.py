"""One build on one node: its task is submitted, what its hand says is followed, and what it came to is raised.

What it comes to is told to the line, too, which chooses the nodes. A task that Ray does not let begin, because others
fill the node, is taken back when another node has room. Touches nothing of ROOT.
"""

import contextlib
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from envfabric.build.environment import Elsewhere, Lost
from envfabric.build.farm.line import Line, Terms
from envfabric.build.farm.link import PATIENCE, Link, Unreachable, Words
from envfabric.build.farm.node import release
from envfabric.build.farm.words import Node, Refused, Site, Task, Word, filled_of, raise_word
from envfabric.build.filling import Filled, Order, Tell
from envfabric.build.scope import Scope, Stopped, current
from envfabric.core.errors import Reason, SpecError, StoreError
from envfabric.store.closures import Staging
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics

PENDING = 30.0
"""Seconds that Ray has to let a task begin, before another node with room is looked for."""
_LOOK = 5.0
"""Seconds between two looks for one after that."""
_AT_ONCE = 60.0
"""Seconds within which a build that fails, fails at once: a node where they do takes one after the other."""
_GRACE = 10.0
"""Seconds that a node has to say that a build's time is over, and a task to end once it is cancelled."""
_MARGIN = 0.2
"""Seconds by which a node's limit is later than the daemon's own: whose time is over is told by the daemon."""


class Remote:
    """A node with room for one build."""

    def __init__(
        self,
        link: Link,
        node: Node,
        line: Line,
        site: Callable[[], Site],
        terms: Terms,
        metrics: Metrics,
        stopping: threading.Event,
    ) -> None:
        """`site` gives what nodes are compared with, as it is now."""
        self._link = link
        self._node = node
        self._line = line
        self._site = site
        self._terms = terms
        self._metrics = metrics
        self._stopping = stopping
        self._log = logs.get()

    def fill(self, order: Order, staging: Staging, tell: Tell) -> Filled:
        """As `Host.fill`."""
        began = time.monotonic()
        try:
            filled = self._fill(order, staging, tell)
        except Refused as refused:
            self._line.refused(self._node, refused)
            self._metrics.farm_refusals.inc()
            self._log.warning("a node can't build", node=self._node.name, why=str(refused))
            raise Elsewhere(str(refused)) from None
        except Lost:
            if not self._link.lost:
                # Else it was the connection, and no node's fault.
                self._line.lost(self._node)
            self._metrics.farm_lost.inc()
            raise
        except (SpecError, StoreError, OSError) as error:
            if time.monotonic() < began + _AT_ONCE and _may_be_the_nodes(error):
                self._line.failed(self._node)
            raise
        self._line.done(self._node)
        return filled

    def _fill(self, order: Order, staging: Staging, tell: Tell) -> Filled:
        scope, node, spec = current(), self._node, order.recipe.spec
        left = scope.deadline - time.monotonic()
        order = replace(order, log=f"{order.log}# on node {node.name}\n")
        task = Task(self._site(), order, str(staging.folder), left + _MARGIN)
        asked = {
            "node": node.id,
            # It is shown in Ray's dashboard, as the task itself is not.
            "name": f"envfabric build {spec}",
            "cpus": self._terms.cpus,
            "resources": dict(self._terms.resources),
            "release": release(),
            "task": task.packed(),
        }
        self._log.info("build on node", spec=spec, node=node.name)
        try:
            key, words = self._link.submit(asked)
        except Unreachable as error:
            if self._stopping.is_set():
                raise Stopped from None
            raise Lost(f"the Ray cluster was lost: {error}") from None
        ended = False
        try:
            with scope.ended_by(lambda: words.put({})):
                with scope.paused():
                    word = self._first(words, scope, spec)
                while True:
                    ended = not word.keys() & {"begun", "phase", "log"}
                    if (phase := word.get("phase")) is not None:
                        tell(str(phase))
                    elif (line := word.get("log")) is not None:
                        self._log_line(line)
                    elif (told := word.get("filled")) is not None:
                        return filled_of(told)
                    elif ended:
                        self._raise(word, scope)
                    word = self._next(words, scope)
        finally:
            if not ended:
                self._link.cancel(key)
                self._until_over(words)
            self._link.forget(key)

    def _first(self, words: Words, scope: Scope, spec: str) -> Word:
        """The first word of a task. Raises `Elsewhere` where Ray has it wait and another node has room, and `Lost`."""
        wait = PENDING
        while True:
            try:
                return self._hear(words, scope, wait)
            except queue.Empty:
                if wait != _LOOK:
                    self._log.info("a build waits for its node", spec=spec, node=self._node.name)
                wait = _LOOK
            try:
                other = self._line.has_other(self._node, self._link.nodes())
            except Unreachable as error:
                # The head may be away for a moment. Where all is lost the next word says so.
                if self._link.silent >= PATIENCE:
                    with contextlib.suppress(queue.Empty):
                        # It may have begun while the head was asked.
                        return self._hear(words, scope, 0.0)
                    raise Lost(f"the build did not begin on node {self._node.name}: {error}") from None
                continue
            if other:
                self._log.info("a build goes to another node", spec=spec, node=self._node.name)
                raise Elsewhere(f"others' tasks fill node {self._node.name}")

    def _next(self, words: Words, scope: Scope) -> Word:
        """The next word of a hand. Raises what the scope does, and `Stopped`."""
        while True:
            # After its time the node has a while to say what it was at.
            left = scope.deadline + _GRACE - time.monotonic()
            try:
                return self._hear(words, scope, None if math.isinf(left) else max(0.0, left))
            except queue.Empty:
                scope.check("a build on a node")

    def _hear(self, words: Words, scope: Scope, seconds: float | None) -> Word:
        """The next word within so many seconds. Raises `queue.Empty` and `Stopped`."""
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            if scope.ended or self._stopping.is_set():
                raise Stopped
            word = words.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            if "said" in word:
                said: Word = json.loads(word["said"])
                return said
            if word.keys() & {"lost", "broken"}:
                return word
            if "over" in word:
                return {"lost": "its task ended without a word"}

    def _raise(self, word: Word, scope: Scope) -> None:
        name = self._node.name
        if self._stopping.is_set():
            raise Stopped
        if "broken" in word:
            last = (str(word["broken"]).strip().splitlines() or [""])[-1]
            wrong = f"node {name} can't run the build's task ({last})"
            if "ModuleNotFoundError" in last or "ImportError" in last:
                wrong += f": install environment-fabric[daemon]=={release()} in Ray's Python there"
            raise Refused(Reason.INTERNAL, wrong)
        if "lost" in word:
            raise Lost(f"the build on node {name} was lost: {word['lost']}")
        if word.get("error") == "spec" and word["reason"] == Reason.TIMEOUT:
            scope.check("a build on a node", word["output"])
        raise_word(word)
        raise Lost(f"the build on node {name} ended with words that are not known")

    def _until_over(self, words: Words) -> None:
        """Waits for the end of a task that was cancelled: until then its slot is taken, and its folder held."""
        deadline = time.monotonic() + _GRACE
        while (left := deadline - time.monotonic()) > 0 and not self._stopping.is_set():
            try:
                if words.get(timeout=left).keys() & {"over", "lost", "broken"}:
                    return
            except queue.Empty:
                return

    def _log_line(self, line: Mapping[str, str]) -> None:
        told = {name: value for name, value in line.items() if name not in {"event", "level"}}
        level = line.get("level", "")
        write = self._log.warning if level in {"warning", "error"} else self._log.info
        write(str(line.get("event", "")), **told, node=self._node.name)


def _may_be_the_nodes(error: Exception) -> bool:
    """Whether another node might have done it: a full disk of its own, no way to the index, and the like."""
    if isinstance(error, SpecError):
        return error.reason in {Reason.STORE, Reason.INTERNAL, Reason.FETCH}
    return True
