"""Running uv: its environment, its end in time, its process group, and what its errors mean.

uv's environment is built from nothing, so that no setting of the daemon's shell decides what gets
installed; certificates, proxies, the operator's uv configuration and index credentials pass.
"""

import contextlib
import fnmatch
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uv

from envfabric.build.room import Room
from envfabric.build.scope import Stopped, current
from envfabric.build.survivors import end_survivors
from envfabric.core.errors import Reason, SpecError, redact
from envfabric.core.reaching import VARIABLES
from envfabric.store.root import Root

_PASSED = (
    "HOME",
    "PATH",
    "XDG_CONFIG_HOME",
    "XDG_CONFIG_DIRS",
    "NETRC",
    *VARIABLES,
    "UV_KEYRING_PROVIDER",
    "UV_HTTP_TIMEOUT",
    "UV_CONFIG_FILE",
    "UV_PYTHON_INSTALL_MIRROR",
)
_FLEET_ONLY = ("UV_DEFAULT_INDEX", "UV_INDEX")
"""Where the daemon resolves; a committed lock is checked without them, under the spec's own settings."""

LOCK_MEMORY = 4 * 1024**3
"""Address space in bytes of a uv process that resolves; a lock of 500 packages takes 1.3 GB of it."""

_TAIL = 64_000
"""Characters of uv's output that a failure log keeps: the last ones."""

_LOOK = 1.0
"""Seconds after which a process is looked at that has closed nothing: a survivor of a killed one keeps its pipes."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A uv process that ended: its exit code, output, and how many seconds it took."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class Uv:
    """uv as this fabric runs it. Safe for threads."""

    def __init__(
        self,
        root: Root,
        timeout: float = 1800.0,
        index: str | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        """`timeout` is the limit in seconds of a process that belongs to no step (one that does has what the step's
        scope leaves it, too); `index` the fleet's default index; `secrets` the variables with indexes and their
        credentials, which nothing but uv gets to see."""
        self.binary = uv.find_uv_bin()
        self.secrets: Mapping[str, str] = dict(secrets or {})
        """The variables with indexes and credentials: for uv here, or on a node of the farm, and nobody else."""
        self.index = index
        self.root = root
        self._timeout = timeout
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopping = False
        self._version: str | None = None

    def version(self) -> str:
        """The version that uv gives of itself."""
        if self._version is None:
            out = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True)
            self._version = out.stdout.split()[1]
        return self._version

    def environment(self, *, fleet: bool) -> dict[str, str]:
        """The environment of a uv process; `fleet` adds the settings for resolving."""
        passed = {
            name: value
            for name, value in os.environ.items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in _PASSED)
        } | dict(self.secrets)
        if fleet and self.index:
            passed["UV_DEFAULT_INDEX"] = self.index
        if not fleet:
            for name in _FLEET_ONLY:
                passed.pop(name, None)
        return passed | {
            "LC_ALL": "C.UTF-8",
            "NO_COLOR": "1",
            "UV_CACHE_DIR": str(self.root.uv_cache),
            "UV_LINK_MODE": "hardlink",
            "UV_NO_BUILD": "1",
            "UV_NO_ENV_FILE": "1",
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_PYTHON_INSTALL_DIR": str(self.root.pythons),
            "UV_SYSTEM_CERTS": "1",
        }

    def run(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        hold: int | None = None,
        fleet: bool = False,
        extra: Mapping[str, str] | None = None,
        room: Room | None = None,
    ) -> Finished:
        """Runs uv to its end, whatever its exit code.

        `hold` is a descriptor that the process inherits, so that recovery sees that it still runs; `room` is for one
        that unpacks what somebody else packed. Raises `SpecError` (timeout) after the time limit, what `room` does,
        and `Stopped`, each with all that it started ended.
        """
        environment = self.environment(fleet=fleet) | dict(extra or {})
        return self.run_command([self.binary, *arguments], cwd=cwd, hold=hold, env=environment, room=room)

    def run_command(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        hold: int | None,
        env: Mapping[str, str],
        room: Room | None = None,
    ) -> Finished:
        """Runs any command of a build under the same limits."""
        # uv leaves its lock files in TMPDIR, one for each project folder, and ours are never the same twice.
        with tempfile.TemporaryDirectory(prefix="envfabric-", ignore_cleanup_errors=True) as temporary:
            own = {"TMPDIR": temporary}
            if not (Path(env.get("HOME", "/")) / ".local/share/uv/credentials").is_dir():
                # uv would make the folder, in a home that is none of its business.
                own["UV_CREDENTIALS_DIR"] = f"{temporary}/credentials"
            return self._run(command, cwd, hold, {**env, **own}, room)

    def _run(
        self,
        command: Sequence[str],
        cwd: Path,
        hold: int | None,
        env: Mapping[str, str],
        room: Room | None,
    ) -> Finished:
        began = time.monotonic()
        scope = current()
        name = f"{Path(command[0]).name} {command[1]}"
        scope.check()
        with self._lock:
            if self._stopping:
                raise Stopped
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
                pass_fds=() if hold is None else (hold,),
                umask=0o022,
            )
            self._running.add(process)
        if command[1] == "lock":
            # Some hundred bytes of markers can ask for a resolution that would take all of the machine's memory.
            with contextlib.suppress(OSError):
                resource.prlimit(process.pid, resource.RLIMIT_AS, (LOCK_MEMORY, LOCK_MEMORY))
        end = partial(_end, process)
        watching = room.watching(process.pid, end) if room is not None else contextlib.nullcontext()
        try:
            with watching, scope.ended_by(end):
                out, err = self._communicate(process, min(began + self._timeout, scope.deadline))
        except subprocess.TimeoutExpired:
            _end(process)
            end_survivors(env["TMPDIR"])
            _, err = _what_is_left(process)
            if self._stopping:
                raise Stopped from None
            scope.check(name, err)
            raise SpecError(
                Reason.TIMEOUT,
                f"{name} ran longer than {self._timeout:g} s and was ended. It is tried again by itself; raise "
                "build_timeout if it needs more.",
                err,
            ) from None
        finally:
            with self._lock:
                self._running.discard(process)
        if self._stopping or scope.ended:
            # Its group was killed: who left that in time is not.
            end_survivors(env["TMPDIR"])
            raise Stopped
        if room is not None and room.passed is not None:
            end_survivors(env["TMPDIR"])
        if room is not None:
            room.judge(process.returncode, name, redact(err))
        return Finished(process.returncode, out, redact(err), time.monotonic() - began)

    def _communicate(self, process: subprocess.Popen[str], deadline: float) -> tuple[str, str]:
        """The output of a process that ended. Raises `TimeoutExpired` where it should have, and something holds it."""
        scope = current()
        while True:
            left = deadline - time.monotonic()
            try:
                return process.communicate(timeout=max(0.0, min(left, _LOOK)))
            except subprocess.TimeoutExpired:
                # What was read stays with the process.
                if left <= _LOOK or self._stopping or scope.ended:
                    raise

    def stop(self) -> None:
        """Ends what runs, and lets nothing start any more."""
        with self._lock:
            self._stopping = True
            for process in self._running:
                _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    if process.returncode is not None:
        # It was waited for: its number may be another's by now.
        return
    # A build may have children of its own: the whole session's group goes.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _what_is_left(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The output of an ended process; one that left the group and keeps the pipes is not waited for."""
    try:
        return process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        return "", ""


