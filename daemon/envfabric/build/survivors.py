"""Processes that outlive the group they were started in, and their end.

A build backend can start a process with a group of its own; ending the build's group misses it, and it would write
on into a staging folder that is gone. It is known by the temporary folder of its command, which no other command
ever has, in the environment that it inherited. Reads /proc and ends processes of this host. One that gave up its
environment, too, is left to `Closures.recover`, which waits for whoever still holds a staging lock: to end all who
hold one would be wrong, for the next writer looks at these locks, too.
"""

import contextlib
import os
import signal

_ROUNDS = 5
"""Times that the processes are looked through at most: one that forks meanwhile is missed once."""


def end_survivors(temporary: str) -> None:
    """Kills all that was started with TMPDIR=`temporary`."""
    marker = f"TMPDIR={temporary}".encode()
    for _ in range(_ROUNDS):
        found = [pid for pid in _processes() if marker in _environment(pid).split(b"\0")]
        if not found:
            break
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        # Without /proc there is nothing to be known of them.
        return []


def _environment(pid: int) -> bytes:
    # One that is gone, a zombie, or another user's has none for us.
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""
