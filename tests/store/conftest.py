"""A prepared ROOT and what works on it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.prepare import init_root
from envfabric.store.root import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "nas", Files())


@pytest.fixture
def closures(root: Root) -> Closures:
    return Closures(root, Files())


@pytest.fixture
def generations(root: Root) -> Generations:
    return Generations(root, Files())


@pytest.fixture(params=[0o022, 0o077], ids=["umask022", "umask077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each usual umask; the tests of modes must not depend on it."""
    old = os.umask(request.param)
    yield request.param
    os.umask(old)
