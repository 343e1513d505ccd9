"""Where the packages of a lock may come from, and what of them may be built: policy, applied to what uv wrote.

Direct URLs and git repositories are taken only where the settings list how their address begins, and source
distributions are built only of names that they list. Building runs a package's code: it gets a home folder
and a temporary folder of its own, no more than that. Pure but for the folder that `backend_home` makes.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from packaging.utils import canonicalize_name

from envfabric.core.errors import Reason, SpecError, redact
from envfabric.specs.addresses import check_subdirectory, is_listed, parse_address
from envfabric.specs.policy import Policy
from envfabric.store.files import Files

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def check_package(package: Mapping[str, Any], policy: Policy | None, where: str) -> None:
    """Refuses a package of a lock that reaches outside an index, or outside what `policy` lists.

    Without `policy` it was accepted before, and only its form is looked at. Raises `SpecError` (policy).
    """
    source, name = package["source"], str(package["name"])
    if isinstance(source.get("registry"), str):
        _check_registry(source["registry"], package, where)
    elif isinstance(source.get("url"), str):
        _check_url(source["url"], package, policy, where)
    elif isinstance(source.get("git"), str):
        _check_git(source["git"], name, policy, where)
    else:
        raise _no_index(name, next(iter(source), "none"), where)


def permitted(address: str, policy: Policy, *, git: bool = False) -> bool:
    """Whether the settings list how an address of a lock begins; one that could be read in two ways is not."""
    try:
        return is_listed(parse_address(address, git=git), policy.sources)
    except ValueError:
        return False


def build_arguments(names: Iterable[str]) -> list[str]:
    """uv's arguments by which these distributions, and no others, are built from source.

    Together with `--no-build`, which is always set, uv takes names whose wheels are refused as the exceptions
    to it.
    """
    return [f"--no-binary-package={name}" for name in sorted(names)]


def backend_home(files: Files, folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables by which build backends get `folder`, made here, as their home; uv goes on reading its own files.

    The folder lies in staging and goes with it. What uv itself reads below HOME is named to it instead.
    """
    files.make_folder(folder)
    variables = {"HOME": str(folder)}
    if home := environment.get("HOME"):
        variables["XDG_CONFIG_HOME"] = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
        netrc = environment.get("NETRC") or f"{home}/.netrc"
        if os.path.exists(netrc):
            variables["NETRC"] = netrc
    return variables


def files_of(package: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All files that a lock lists of a package."""
    return [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]


def _check_registry(registry: str, package: Mapping[str, Any], where: str) -> None:
    name = package["name"]
    if urlsplit(registry).scheme not in {"http", "https"}:
        raise _no_index(name, "registry", where)
    for file in files_of(package):
        if "path" in file or urlsplit(str(file.get("url", ""))).scheme not in {"http", "https"}:
            raise SpecError(
                Reason.POLICY,
                f"{where}: a file of {name} is at {file.get('path') or file.get('url')!r}, which is no http(s) URL. "
                "Run `uv lock` and commit it.",
            )


def _check_url(url: str, package: Mapping[str, Any], policy: Policy | None, where: str) -> None:
    name = package["name"]
    if urlsplit(url).scheme not in {"http", "https"} or (policy is not None and not permitted(url, policy)):
        raise _not_listed(name, "url", url, where)
    _check_subdirectory(name, package["source"].get("subdirectory"), where)
    for file in files_of(package):
        if "path" in file or str(file.get("url", url)).split("#")[0] != url.split("#")[0]:
            raise SpecError(
                Reason.POLICY,
                f"{where}: a file of {name} is at {file.get('path') or file.get('url')!r}, not at {url!r} as its "
                "source says. Run `uv lock` and commit it.",
            )
        if not str(file.get("hash", "")).startswith("sha"):
            raise SpecError(
                Reason.POLICY,
                f"{where}: {name}, which comes from {url!r}, has no hash. Run `uv lock` and commit it.",
            )


def _check_git(address: str, name: str, policy: Policy | None, where: str) -> None:
    # uv puts what was asked for behind a ?, and the commit that it found behind a #.
    asked, _, commit = address.partition("#")
    plain, _, query = asked.partition("?")
    if policy is not None and not permitted(plain, policy, git=True):
        raise _not_listed(name, "git", asked, where)
    for told in parse_qs(query).get("subdirectory", []):
        _check_subdirectory(name, told, where)
    if not _COMMIT.fullmatch(commit):
        raise SpecError(
            Reason.POLICY, f"{where}: {name} comes from {asked!r} at no commit. Run `uv lock` and commit it."
        )
    if policy is not None and canonicalize_name(name) not in policy.build_from_source:
        raise SpecError(
            Reason.POLICY,
            f"{where}: {name} comes from git and would have to be built, which runs its code. Publish a wheel of it, "
            f"or have {name!r} added to policy.build_from_source in the daemon's settings.",
        )


def _check_subdirectory(name: str, told: object, where: str) -> None:
    try:
        if told is not None:
            check_subdirectory(str(told))
    except ValueError as error:
        raise SpecError(Reason.POLICY, f"{where}: {name}: {error}. Run `uv lock` and commit it.") from None


def _no_index(name: str, kind: str, where: str) -> SpecError:
    return SpecError(
        Reason.POLICY,
        f"{where}: {name} comes from a {kind!r} source; only releases from an index are allowed. Publish it to one, "
        "require a version, and lock again.",
    )


def _not_listed(name: str, kind: str, address: str, where: str) -> SpecError:
    return SpecError(
        Reason.POLICY,
        f"{where}: {name} comes from a {kind!r} source, {redact(address)}, which is not listed. Publish it to an "
        "index, require a version, and lock again; or have the address added to policy.sources in the settings.",
    )
