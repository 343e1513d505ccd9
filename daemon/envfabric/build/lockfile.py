"""uv.lock as data and as text: the project's own entry, which sources it names, one lock for many names.

uv's lock of two projects that ask for the same differs only in the project's own entry. Changing that
entry in the text, and nothing else, gives each its own lock without a second resolution.
"""

import contextlib
import hashlib
import re
from dataclasses import dataclass
from typing import Any

from packaging.utils import canonicalize_name

from envfabric.build.sources import check_package
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy
from envfabric.specs.toml import parse_toml

SPLIT = "\n[[package]]\n"
_OPTIONS = "\n[options]\n"
_CUTOFF = re.compile(r"^exclude-newer(?:-span)? = [^\n]*\n?", re.MULTILINE)
OWN_SOURCE = re.compile(r'^source = \{ (?:virtual|editable) = "\." \}$', re.MULTILINE)
_NAME_LINE = re.compile(r'\Aname = "([^"]+)"\nversion = "([^"]+)"\n')


@dataclass(frozen=True, slots=True)
class Lock:
    """A parsed uv.lock."""

    text: str
    packages: tuple[dict[str, Any], ...]
    """Every [[package]] but the project's own."""

    def versions(self, name: str, version: str) -> list[dict[str, Any]]:
        """The entries of one distribution: several where the lock forks over sources.

        uv leaves the version out where a git repository says it only when it is built.
        """
        return [
            one for one in self.packages if one["name"] == name and one.get("version", version) == version
        ]

    @property
    def own(self) -> tuple[str, str]:
        """Name and version of the project that this lock is for."""
        return _own_entry(self.text)

    @property
    def registries(self) -> list[str]:
        """The addresses of the indexes that packages come from, sorted."""
        return sorted({one["source"]["registry"] for one in self.packages if "registry" in one["source"]})

    def depends_on(self, name: str) -> bool:
        """Whether a locked package requires a distribution of this normalised name."""
        return any(
            canonicalize_name(one["name"]) == name
            for package in self.packages
            for listed in (
                package.get("dependencies", []),
                *package.get("optional-dependencies", {}).values(),
            )
            for one in listed
        )

    def names(self) -> set[str]:
        """The normalised names of everything locked."""
        return {canonicalize_name(one["name"]) for one in self.packages}


_STRICT = Policy()


def read_lock(raw: bytes, where: str, policy: Policy | None = _STRICT) -> Lock:
    """Parses a lock and refuses sources that `policy` does not list: with the default one, all but indexes.

    None is for a lock that was accepted before. Raises `SpecError`.
    """
    try:
        document = parse_toml(raw, where)
        text = raw.decode("utf-8")
        packages = document["package"]
        own = [one for one in packages if _is_own(one["source"])]
        others = tuple(one for one in packages if not _is_own(one["source"]))
        for package in others:
            check_package(package, policy, where)
    except SpecError as error:
        if error.reason is not Reason.INVALID_SPEC:
            raise
        raise SpecError(Reason.LOCK_STALE, f"{error.message} Run `uv lock` and commit it.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            Reason.LOCK_STALE, f"{where} can't be read as a uv.lock: {error}. Run `uv lock` and commit it."
        ) from None
    if len(own) != 1:
        raise SpecError(
            Reason.LOCK_STALE,
            f"{where} has {len(own)} projects of its own, not 1. Run `uv lock` and commit it.",
        )
    return Lock(text, others)


def with_project(text: str, name: str, version: str) -> str:
    """The lock for a project of another name and version that asks for the same.

    Packages stand in the order of their names, and so must the project's own entry.
    """
    head, *blocks = text.split(SPLIT)
    blocks = [block if block.endswith("\n") else f"{block}\n" for block in blocks]
    own = next(number for number, block in enumerate(blocks) if OWN_SOURCE.search(block))
    block = _NAME_LINE.sub(f'name = "{name}"\nversion = "{version}"\n', blocks.pop(own))
    # A tail after the last package would be cut off from it by moving; uv writes none.
    place = next((i for i, other in enumerate(blocks) if _name_of(other) > name), len(blocks))
    blocks.insert(place, block)
    return SPLIT.join([head.rstrip("\n") + "\n", *blocks]).rstrip("\n") + "\n"


def with_cutoff(text: str, lines: str) -> str:
    """The lock with `lines`, and no others, as what it says of exclude-newer.

    uv calls a lock stale that was made under another exclude-newer than it is checked under, and nothing else
    in it tells.
    """
    head, mark, rest = text.partition(SPLIT)
    before, _, options = head.partition(_OPTIONS)
    own, following, tail = options.partition("\n[")
    kept = (lines + _CUTOFF.sub("", own)).strip("\n")
    # uv leaves out an empty table.
    table = f"{_OPTIONS}{kept}\n" if kept else ""
    return before.rstrip("\n") + "\n" + table + following + tail + mark + rest


def cutoff_lines(text: str) -> str:
    """What a lock says of exclude-newer in its options, as uv wrote it; '' for nothing."""
    own = text.partition(SPLIT)[0].partition(_OPTIONS)[2].partition("\n[")[0]
    return "".join(f"{match[0].rstrip()}\n" for match in _CUTOFF.finditer(own))


def neutral(raw: bytes) -> str:
    """A digest of a lock that does not depend on the project's own name and version."""
    if any(mark in raw for mark in (b"'''", b'"""', b"\r")):
        # Never written by uv: text over several lines could hide an entry, and be another lock once it is moved.
        return hashlib.sha256(raw).hexdigest()
    try:
        text = with_project(raw.decode("utf-8"), "envfabric-project", "0")
    except (UnicodeDecodeError, StopIteration):
        text = repr(raw)
    return hashlib.sha256(text.encode()).hexdigest()


def own_entry(raw: bytes) -> tuple[str, str] | None:
    """Name and version of the project that a lock is for, or None where it is no lock."""
    with contextlib.suppress(UnicodeDecodeError, StopIteration, AttributeError):
        return _own_entry(raw.decode("utf-8"))
    return None


def _own_entry(text: str) -> tuple[str, str]:
    block = next(block for block in text.split(SPLIT)[1:] if OWN_SOURCE.search(block))
    name, version = _NAME_LINE.match(block).groups()  # type: ignore[union-attr]
    return name, version


def _name_of(block: str) -> str:
    match = _NAME_LINE.match(block) or re.match(r'\Aname = "([^"]+)"', block)
    return match[1] if match else ""


def _is_own(source: dict[str, str]) -> bool:
    return source.get("virtual") == "." or source.get("editable") == "."
