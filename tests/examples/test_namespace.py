"""What Ray is run under leaves nothing behind, with namespaces and without."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.namespace import run_alone
from support.waiting import wait_for

ENVIRONMENT = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
TESTS = Path(__file__).resolve().parents[1]
isolated = pytest.mark.root
both = pytest.mark.parametrize(
    "isolate", [pytest.param(False, id="plain"), pytest.param(True, id="namespaces", marks=isolated)]
)

# As Ray's processes do: an orphan in a session of its own. It holds a lock for as long as it lives.
DAEMON = """
import fcntl, os, signal, sys
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        held = open("held", "w")
        fcntl.flock(held, fcntl.LOCK_EX)
        print("it began", flush=True)
        open("began", "w").close()
        os.write(write, b"1")
        signal.pause()
    os._exit(0)
os.read(read, 1)
if sys.argv[1:] == ["stay"]:
    signal.pause()
sys.exit(7)
"""


def is_gone(folder: Path) -> bool:
    """Whether nobody holds the daemon's lock any more."""
    with (folder / "held").open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@both
def test_orphans_end_with_the_command(tmp_path: Path, isolate: bool) -> None:
    """A command's exit code and output come back, and its daemons are gone by then."""
    done = run_alone(
        [sys.executable, "-c", DAEMON], env=ENVIRONMENT, cwd=tmp_path, timeout=60, isolate=isolate
    )
    assert (done.code, done.out, done.err) == (7, "it began\n", "")
    assert is_gone(tmp_path)


@both
def test_time_is_limited(tmp_path: Path, isolate: bool) -> None:
    """A command that takes too long is ended with its daemons, and what it had printed is told."""
    command = [sys.executable, "-c", DAEMON, "stay"]
    # On a machine with other work it may not even begin within the first.
    for limit in (2, 20, 120):
        with pytest.raises(TimeoutError) as caught:
            run_alone(command, env=ENVIRONMENT, cwd=tmp_path, timeout=limit, isolate=isolate)
        assert is_gone(tmp_path)
        if (tmp_path / "began").exists():
            break
    assert f"longer than {limit} s\nit began" in str(caught.value)


@both
def test_nothing_outlives_killed_tests(tmp_path: Path, isolate: bool) -> None:
    """kill -9 of the tests' own process ends the command and its daemons as well."""
    code = (
        f"import sys; sys.path.append({str(TESTS)!r})\n"
        "from pathlib import Path\n"
        "from support.namespace import run_alone\n"
        f"run_alone([sys.executable, '-c', {DAEMON!r}, 'stay'], env={ENVIRONMENT}, cwd=Path({str(tmp_path)!r}), "
        f"timeout=600, isolate={isolate})"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            wait_for((tmp_path / "began").exists, message="the daemon did not begin")
            assert not is_gone(tmp_path)
        finally:
            process.kill()
    wait_for(lambda: is_gone(tmp_path), message="the daemon lives on")


@isolated
def test_namespace_has_a_loopback_and_a_way_to_nowhere(tmp_path: Path) -> None:
    """In a namespace a server on 127.0.0.1 can be reached, no real interface is there, and programs still
    find an outside address to listen on."""
    code = (
        "import socket\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    socket.create_connection(server.getsockname(), timeout=5).close()\n"
        "probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "probe.connect(('203.0.113.1', 53))\n"
        "print(*(name for _, name in socket.if_nameindex()), probe.getsockname()[0])"
    )
    done = run_alone([sys.executable, "-c", code], env=ENVIRONMENT, cwd=tmp_path, timeout=60, isolate=True)
    assert (done.out, done.err) == ("lo 192.0.2.1\n", "")
