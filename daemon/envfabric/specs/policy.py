"""What a spec may ask of uv: the Trust section of the design, applied before uv sees a file.

uv runs build backends while locking, follows paths and reads other hosts when a pyproject.toml
says so. Whatever could do that and is not allowed here is refused by reading it. Pure; a committed lock is held
against the same policy by build/.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from envfabric.core.errors import Reason, SpecError
from envfabric.core.ids import shown
from envfabric.specs.addresses import check_subdirectory, is_listed, parse_address
from envfabric.specs.markers import Tally, check_forks, check_marker

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
_SOURCE_KEYS = {
    "index": frozenset({"index"}),
    "url": frozenset({"url", "subdirectory"}),
    "git": frozenset({"git", "rev", "tag", "branch", "subdirectory"}),
}
_ANY_SOURCE = frozenset({"marker", "extra", "group"})
_INDEX_KEYS = frozenset({"name", "url", "default", "explicit", "format", "exclude-newer"})


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
    validation: frozenset[str] = frozenset({"minimal"})
    """What `validate` may say: anything but minimal runs the packages' code."""


def check_requirements(texts: Iterable[Any], where: str, policy: Policy, tally: Tally) -> list[Requirement]:
    """The parsed requirements. Raises `SpecError` for one that is broken, or from where the policy allows none."""
    found = []
    for text in texts:
        if not isinstance(text, str):
            raise SpecError(Reason.INVALID_SPEC, f"{where}: {shown(repr(text))} must be a string")
        tally.text(text, where)
        try:
            requirement = Requirement(text)
        except (InvalidRequirement, RecursionError) as error:
            reason = (str(error).splitlines() or ["it can't be read"])[0]
            raise SpecError(
                Reason.INVALID_SPEC, f"{where}: {shown(text)!r} is no requirement: {shown(reason)}"
            ) from None
        if requirement.url is not None:
            _check_address(requirement.name, requirement.url, where, policy)
        if requirement.marker is not None:
            tally.marker(requirement.marker, where)
        found.append(requirement)
    return found


def check_validation(kind: str, command: Sequence[str], policy: Policy) -> None:
    """Whether a spec may be validated in this way. Raises `SpecError`."""
    if kind not in policy.validation:
        raise SpecError(
            Reason.POLICY,
            f'tool.envfabric.validate = "{kind}" runs the packages\' code on the builder, which is not allowed here. '
            f'Use "minimal", or have "{kind}" added to policy.validation in the daemon\'s settings, which trusts '
            f"whoever commits with everything the builder can reach. {_allowed(policy.validation)}",
        )
    if kind == "custom" and not (command and command[0].strip()):
        raise SpecError(
            Reason.INVALID_SPEC,
            'tool.envfabric.validate = "custom" runs tool.envfabric.command, and there is none; add, for example, '
            'command = ["python", "-c", "import torch"].',
        )


def check_uv_table(table: Mapping[str, Any], policy: Policy, tally: Tally) -> None:
    """Refuses what `[tool.uv]` may not say. Raises `SpecError`."""
    for key in sorted(table):
        if key not in policy.uv_keys:
            raise SpecError(
                Reason.POLICY,
                f"tool.uv.{shown(key, 60)} is not allowed in a spec; remove it, or have it added to policy.uv_keys in "
                f"the daemon's settings. {_allowed(policy.uv_keys)}",
            )
    for key in _REQUIREMENT_KEYS:
        check_requirements(_list(table.get(key, []), f"tool.uv.{key}"), f"tool.uv.{key}", policy, tally)
    check_forks(table, tally)
    if policy.cooldown and "exclude-newer-package" in table:
        raise SpecError(
            Reason.POLICY,
            "tool.uv.exclude-newer-package could let a release through that is younger than the cooldown of this "
            "fabric (policy.cooldown); remove it.",
        )
    for index in _list(table.get("index", []), "tool.uv.index"):
        _check_index(index, policy)
    sources = table.get("sources", {})
    if not isinstance(sources, Mapping):
        raise SpecError(Reason.INVALID_SPEC, "tool.uv.sources must be a table")
    for name, source in sources.items():
        for one in source if isinstance(source, list) else [source]:
            _check_source(name, one, policy, tally)


