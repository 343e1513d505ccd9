"""systemd's notifications: one datagram to the socket that it names, and silence without one."""

import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.service.notify import Notifier


def listen(address: str) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(address)
    channel.settimeout(10)
    return channel


@pytest.fixture(params=["path", "abstract"])
def channel(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[socket.socket]:
    """systemd's end of the channel; NOTIFY_SOCKET names it."""
    name = f"envfabric-{uuid.uuid4().hex}"
    if request.param == "path":
        # A socket's path is short: it is bound from within its folder, and named by /proc.
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("NOTIFY_SOCKET", f"/proc/self/cwd/{name}")
        address = name
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        address = f"\0{name}"
    with listen(address) as channel:
        yield channel


def test_each_call_is_one_datagram(channel: socket.socket) -> None:
    """All lines of a call arrive together, at a path as at an abstract address."""
    notifier = Notifier()
    notifier.tell("READY=1", "STATUS=writing, epoch 3 ä")
    assert channel.recv(4096).decode() == "READY=1\nSTATUS=writing, epoch 3 ä"
    notifier.tell("STOPPING=1")
    assert channel.recv(4096) == b"STOPPING=1"


def test_children_do_not_inherit_the_channel(channel: socket.socket) -> None:
    """git and uv have nothing to tell systemd: the variable is gone, and the daemon still notifies."""
    notifier = Notifier()
    assert "NOTIFY_SOCKET" not in os.environ
    notifier.tell("READY=1")
    assert channel.recv(4096) == b"READY=1"


def test_silent_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by hand, the daemon tells nobody, and nothing fails."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().tell("READY=1")


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@nobody-listens-here", "/" + "x" * 200])
def test_lost_channel_ends_nothing(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """A socket that is gone, or a name that is none, does not end the daemon."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    Notifier().tell("READY=1")


def test_the_watchdogs_variables_are_taken_and_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the watchdog is known, and stands in no child's environment."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert Notifier().watchdog == 30.0
    assert not {"WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    assert Notifier().watchdog == 0.0


def test_a_reload_is_told_with_its_time_and_never_ends_a_start(channel: socket.socket) -> None:
    """RELOADING comes with the monotonic time and is followed by READY; before the first READY nothing is told."""
    notifier = Notifier()
    notifier.reloaded()
    notifier.tell("READY=1")
    assert channel.recv(4096) == b"READY=1"
    before = time.monotonic_ns() // 1000
    notifier.reloaded()
    first, second = channel.recv(4096).decode().splitlines()
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert channel.recv(4096) == b"READY=1"
