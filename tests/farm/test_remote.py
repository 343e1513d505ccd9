"""What a build on a node comes to, and what that says of the node. The words are those that a hand would say."""

import json
import queue
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envfabric.build.environment import Elsewhere, Lost
from envfabric.build.farm.line import Line, Terms
from envfabric.build.farm.link import PATIENCE, Unreachable
from envfabric.build.farm.remote import Remote
from envfabric.build.farm.words import Node, Site, Word
from envfabric.build.filling import Order
from envfabric.telemetry.metrics import Metrics

NODE = Node("one", "one", {"CPU": 2.0}, {"CPU": 2.0})
OTHER = Node("two", "two", {"CPU": 2.0}, {"CPU": 2.0})
FILLED = {"filled": {"inodes": [], "linked": 0, "copied": 0, "phases": {}, "lies": []}}


def spec_error(reason: str) -> Word:
    return {"error": "spec", "reason": reason, "text": "it failed", "output": ""}


class Said:
    """A link on which these words come, as from a hand or from Ray."""

    def __init__(self, *words: Word, ray: Word | None = None, lost: bool = False) -> None:
        self.lost = lost
        self._words = [{"said": json.dumps(word)} for word in words] + ([ray] if ray is not None else [])

    def submit(self, asked: Word) -> tuple[int, "queue.SimpleQueue[Word]"]:
        said: queue.SimpleQueue[Word] = queue.SimpleQueue()
        for word in self._words:
            said.put(word)
        return 1, said

    def forget(self, key: int) -> None:
        """Nobody else waits for it."""


def fill(link: Said, line: Line) -> None:
    def site() -> Site:
        return Site(root="/nowhere", marker=b"", uid=0, uv_version="", epoch=1)

    recipe: Any = SimpleNamespace(spec="wf/one")
    staging: Any = SimpleNamespace(folder=Path("/nowhere/staging/one"))
    anything: Any = link
    terms = Terms()
    remote = Remote(anything, NODE, line, site, terms, Metrics(), threading.Event())
    remote.fill(Order(recipe), staging, lambda phase: None)


def passed_over(line: Line) -> bool:
    """Whether the node gets no build while there is another one."""
    with line.node(lambda: [NODE, OTHER]) as found:
        return found.id != NODE.id


@pytest.mark.parametrize(
    ("word", "nodes_fault"),
    [
        ({"error": "os", "errno": 5, "text": "Input/output error on node one", "path": None}, True),
        ({"error": "store", "text": "the folder is gone"}, True),
        (spec_error("internal"), True),
        (spec_error("fetch"), True),
        (spec_error("build-failed"), False),
        (spec_error("validation"), False),
    ],
    ids=["os", "store", "internal", "fetch", "build-failed", "validation"],
)
def test_what_may_be_the_nodes_fault_counts_against_it(word: Word, nodes_fault: bool) -> None:
    """What another node might have done is held against this one until a build is done there; what a spec gets
    wrong anywhere is not."""
    line = Line(Terms())
    with pytest.raises(Exception, match=r"it failed|Input/output error|the folder is gone"):
        fill(Said({"begun": "one"}, word), line)
    assert passed_over(line) == nodes_fault
    fill(Said({"begun": "one"}, FILLED), line)
    assert not passed_over(line)


@pytest.mark.parametrize(
    ("lost", "fault"), [(False, True), (True, False)], ids=["the task", "the whole cluster"]
)
def test_what_is_lost_with_the_cluster_is_no_nodes_fault(lost: bool, fault: bool) -> None:
    """A node that loses a build is passed over for a while; where the connection was lost, with all its builds, none
    is: the cluster would look empty when it is back."""
    line = Line(Terms())
    with pytest.raises(Lost):
        fill(Said({"begun": "one"}, ray={"lost": "it is gone"}, lost=lost), line)
    assert passed_over(line) == fault


@pytest.mark.parametrize(
    ("said", "told", "installs"),
    [
        ("Traceback\nModuleNotFoundError: No module named 'envfabric'", "No module named 'envfabric'", True),
        ("Traceback\nOSError: [Errno 28] No space left on device", "No space left on device", False),
    ],
)
def test_a_task_that_can_not_run_is_told_as_what_it_is(said: str, told: str, installs: bool) -> None:
    """What Ray says of a task that it could not run is handed on; only where a module is missing the advice is to
    install."""
    line = Line(Terms())
    with pytest.raises(Elsewhere) as error:
        fill(Said(ray={"broken": said}), line)
    assert told in str(error.value)
    assert ("install environment-fabric" in str(error.value)) == installs
    assert passed_over(line)


class Silent(Said):
    """A link to a cluster in which a task does not begin, and whose head does not answer."""

    silent = 0.0
    asked = 0
    cancelled = False

    def submit(self, asked: Word) -> tuple[int, "queue.SimpleQueue[Word]"]:
        key, self._said = super().submit(asked)
        return key, self._said

    def nodes(self) -> list[Node]:
        self.asked += 1
        if self.asked == 3:
            self.silent = PATIENCE
        raise Unreachable("it did not answer")

    def cancel(self, key: int) -> None:
        self.cancelled = True
        self._said.put({"over": True})


def test_a_task_that_does_not_begin_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the head is away for a moment a build waits for its node; in the end it is taken back, and is lost."""
    monkeypatch.setattr("envfabric.build.farm.remote.PENDING", 0.01)
    monkeypatch.setattr("envfabric.build.farm.remote._LOOK", 0.01)
    link = Silent()
    with pytest.raises(Lost, match="did not begin on node one: it did not answer"):
        fill(link, Line(Terms()))
    assert link.asked == 3
    assert link.cancelled


class BeginsLate(Silent):
    """As that, but the task begins while the head is asked for the last time."""

    def nodes(self) -> list[Node]:
        try:
            return super().nodes()
        finally:
            if self.silent:
                for word in ({"begun": "one"}, FILLED):
                    self._said.put({"said": json.dumps(word)})


def test_a_task_that_begins_at_last_is_not_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came while the head was asked counts: the build that runs is not lost."""
    monkeypatch.setattr("envfabric.build.farm.remote.PENDING", 0.01)
    monkeypatch.setattr("envfabric.build.farm.remote._LOOK", 0.01)
    link = BeginsLate()
    fill(link, Line(Terms()))
    assert link.silent == PATIENCE and not link.cancelled
