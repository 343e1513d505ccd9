"""A prepared ROOT, the writer's lock on it, and a publisher."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.index.publisher import Publisher
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.prepare import init_root
from envfabric.store.root import Root
from envfabric.store.writer import Writer


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "nas", Files())


@pytest.fixture
def writer(root: Root) -> Iterator[Writer]:
    with Writer(root, Files()).acquire() as writer:
        yield writer


@pytest.fixture
def publisher(root: Root, writer: Writer) -> Publisher:
    return Publisher(root, Files(), writer, Generations(root, Files()))
