"""The board: what an outcome makes of a spec's entry, and when it is tried again."""

import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from envfabric.core.errors import Reason, SpecError
from envfabric.index.document import Entry
from envfabric.loop.board import Board
from envfabric.loop.plan import Found, Plan, make_plan
from envfabric.specs.tree import SpecRef, Wanted
from envfabric.store.files import Files
from envfabric.store.generations import Generation
from envfabric.store.prepare import init_root
from envfabric.store.retries import Retry, read_retries, write_retries
from envfabric.store.root import Root
from envfabric.telemetry.metrics import Metrics

REF = SpecRef("wf/a", "t1", ())


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "nas", Files())


@pytest.fixture
def board(root: Root) -> Board:
    """A board on which one spec is pending."""
    made = Board(root, Files(), Metrics(), lambda: None)
    wanted = Wanted({REF.id: REF})
    made.adopt("c1", wanted, make_plan("c1", wanted, {}, {}))
    return made


def test_passing_failure_is_woken_once_its_time_has_come(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure that can pass says when it is tried again, later each time; by then it is pending."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(random, "random", lambda: 0.5)
    delays = []
    for _ in range(3):
        board.fail("wf/a", SpecError(Reason.FETCH, "away"))
        delays.append(round(board.retries["wf/a"].due - now))
        assert board.wake_retries() == []
        now += delays[-1]
        assert board.wake_retries() == ["wf/a"]
        assert board.entries["wf/a"].state == "pending"
    assert delays == [10, 20, 40]


def test_lasting_failure_ends_the_retries(board: Board) -> None:
    """After a failure that can't pass, or a suspension, nothing is woken any more, however it was before."""
    for suspended in (False, True):
        board.fail("wf/a", SpecError(Reason.FETCH, "away"))
        assert board.retries
        if suspended:
            board.suspend("wf/a")
        else:
            board.fail("wf/a", SpecError(Reason.UNRESOLVABLE, "never"))
        assert board.retries == {}
        assert board.entries["wf/a"].state == "failed"


def test_retries_go_on_for_ever(board: Board) -> None:
    """However often something failed, the next retry comes after ten minutes or so at the most."""
    board.retries["wf/a"] = Retry("t1", 0.0, 5000)
    board.fail("wf/a", SpecError(Reason.FETCH, "away"))
    retry = board.retries["wf/a"]
    assert retry.attempts == 5001
    assert 470 < retry.due - time.time() <= 720


def test_refused_spec_is_not_woken(board: Board) -> None:
    """A retry of content that is refused by now does not make the spec pending."""
    board.fail("wf/a", SpecError(Reason.FETCH, "away"))
    board.retries["wf/a"] = Retry("t1", 0.0, 0)
    board.refs["wf/a"] = SpecRef("wf/a", "t1", (), "it is a symlink")
    assert board.wake_retries() == []
    assert board.entries["wf/a"].state == "failed"


def test_refused_spec_whose_closure_vanished_is_failed(board: Board) -> None:
    """It serves nothing any more and nothing is made for it: failed, and not pending for ever."""
    refused = SpecRef("wf/a", "t1", (), "it is a symlink")
    first: Plan = make_plan(
        "c1", Wanted({"wf/a": refused}), {}, {"wf/a": Entry("ready", "t1", "c0", "digest", 1)}
    )
    assert first.entries["wf/a"].state == "stale"
    again = make_plan("c1", Wanted({"wf/a": refused}), {}, first.entries, Found(lambda _: False))
    entry = again.entries["wf/a"]
    assert (entry.state, entry.serving) == ("failed", None)
    assert again.changed == []


def test_retries_outlive_the_board(root: Root, board: Board) -> None:
    """Another writer goes on with the attempts and the time that the last one kept, for the same content."""
    for _ in range(3):
        board.fail("wf/a", SpecError(Reason.FETCH, "away"))
    board.keep_retries()
    kept = board.retries["wf/a"]
    assert kept.attempts == 2
    later = Board(root, Files(), Metrics(), lambda: None)
    later.load_retries()
    later.adopt("c1", Wanted({REF.id: REF}), make_plan("c1", Wanted({REF.id: REF}), {}, {}))
    assert later.retries == {"wf/a": kept}
    other = SpecRef("wf/a", "t2", ())
    later.adopt("c2", Wanted({REF.id: other}), make_plan("c2", Wanted({REF.id: other}), {}, later.entries))
    assert later.retries == {}
    later.keep_retries()
    assert read_retries(root) == {}


def test_retries_wait_for_the_first_revision(root: Root) -> None:
    """A retry that is due before the repository could be read ends nothing, and stays."""
    write_retries(root, Files(), {"wf/a": Retry("t1", 0.0, 4), "wf/gone": Retry("t1", 0.0, 4)})
    board = Board(root, Files(), Metrics(), lambda: None)
    board.load_retries()
    board.entries = {"wf/a": Entry("failed", "t1", "c0")}
    assert board.wake_retries() == []
    assert sorted(board.retries) == ["wf/a", "wf/gone"]


def test_outcome_is_asked_for_until_an_order_comes(board: Board) -> None:
    """What a step was begun for decides: a pin makes what is committed void, and unpinning the pin's."""
    assert board.asks(REF, "wanted")
    assert not board.asks(REF, "pinned")
    board.pin("wf/a")
    assert not board.asks(REF, "wanted")
    assert board.asks(REF, "pinned")
    assert not board.asks(REF, "healed")
    board.heal["wf/a"] = 1
    assert board.asks(REF, "healed")
    board.unpin("wf/a")
    assert board.asks(REF, "wanted")
    assert not board.asks(SpecRef("wf/a", "t2", ()), "wanted")


def test_what_failed_together_does_not_come_back_together(root: Root) -> None:
    """Ten thousand specs of a dead index are spread over the time around their common one, not over a second."""
    board = Board(root, Files(), Metrics(), lambda: None)
    refs = {f"wf/n{number}": SpecRef(f"wf/n{number}", "t1", ()) for number in range(300)}
    board.adopt("c1", Wanted(refs), make_plan("c1", Wanted(refs), {}, {}))
    began = time.time()
    for spec_id in refs:
        board.retries[spec_id] = Retry("t1", 0.0, 8)
        board.fail(spec_id, SpecError(Reason.FETCH, "away"))
    due = [board.retries[spec_id].due - began for spec_id in refs]
    assert 480 <= min(due) < 510
    assert 690 < max(due) <= 720 + (time.time() - began)
    # Drawn evenly, 30 of 300 fall into each tenth of the time.
    tenths = Counter(int((one - 480) // 24) for one in due)
    assert max(tenths.values()) < 90


def test_content_that_failed_is_tried_again_and_a_pins_is_not(board: Board) -> None:
    """Only what may come back by itself counts as failed before; an order by hand does not wait behind others."""
    assert not board.failed_before("wf/a")
    board.fail("wf/a", SpecError(Reason.FETCH, "away"))
    assert board.failed_before("wf/a")
    board.pin("wf/a")
    assert not board.failed_before("wf/a")
    board.unpin("wf/a")
    board.fail("wf/a", SpecError(Reason.UNRESOLVABLE, "never"))
    assert not board.failed_before("wf/a")


def test_spec_without_room_in_the_index_is_failed(
    board: Board, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the index has no room for is not served, and says so; what was served before is served on."""
    generation = Generation(
        spec="wf/a", number=1, digest="d", inputs="i", tree="t1", commit="c1", built_at="", python_version="3.11.7",
        ray_version=None, lock_origin="resolved", runtime_env={"env_vars": {"A": "x" * 1500}}, closure={},
    )  # fmt: skip
    board.serve("wf/a", generation)
    assert board.entries["wf/a"].state == "ready"
    monkeypatch.setattr(board._weights, "_room", 2000)
    larger = replace(generation, number=2, runtime_env={"env_vars": {"A": "x" * 3000}})
    board.serve("wf/a", larger)
    entry = board.entries["wf/a"]
    assert (entry.state, entry.generation) == ("stale", 1)
    assert entry.error is not None
    assert entry.error.reason is Reason.POLICY
    assert entry.error.retry_at is None
