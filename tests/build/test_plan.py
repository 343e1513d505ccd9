"""What a new revision means for each spec: a comparison of data, no file and no process."""

from dataclasses import replace
from typing import Any

import pytest

from envfabric.core.errors import Reason
from envfabric.index.document import Entry, Failure
from envfabric.loop.plan import Found, failed, make_plan, pending
from envfabric.specs.tree import SpecRef, Wanted
from envfabric.store.pins import Pin

OLD, NEW = "c" * 40, "d" * 40
FAILURE = Failure(Reason.FETCH, "away", None, OLD, "then", "later")
READY = Entry("ready", "t1", OLD, serving="digest", generation=3, python_version="3.11.7")
STALE = replace(READY, state="stale", error=FAILURE)
FAILED = Entry("failed", "t1", OLD, error=FAILURE)


def ref(tree: str = "t1", refused: str | None = None) -> SpecRef:
    return SpecRef("wf/a", tree, (("pyproject.toml", "b"),), refused)


def plan_one(old: Entry | None, wanted: SpecRef, last: SpecRef | None, found: Found | None = None) -> Any:
    """The plan of a revision with one spec."""
    before = {"wf/a": last} if last else {}
    entries = {"wf/a": old} if old else {}
    return make_plan(NEW, Wanted({"wf/a": wanted}), before, entries, found)


def start(*, there: bool = True, **more: Any) -> Found:
    """What a start finds on ROOT."""
    return Found(lambda _: there, **more)


def test_new_spec_is_pending() -> None:
    """A spec that was not there is looked into, and serves nothing yet."""
    plan = plan_one(None, ref(), None)
    assert plan.changed == ["wf/a"]
    assert plan.entries == {"wf/a": Entry("pending", "t1", NEW)}
    assert plan.removed == plan.refused == []


@pytest.mark.parametrize("old", [READY, STALE, FAILED], ids=lambda entry: str(entry.state))
def test_changed_content_is_pending_and_serves_on(old: Entry) -> None:
    """Other content is looked into; what was served stays served, the old error does not stay."""
    plan = plan_one(old, ref("t2"), ref("t1"))
    assert plan.changed == ["wf/a"]
    assert plan.entries["wf/a"] == replace(old, state="pending", tree="t2", commit=NEW, error=None)


@pytest.mark.parametrize("old", [READY, STALE, FAILED], ids=lambda entry: str(entry.state))
def test_equal_content_is_left_alone(old: Entry) -> None:
    """A revision that does not touch a spec changes nothing of its entry, commit and error included."""
    plan = plan_one(old, ref(), ref())
    assert plan.changed == plan.refused == plan.removed == []
    assert plan.entries["wf/a"] is old


def test_withdrawn_spec_is_removed() -> None:
    """What the revision does not have is not in the plan's entries, and named as removed."""
    plan = make_plan(NEW, Wanted(), {"wf/a": ref()}, {"zz/z": READY, "wf/a": FAILED})
    assert (plan.entries, plan.removed, plan.changed) == ({}, ["wf/a", "zz/z"], [])


@pytest.mark.parametrize("state", ["pending", "building", "stale", "failed"])
def test_start_tries_again_what_was_not_ready(state: Any) -> None:
    """At a start everything that was under way or had failed is looked into, although its content is known."""
    plan = plan_one(replace(STALE, state=state), ref(), None, start())
    assert plan.changed == ["wf/a"]
    assert (plan.entries["wf/a"].state, plan.entries["wf/a"].error) == ("pending", None)


@pytest.mark.parametrize("there", [True, False])
def test_start_brings_back_what_the_store_lost(there: bool) -> None:
    """At a start a ready spec is left alone only if its closure is in the store; one that is gone is not named."""
    asked: list[str] = []

    def exists(name: str) -> bool:
        asked.append(name)
        return there

    plan = plan_one(READY, ref(), None, Found(exists))
    assert set(asked) == {"digest"}
    assert plan.changed == ([] if there else ["wf/a"])
    assert plan.lost == ({} if there else {"wf/a": 3})
    assert plan.entries["wf/a"].serving == ("digest" if there else None)


def test_start_heals_what_was_found_damaged() -> None:
    """A damaged closure is served on, and the generation that was served is named for healing."""
    plan = plan_one(READY, ref(), None, start(damaged={"digest"}))
    assert (plan.changed, plan.lost) == (["wf/a"], {"wf/a": 3})
    assert (plan.entries["wf/a"].serving, plan.entries["wf/a"].state) == ("digest", "pending")


