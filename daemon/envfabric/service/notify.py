"""Tells systemd that the service is ready or stopping: one datagram to $NOTIFY_SOCKET."""

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Sends state lines such as 'READY=1'; does nothing where systemd did not start this process."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto("\n".join(lines).encode(), f"\0{path[1:]}" if path.startswith("@") else path)
