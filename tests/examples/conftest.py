"""One demo for all tests of the examples: what it builds is large."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.demo import Demo


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Demo, dict[str, Any]]]:
    """A demo that has built everything and still runs, and its first index; Ctrl-C ends it in order."""
    folder = tmp_path_factory.mktemp("examples")
    demo = Demo(folder)
    try:
        index = demo.start()
        yield demo, index
        assert demo.stop() == 0, "".join(demo.logged[-20:])
    finally:
        demo.kill()
        remove(folder)


@pytest.fixture
def demo(started: tuple[Demo, dict[str, Any]]) -> Demo:
    """The demo as it is now: other tests may have committed to it."""
    return started[0]


@pytest.fixture
def first_index(started: tuple[Demo, dict[str, Any]]) -> dict[str, Any]:
    """What was published before anything was changed."""
    return started[1]


def remove(folder: Path) -> None:
    """Removes a folder with sealed environments in it: their folders are not writable."""
    for path, _, _ in os.walk(folder):
        os.chmod(path, 0o700)
    shutil.rmtree(folder)
