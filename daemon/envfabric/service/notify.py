"""Tells systemd that the service is ready or stopping: one datagram to $NOTIFY_SOCKET."""

import contextlib
import os
import socket


class Notifier:
    """systemd's channel; says nothing where systemd did not start this process."""

    def __init__(self) -> None:
        # Taken out of the environment: git and uv have nothing to tell systemd.
        self._path = os.environ.pop("NOTIFY_SOCKET", None)

    def tell(self, *lines: str) -> None:
        """Sends state lines such as 'READY=1'."""
        if self._path is None:
            return
        address = f"\0{self._path[1:]}" if self._path.startswith("@") else self._path
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto("\n".join(lines).encode(), address)
