"""Runs one command and ends all that it starts. Run by the daemon's interpreter, isolated; never imported.

    python -I -S -B warden.py

Standard input begins with one line of JSON (`command`, `cwd`, `env`, `folder`) and stays open as long as
the command may run. When the command has ended, or standard input has (it was given up, or the daemon was killed),
every process that descends from it is killed, daemons and other sessions too: what loses its parent becomes a child of
this process. Where the daemon is gone, `folder` is removed here.
Exits as the command did, with 128 and the number of a signal that ended it, or with 127 where it can't be started.
Only the standard library.
"""

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
PR_CAPBSET_DROP = 24
CAPABILITIES = (1, 2, 3)
"""CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER: for whom has them nothing is sealed."""
_CAPABILITY_VERSION = 0x20080522
IGNORED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_LOOK = 0.01
"""Seconds between two looks whether what was killed is gone."""
_PATIENCE = 10.0
"""Seconds after which what was killed and is not gone, for it hangs on a dead mount, is left alone."""


def read_job() -> dict:  # type: ignore[type-arg]
    """The first line of standard input."""
    data = bytearray()
    while not data.endswith(b"\n"):
        more = os.read(0, 1 << 16)
        if not more:
            sys.exit(0)
        data += more
    found: dict = json.loads(data)  # type: ignore[type-arg]
    return found


def become_next_of_kin() -> None:
    """Has what loses its parent become a child of this process."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, MemoryError, OSError):
        # Where memory may not be made executable ctypes may not load; the daemon then ends whom it knows by TMPDIR.
        return


def be_as_others() -> None:
    """Lets go of root's right to write what is sealed, here and in all that is started: as for any other user, a write
    there ends with EACCES, and an accident in a package changes nothing."""
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        for one in CAPABILITIES:
            # What a program of root's is given anew with its start.
            libc.prctl(PR_CAPBSET_DROP, one, 0, 0, 0)
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
        held = (ctypes.c_uint32 * 6)()
        if libc.capget(header, held) == 0:
            for place in range(3):
                held[place] &= ~sum(1 << one for one in CAPABILITIES)
            libc.capset(header, held)
    except (ImportError, MemoryError, OSError, AttributeError):
        # What it changes then is seen afterwards.
        return


def start(job: dict) -> int:  # type: ignore[type-arg]
    """Starts the command in a session of its own; gives its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for one in (signal.SIGPIPE, *IGNORED):
            signal.signal(one, signal.SIG_DFL)
        # A core file of a large library is larger than what there is room for.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(job["cwd"])
        os.execvpe(job["command"][0], job["command"], job["env"])  # noqa: S606
    except BaseException as error:
        os.write(2, f"{job['command'][0]}: {error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(127)


def descendants(top: int) -> list:  # type: ignore[type-arg]
    """The numbers of all processes below one."""
    children: dict = {}  # type: ignore[type-arg]
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(name))
    found, waiting = [], [top]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def end_all(command: int) -> int | None:
    """Kills all that descends from this process until there is nothing left, or its patience is; gives the command's
    wait status, None where it is not gone."""
    status = None
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                # Gone, or of another user by a set-uid program.
                continue
        try:
            while True:
                pid, ended = os.waitpid(-1, os.WNOHANG)
                if pid == command:
                    status = ended
                if pid == 0:
                    break
        except ChildProcessError:
            return status
        # One that was forked a moment ago was not in the list, and is the next time.
        time.sleep(_LOOK)
    return status


def main() -> int:
    """Runs the command; gives the exit code."""
    # It goes by standard input alone: gone before the command, it would leave that behind.
    for one in IGNORED:
        signal.signal(one, signal.SIG_IGN)
    job = read_job()
    become_next_of_kin()
    be_as_others()
    command = start(job)
    select.select([0, os.pidfd_open(command)], [], [])
    # Asked for before the rest is killed: what ended by itself tells how.
    pid, ended = os.waitpid(command, os.WNOHANG)
    killed = end_all(command)
    # The daemon says a byte before it gives up: an end without it is its own, and it can't remove this any more.
    if select.select([0], [], [], 0)[0] and not os.read(0, 1):
        with contextlib.suppress(OSError):
            os.chdir("/")
        shutil.rmtree(job["folder"], ignore_errors=True)
    code = os.waitstatus_to_exitcode(ended if pid else killed or signal.SIGKILL)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
