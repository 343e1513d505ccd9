"""Log events for journald in its own protocol, so that `journalctl ENVFABRIC_SPEC=etl/extract` finds them.

Used where standard error leads to the journal ($JOURNAL_STREAM). An event is one datagram: MESSAGE for people,
PRIORITY by its level, and each of its values as ENVFABRIC_<NAME>. Touches nothing but journald's socket; what it
can't deliver goes to standard error, which journald reads as well.
"""

import array
import contextlib
import errno
import fcntl
import os
import re
import socket
import struct
import sys
from collections.abc import MutableMapping
from typing import Any

from envfabric.core.errors import redact

SOCKET = "/run/systemd/journal/socket"
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog's numbers by the level's name."""

_UNFIT = re.compile(r"[^A-Z0-9_]")
_NOT_SHOWN = {"event", "level", "timestamp", "exception", "stack"}
_MOST = 256 * 1024
"""Characters of one value: more than any message for people, and a log is no place for more."""


def leads_to_journal() -> bool:
    """Whether standard error is the journal's stream, by device and inode; a redirected one is not."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino)) and os.path.exists(SOCKET)


def render(_: object, __: str, event: MutableMapping[str, Any]) -> bytes:
    """The event as a datagram; each value is text first and redacted after that."""
    texts = {name: redact(value if isinstance(value, str) else str(value)) for name, value in event.items()}
    pairs = [f"{name}={value}" for name, value in texts.items() if name not in _NOT_SHOWN]
    message = " ".join([texts.get("event", ""), *pairs])
    for name in ("exception", "stack"):
        if name in texts:
            message += f"\n{texts[name]}"
    level = event.get("level", "info")
    fields = {
        "MESSAGE": message,
        "PRIORITY": str(PRIORITIES.get(level, 6)),
        "SYSLOG_IDENTIFIER": "envfabric",
        "ENVFABRIC_EVENT": texts.get("event", ""),
    }
    for name, value in texts.items():
        if name not in {"event", "level", "timestamp"}:
            fields[field(name)] = value
    return b"".join(_encoded(name, value) for name, value in fields.items())


def field(name: str) -> str:
    """The journal's name of an event's value: `spec` is ENVFABRIC_SPEC. At most 64 characters."""
    return f"ENVFABRIC_{_UNFIT.sub('_', name.upper())}"[:64]


def _encoded(name: str, value: str) -> bytes:
    data = value[:_MOST].encode(errors="backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    # With its length, since it has line ends.
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


class JournalLogger:
    """The end of the log's line: takes datagrams made by `render`."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path

    def msg(self, data: bytes) -> None:
        """Sends one event. Never raises: a log that can't be written ends nothing."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                # For a journald that does not read: the loop is not to wait for it longer than this.
                channel.settimeout(1)
                channel.connect(self._path)
                try:
                    channel.send(data)
                except OSError as error:
                    # Only what is too large goes by a file: waiting again for one that does not read helps nobody.
                    if error.errno not in {errno.EMSGSIZE, errno.ENOBUFS}:
                        raise
                    _send_file(channel, data)
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(data.decode(errors="replace"))
                sys.stderr.flush()

    debug = info = warning = error = critical = exception = log = msg


def _send_file(channel: socket.socket, data: bytes) -> None:
    """What is too large for a datagram goes as a sealed file in memory. Raises `OSError`."""
    descriptor = os.memfd_create("envfabric-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        # journald takes no file that could still change under it.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        rights = array.array("i", [descriptor])
        channel.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    finally:
        os.close(descriptor)
