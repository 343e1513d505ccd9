"""Runs git commands that may take long or hang: in a process group of their own, with an end in time.

Their output goes through files, so that what a killed one left behind keeps nobody waiting. Knows neither
repositories nor remotes; their settings come with each call. Safe for threads.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAFE_CONFIG = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "protocol.ext.allow": "never",
    "gc.auto": "0",
}
"""A repository's own configuration may name programs; none of them is run for us."""

_TOLD = 8000
"""Bytes of a command's error output that are kept: the last ones."""


class TimedOut(Exception):
    """git did not end in its time and was ended."""


class Stopped(Exception):
    """The process is about to end, and git was ended with it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A git command that ended: its exit code, output, and the end of what it said."""

    code: int
    out: bytes
    err: str

    @property
    def cut(self) -> bool:
        """Whether it was ended because it wrote too much."""
        return self.code == -signal.SIGXFSZ


class Git:
    """git as a process that can be ended from another thread."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        # Taken again by a signal handler that interrupts its holder.
        self._lock = threading.RLock()
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether nothing starts any more."""
        return self._stopping

    def run(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        config: Mapping[str, str],
        timeout: float,
        asked: bytes = b"",
        hold: int | None = None,
        file_limit: int | None = None,
        memory: int | None = None,
    ) -> Finished:
        """Runs git to its end, whatever its exit code. `asked` is its input.

        `config` wins over every file of settings; `hold` is a descriptor that all it starts inherit; `file_limit` is
        the most bytes of a file that it writes, its output too: more of them end it by SIGXFSZ (`Finished.cut`);
        `memory` is the most bytes that it may take for itself. Raises `TimedOut` after `timeout`
        seconds, `Stopped`, and `OSError`.
        """
        command = ["git", *arguments]
        # In blocks of 512 bytes, and in kilobytes. Set before git begins: what it starts has the limits, too.
        limits = f"ulimit -f {-(-file_limit // 512)} && " if file_limit is not None else ""
        limits += f"ulimit -d {memory // 1024} && " if memory is not None else ""
        if limits:
            command = ["sh", "-c", f'{limits}exec "$@"', "sh", *command]
        with (
            tempfile.TemporaryFile() as stdin,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            stdin.write(asked)
            stdin.seek(0)
            with self._lock:
                if self._stopping:
                    raise Stopped
                process = subprocess.Popen(
                    command,
                    # No relative path of a configuration leads anywhere.
                    cwd="/",
                    env={**env, **in_environment(config)},
                    stdin=stdin,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                    pass_fds=() if hold is None else (hold,),
                )
                self._running.add(process)
                if self.stopping:
                    _end(process)
            try:
                process.wait(max(0.0, timeout))
            except subprocess.TimeoutExpired:
                raise TimedOut from None
            finally:
                with self._lock:
                    self._running.discard(process)
                # Not once it was waited for: its number may be another's by then.
                if process.returncode is None:
                    _end(process)
                    process.wait()
            if self.stopping:
                raise Stopped
            out.seek(0)
            err.seek(max(0, os.fstat(err.fileno()).st_size - _TOLD))
            return Finished(process.returncode, out.read(), err.read().decode("utf-8", "replace"))

    def stop(self) -> None:
        """Ends what runs, and lets nothing start any more."""
        with self._lock:
            self._stopping = True
            for process in list(self._running):
                if process.returncode is None:
                    _end(process)


def in_environment(config: Mapping[str, str]) -> dict[str, str]:
    """git settings as variables: above all files, and on no command line."""
    found = {"GIT_CONFIG_COUNT": str(len(config))}
    for number, (key, value) in enumerate(config.items()):
        found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return found


def plain_environment() -> dict[str, str]:
    """The environment of a command that reads one repository and reaches nothing else: no settings but its own."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_LITERAL_PATHSPECS": "1",
    }


def git_folder(path: Path) -> dict[str, str]:
    """The variable that names the repository, so that none is looked for."""
    return {"GIT_DIR": str(path)}


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
