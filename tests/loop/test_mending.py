"""A generation's folder that a hand was in: who is the writer no more moves nothing."""

from typing import Never

import pytest

from envfabric.loop.asks import Mend
from envfabric.loop.mending import whole_again
from envfabric.specs.policy import Policy
from envfabric.specs.tree import SpecRef
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.root import Root
from envfabric.store.writer import LostWriter

TREE = "t" * 40


def test_a_step_that_comes_back_late_moves_nothing(root: Root) -> None:
    """The folder may be what the next writer serves; this writer's own step puts it aside."""

    def lost() -> Never:
        raise LostWriter("epoch 2 was claimed over this writer's epoch 1")

    generations, closures = Generations(root, Files()), Closures(root, Files())
    folder = generations.folder("wf/a", 1)
    folder.mkdir(parents=True)
    files = {"pyproject.toml": b"", "uv.lock": b""}
    mend, ref = Mend(TREE, 1, "gone", current=True), SpecRef("wf/a", TREE, ())
    with pytest.raises(LostWriter):
        whole_again(generations, closures, Policy(), mend, ref, "c", files, lost)
    assert folder.is_dir()
    assert whole_again(generations, closures, Policy(), mend, ref, "c", files, lambda: None) is None
    assert not folder.exists()
