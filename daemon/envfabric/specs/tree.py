"""Which spec folders a commit has: from git's listing of a tree to spec ids and misplaced files.

Reads no file's content: one wrong file can't keep the others from being found.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from envfabric.core import ids
from envfabric.core.errors import Reason
from envfabric.specs.repository import TooMuch, TreeItem

T = TypeVar("T")

SPEC_FILES = ("pyproject.toml", "uv.lock", ".python-version")
"""The only files of a spec folder that are ever read."""

MAX_SPECS = 100_000
"""Most specs of one revision."""

MAX_PROBLEMS = 1000
"""Most problems of one revision that are told one by one: everybody reads them with the index."""

_REGULAR = {"100644", "100755"}
_KINDS = {"120000": "symlink", "160000": "submodule", "040000": "folder"}
_FILE = re.compile(r".*\.(?:cfg|csv|ini|ipynb|json|lock|md|png|py|rst|sh|svg|toml|txt|ya?ml)", re.IGNORECASE)
"""Names of symlinks that stand for a file, and for no folder: a README is often shared."""


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
    touched: frozenset[str] | None = field(default=None, compare=False)
    """The only ids that may differ from the revision before, or have gone; None where any may."""
    places: "Places | None" = field(default=None, compare=False, repr=False)


@dataclass(slots=True)
class Places:
    """What was found in each place, so that a later revision need not find it again.

    A place is the first two names of a path, or an entry at the top that is no folder: what lies there decides by
    itself what is said of it, except of ids that differ only by case.
    """

    plain: dict[str, SpecRef] = field(default_factory=dict)
    """The specs by id, as if each had no twin."""
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    """By place; none is empty."""
    twins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The ids that are the same without their case and last dots, in order, by what they are then."""


def place_of(path: str) -> str:
    """The place that a path belongs to."""
    return "/".join(path.split("/", 2)[:2])


def find_specs(
    items: Iterable[TreeItem], before: Wanted | None = None, changed: Collection[str] = ()
) -> Wanted:
    """Sorts a tree's entries into specs and misplaced pyproject.toml files.

    With `before`, `items` hold all that now lies in the `changed` places, and any other place is as it was then.
    Raises `TooMuch` where there are too many.
    """
    specs, problems = _sort(items)
    if before is None or before.places is None:
        found = Places(specs, problems, _twins(specs))
        refs = dict(specs)
        touched: set[str] | None = None
        groups: Iterable[tuple[str, ...]] = found.twins.values()
    else:
        kept = before.places
        found = Places(dict(kept.plain), dict(kept.problems), dict(kept.twins))
        refs, touched = dict(before.specs), set()
        for place in changed:
            _put(found.plain, place, specs.get(place))
            _put(found.problems, place, problems.get(place))
        for folded, new in _twins(place for place in changed if "/" in place).items():
            names = {*found.twins.get(folded, ()), *new}
            touched |= names
            for one in names:
                _put(refs, one, found.plain.get(one))
            _put(found.twins, folded, tuple(sorted(names & found.plain.keys())) or None)
        groups = (found.twins[_folded(one)] for one in touched if one in refs)
    if len(refs) > MAX_SPECS:
        raise TooMuch(
            f"the revision has {len(refs)} specs; at most {MAX_SPECS} are read. Divide them among several "
            "fabrics, each with a folder of its own (--path)."
        )
    for group in groups:
        if len(group) > 1:
            _refuse_case_twins(refs, group)
    told = sorted((one for some in found.problems.values() for one in some), key=lambda one: one.path)
    return Wanted(refs, _cut(told), None if touched is None else frozenset(touched), found)