@pytest.mark.parametrize("old", [STALE, FAILED], ids=lambda entry: str(entry.state))
def test_start_goes_on_waiting_for_a_retry(old: Entry) -> None:
    """What failed and has a time for its next try is not tried at a start, and keeps its error."""
    plan = plan_one(old, ref(), None, start(waiting={"wf/a"}))
    assert plan.changed == []
    assert plan.entries["wf/a"] is old


@pytest.mark.parametrize("state", ["pending", "building"])
def test_start_forgets_no_failure_that_was_never_published(state: Any) -> None:
    """Killed between the retry's time and the index: a spec that is said to be under way is looked into."""
    plan = plan_one(replace(STALE, state=state), ref(), None, start(waiting={"wf/a"}))
    assert plan.changed == ["wf/a"]


@pytest.mark.parametrize(
    ("old", "pin", "parted"),
    [
        (READY, None, False),
        (READY, Pin(2, "t1"), True),
        (READY, Pin(3, "t1"), True),
        (READY, Pin(2, "t0"), False),
        (replace(READY, pinned=True), Pin(3, "t1"), False),
        (replace(READY, pinned=True), Pin(2, "t1"), True),
        (replace(READY, pinned=True), None, True),
    ],
    ids=["none", "unsaid", "unsaid same", "of other content", "held", "other", "taken away"],
)
def test_start_brings_pin_and_index_together(old: Entry, pin: Pin | None, parted: bool) -> None:
    """A crash between a pin and the index leaves them saying different things: the start looks into it."""
    plan = plan_one(old, ref(), None, start(pins={"wf/a": pin} if pin else {}))
    assert plan.changed == (["wf/a"] if parted else [])


@pytest.mark.parametrize(("tree", "pinned"), [("t1", True), ("t2", False)])
def test_pin_ends_with_the_content_that_it_was_set_for(tree: str, pinned: bool) -> None:
    """Content that is looked into again keeps its pin; other content has none."""
    assert pending(replace(READY, pinned=True), ref(tree), NEW).pinned is pinned


def test_store_is_not_asked_while_running() -> None:
    """After the first revision an unchanged spec costs no look into the store."""

    assert plan_one(READY, ref(), ref()).changed == []
    assert plan_one(READY, ref(), None).changed == []


@pytest.mark.parametrize(
    ("old", "state"), [(None, "failed"), (FAILED, "failed"), (READY, "stale"), (STALE, "stale")]
)
@pytest.mark.parametrize("tree", ["t1", "t2"])
def test_refused_folder_says_why(old: Entry | None, state: str, tree: str) -> None:
    """A folder that can't be a spec is failed or stale with the reason; nothing is looked into."""
    plan = plan_one(old, ref(tree, "odd; rename it."), ref() if old else None)
    entry = plan.entries["wf/a"]
    assert (plan.changed, plan.refused) == ([], ["wf/a"])
    assert (entry.state, entry.tree) == (state, tree)
    assert entry.commit == (OLD if old and tree == "t1" else NEW), "where this content was first seen"
    assert (entry.error.reason, entry.error.message) == (Reason.INVALID_SPEC, "odd; rename it.")
    assert (entry.error.commit, entry.error.retry_at) == (NEW, None)
    assert entry.serving == (old.serving if old else None)


def test_refusal_that_stands_is_not_told_anew() -> None:
    """The same refusal of the same content keeps its entry, with the time when it began."""
    wanted = ref("t1", "odd; rename it.")
    first = plan_one(None, wanted, None).entries["wf/a"]
    again = make_plan("e" * 40, Wanted({"wf/a": wanted}), {"wf/a": wanted}, {"wf/a": first})
    assert again.entries["wf/a"] is first
    other = ref("t1", "odd in another way.")
    changed = make_plan("e" * 40, Wanted({"wf/a": other}), {"wf/a": wanted}, {"wf/a": first})
    assert changed.entries["wf/a"].error != first.error


def test_lifted_refusal_is_looked_into() -> None:
    """A twin that is gone frees its spec although the content is the same."""
    refused = plan_one(None, ref("t1", "a twin"), None).entries["wf/a"]
    plan = plan_one(refused, ref("t1"), ref("t1", "a twin"))
    assert plan.changed == ["wf/a"]
    assert plan.entries["wf/a"].error is None


def test_failed_serves_what_it_served() -> None:
    """A failure makes a serving entry stale and another one failed; the served closure stays named."""
    assert failed(READY, FAILURE) == STALE
    assert failed(pending(None, ref(), OLD), FAILURE) == FAILED


def test_plan_changes_none_of_its_inputs() -> None:
    """The plan is new data: the entries so far are as they were."""
    entries = {"wf/a": READY, "wf/b": FAILED}
    make_plan(NEW, Wanted({"wf/a": ref("t2")}), {"wf/a": ref()}, entries)
    assert entries == {"wf/a": READY, "wf/b": FAILED}
