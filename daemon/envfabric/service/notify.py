"""Tells systemd how the service is: datagrams to $NOTIFY_SOCKET (sd_notify).

Knows the protocol and nothing of the loop; what is told, and when, is decided in service/daemon.py and
service/watchdog.py. Any thread and a signal handler may tell. Touches no file.
"""

import contextlib
import os
import socket
import time

_MOST = 500
"""Characters of a STATUS line; `systemctl status` shows one line."""


class Notifier:
    """systemd's channel; says nothing where systemd did not start this process."""

    def __init__(self) -> None:
        # Taken out of the environment: git and uv have nothing to tell systemd, and they keep no watchdog quiet.
        self._path = os.environ.pop("NOTIFY_SOCKET", None)
        interval, pid = os.environ.pop("WATCHDOG_USEC", None), os.environ.pop("WATCHDOG_PID", None)
        meant = pid is None or pid == str(os.getpid())
        self.watchdog = int(interval) / 1e6 if interval and interval.isdecimal() and meant else 0.0
        """Seconds within which WATCHDOG=1 has to come; 0 where nobody waits for it."""
        self._ready = False

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return self._path is not None

    @property
    def ready(self) -> bool:
        """Whether READY=1 was told."""
        return self._ready

    def tell(self, *lines: str) -> None:
        """Sends state lines such as 'READY=1' as one datagram."""
        if self._path is None:
            return
        self._ready = self._ready or "READY=1" in lines
        address = f"\0{self._path[1:]}" if self._path.startswith("@") else self._path
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto("\n".join(lines).encode(errors="replace"), address)

    def reloaded(self) -> None:
        """Says that a reload began and is over. From v253 on systemd waits for this; earlier it does no harm."""
        # Before READY it would end the start instead.
        if self._ready:
            # systemd takes only a time that is not before its own signal, on the same clock.
            self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self.tell("READY=1")


def status(text: str) -> str:
    """`text` as a STATUS line: one line, of a length that people read."""
    line = " ".join(text.split())
    return f"STATUS={line if len(line) <= _MOST else line[: _MOST - 1] + '…'}"
