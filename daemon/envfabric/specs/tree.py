"""Which spec folders a commit has: from git's listing of a tree to spec ids and misplaced files.

Reads no file's content: one wrong file can't keep the others from being found.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from envfabric.core import ids
from envfabric.core.errors import Reason
from envfabric.specs.repository import TreeItem

SPEC_FILES = ("pyproject.toml", "uv.lock", ".python-version")
"""The only files of a spec folder that are ever read."""

_REGULAR = {"100644", "100755"}


@dataclass(frozen=True, slots=True)
class SpecRef:
    """Where a spec's content is: its id, its git tree id and the blobs of its files by name."""

    id: str
    tree: str
    blobs: tuple[tuple[str, str], ...]
    refused: str | None = None
    """Why the folder can't be a spec although its id is fine; None where nothing speaks against it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A pyproject.toml that belongs to no valid id (index.json, `problems`)."""

    path: str
    reason: Reason
    message: str


@dataclass(slots=True)
class Wanted:
    """All that a revision asks for."""

    specs: dict[str, SpecRef] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def find_specs(items: Iterable[TreeItem]) -> Wanted:
    """Sorts a tree's entries into specs and misplaced pyproject.toml files."""
    trees: dict[str, str] = {}
    files: dict[str, dict[str, TreeItem]] = defaultdict(dict)
    misplaced: list[tuple[str, ...]] = []
    for item in items:
        parts = tuple(item.path.split("/"))
        if any(part.startswith(".") for part in parts[:-1]):
            continue
        if item.kind == "tree":
            if len(parts) == 2:
                trees[item.path] = item.oid
        elif len(parts) == 3 and parts[2] in SPEC_FILES:
            files["/".join(parts[:2])][parts[2]] = item
        elif parts[-1] == "pyproject.toml" and len(parts) != 1:
            misplaced.append(parts)
    wanted = Wanted()
    folders = {folder for folder, found in files.items() if "pyproject.toml" in found}
    for folder in sorted(folders):
        if ids.is_id(folder) and folder in trees:
            wanted.specs[folder] = _reference(folder, trees[folder], files[folder])
        else:
            wanted.problems.append(_bad_id(folder))
    wanted.problems += [_misplaced(parts) for parts in misplaced if "/".join(parts[:2]) not in folders]
    wanted.problems.sort(key=lambda problem: problem.path)
    _refuse_case_twins(wanted.specs)
    return wanted


def _reference(spec_id: str, tree: str, found: dict[str, TreeItem]) -> SpecRef:
    odd = [name for name, item in sorted(found.items()) if item.mode not in _REGULAR]
    refused = None
    if odd:
        refused = (
            f"{spec_id}/{odd[0]} is a {'symlink' if found[odd[0]].mode == '120000' else 'submodule'}; "
            "commit it as a regular file."
        )
    blobs = tuple((name, item.oid) for name, item in sorted(found.items()))
    return SpecRef(spec_id, tree, blobs, refused)


def _bad_id(folder: str) -> Problem:
    return Problem(
        path=f"{ids.shown(folder, 300)}/pyproject.toml",
        reason=Reason.INVALID_SPEC,
        message=f"{ids.shown(folder)!r} can't be a spec id: each part takes {ids.ALLOWED}. "
        "Rename the folder.",
    )


def _misplaced(parts: tuple[str, ...]) -> Problem:
    path = "/".join(parts)
    return Problem(
        path=ids.shown(path, 300),
        reason=Reason.INVALID_SPEC,
        message="a spec's pyproject.toml lies at <workflow>/<node>/pyproject.toml, two folders below the "
        "spec directory; move it there or remove it.",
    )


def _refuse_case_twins(specs: dict[str, SpecRef]) -> None:
    # Some NAS file systems fold case: there two such ids would be one folder.
    twins: dict[str, list[str]] = defaultdict(list)
    for spec_id in specs:
        twins[spec_id.casefold()].append(spec_id)
    for spec_id, ref in list(specs.items()):
        others = [other for other in twins[spec_id.casefold()] if other != spec_id]
        if others:
            message = f"{spec_id} and {', '.join(others)} differ only by case; rename all but one."
            specs[spec_id] = SpecRef(ref.id, ref.tree, ref.blobs, message)
