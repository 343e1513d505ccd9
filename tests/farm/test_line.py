"""Who gets the next node: builds in the order in which they came, and no node where they only fail."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from envfabric.build.environment import Builder, recipe_of
from envfabric.build.farm.line import Line, Terms
from envfabric.build.farm.words import Node, Refused
from envfabric.build.filling import Filling
from envfabric.build.scope import Scope, Stopped, current
from envfabric.build.unpacking import Unpacking
from envfabric.core.errors import Reason, SpecError
from support.place import Place
from support.waiting import wait_for


def node(name: str, free: float = 2.0) -> Node:
    return Node(name, name, {"CPU": 2.0}, {"CPU": free})


@dataclass
class Cluster:
    """Nodes, and who asked for them."""

    nodes: list[Node]
    asked: set[str] = field(default_factory=set)
    held: dict[str, threading.Event] = field(default_factory=dict)
    """Until when who asks waits for an answer, by name."""

    def ask(self) -> list[Node]:
        name = threading.current_thread().name
        self.asked.add(name)
        if name in self.held:
            assert self.held[name].wait(300)
        return self.nodes


class Build:
    """A build that waits in a line in a thread of its own, and holds its node until it is told to end."""

    def __init__(
        self, line: Line, cluster: Cluster, name: str, served: list[str], scope: Scope | None = None
    ) -> None:
        self.scope = scope or Scope("building", 3600)
        self.leave = threading.Event()
        self.got: str | None = None
        self.error: BaseException | None = None

        def work() -> None:
            try:
                with self.scope.entered(), line.node(cluster.ask) as found:
                    served.append(name)
                    self.got = found.id
                    assert self.leave.wait(300)
            except (Stopped, SpecError) as error:
                self.error = error

        before = len(line._waiting)
        self.thread = threading.Thread(target=work, name=name, daemon=True)
        self.thread.start()
        # The holder has left the line when the next one comes: it is not to be counted as the next one's place.
        wait_for(
            lambda: self.got or self.error or (name != "holder" and len(line._waiting) > before),
            message=f"{name} is not in line",
        )

    def end(self) -> None:
        self.leave.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def taken(line: Line, *nodes: Node) -> Iterator[str]:
    """The node that the next build gets."""
    with line.node(lambda: list(nodes)) as found:
        yield found.id


def test_builds_are_served_in_the_order_in_which_they_came() -> None:
    """While no node has room only the first in line asks the cluster; when one has, the first gets it, and the next
    is the next."""
    line, cluster, served = Line(Terms(per_node=1)), Cluster([node("one")]), list[str]()
    builds = [Build(line, cluster, name, served) for name in ("first", "second", "third", "fourth")]
    wait_for(lambda: "second" in cluster.asked, message="the first in line does not ask")
    assert cluster.asked == {"first", "second"}
    for count, build in enumerate(builds, 1):
        wait_for(lambda count=count: len(served) == count, message=f"{served} were served")  # type: ignore[misc]
        build.end()
    assert served == ["first", "second", "third", "fourth"]


def test_who_is_cancelled_in_line_ends_at_once_and_holds_up_nobody() -> None:
    """The first in line and one behind it are cancelled while the only node is full: both are gone before it is
    free, and who came after them gets it."""
    line, cluster, served = Line(Terms(per_node=1)), Cluster([node("one")]), list[str]()
    holder, first, second, last = (
        Build(line, cluster, name, served) for name in ("holder", "first", "second", "last")
    )
    for build in (second, first):
        build.scope.end()
        build.thread.join(60)
        assert isinstance(build.error, Stopped)
    holder.end()
    wait_for(lambda: last.got == "one", message="the last was not served")
    last.end()
    assert served == ["holder", "last"]


def test_a_farm_that_stops_lets_nobody_wait() -> None:
    """All that wait in line hear of it."""
    line, cluster, served = Line(Terms(per_node=1)), Cluster([node("one")]), list[str]()
    holder, *waiting = (Build(line, cluster, name, served) for name in ("holder", "first", "second"))
    line.stop()
    for build in waiting:
        build.thread.join(60)
        assert isinstance(build.error, Stopped)
    holder.end()


def test_a_node_where_builds_fail_at_once_gets_no_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is free again sooner than the others, and would be given every build. The next one waits for another node
    rather, and later, too, others are chosen first; a build that is done there clears it."""
    monkeypatch.setattr("envfabric.build.farm.line._FAILED", 3600.0)
    monkeypatch.setattr("envfabric.build.farm.line._UNFIT", 3600.0)
    one, two = node("one"), node("two")
    line, cluster, served = Line(Terms(per_node=1)), Cluster([one, two]), list[str]()
    with taken(line, one, two) as first:
        assert first == "one"
        line.failed(one)
    holder = Build(line, cluster, "holder", served)
    wait_for(lambda: holder.got == "two", message="the other was not chosen")
    waits = Build(line, cluster, "waits", served)
    wait_for(lambda: "waits" in cluster.asked, message="it does not ask")
    holder.end()
    wait_for(lambda: waits.got == "two", message="the other was not waited for")
    waits.end()

    monkeypatch.setattr("envfabric.build.farm.line._FAILED", 0.0)
    line.done(one)
    line.failed(one)
    with taken(line, one, two) as third:
        assert third == "two"
        line.done(one)
    with taken(line, one, two) as fourth:
        assert fourth == "one"