_MEANINGS = (
    # Said inside of a "Failed to download", but trying again gives the same bytes.
    (Reason.BUILD_FAILED, ("Hash mismatch",)),
    (Reason.NO_SPACE, ("No space left on device", "Disk quota exceeded")),
    (
        Reason.POLICY,
        (
            "because building from source is disabled",
            "is marked as `--no-build` but has no binary distribution",
            "Building source distributions",
            "has no binary distribution",
        ),
    ),
    (
        Reason.FETCH,
        (
            "Failed to fetch",
            "Failed to download",
            "error sending request",
            "Request failed after",
            "status code 401",
            "Could not connect",
        ),
    ),
    (Reason.STORE, ("Read-only file system", "Stale file handle", "Input/output error")),
    (
        Reason.UNRESOLVABLE,
        (
            "No solution found",
            "incompatible with the project's Python requirement",
            "does not satisfy Python",
            "doesn't have a wheel for the current platform",
            "can't be installed",
            "memory allocation of",
        ),
    ),
)


def failure(doing: str, finished: Finished, otherwise: Reason) -> SpecError:
    """What a failed uv process means for its spec: a reason, and uv's own words in short."""
    text = finished.stderr
    reason = next((reason for reason, marks in _MEANINGS if any(mark in text for mark in marks)), otherwise)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [
        line.removeprefix("error:").removeprefix("cause:").strip()
        for line in lines
        if not line.startswith(
            ("warning:", "Using ", "hint:", "Resolved ", "Creating ", "Downloading ", "Downloaded ")
        )
    ]
    words = ": ".join(told)[:600] or f"uv ended with exit code {finished.code}"
    advice = {
        Reason.POLICY: "Source distributions are not built here: require a version that has a wheel.",
        Reason.FETCH: "It is tried again by itself.",
        Reason.NO_SPACE: "Free space on the NAS; it is tried again by itself.",
        Reason.STORE: "Check the NAS mount; it is tried again by itself.",
        Reason.UNRESOLVABLE: "Change the requirements and commit.",
    }.get(reason, "The log has all that uv said.")
    return SpecError(reason, f"{doing}: {words.rstrip('.')}. {advice}", text[-_TAIL:])
