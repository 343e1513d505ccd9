"""Which interpreter a request means: chosen once, exact version and path, recorded under ROOT.

A request such as '3.11' could follow every upgrade, and PATH decides differently for each user. So
the first choice is written to state/pythons/ and holds until that interpreter is gone: ROOT, or a file, that can't be
read now is no reason to choose again. What is missing is brought to ROOT/pythons by pythons.py, where the settings
allow it.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from envfabric.build.pythons import Pythons
from envfabric.build.uv import Uv, failure
from envfabric.core.errors import Reason, SpecError, StoreError
from envfabric.specs.spec import PythonRequest
from envfabric.store.files import Files
from envfabric.store.root import Root, now
from envfabric.telemetry import logs

_LIST_AGE = 60.0
"""Seconds after which a new request looks again for interpreters that were installed meanwhile, or at one that hung."""
_START_LIMIT = 30
"""Seconds that an interpreter may take to say what it is."""

# Run in a base interpreter, without site: nothing of a package is executed.
_FACTS = """
import json, os, sys, sysconfig
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION") or "unknown"
except (AttributeError, OSError, ValueError):
    libc = "unknown"
print(json.dumps({
    "path": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable),
    "version": ".".join(map(str, sys.version_info[:3])) + ("" if sys.version_info[3] == "final" else "rc0"),
    "implementation": sys.implementation.name,
    "abi": sysconfig.get_config_var("SOABI") or "",
    "platform": sysconfig.get_platform(),
    "libc": libc,
}))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One exact interpreter on this machine."""

    path: str
    version: str
    implementation: str
    abi: str
    platform: str
    libc: str

    @property
    def plain(self) -> bool:
        """Whether it is CPython with its lock: the build that a bare version means."""
        return self.implementation == "cpython" and re.match(r"cpython-\d+t", self.abi) is None

    @property
    def shared(self) -> bool:
        """Whether other users, and so workers, can reach it: every parent folder is searchable."""
        return _closed(self.path) is None

    def unreachable(self, root: Path) -> str:
        """Why nodes may not be able to run it, in words; '' where they all can: it lies below ROOT/pythons."""
        if (closed := _closed(self.path)) is not None:
            return f"other users can't pass {closed}"
        real = os.path.realpath(self.path)
        if Path(real).is_relative_to(os.path.realpath(root / "pythons")):
            return ""
        if any(real.startswith(home) for home in ("/home/", "/root/", "/Users/")):
            return "it lies in somebody's home, which nodes may not have"
        return "it is not on the NAS: every node needs the same one at this path"


class Interpreters:
    """The interpreters of one fabric. Safe for threads."""

    def __init__(
        self,
        root: Root,
        files: Files,
        uv: Uv,
        default: str,
        allowed: tuple[str, ...] = (),
        *,
        pythons: Pythons | None = None,
        only_managed: bool = False,
    ) -> None:
        """`default` is the version that specs without a wish get; `allowed` are interpreters, or folders of
        them: where any is given, only these and ROOT/pythons are used. `only_managed`: ROOT/pythons alone. `pythons`
        brings there what is missing; without it nothing is."""
        self._root = root
        self._files = files
        self._uv = uv
        self._default = default
        self._allowed = allowed
        self._pythons = pythons
        self._only_managed = only_managed
        self._lock = threading.Lock()
        self._chosen: dict[str, Interpreter] = {}
        self._all: list[Interpreter] | None = None
        self._listed_at = 0.0
        self._hung: dict[str, float] = {}

    def choose(self, request: PythonRequest, *, here: bool = False) -> Interpreter:
        """The interpreter for a request; `here`: no mirror and no list of downloads is waited for.

        Raises `SpecError`: unresolvable where none fits, and what `Pythons.install` does; `Stopped`; and with `here`
        `NotHere`, which says what `bring` is to bring. `StoreError` and `OSError` where what the request was fixed to
        can't be looked at, or does not start: another one would be kept for good.
        """
        key = f"{request.text or self._default + '?'}|{request.requires}"
        if (known := self._chosen.get(key)) is not None:
            # Without the lock: known content does not wait while another request's interpreters are tried.
            return known
        found = self._look(key, request, missing=self._pythons is not None)
        if found is None and self._pythons is not None:
            # Without the lock, too: a download takes minutes, and others may need none.
            offered = self._pythons.offered(here=here)
            if fitting := self._fitting(request, offered):
                # The newest, if it can be had at all.
                self.bring(offered[max(fitting, key=Version)], here=here)
            found = self._look(key, request, missing=False)
        if found is None:
            raise self._unresolvable(request)
        return found

    def bring(self, what: str, *, here: bool = False) -> None:
        """Has a download in ROOT/pythons, or with "" the list of them at hand. Raises as `choose` does."""
        if self._pythons is None:
            return
        if not what:
            self._pythons.offered()
            return
        self._pythons.install(what, here=here)
        with self._lock:
            self._all = None

    def gone(self, path: str | Path) -> bool:
        """Whether a file, an interpreter or a record, is not there any more, for certain.

        Raises `OSError` where that can't be told, and `StoreError` where ROOT is away.
        """
        if not _absent(path):
            return False
        self._root.require_marker()
        # Once more: the first look may have met a NAS that was away and is back.
        return _absent(path)

    def forget(self, gone: Interpreter) -> None:
        """One that was chosen is `gone`: its requests are fixed anew."""
        with self._lock:
            for key in [key for key, one in self._chosen.items() if one.path == gone.path]:
                del self._chosen[key]
            self._all = None

    def _look(self, key: str, request: PythonRequest, *, missing: bool) -> Interpreter | None:
        """The request's interpreter, fixed from now on; None where none is here.

        `missing`: one that nodes can't reach counts as none, because another can be had.
        """
        with self._lock:
            if key not in self._chosen:
                recorded = self._recorded(key)
                if recorded is None:
                    recorded = self._pick(request)
                    if recorded is None:
                        return None
                    if missing and not recorded.shared and not self._managed(recorded):
                        return None
                    # Finding one takes a while, in which the NAS may have gone away.
                    self._root.require_marker()
                    self._files.make_folder(self._record(key).parent)
                    content = {"request": key, **asdict(recorded), "fixed_at": now()}
                    data = json.dumps(content, indent=2).encode()
                    self._files.write_atomic(self._record(key), data, via=self._root.staging)
                if not recorded.shared:
                    logs.get().warning(
                        "workers of other users can't reach this interpreter",
                        python=recorded.path,
                        why=recorded.unreachable(self._root.path),
                    )
                self._chosen[key] = recorded
            return self._chosen[key]

    def _record(self, key: str) -> Path:
        return self._root.state / "pythons" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def _recorded(self, key: str) -> Interpreter | None:
        """What a request is fixed to; None where it is open.

        Raises `StoreError` and `OSError` where that can't be told.
        """
        record = self._record(key)
        if self.gone(record):
            return None
        try:
            raw = json.loads(record.read_bytes())
            recorded = Interpreter(**{name: str(raw[name]) for name in Interpreter.__slots__})
        except (ValueError, KeyError, TypeError):
            return None
        # Upgraded in place, removed, or no longer on the settings' list: the record does not hold.
        if not self._on_the_list(recorded.path) or self.gone(recorded.path):
            return None
        return recorded if self._ask(recorded.path, record) == recorded else None

    def _on_the_list(self, path: str) -> bool:
        """Whether the settings allow an interpreter, whatever becomes of it when it is started."""
        own = self._root.pythons
        # Strictly: one that can't be read has no real path, and nothing would lie below it.
        if not self.gone(own) and Path(path).is_relative_to(os.path.realpath(own, strict=True)):
            return True
        if self._only_managed or not self._allowed:
            return not self._only_managed
        # The first runs none of them.
        listed = {os.path.realpath(one) for one in self._candidates()}
        return path in listed or path in {one.path for one in self._available()}

    def _ask(self, path: str, record: Path) -> Interpreter:
        """What the interpreter of a record says of itself. Raises `StoreError` where it is there and does not start."""
        try:
            if time.monotonic() < self._hung.get(path, 0.0):
                # A thousand specs that ask for it don't each wait for it.
                raise subprocess.TimeoutExpired(path, _START_LIMIT)
            return _asked(path)
        except _NO_ANSWER as error:
            why = f"it says nothing that can be understood: {error!r}"
            if isinstance(error, OSError):
                why = str(error.strerror or error)
            elif isinstance(error, subprocess.TimeoutExpired):
                if time.monotonic() >= self._hung.get(path, 0.0):
                    self._hung[path] = time.monotonic() + _LIST_AGE
                why = f"no answer within {_START_LIMIT} s"
            elif isinstance(error, subprocess.CalledProcessError):
                said = (error.stderr or "").strip().splitlines()
                why = f"exit code {error.returncode}" + (f": {said[-1]}" if said else "")
            raise StoreError(
                f"{path} is there and does not start ({why}). {record} fixes requests to it, and it is tried again by "
                "itself. Mend it; or remove that file, and another one is chosen."
            ) from error

    def _pick(self, request: PythonRequest) -> Interpreter | None:
        fitting = self._fitting(request, (one.version for one in self._available()))
        found = [one for one in self._available() if one.version in fitting]
        # What is on the NAS runs on every node; elsewhere each would need the same one.
        return max(
            found,
            key=lambda one: (one.shared, self._managed(one), Version(one.version), one.path),
            default=None,
        )

    def _managed(self, one: Interpreter) -> bool:
        return Path(one.path).is_relative_to(os.path.realpath(self._root.pythons))

    def _fitting(self, request: PythonRequest, versions: Iterable[str]) -> set[str]:
        """Those of the versions that a request allows."""
        requires = SpecifierSet(request.requires)
        found = {one for one in versions if requires.contains(one, prereleases=True)}
        if request.text is not None:
            return {one for one in found if _meets(one, request.text)}
        fitting = {one for one in found if _meets(one, self._default)}
        # requires-python says that others will do; without it the default is what was asked for.
        return fitting or (found if request.requires else set())

    def _unresolvable(self, request: PythonRequest) -> SpecError:
        wishes = [f"python {request.text}"] if request.text else []
        wishes += [f"requires-python {request.requires!r}"] if request.requires else []
        wish = " and ".join(wishes) or f"python {self._default}, the default in the daemon's settings"
        with self._lock:
            has = ", ".join(sorted({one.version for one in self._available()})) or "none"
        among = f" among the settings' pythons ({', '.join(self._allowed)})" if self._allowed else ""
        if self._only_managed:
            among = f" in {self._root.pythons}"
        if self._pythons is not None:
            among += ", and none that uv can get,"
        return SpecError(
            Reason.UNRESOLVABLE,
            f"no interpreter{among} meets {wish} (from {request.origin}); there are: {has}. Change the "
            "spec, or have that Python installed where the workers can reach it.",
        )

    def _available(self) -> list[Interpreter]:
        if self._all is None or time.monotonic() - self._listed_at > _LIST_AGE:
            listed = {path: inspect(path) for path in self._candidates()}
            # Other implementations and free-threaded builds take other wheels; no spec asks for them yet.
            plain = [one for one in listed.values() if one is not None and one.plain]
            self._all = list({one.path: one for one in plain}.values())
            self._listed_at = time.monotonic()
        return self._all

    def _candidates(self) -> list[str]:
        if _absent(self._root.pythons):
            # A NAS that is away has none, and this list is kept for a while.
            self._root.require_marker()
        # What begins with a dot is being unpacked, by a uv that somebody runs by hand.
        own = sorted(map(str, _readable(self._root.pythons).glob("[!.]*/bin/python3")))
        if self._only_managed:
            return own
        if self._allowed:
            return own + [path for one in self._allowed for path in _executables(Path(one))]
        finished = self._uv.run(
            ["python", "list", "--only-installed", "--output-format", "json", "--no-config"],
            cwd=self._root.path,
            fleet=False,
        )
        if finished.code != 0:
            raise failure("listing interpreters", finished, Reason.INTERNAL)
        return list(dict.fromkeys(os.path.realpath(one["path"]) for one in json.loads(finished.stdout)))


_NO_ANSWER = (OSError, subprocess.SubprocessError, ValueError, TypeError, InvalidVersion)
"""What `_asked` raises."""


def inspect(path: str) -> Interpreter | None:
    """What the interpreter at `path` says of itself, or None where it can't be run."""
    try:
        return _asked(path)
    except _NO_ANSWER:
        return None


