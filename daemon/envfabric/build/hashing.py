"""Wheels that an index gives no hash for: hashed here, and held to that hash when they are installed.

The download is uv's (`uv export` to a pylock.toml fetches what it has no hash for, and not from its
cache), so credentials, proxies and certificates are those of every other download. Only copies of a
lock in staging get the hashes; the lock that a generation keeps stays as uv wrote it. Nothing else on
ROOT is written here.
"""

import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from envfabric.build.closure import Closure, Distribution
from envfabric.build.lockfile import Lock, read_lock
from envfabric.build.sources import files_of
from envfabric.build.uv import Uv, failure
from envfabric.core.errors import Reason, SpecError
from envfabric.store.files import Files

_SDIST = re.compile(r"^sdist = \{[^\n]*\}\n", re.MULTILINE)
_FILE = re.compile(r'\{\s*url\s*=\s*"([^"]*)"([^{}]*)\}[ \t]*,?')
_HASH = re.compile(r',\s*hash\s*=\s*"[^"]*"')


def hash_wheels(
    uv: Uv, files: Files, folder: Path, hold: int, pyproject: bytes, lock: str, urls: Sequence[str],
    chosen: Sequence[str],
) -> dict[str, str]:  # fmt: skip
    """'sha256:…' by URL of wheels that `lock` names without one; each is downloaded to learn it.

    Works in `folder`, a new one in staging; `chosen` are uv's arguments for extras, groups and interpreter.
    Raises `SpecError`.
    """
    files.make_folder(folder)
    files.write_new(folder / "pyproject.toml", pyproject)
    files.write_new(folder / "uv.lock", only_wheels(lock, urls).encode())
    arguments = ["export", "--frozen", "--no-default-groups", "--no-emit-project", "--format", "pylock.toml"]
    # With the fleet's indexes: their credentials may be needed, and a frozen lock does not change by them.
    finished = uv.run([*arguments, *chosen], cwd=folder, hold=hold, fleet=True)
    doing = f"hashing {', '.join(url.rsplit('/', 1)[-1] for url in urls)}, which the index gives no hash for"
    if finished.code != 0:
        raise failure(doing, finished, Reason.UNRESOLVABLE)
    packages = tomllib.loads(finished.stdout).get("packages", [])
    found = {wheel["url"]: wheel.get("hashes", {}) for one in packages for wheel in one.get("wheels", [])}
    missing = [url for url in urls if "sha256" not in found.get(url, {})]
    if missing:
        raise SpecError(
            Reason.UNRESOLVABLE,
            f"{doing}: uv did not say what {missing[0]} hashes to. Have the index give hashes, or require a "
            "version from another one.",
        )
    return {url: f"sha256:{found[url]['sha256']}" for url in urls}


def only_wheels(lock: str, urls: Iterable[str]) -> str:
    """The lock with those files left out that uv would download to hash them, but for `urls`."""
    wanted = set(urls)

    def keep(match: re.Match[str]) -> str:
        if match[1] in wanted:
            # One by which content can't be told, such as MD5, would be taken as it is.
            return _HASH.sub("", match[0])
        return match[0] if _HASH.search(match[2]) else ""

    return _FILE.sub(keep, _SDIST.sub("", lock))


def with_hashes(lock: Lock, closure: Closure, where: str) -> tuple[str, list[str]]:
    """A lock's text for installing `closure`, in which each of its wheels has its hash, so that uv proves it.

    Gives the names that got one here, too; without any, the text is the lock's own. Raises `SpecError` where
    the lock is of other wheels than the closure.
    """
    text, names = lock.text, []
    for one in closure.distributions:
        entries = _files(lock, one)
        # A git repository has its commit in its address.
        if any(file.get("hash") == one.hash for file in entries) or _at_commit(lock, one):
            continue
        # Where a lock forks over sources, the other fork's wheel is another one and has its own hash, or none.
        bare = [wheel for wheel in entries if not str(wheel.get("hash", "")).startswith("sha")]
        if not bare:
            raise SpecError(
                Reason.VALIDATION,
                f"{where} names no {one.wheel} with {one.hash}, which the environment is to be made of. It is tried "
                "again when the spec changes.",
            )
        if one.hashed:
            names.append(one.name)
            for wheel in bare:
                text = _insert(text, str(wheel["url"]), one.hash)
    if names and not _proves(text, closure, where):
        raise SpecError(
            Reason.LOCK_STALE,
            f"{where} is not written as uv writes it, and hashes can't be put into it. Run `uv lock` and commit it.",
        )
    return text, names


def _insert(text: str, url: str, digest: str) -> str:
    entry = re.compile(r'(\{\s*url\s*=\s*"' + re.escape(url) + r'")([^{}]*)')
    return entry.sub(lambda match: f'{match[1]}, hash = "{digest}"{_HASH.sub("", match[2])}', text)


def _proves(text: str, closure: Closure, where: str) -> bool:
    lock = read_lock(text.encode(), where, None)
    hashed = [one for one in closure.distributions if one.hashed and not one.hash.startswith("git:")]
    return all(any(wheel.get("hash") == one.hash for wheel in _files(lock, one)) for one in hashed)


def _files(lock: Lock, one: Distribution) -> list[dict[str, Any]]:
    """The lock's entries for the file that a distribution is installed from; several where the lock forks."""
    return [
        file
        for package in lock.versions(one.name, one.version)
        for file in files_of(package)
        if str(file.get("url") or one.origin).split("#")[0].rsplit("/", 1)[-1] == one.wheel
    ]


def _at_commit(lock: Lock, one: Distribution) -> bool:
    return any(
        package["source"].get("git", "") == one.origin != ""
        for package in lock.versions(one.name, one.version)
    )
