"""Many blobs are read in one exchange with git, and each is what it is when read alone."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.specs.repository import Repository, SourceError
from support.spec_repo import SpecRepo


@pytest.fixture
def repo(tmp_path: Path) -> SpecRepo:
    """A repository with thirty blobs: small ones, an empty one, and one of 100 000 bytes."""
    repo = SpecRepo(tmp_path / "specs")
    drawn = random.Random(1)
    for number in range(28):
        repo.write(f"f{number:02}", drawn.randbytes(drawn.randrange(1, 300)))
    repo.write("empty", b"")
    repo.write("large", drawn.randbytes(100_000))
    repo.commit()
    return repo


@pytest.fixture
def source(repo: SpecRepo) -> Iterator[Repository]:
    with Repository(repo.path) as source:
        yield source


def blobs(source: Repository, repo: SpecRepo) -> dict[str, str]:
    return {item.path: item.oid for item in source.tree(repo.head)}


@pytest.mark.parametrize("packed", [False, True])
def test_each_is_what_it_is_alone(repo: SpecRepo, source: Repository, packed: bool) -> None:
    """All contents, from loose objects and from packs, whatever was asked before and is asked after."""
    if packed:
        repo.git("gc", "--quiet")
    oids = list(blobs(source, repo).values())
    for _ in range(2):
        assert source.read_many([*oids, *oids[:3]], 1 << 20) == {oid: source.read(oid) for oid in oids}
    assert source.read_many([], 1 << 20) == {}
    assert source.read_many(oids[:1], 1 << 20) == {oids[0]: source.read(oids[0])}


def test_no_more_than_is_allowed(repo: SpecRepo, source: Repository) -> None:
    """What is beyond the limit is never read into memory; what comes before it is there."""
    found = blobs(source, repo)
    large = found.pop("large")
    small = list(found.values())
    assert set(source.read_many([*small, large], 50_000)) == set(small)
    assert source.read_many([large, *small], 50_000) == {}
    assert source.read(small[0]) == source.read_many(small, 50_000)[small[0]]


@pytest.mark.parametrize("place", [0, 3, 29])
def test_what_is_missing_or_no_blob_is_left_out(repo: SpecRepo, source: Repository, place: int) -> None:
    """An object that is not there, or a folder, costs the others nothing unless it is asked for first."""
    oids = list(blobs(source, repo).values())
    tree = repo.git("rev-parse", "HEAD^{tree}")
    for odd in ("1" * 40, tree):
        found = source.read_many([*oids[:place], odd, *oids[place:]], 1 << 20)
        assert odd not in found
        assert set(found) == (set(oids) if place else set())
        assert source.read(oids[5]) == source.read_many(oids, 1 << 20)[oids[5]]


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_damaged_object_is_left_out(repo: SpecRepo, source: Repository, damage: str) -> None:
    """A spoilt object is not given, and whoever asks for it alone is told; all others are still to be had."""
    found = blobs(source, repo)
    bad, good = found["f07"], found["f09"]
    file = repo.path / ".git" / "objects" / bad[:2] / bad[2:]
    file.chmod(0o644)
    raw = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        other = repo.path / ".git" / "objects" / good[:2] / good[2:]
        file.write_bytes(raw[: len(raw) // 2] if damage == "cut" else other.read_bytes())
    many = source.read_many(found.values(), 1 << 20)
    assert bad not in many
    with pytest.raises(SourceError):
        source.read(bad)
    for oid, data in many.items():
        assert source.read(oid) == data
    assert len(source.read(good)) > 0
