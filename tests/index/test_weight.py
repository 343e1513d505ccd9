"""The room in the index for specs' own tables: small ones always have it, large ones as long as it lasts."""

from typing import Any

import pytest

from envfabric.core.errors import Reason, SpecError
from envfabric.index.document import Entry
from envfabric.index.weight import FREE, Weights

SMALL: dict[str, Any] = {"env_vars": {"A": "x"}, "working_dir": None, "excludes": []}


def table(length: int) -> dict[str, Any]:
    return {"env_vars": {"A": "x" * length}, "working_dir": None, "excludes": []}


class Served:
    """Entries, and weights with room for three tables of 2000 bytes."""

    def __init__(self) -> None:
        self.weights = Weights(room=6600)
        self.entries: dict[str, Entry] = {}

    def serve(self, spec_id: str, added: dict[str, Any]) -> None:
        self.weights.admit(spec_id, added, self.entries)
        self.entries[spec_id] = Entry("ready", "t", "c", serving="d", runtime_env=added)

    def refused(self, spec_id: str, added: dict[str, Any]) -> str:
        with pytest.raises(SpecError) as caught:
            self.serve(spec_id, added)
        assert caught.value.reason is Reason.POLICY
        return caught.value.message


@pytest.fixture
def served() -> Served:
    made = Served()
    for name in ("a", "b", "c"):
        made.serve(f"wf/{name}", table(2000))
    return made


def test_room_ends(served: Served) -> None:
    """A table for which there is no room is refused with the figures and the command; those in place stay."""
    told = served.refused("wf/d", table(2000))
    assert "runtime-env] of wf/d has 20" in told
    assert "may take 6600 together" in told
    assert "envfabric retry wf/d" in told
    assert sorted(served.entries) == ["wf/a", "wf/b", "wf/c"]


def test_small_tables_always_have_room(served: Served) -> None:
    """However full it is, and however many come, a table of up to a KiB is served."""
    for n in range(100):
        served.serve(f"small/{n}", table(FREE - 100))
    served.serve("small/plain", SMALL)


def test_own_room_is_no_hindrance(served: Served) -> None:
    """A spec's next content takes the place of its last, larger or smaller."""
    served.serve("wf/a", table(2050))
    served.refused("wf/a", table(4000))
    served.serve("wf/a", SMALL)
    served.serve("wf/d", table(2000))


def test_room_of_a_removed_spec_is_free(served: Served) -> None:
    """What left the index, or was made smaller without a word to it, gives its place back."""
    del served.entries["wf/a"]
    served.serve("wf/d", table(2000))
    served.refused("wf/e", table(2000))
    served.entries["wf/b"] = Entry("ready", "t", "c", serving="d", runtime_env=SMALL)
    served.serve("wf/e", table(2000))


def test_what_was_published_before_counts(served: Served) -> None:
    """After a restart the room is as it was."""
    after = Served()
    after.entries = dict(served.entries)
    after.refused("wf/d", table(2000))
    after.serve("wf/a", table(2000))
