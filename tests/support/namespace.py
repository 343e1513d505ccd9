"""Runs a command so that nothing of it stays behind, and where root allows it, without a network.

Ray's processes put themselves into groups and sessions of their own, and not all of them end with their
driver. Here a supervisor stands above the command: whoever loses a parent becomes its child, and it ends
them all when the command ends or when the tests go away, however they go. As root all of this happens in
a PID namespace and a network namespace of its own; as another user, in the machine's. That network looks
like one with a way out, so that what would listen on the machine's outside address is seen to do so here.

The supervisor is this file run as a program, with nothing but the standard library.
"""

import contextlib
import ctypes
import fcntl
import functools
import ipaddress
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_UNSHARE = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_PR_SET_CHILD_SUBREAPER = 36
_SIOCADDRT, _SIOCSIFFLAGS, _SIOCSIFADDR = 0x890B, 0x8914, 0x8916
_UP = 0x1
_OUTSIDE = "192.0.2.1"
_LISTENING = "0A"
_GRACE = 30.0
"""Seconds in which everything that was killed has to be gone."""
_SAMPLE = 0.1
"""Seconds between two looks at who listens."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str
    listened: frozenset[str]
    """The addresses on which it, or anything below it, was seen to accept TCP connections."""


@functools.cache
def can_isolate() -> bool:
    """Whether this user may make namespaces."""
    try:
        return subprocess.run([*_UNSHARE, "true"], capture_output=True, timeout=_GRACE).returncode == 0
    except FileNotFoundError:
        return False


def run_alone(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path,
    timeout: float,
    isolate: bool | None = None,
) -> Finished:
    """Runs a command to its end, and ends all that it started.

    `isolate` asks for namespaces or for none; by default they are used where they can be made. Raises
    `TimeoutError`, with what was printed, where the command takes longer than `timeout` seconds.
    """
    isolate = can_isolate() if isolate is None else isolate
    # The supervisor reads from a pipe that nobody writes to: it ends when this process lets go of it.
    held, lifeline = os.pipe()
    try:
        process = subprocess.Popen(
            [
                *(_UNSHARE if isolate else ()),
                *(sys.executable, "-I", __file__),
                *("own" if isolate else "plain", str(held), *map(str, command)),
            ],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=(held,),
        )
    except BaseException:
        os.close(lifeline)
        raise
    finally:
        os.close(held)
    seen: set[str] = set()
    over = threading.Event()
    looking = threading.Thread(target=_look, args=(process.pid, over, seen))
    looking.start()
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.close(lifeline)
        lifeline = -1
        out, err = process.communicate(timeout=_GRACE)
        raise TimeoutError(f"{command[0]} ran longer than {timeout:g} s\n{out}\n{err}") from None
    finally:
        over.set()
        looking.join()
        if lifeline >= 0:
            os.close(lifeline)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE)
        process.kill()
        process.wait()
    return Finished(process.returncode, out, err, frozenset(seen))


def descendants(pid: int) -> set[int]:
    """All processes below a process."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name is in brackets and may have any character, brackets as well.
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: set[int] = set()
    fresh = [pid]
    while fresh:
        below = [child for one in fresh for child in children.get(one, ()) if child not in found]
        found.update(below)
        fresh = below
    return found


def _look(pid: int, over: threading.Event, seen: set[str]) -> None:
    while not over.wait(_SAMPLE):
        seen.update(_listeners(pid))


def _listeners(pid: int) -> Iterator[str]:
    held = set()
    for one in (pid, *descendants(pid)):
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{one}/fd").iterdir():
                with contextlib.suppress(OSError):
                    held.add(os.readlink(descriptor))
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and f"socket:[{fields[9]}]" in held:
                    yield _address(fields[1].partition(":")[0])


def _address(digits: str) -> str:
    words = [int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _supervise(network: str, held: str, *command: str) -> int:
    if network == "own":
        _make_network()
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("this system has no child subreapers")
    os.set_inheritable(int(held), False)
    child = os.posix_spawnp(command[0], command, os.environ, setsid=True)
    threading.Thread(target=_end_with, args=(int(held), child), daemon=True).start()
    code = None
    while code is None:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
    _end_descendants()
    return code if code >= 0 else 128 - code


def _make_network() -> None:
    """The loopback, an outside address, and a default route: they all end at the loopback's device."""
    device = ctypes.create_string_buffer(b"lo")
    anywhere = _address_of("0.0.0.0")
    # struct rtentry: destination, gateway, mask, flags, metric, device.
    route = struct.pack(
        "L16s16s16sHhLPhPLLH0L",
        0,
        anywhere,
        anywhere,
        anywhere,
        _UP,
        0,
        0,
        0,
        0,
        ctypes.addressof(device),
        0,
        0,
        0,
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _UP))
        fcntl.ioctl(control, _SIOCSIFADDR, struct.pack("16s16s8x", b"lo:1", _address_of(_OUTSIDE)))
        fcntl.ioctl(control, _SIOCADDRT, route)


def _address_of(address: str) -> bytes:
    return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def _end_with(held: int, child: int) -> None:
    os.read(held, 1)
    os.kill(child, signal.SIGKILL)


def _end_descendants() -> None:
    # One that was born while the others were killed is found in a later round.
    while True:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(_supervise(*sys.argv[1:]))
