"""Reads what a revision asks for: from its difference to the last one where that is little, else as a whole.

What comes of it is the same either way, of trees that `git fsck` accepts; in a forged one, half a name whose real
folder changes beside it may be seen by a whole read only. Nothing is remembered here: the caller says which revision
it has, so that one that could not be adopted is no base for the next. May read the repository; knows no spec's content.
"""

from dataclasses import dataclass

from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.tree import Wanted, find_specs, place_of

MOST = 1000
"""Changed places above which a whole tree is read sooner, and git's command line would get long."""
LONGEST, ALL_LONG = 4096, 100_000
"""Bytes of one changed place, and of all together, above which naming them to git might not be possible: a tree takes
names of any length, and Linux no argument above 128 KiB."""


@dataclass(frozen=True, slots=True)
class Revision:
    """A commit and what it asks for."""

    commit: str
    wanted: Wanted


def read_revision(repository: Repository, commit: str, last: Revision | None = None) -> Revision:
    """What `commit` asks for; `last` is a revision that was read before. Raises `SourceError`."""
    changed = _changed(repository, last.commit, commit) if last is not None else None
    if last is None or changed is None:
        return Revision(commit, find_specs(repository.tree(commit)))
    within = sorted(one for one in changed if "/" in one)
    items = repository.tree(commit, within) if within else []
    folders = {item.path for item in items if item.kind == "tree"}
    # Each change below a folder is one of the folder, too: to name that would list all that lies in it.
    alone = sorted(one for one in changed if "/" not in one and one not in folders)
    items += repository.tree(commit, alone) if alone else []
    return Revision(commit, find_specs(items, last.wanted, changed))


def _changed(repository: Repository, before: str, after: str) -> set[str] | None:
    """The places in which two commits differ; None where that can't be told, or is not worth it."""
    try:
        paths = repository.changes(before, after)
    except SourceError:
        # The last commit is gone after a rewritten history, or had no such folder. If it is this one that
        # can't be read, reading it as a whole says so.
        return None
    places = {place_of(path) for path in paths}
    lengths = [len(place.encode("utf-8", "surrogateescape")) for place in places]
    inner = sum("/" in place for place in places)
    if max(inner, len(places) - inner) > MOST or max(lengths, default=0) > LONGEST or sum(lengths) > ALL_LONG:
        return None
    if any(_forged(path, paths) for path in paths):
        return None
    return places


def _forged(path: str, paths: set[str]) -> bool:
    """Whether a changed path has a name in it that git itself never writes, and would not find again.

    Each folder on the way to a change has changed, too: one that has not is half a name with a slash in it.
    """
    folder, _, name = path.rpartition("/")
    return name in {"", ".", ".."} or (folder != "" and folder not in paths)
