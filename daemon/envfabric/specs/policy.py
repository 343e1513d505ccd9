"""What a spec may ask of uv: the Trust section of the design, applied before uv sees a file.

uv runs build backends while locking, follows paths and reads other hosts when a pyproject.toml
says so. Whatever could do that and is not allowed here is refused by reading it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement

from envfabric.core.errors import Reason, SpecError
from envfabric.core.ids import shown

UV_KEYS = frozenset(
    {
        "build-constraint-dependencies",
        "conflicts",
        "constraint-dependencies",
        "default-groups",
        "dev-dependencies",
        "environments",
        "exclude-dependencies",
        "exclude-newer",
        "exclude-newer-package",
        "fork-strategy",
        "index",
        "index-strategy",
        "no-build",
        "override-dependencies",
        "package",
        "prerelease",
        "required-environments",
        "required-version",
        "resolution",
        "sources",
    }
)
"""Keys of [tool.uv] that can't make uv run code, leave the spec's folder or choose another cache."""

_REQUIREMENT_KEYS = (
    "build-constraint-dependencies",
    "constraint-dependencies",
    "dev-dependencies",
    "override-dependencies",
)
_SOURCE_KEYS = frozenset({"index", "marker", "extra", "group"})
_INDEX_KEYS = frozenset({"name", "url", "default", "explicit", "format", "exclude-newer", "cache-control"})


@dataclass(frozen=True, slots=True)
class Policy:
    """What this fabric allows, from its settings."""

    indexes: tuple[str, ...] = ()
    """Index URLs, besides the default one, that specs may name."""
    ray: bool = False
    """Whether a spec that says nothing requires Ray."""
    uv_keys: frozenset[str] = UV_KEYS
    """The keys of [tool.uv] that a spec may have."""
    sources: tuple[str, ...] = ()
    """How the address of a git or URL source must begin; none is allowed by default."""
    build_from_source: frozenset[str] = frozenset()
    """Normalised names of packages whose source distributions may be built, which runs their code."""
    max_packages: int = 1000
    """The most packages of one environment."""
    max_bytes: int = 32 * 1024**3
    """The most bytes of one environment."""
    cooldown: float = 0.0
    """Seconds that a release has to be old before it is taken."""


def check_requirements(texts: Iterable[Any], where: str) -> list[Requirement]:
    """The parsed requirements. Raises `SpecError` for a broken one, or one that names a URL or path."""
    found = []
    for text in texts:
        if not isinstance(text, str):
            raise SpecError(Reason.INVALID_SPEC, f"{where}: {shown(repr(text))} must be a string")
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            reason = str(error).splitlines()[0]
            raise SpecError(
                Reason.INVALID_SPEC, f"{where}: {shown(text)!r} is no requirement: {shown(reason)}"
            ) from None
        if requirement.url is not None:
            raise SpecError(
                Reason.POLICY,
                f"{where}: {requirement.name!r} comes from a URL or path; only releases from an index are "
                "allowed. Publish it to an index and require a version.",
            )
        found.append(requirement)
    return found


def check_uv_table(table: Mapping[str, Any], policy: Policy) -> None:
    """Refuses what `[tool.uv]` may not say. Raises `SpecError`."""
    for key in sorted(table):
        if key not in UV_KEYS:
            raise SpecError(
                Reason.POLICY, f"tool.uv.{key} is not allowed in a spec; remove it. {_allowed(UV_KEYS)}"
            )
    for key in _REQUIREMENT_KEYS:
        check_requirements(_list(table.get(key, []), f"tool.uv.{key}"), f"tool.uv.{key}")
    for index in _list(table.get("index", []), "tool.uv.index"):
        _check_index(index, policy)
    sources = table.get("sources", {})
    if not isinstance(sources, Mapping):
        raise SpecError(Reason.INVALID_SPEC, "tool.uv.sources must be a table")
    for name, source in sources.items():
        for one in source if isinstance(source, list) else [source]:
            _check_source(name, one)


def _check_index(index: Any, policy: Policy) -> None:
    if not isinstance(index, Mapping) or not isinstance(index.get("url"), str):
        raise SpecError(Reason.INVALID_SPEC, "each [[tool.uv.index]] needs a url")
    unknown = sorted(set(index) - _INDEX_KEYS)
    if unknown:
        raise SpecError(
            Reason.POLICY, f"tool.uv.index.{unknown[0]} is not allowed in a spec. {_allowed(_INDEX_KEYS)}"
        )
    url = index["url"]
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or parts.username or parts.password:
        raise SpecError(
            Reason.POLICY,
            f"index {url!r} must be an http(s) URL without credentials; give those to the daemon.",
        )
    if url.rstrip("/") not in {one.rstrip("/") for one in policy.indexes}:
        raise SpecError(
            Reason.POLICY,
            f"index {url!r} is not allowed; remove it, or have it added to policy.indexes in the daemon's "
            "settings.",
        )


def _check_source(name: str, source: Any) -> None:
    if not isinstance(source, Mapping):
        raise SpecError(Reason.INVALID_SPEC, f"tool.uv.sources.{name} must be a table")
    unknown = sorted(set(source) - _SOURCE_KEYS)
    if unknown:
        raise SpecError(
            Reason.POLICY,
            f"tool.uv.sources.{name}: a {unknown[0]!r} source is not allowed; a closure can depend only on "
            "releases from an index. Publish the package to one and require a version.",
        )


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise SpecError(Reason.INVALID_SPEC, f"{where} must be a list")
    return value


def _allowed(keys: Iterable[str]) -> str:
    return f"Allowed are: {', '.join(sorted(keys))}."