def _sort(items: Iterable[TreeItem]) -> tuple[dict[str, SpecRef], dict[str, list[Problem]]]:
    """The specs by id, and the problems by place."""
    trees: dict[str, str] = {}
    files: dict[str, dict[str, TreeItem]] = defaultdict(dict)
    misplaced: list[str] = []
    problems: dict[str, list[Problem]] = defaultdict(list)
    for item in items:
        parts = item.path.split("/")
        if "." in item.path and any(part.startswith(".") for part in parts[:-1]):
            continue
        if len(parts) == 3 and parts[2] in SPEC_FILES:
            # A folder of that name, too: to pass it over would build the spec without its lock.
            files[f"{parts[0]}/{parts[1]}"][parts[2]] = item
        elif item.kind == "tree":
            if len(parts) == 2:
                trees[item.path] = item.oid
        elif len(parts) <= 2 and _stands_for_a_folder(item, parts[-1]):
            problems[item.path].append(_linked(item))
        elif parts[-1] == "pyproject.toml" and len(parts) != 1:
            misplaced.append(item.path)
    specs: dict[str, SpecRef] = {}
    folders = {folder for folder, found in files.items() if "pyproject.toml" in found}
    for folder in sorted(folders):
        if ids.is_id(folder) and folder in trees:
            specs[folder] = _reference(folder, trees[folder], files[folder])
        else:
            problems[folder].append(_bad_id(folder))
    for path in misplaced:
        if (place := place_of(path)) not in folders:
            problems[place].append(_misplaced(path))
    return specs, dict(problems)


def _twins(specs: Iterable[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for spec_id in specs:
        folded = _folded(spec_id)
        found[folded] = (*found.get(folded, ()), spec_id)
    return found


def _folded(spec_id: str) -> str:
    """What two ids have in common that are one folder on some NAS: case, and dots at a name's end."""
    return "/".join(part.rstrip(".") for part in spec_id.casefold().split("/"))


def _put(into: dict[str, T], key: str, value: T | None) -> None:
    if value is None:
        into.pop(key, None)
    else:
        into[key] = value


def _reference(spec_id: str, tree: str, found: dict[str, TreeItem]) -> SpecRef:
    odd = [name for name, item in sorted(found.items()) if item.mode not in _REGULAR]
    refused = None
    if odd:
        refused = (
            f"{spec_id}/{odd[0]} is a {_KINDS.get(found[odd[0]].mode, 'special file')}; "
            "commit it as a regular file."
        )
    blobs = tuple((name, item.oid) for name, item in sorted(found.items()))
    return SpecRef(spec_id, tree, blobs, refused)


def _stands_for_a_folder(item: TreeItem, name: str) -> bool:
    """A submodule, or a symlink whose name is not that of a file, in the place of a workflow or a spec."""
    if name.startswith("."):
        return False
    return item.mode == "160000" or (item.mode == "120000" and not _FILE.fullmatch(name))


def _linked(item: TreeItem) -> Problem:
    place = "spec" if "/" in item.path else "workflow"
    return Problem(
        path=ids.shown(item.path, 300),
        reason=Reason.INVALID_SPEC,
        message=f"a {_KINDS[item.mode]} in the place of a {place} is not followed. Commit the specs' files themselves; "
        "what is no spec has its place outside of the spec directory.",
    )


def _cut(told: list[Problem]) -> list[Problem]:
    if len(told) <= MAX_PROBLEMS:
        return told
    more = len(told) - MAX_PROBLEMS
    message = f"{more} more problems of this kind are not listed. Mend those that are; the others show then."
    return [*told[:MAX_PROBLEMS], Problem("…", Reason.INVALID_SPEC, message)]


def _bad_id(folder: str) -> Problem:
    return Problem(
        path=f"{ids.shown(folder, 300)}/pyproject.toml",
        reason=Reason.INVALID_SPEC,
        message=f"{ids.shown(folder)!r} can't be a spec id: each part takes {ids.ALLOWED}. "
        "Rename the folder.",
    )


def _misplaced(path: str) -> Problem:
    return Problem(
        path=ids.shown(path, 300),
        reason=Reason.INVALID_SPEC,
        message="a spec's pyproject.toml lies at <workflow>/<node>/pyproject.toml, two folders below the "
        "spec directory; move it there or remove it.",
    )


def _refuse_case_twins(refs: dict[str, SpecRef], names: tuple[str, ...]) -> None:
    # Some NAS file systems fold case or drop dots: there two such ids would be one folder.
    for spec_id in names:
        others = ", ".join(other for other in names if other != spec_id)
        message = f"{spec_id} and {others} differ only by case or by dots at the end; rename all but one."
        refs[spec_id] = replace(refs[spec_id], refused=message)