def _check_index(index: Any, policy: Policy) -> None:
    if not isinstance(index, Mapping) or not isinstance(index.get("url"), str):
        raise SpecError(Reason.INVALID_SPEC, "each [[tool.uv.index]] needs a url")
    unknown = sorted(set(index) - _INDEX_KEYS)
    if unknown:
        raise SpecError(
            Reason.POLICY,
            f"tool.uv.index.{shown(unknown[0], 60)} is not allowed in a spec. {_allowed(_INDEX_KEYS)}",
        )
    url = index["url"]
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or "@" in parts.netloc:
        raise SpecError(
            Reason.POLICY,
            f"index {shown(url)!r} must be an http(s) URL without credentials; give those to the daemon.",
        )
    if url.rstrip("/") not in {one.rstrip("/") for one in policy.indexes}:
        raise SpecError(
            Reason.POLICY,
            f"index {shown(url)!r} is not allowed; remove it, or have it added to policy.indexes in the daemon's "
            "settings.",
        )
    if policy.cooldown and "exclude-newer" in index:
        raise SpecError(
            Reason.POLICY,
            "tool.uv.index.exclude-newer could let a release through that is younger than the cooldown of this "
            "fabric (policy.cooldown); remove it.",
        )


def _check_source(name: str, source: Any, policy: Policy, tally: Tally) -> None:
    where = f"tool.uv.sources.{shown(name, 60)}"
    if not isinstance(source, Mapping):
        raise SpecError(Reason.INVALID_SPEC, f"{where} must be a table")
    kinds = [kind for kind in _SOURCE_KEYS if kind in source]
    known = _ANY_SOURCE.union(*(_SOURCE_KEYS[kind] for kind in kinds[:1]))
    unknown = sorted(set(source) - known)
    if unknown or not kinds:
        what = f"a {shown(unknown[0], 60)!r} source" if unknown else "a source without index, url or git"
        raise SpecError(
            Reason.POLICY,
            f"{where}: {what} is not allowed; a closure can depend only on releases from an index, and on listed "
            "addresses. Publish the package to an index and require a version.",
        )
    for key, value in source.items():
        if not isinstance(value, str):
            raise SpecError(Reason.INVALID_SPEC, f"{where}.{key} must be a string")
    if "marker" in source:
        check_marker(source["marker"], f"{where}.marker", tally)
    for key in ("rev", "tag", "branch"):
        if source.get(key, "").startswith("-") or not source.get(key, "").isprintable():
            raise SpecError(Reason.INVALID_SPEC, f"{where}.{key} is no name of a revision")
    if kinds == ["index"]:
        return
    _check_address(name, source[kinds[0]], where, policy, git=kinds == ["git"])
    if "subdirectory" in source:
        try:
            check_subdirectory(source["subdirectory"])
        except ValueError as error:
            raise SpecError(Reason.POLICY, f"{where}: {error}.") from None


def _check_address(name: str, text: str, where: str, policy: Policy, *, git: bool = False) -> None:
    """Whether a package may come from this address. Raises `SpecError`."""
    name = shown(name, 100)
    if not policy.sources:
        raise SpecError(
            Reason.POLICY,
            f"{where}: {name!r} comes from a URL or path; only releases from an index are allowed. Publish the "
            "package to an index and require a version.",
        )
    git = git or text.lower().startswith(("git+", "ssh:"))
    try:
        address = parse_address(text, git=git)
    except ValueError as error:
        raise SpecError(Reason.POLICY, f"{where}: the address of {name!r} is not allowed: {error}.") from None
    if not is_listed(address, policy.sources):
        raise SpecError(
            Reason.POLICY,
            f"{where}: {name!r} comes from {shown(text)!r}, which is not listed. Publish the package to an index and "
            "require a version, or have the address added to policy.sources in the daemon's settings.",
        )
    wheel = not git and address.segments[-1:] and address.segments[-1].endswith(".whl")
    if not wheel and canonicalize_name(name) not in policy.build_from_source:
        raise SpecError(
            Reason.POLICY,
            f"{where}: {name!r} would have to be built from source, which runs its code on the builder. Give the "
            "address of a wheel, or have the name added to policy.build_from_source in the daemon's settings.",
        )


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise SpecError(Reason.INVALID_SPEC, f"{where} must be a list")
    return value


def _allowed(keys: Iterable[str]) -> str:
    return f"Allowed are: {', '.join(sorted(keys))}."
