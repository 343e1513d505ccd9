"""Whether a committed uv.lock is for its pyproject.toml as that is now, told from the two texts alone.

uv writes down what the project required when it was locked. Where that differs from what it requires now, uv will
say the same; where it does not, uv may still find something, which only asking it (`--resolve`) shows. Runs nothing.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from envfabric.build.lockfile import OWN_SOURCE, SPLIT
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.spec import Spec

_Required = tuple[str, str, tuple[str, ...]]
"""A requirement's name, specifier and extras; markers are left out, which uv writes in another form."""


def check_fits(spec: Spec) -> None:
    """Raises `SpecError` (lock-stale) that says by what a spec's committed lock differs from it."""
    text = (spec.lock or b"").decode("utf-8", "replace").replace("\r\n", "\n")
    head, *blocks = text.split(SPLIT)
    own = next((block for block in blocks if OWN_SOURCE.search(block)), None)
    if own is None:
        return
    try:
        entry = tomllib.loads(f"[[package]]\n{own}")["package"][0]
        requires = tomllib.loads(head).get("requires-python", "")
        document = tomllib.loads(spec.pyproject.decode("utf-8"))
        differences = _differences(spec, document, entry, requires)
    except (ValueError, KeyError, TypeError, AttributeError):
        # Of a form that this release does not know: uv has the say.
        return
    if differences:
        raise SpecError(
            Reason.LOCK_STALE,
            f"{spec.id}/uv.lock: it does not fit {spec.id}/pyproject.toml any more: {'; '.join(differences)}. Run "
            f"`uv lock` in {spec.id} and commit uv.lock, or remove it and let the daemon lock.",
        )


def _differences(
    spec: Spec, document: Mapping[str, Any], entry: Mapping[str, Any], requires: str
) -> list[str]:
    if (entry["name"], entry.get("version", spec.version)) != (spec.name, spec.version):
        return [f"it is for {entry['name']} {entry.get('version', '')}, not for {spec.name} {spec.version}"]
    project, metadata = document["project"], entry.get("metadata", {})
    told: list[str] = []
    wanted = project.get("requires-python", "")
    if wanted and requires and not _same_python(wanted, requires):
        told.append(f"it is for Python {requires}, not {wanted}")
    uv_table = document.get("tool", {}).get("uv", {})
    free = _placed(uv_table.get("sources", {}))
    texts = list(project.get("dependencies", []))
    for some in project.get("optional-dependencies", {}).values():
        texts += some
    told += _compared(texts, metadata.get("requires-dist", []), free, "")
    locked = {canonicalize_name(name): some for name, some in metadata.get("requires-dev", {}).items()}
    for name, some in document.get("dependency-groups", {}).items():
        # What a group includes stands in it in the lock; and uv has a key of its own for `dev`.
        if all(isinstance(one, str) for one in some) and not (
            name == "dev" and "dev-dependencies" in uv_table
        ):
            told += _compared(some, locked.get(canonicalize_name(name), []), free, f" in group {name}")
    return told


def _compared(
    texts: Iterable[str], locked: Iterable[Mapping[str, Any]], free: set[str], where: str
) -> list[str]:
    now = {_of_text(text, free) for text in texts}
    then = {_of_entry(one, free) for one in locked}
    missing, extra = sorted(now - then), sorted(then - now)
    told = [f"{', '.join(map(_shown, missing[:3]))} is not in it{where}"] if missing else []
    return told + ([f"{', '.join(map(_shown, extra[:3]))} is no longer required{where}"] if extra else [])


def _of_text(text: str, free: set[str]) -> _Required:
    requirement = Requirement(text)
    name = canonicalize_name(requirement.name)
    extras = tuple(sorted(map(canonicalize_name, requirement.extras)))
    return name, "" if name in free else _bounds(str(requirement.specifier)), extras


def _of_entry(entry: Mapping[str, Any], free: set[str]) -> _Required:
    name = canonicalize_name(entry["name"])
    extras = tuple(sorted(map(canonicalize_name, entry.get("extras", []))))
    return name, "" if name in free else _bounds(entry.get("specifier", "")), extras


@lru_cache(maxsize=4096)
def _bounds(text: str) -> str:
    """A specifier in one order, and each version in one form."""
    return ",".join(sorted(str(one) for one in _canonical(text)))


def _canonical(text: str) -> Iterable[str]:
    for one in SpecifierSet(text):
        version = one.version
        if one.operator not in {"===", "~="} and not version.endswith(".*"):
            version = re.sub(r"(\.0)+$", "", version)
        yield f"{one.operator}{version.lower()}"


def _shown(required: _Required) -> str:
    name, bounds, extras = required
    return f"{name}{'[' + ','.join(extras) + ']' if extras else ''}{bounds}"


def _placed(sources: Mapping[str, Any]) -> set[str]:
    """The names that come from elsewhere than an index: uv writes no specifier for them."""
    found: set[str] = set()
    for name, source in sources.items():
        for one in source if isinstance(source, list) else [source]:
            if {"git", "url", "path", "workspace"} & set(one):
                found.add(canonicalize_name(name))
    return found


@lru_cache(maxsize=256)
def _same_python(one: str, other: str) -> bool:
    """Whether two bounds let the same Pythons in; uv writes some in another form."""
    first, second = SpecifierSet(one), SpecifierSet(other)
    versions = [f"3.{minor}.{patch}" for minor in range(6, 24) for patch in range(25)] + ["2.7", "4.0"]
    return all(first.contains(version) == second.contains(version) for version in versions)