def test_where_builds_fail_on_every_node_none_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the builds' fault then: waiting would help nobody, and the good ones among them must go on."""
    monkeypatch.setattr("envfabric.build.farm.line._FAILED", 3600.0)
    monkeypatch.setattr("envfabric.build.farm.line._UNFIT", 3600.0)
    one, two = node("one"), node("two")
    line, cluster, served = Line(Terms(per_node=1)), Cluster([one, two]), list[str]()
    for bad in (one, two):
        line.failed(bad)
    builds = [Build(line, cluster, name, served) for name in ("first", "second")]
    wait_for(lambda: len(served) == 2, message="they wait")
    assert {build.got for build in builds} == {"one", "two"}
    for build in builds:
        build.end()


def test_nodes_that_can_not_build_end_the_wait_with_what_is_wrong() -> None:
    """Where every node is unfit, or none has what a build takes, the error says so; none waits for ever."""
    one, two = node("one"), node("two")
    line = Line(Terms(per_node=1))
    line.refused(one, Refused(Reason.STORE, "node one does not see ROOT"))
    with taken(line, one, two) as only:
        assert only == "two"
    line.refused(two, Refused(Reason.STORE, "node two has no uv"))
    with pytest.raises(SpecError, match=r"node one does not see ROOT \(1 other nodes"), taken(line, one, two):
        pass
    large = Line(Terms(resources={"builder": 1}))
    with pytest.raises(SpecError, match="none of the cluster's 2 nodes has"), taken(large, one, two):
        pass


def test_room_on_another_node_is_room_now() -> None:
    """A build that Ray has wait goes to another node only where it could begin: not to one that others fill, that
    has its share of builds, or that is shunned."""
    one, two = node("one", free=0), node("two")
    line = Line(Terms(per_node=1))
    assert line.has_other(one, [one, two])
    assert not line.has_other(one, [one, node("two", free=0)])
    assert not line.has_other(two, [one, two])
    with taken(line, two):
        assert not line.has_other(one, [one, two])
    line.lost(two)
    assert not line.has_other(one, [one, two])


def test_a_build_that_is_moved_is_not_sent_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node that has room, though a build failed there once, is the one it is moved to and the one it then gets."""
    monkeypatch.setattr("envfabric.build.farm.line._FAILED", 0.0)
    one, two = node("one", free=0), node("two")
    line = Line(Terms(per_node=2))
    line.failed(two)
    assert line.has_other(one, [one, two])
    with taken(line, one, two) as found:
        assert found == "two"


def test_who_has_to_go_elsewhere_has_its_place_again() -> None:
    """A build that had a node and could not begin there comes before all that came later, also before the one that
    asks for a node when it is back."""
    line, cluster, served = Line(Terms(per_node=1)), Cluster([node("one")]), list[str]()
    scope = Scope("building", 3600)
    with scope.entered(), taken(line, node("one")):
        pass
    cluster.held = {"later": threading.Event(), "back": threading.Event()}
    holder, later = (Build(line, cluster, name, served) for name in ("holder", "later"))
    wait_for(lambda: "later" in cluster.asked, message="it does not ask")
    back = Build(line, cluster, "back", served, scope)
    wait_for(lambda: "back" in cluster.asked, message="it is not the first in line")
    holder.end()
    cluster.held["later"].set()
    waiting: Any = line._changed
    wait_for(lambda: waiting._waiters or later.got, message="it does not wait for its turn")
    cluster.held["back"].set()
    for build in (back, later):
        wait_for(lambda build=build: build.got, message=f"{served} were served")  # type: ignore[misc]
        build.end()
    assert served == ["holder", "back", "later"]


def test_nodes_that_are_not_known_for_now_are_waited_for() -> None:
    """A cluster that does not say its nodes is asked again, and has no build fail."""
    line, answers = Line(Terms()), [None, [node("one")]]
    with line.node(lambda: answers.pop(0)) as found:
        assert found.id == "one"


def test_unfit_stays_unfit_when_another_build_fails_there() -> None:
    """A failure of the other build on a node does not shorten the time for which it is passed over as unfit."""
    one, two = node("one"), node("two")
    line = Line(Terms(per_node=2))
    line.refused(one, Refused(Reason.STORE, "ROOT is not mounted"))
    line.failed(one)
    line.done(one)
    with taken(line, one, two) as found:
        assert found == "two"


class Crowded(Filling):
    """This process, as an executor that has the first build wait for its host."""

    waits, room = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def host(self) -> Iterator["Crowded"]:
        with current().paused():
            if not self.waits.is_set():
                self.waits.set()
                assert self.room.wait(300)
        yield self


def test_who_waits_for_a_node_keeps_no_wheels_from_others(place: Place, tmp_path: Path) -> None:
    """A build that has no node yet holds up no other build of the same new wheels."""
    executor = Crowded(place.closures, place.files, place.uv())
    builder = Builder(place.closures, place.files, place.uv(), executor=executor)
    builder._unpacking = Unpacking(patience=3600)
    built = list[str]()

    def start(name: str, requires: list[str]) -> threading.Thread:
        spec = place.spec(requires, name=name)
        recipe = recipe_of(spec, place.get(spec))

        def work() -> None:
            builder.build(recipe, lambda phase: None)
            built.append(name)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    first = start("first", ["beta"])
    assert executor.waits.wait(60)
    second = start("second", ["alpha"])
    second.join(120)
    assert built == ["second"]
    executor.room.set()
    first.join(120)
    assert built == ["second", "first"]
