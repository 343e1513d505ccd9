"""Files are read ahead as far as they fit, and git is asked for little that does not."""

import random
from collections.abc import Iterable

import pytest

from envfabric.loop import reading as module
from envfabric.loop.reading import Reading
from envfabric.specs.repository import Repository
from envfabric.specs.tree import SpecRef, find_specs
from support.spec_repo import SpecRepo


@pytest.mark.parametrize(("size", "most"), [(100_000, 4), (10, 2)])
def test_little_is_asked_for_in_vain(
    repo: SpecRepo, monkeypatch: pytest.MonkeyPatch, size: int, most: int
) -> None:
    """Large files: about as many as fit are asked for. Small ones: all of them in a few exchanges."""
    monkeypatch.setattr(module, "AHEAD_BYTES", 250_000)
    drawn = random.Random(1)
    for number in range(40):
        repo.spec(f"wf/n{number:02}")
        repo.write(f"wf/n{number:02}/uv.lock", drawn.randbytes(size))
    asked = []
    with Repository(repo.path) as source:
        refs = list(find_specs(source.tree(repo.commit())).specs.values())
        read_many = source.read_many

        def counted(oids: Iterable[str], most: int) -> dict[str, bytes]:
            wanted = list(oids)
            asked.append(len(wanted))
            return read_many(wanted, most)

        monkeypatch.setattr(source, "read_many", counted)
        reading = Reading(source)
        for number, ref in enumerate(refs):
            files = reading.files(ref, refs[number + 1 :])
            assert files == {name: source.read(oid) for name, oid in ref.blobs}
    blobs = sum(len(ref.blobs) for ref in refs)
    assert sum(asked) <= most * blobs


def test_more_is_asked_for_again_where_all_came(repo: SpecRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stretch of large files the small ones behind it are read in few exchanges again."""
    monkeypatch.setattr(module, "AHEAD_BYTES", 250_000)
    drawn = random.Random(1)
    for number in range(200):
        repo.spec(f"wf/n{number:03}")
        repo.write(f"wf/n{number:03}/uv.lock", drawn.randbytes(100_000 if number < 8 else 10))
    with Repository(repo.path) as source:
        refs: list[SpecRef] = list(find_specs(source.tree(repo.commit())).specs.values())
        exchanges = []
        read_many = source.read_many

        def counted(oids: Iterable[str], most: int) -> dict[str, bytes]:
            exchanges.append(most)
            return read_many(oids, most)

        monkeypatch.setattr(source, "read_many", counted)
        reading = Reading(source)
        for number, ref in enumerate(refs):
            reading.files(ref, refs[number + 1 :])
    assert len(exchanges) <= 8 + 8
