"""What the loop asks of a spec's next step, and what has become void until that step asks."""

import pytest

from envfabric.loop.asks import Asks, Mend

MEND = Mend("tree", 3, "closure", current=True)


def test_a_mend_is_taken_once() -> None:
    """By the step that heals just that generation of that content."""
    asks = Asks()
    asks.mend("wf/a", MEND)
    assert asks.take_mend("wf/a", "tree", 3) == MEND
    assert asks.take_mend("wf/a", "tree", 3) is None


@pytest.mark.parametrize(("tree", "number"), [("tree", 2), ("tree", 4), ("tree", None), ("other", 3)])
def test_a_mend_of_another_generation_is_void(tree: str, number: int | None) -> None:
    """A rollback between a look and the step turns to a generation that is good: it is not taken for the bad one."""
    asks = Asks()
    asks.mend("wf/a", MEND)
    assert asks.take_mend("wf/a", tree, number) is None
    assert asks.take_mend("wf/a", "tree", 3) is None