def _asked(path: str) -> Interpreter:
    out = subprocess.run(
        [path, "-I", "-S", "-c", _FACTS],
        capture_output=True,
        text=True,
        check=True,
        timeout=_START_LIMIT,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
    ).stdout
    found = Interpreter(**json.loads(out))
    Version(found.version)
    return found


def _absent(path: str | Path) -> bool:
    """Whether there is no such file. Raises `OSError` where that can't be told."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False


def _closed(path: str) -> str | None:
    """The first of a file and its parent folders that others may not run or search; None where they may."""
    for one in (path, *map(str, Path(path).parents)):
        mode = os.stat(one).st_mode
        if not mode & stat.S_IXOTH:
            return f"{one} (mode {stat.S_IMODE(mode):04o})"
    return None


def _readable(folder: Path) -> Path:
    """A folder to search with `glob`, which takes one that can't be read for an empty one. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        os.listdir(folder)
    return folder


def _executables(path: Path) -> list[str]:
    if path.is_file():
        return [str(path)]
    _readable(path)
    return sorted(
        str(one)
        for pattern in ("python3*", "bin/python3*", "*/bin/python3*")
        for one in path.glob(pattern)
        if one.name.removeprefix("python").replace(".", "").isdecimal()
    )


def _meets(version: str, text: str) -> bool:
    if text[0].isdecimal():
        exact = text.count(".") == 2
        return version == text if exact else version.startswith(f"{text}.")
    return SpecifierSet(text).contains(version, prereleases=True)
