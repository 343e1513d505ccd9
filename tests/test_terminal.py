"""What the command is to those around it: a person at a terminal, and systemd."""

import contextlib
import os
import pty
import socket
import subprocess
import sys

from support.fabric import Fabric
from support.waiting import wait_for


def test_progress_on_a_terminal_and_plain_lines_elsewhere(fabric: Fabric) -> None:
    """On a terminal a bar counts the specs and logs are for people; in a pipe each line is JSON."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.spec("wf/b", ["gamma"])
    fabric.repo.commit()
    fabric.init()
    command = ["run", "--once", "--config", str(fabric.configure())]
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "envfabric", *command],
        env=fabric.environment | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # EIO is how a pty says that its other side is closed
        while chunk := os.read(controller, 4096):
            shown += chunk
    os.close(controller)
    table, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"/2" in shown
    assert b'{"' not in shown
    assert "wf/a  ready" in table
    done = fabric.command(*command)
    assert done.stderr
    assert all(line.startswith("{") for line in done.stderr.splitlines())


def test_systemd_hears_ready_and_stopping(fabric: Fabric) -> None:
    """READY comes after the lock's attempt, of a standby too; STOPPING at the end."""
    fabric.repo.spec("wf/a", ["alpha"])
    commit = fabric.repo.commit()
    path = fabric.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(path))
        channel.settimeout(30)
        fabric.variables["NOTIFY_SOCKET"] = str(path)

        def hears(line: str) -> list[str]:
            """The datagram that says so; status lines come in between."""
            while True:
                if line in (found := channel.recv(4096).decode().splitlines()):
                    return found

        with fabric.daemon() as daemon:
            assert hears("READY=1")[1].startswith("STATUS=writing, epoch 1")
            daemon.wait_for_index(commit)
            with fabric.daemon() as standby:
                wait_for(lambda: standby.events("standby") or None, message="no standby")
                assert hears("READY=1")[1].startswith(
                    "STATUS=standby: another daemon or command is writing to"
                )
            hears("STOPPING=1")
        hears("STOPPING=1")
