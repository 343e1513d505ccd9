"""Which hosts an index serves its files from, and which index is the default one: learned, written down nowhere.

A committed lock is believed only where each of its files lies on a host that the index itself names: uv is
asked what it would write for the very package, by a project that has that index and no other. What was learned
is kept under state/origins/ for a day; a lock that uv has made itself teaches it for nothing.
"""

import hashlib
import json
import threading
import time
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from envfabric.build.interpreters import Interpreter
from envfabric.build.lockfile import Lock
from envfabric.build.sources import backend_home, build_arguments, files_of
from envfabric.build.uv import Uv, failure
from envfabric.core.errors import Reason, SpecError, redact
from envfabric.specs.policy import Policy
from envfabric.store.closures import Staging
from envfabric.store.files import Files
from envfabric.store.root import Root

MAX_AGE = 86400.0
"""Seconds for which it is believed that an index serves files from a host."""
_ASKED = 3
"""Packages by which an unknown host is asked for: the first may have nothing for this interpreter."""

Host = tuple[str, str]
"""Scheme and host with its port, as an address begins."""


class Origins:
    """What is known of indexes on one ROOT. Safe for threads."""

    def __init__(
        self, root: Root, files: Files, uv: Uv, indexes: Iterable[str] = (), max_age: float = MAX_AGE
    ) -> None:
        """`indexes` are allowed besides the default one; `max_age` is in seconds."""
        self._root = root
        self._files = files
        self._uv = uv
        self._indexes = {_plain(one) for one in indexes}
        self._max_age = max_age
        self._default: str | None = None
        self._writing = threading.Lock()

    def teach(self, lock: Lock) -> None:
        """Takes over where the files are of a lock that uv has just made from the indexes' own answers."""
        for registry in lock.registries:
            found = {_host(str(file["url"])) for package in _of(lock, registry) for file in files_of(package)}
            if found - self._fresh(registry, self._max_age / 2):
                self._remember(registry, found)

    def check(
        self,
        lock: Lock,
        tables: Mapping[str, Mapping[str, Any]],
        staging: Staging,
        python: Interpreter,
        policy: Policy,
        where: str,
    ) -> None:
        """Refuses a committed lock with a file where its index serves none from.

        `tables` are the spec's own [[tool.uv.index]] by `indexes_of`. Starts uv only for what is not known.
        Raises `SpecError`: policy, fetch where an index can't be reached.
        """
        for registry in lock.registries:
            self._check_registry(lock, registry, tables, staging, python, where)
        for registry in lock.registries:
            unknown: dict[Host, list[tuple[dict[str, Any], str]]] = {}
            known = self._fresh(registry, self._max_age)
            for package in _of(lock, registry):
                for file in files_of(package):
                    host = _host(str(file["url"]))
                    if host not in known:
                        unknown.setdefault(host, []).append((package, str(file["url"])))
            for host, found in unknown.items():
                # What was learned for the host before this one may have been this one, too.
                if host in self._fresh(registry, self._max_age):
                    continue
                self._learn(registry, tables.get(_plain(registry)), host, found, staging, python, policy)
                if host not in self._fresh(registry, self._max_age):
                    package, url = found[0]
                    raise SpecError(
                        Reason.POLICY,
                        f"{where}: a file of {package['name']} is at {redact(url)}, whose host {redact(registry)} does "
                        "not serve it from. Run `uv lock` and commit it.",
                    )

    def _check_registry(
        self,
        lock: Lock,
        registry: str,
        tables: Mapping[str, Mapping[str, Any]],
        staging: Staging,
        python: Interpreter,
        where: str,
    ) -> None:
        plain = _plain(registry)
        if plain in tables and plain in self._indexes:
            return
        if plain == self._default:
            return
        # The operator's own configuration of uv may have changed since.
        self._default = self._ask_default(staging, python)
        if plain != self._default:
            name = _of(lock, registry)[0]["name"]
            raise SpecError(
                Reason.POLICY,
                f"{where}: {name} comes from {redact(registry)}, which is neither the default index nor one that the "
                "spec names and policy.indexes allows. Run `uv lock` and commit it.",
            )

    def _ask_default(self, staging: Staging, python: Interpreter) -> str:
        folder = self._lay_out(staging, None, "")
        arguments = [
            "pip",
            "compile",
            "--emit-index-url",
            "--no-deps",
            "--no-header",
            "--python",
            python.path,
        ]
        finished = self._uv.run([*arguments, "asked.txt"], cwd=folder, hold=staging.descriptor)
        if finished.code != 0:
            raise failure("asking uv for its default index", finished, Reason.INTERNAL)
        lines = (line.partition("--index-url ") for line in finished.stdout.splitlines())
        found = next((url for before, mark, url in lines if mark and not before), "")
        return _plain(found)

    def _learn(
        self,
        registry: str,
        table: Mapping[str, Any] | None,
        host: Host,
        found: list[tuple[dict[str, Any], str]],
        staging: Staging,
        python: Interpreter,
        policy: Policy,
    ) -> None:
        """Asks the index by packages that have files on `host`, those with wheels first, until it names it."""
        packages = {(one["name"], one["version"]): one for one, _ in found}
        for name, version in sorted(packages, key=lambda key: not packages[key].get("wheels"))[:_ASKED]:
            package = packages[name, version]
            # What has no wheel tells nothing of itself unless it may be built.
            built = {name} & policy.build_from_source if not package.get("wheels") else set()
            hosts = self._ask(registry, table, f"{name}=={version}", built, staging, python)
            self._remember(registry, hosts)
            if host in hosts:
                return

    def _ask(
        self,
        registry: str,
        table: Mapping[str, Any] | None,
        requirement: str,
        built: Iterable[str],
        staging: Staging,
        python: Interpreter,
    ) -> set[Host]:
        """The hosts that an index names for one release; none where it has no such one."""
        folder = self._lay_out(staging, table, requirement)
        home = backend_home(self._files, folder / "home", self._uv.environment(fleet=False)) if built else {}
        arguments = ["pip", "compile", "--no-deps", "--no-header", "--universal", "--format", "pylock.toml"]
        finished = self._uv.run(
            [*arguments, *build_arguments(built), "--python", python.path, "asked.txt"],
            cwd=folder,
            hold=staging.descriptor,
            extra=home,
        )
        if finished.code != 0:
            error = failure(f"asking {redact(registry)} for {requirement}", finished, Reason.UNRESOLVABLE)
            if error.reason.passing:
                raise error
            return set()
        packages = tomllib.loads(finished.stdout).get("packages", [])
        return {_host(str(file["url"])) for one in packages for file in files_of(one) if "url" in file}

    def _lay_out(self, staging: Staging, table: Mapping[str, Any] | None, requirement: str) -> Path:
        """A project with one index and nothing else, in a folder of its own."""
        number = 0
        while (folder := staging.folder / f"asking-{number}").exists():
            number += 1
        self._files.make_folder(folder)
        lines = ["[project]", 'name = "envfabric-asking"', 'version = "0"']
        if table is not None:
            # By its name credentials are found, and as the default one it is the only one.
            known = {key: table[key] for key in ("name", "url", "format") if isinstance(table.get(key), str)}
            lines += ["[[tool.uv.index]]", *(f"{key} = {json.dumps(text)}" for key, text in known.items())]
            lines += ["default = true"]
        self._files.write_new(folder / "pyproject.toml", "\n".join([*lines, ""]).encode())
        self._files.write_new(folder / "asked.txt", f"{requirement}\n".encode())
        return folder

    def _fresh(self, registry: str, age: float) -> set[Host]:
        oldest = time.time() - age
        return {host for host, at in self._read(registry).items() if at >= oldest}

    def _read(self, registry: str) -> dict[Host, float]:
        try:
            kept = json.loads(self._record(registry).read_bytes())
            return {(str(scheme), str(name)): float(at) for scheme, name, at in kept["hosts"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _remember(self, registry: str, found: Iterable[Host]) -> None:
        now = time.time()
        # Two threads that learn of one index at once must not forget each other's.
        with self._writing:
            hosts = {one: at for one, at in self._read(registry).items() if at >= now - self._max_age}
            hosts |= dict.fromkeys(found, now)
            content = {"index": redact(registry), "hosts": sorted([*one, at] for one, at in hosts.items())}
            self._root.require_marker()
            self._files.make_folder(self._record(registry).parent)
            self._files.write_atomic(
                self._record(registry), json.dumps(content).encode(), via=self._root.staging
            )

    def _record(self, registry: str) -> Path:
        digest = hashlib.sha256(_plain(registry).encode()).hexdigest()[:40]
        return self._root.state / "origins" / f"{digest}.json"


def indexes_of(uv_table: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The [[tool.uv.index]] tables of a spec by their plain addresses."""
    return {_plain(str(one["url"])): one for one in uv_table.get("index", [])}


def _of(lock: Lock, registry: str) -> list[dict[str, Any]]:
    return [one for one in lock.packages if one["source"].get("registry") == registry]


def _plain(url: str) -> str:
    """An index's address without credentials and trailing slash: as locks have it, and one for both spellings."""
    parts = urlsplit(url.strip())
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def _host(url: str) -> Host:
    parts = urlsplit(url)
    # With what stands before an @, too: a file is served from no address with a user in it.
    return parts.scheme, parts.netloc.lower()
