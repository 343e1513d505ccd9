"""What systemd hears while a start waits for ROOT: from the first moment on, when little of the daemon is there yet."""

import os
import socket
import threading
from pathlib import Path

import pytest

from envfabric.service.daemon import Daemon
from faults_of_disk.inside import daemon, surroundings
from support.fabric import Fabric


def test_a_start_that_hangs_on_root_says_so(
    fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ROOT is opened and gives no answer: the status tells of a start, and more time is asked for."""
    fabric.init()
    fabric.repo.spec("wf/a")
    fabric.repo.commit()
    # Whoever opens it waits for a writer, as on a NAS that is away.
    index = fabric.root / "index.json"
    os.mkfifo(index)
    begun: list[Daemon] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, surroundings(fabric):
        monkeypatch.chdir(tmp_path)
        channel.bind("notify")
        channel.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", "/proc/self/cwd/notify")
        start = threading.Thread(target=lambda: begun.append(daemon(fabric, lambda *_: None)))
        start.start()
        try:
            extension, status = channel.recv(4096).decode().splitlines()
            assert extension == "EXTEND_TIMEOUT_USEC=60000000"
            assert status.startswith("STATUS=starting")
            assert channel.recv(4096).startswith(b"EXTEND_TIMEOUT_USEC=")
        finally:
            # Opened for both, it does not wait for a reader that may be gone.
            answer = os.open(index, os.O_RDWR)
            index.unlink()
            os.close(answer)
            start.join(60)
    begun[0].stop()
