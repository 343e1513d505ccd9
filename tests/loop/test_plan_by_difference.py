"""A revision that says which specs it touched is planned and adopted as if every spec were compared."""

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from envfabric.core.errors import Reason, SpecError
from envfabric.index.document import Entry
from envfabric.loop import board as board_module
from envfabric.loop import plan as plan_module
from envfabric.loop.board import Board
from envfabric.loop.plan import Plan, make_plan
from envfabric.specs.tree import SpecRef, Wanted
from envfabric.store.files import Files
from envfabric.store.generations import Generation
from envfabric.store.prepare import init_root
from envfabric.store.root import Root
from envfabric.telemetry.metrics import Metrics

IDS = [f"wf/{name}" for name in "abcdefgh"]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "nas", Files())


def board(root: Root) -> Board:
    return Board(root, Files(), Metrics(), lambda: None)


def drawn_change(drawn: random.Random, specs: dict[str, SpecRef]) -> Wanted:
    """The next revision: some specs come, change, go, or are refused or no longer are."""
    new = dict(specs)
    for _ in range(drawn.choice([0, 1, 1, 2, 4])):
        one = drawn.choice(IDS)
        kind = drawn.random()
        if kind < 0.2:
            new.pop(one, None)
        elif kind < 0.4 and one in new:
            new[one] = replace(new[one], refused=drawn.choice([None, "it is a symlink.", "it has a twin."]))
        else:
            new[one] = SpecRef(
                one, f"t{drawn.randrange(5)}", (), drawn.choice([None, None, None, "it is a symlink."])
            )
    touched = {one for one in specs.keys() | new.keys() if specs.get(one) != new.get(one)}
    # More may be said to be touched than really are.
    return Wanted(new, [], frozenset(touched | {drawn.choice(IDS)}))


def adopt(on: Board, commit: str, wanted: Wanted) -> Plan:
    plan = make_plan(commit, wanted, on.refs, on.entries)
    on.adopt(commit, wanted, plan)
    return plan


def drawn_outcome(drawn: random.Random, boards: list[Board]) -> None:
    """The same becomes of one spec on each board."""
    able = [one for one, ref in boards[0].refs.items() if ref.refused is None]
    if not able:
        return
    spec_id, kind, number = drawn.choice(sorted(able)), drawn.randrange(6), drawn.randrange(1, 9)
    for on in boards:
        if kind == 0:
            on.fail(spec_id, SpecError(Reason.FETCH, "away"))
        elif kind == 1:
            on.fail(spec_id, SpecError(Reason.UNRESOLVABLE, "never"))
        elif kind == 2:
            on.suspend(spec_id)
        elif kind == 5:
            # An order to repair found what it serves damaged.
            if (served := on.entries[spec_id].generation) is not None:
                on.heal[spec_id] = served
        else:
            made = Generation(spec_id, number, "d1", "", "", "", "at", "3.11.7", None, "resolved", {}, {})
            on.serve(spec_id, made, pinned=kind == 3)


@pytest.mark.parametrize("seed", range(4))
def test_any_row_of_revisions_ends_the_same(root: Root, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Entries, plans, retries and what is to be healed are equal after each of many revisions and outcomes."""
    for module in (board_module, plan_module):
        monkeypatch.setattr(module, "now", lambda later=0.0: f"now+{later}")
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    # The jitter of the retries: both boards draw the same.
    monkeypatch.setattr(random, "random", lambda: 0.5)
    drawn = random.Random(seed)
    by_difference, whole = board(root), board(root)
    wanted, healing = Wanted(), 0
    for number in range(300):
        wanted = drawn_change(drawn, wanted.specs)
        plan = adopt(by_difference, f"c{number}", wanted)
        full = adopt(whole, f"c{number}", replace(wanted, touched=None))
        assert plan.entries == full.entries
        assert plan.removed == full.removed
        assert (sorted(plan.changed), sorted(plan.refused)) == (sorted(full.changed), sorted(full.refused))
        for _ in range(drawn.randrange(4)):
            drawn_outcome(drawn, [by_difference, whole])
        assert by_difference.entries == whole.entries
        assert by_difference.retries == whole.retries
        assert by_difference.heal == whole.heal
        assert by_difference._seen.keys() == whole._seen.keys()
        healing += bool(whole.heal)
    assert healing > 30


def test_untouched_entries_are_the_same_objects() -> None:
    """What did not change is neither looked at nor made anew: thousands of entries cost nothing."""
    specs = {one: SpecRef(one, "t1", ()) for one in IDS}
    entries = {one: Entry("ready", "t1", "c1", "d1", 1) for one in IDS}
    changed = specs | {"wf/a": SpecRef("wf/a", "t2", ())}
    plan = make_plan("c2", Wanted(changed, [], frozenset({"wf/a"})), specs, entries)
    assert plan.changed == ["wf/a"]
    assert all(plan.entries[one] is entries[one] for one in IDS[1:])
    assert entries["wf/a"].tree == "t1", "the entries so far stay as they are"
