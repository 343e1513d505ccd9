"""Fills one staging folder on a node of the farm, as the daemon would. Run as a program by a Ray worker.

    python -m envfabric.build.farm.hand DESCRIPTOR

It reads its task from the socket DESCRIPTOR and says there what comes of it. It holds the staging folder as long as
it writes, and ends, with all that it started, when the worker is gone, when its time is over, when the folder is, and
when another daemon has become ROOT's writer.
"""

import contextlib
import errno
import os
import re
import signal
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog

from envfabric.build.compiling import Compiling
from envfabric.build.farm.fitness import check_root, check_staging, check_tools
from envfabric.build.farm.words import (
    Refused,
    Site,
    Task,
    Word,
    packed,
    unpack,
    word_of_error,
    word_of_filled,
)
from envfabric.build.filling import Filling
from envfabric.build.scope import Scope, Stopped, current
from envfabric.build.uv import Uv
from envfabric.core.errors import Reason, StoreError, hide
from envfabric.store.bytecode import Bytecode
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.root import Root

_LOOK = 2.0
"""Seconds between two looks at whether anybody wants the build."""
_LAST = 5.0
"""Seconds in which a build that was ended has to end by itself."""
_EPOCH = re.compile(r"epoch-([0-9]{1,18})")


def fill(task: Task, say: "Mouth") -> Word:
    """The task's outcome as a word; what is unfit or wrong is one, too."""
    site, root, files = task.site, Root(Path(task.site.root)), Files()
    node = os.uname().nodename
    closures = Closures(root, files)
    fit = False
    try:
        check_root(site, root, node)
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="envfabric-"))
            uv = Uv(root, task.limit, site.index, _secrets(site, Path(own)))
            try:
                staging = stack.enter_context(closures.join(Path(task.folder)))
            except StoreError as error:
                raise Refused(
                    Reason.STORE, f"{error}. Check the mount there, and its attribute cache"
                ) from None
            except OSError as error:
                raise Refused(
                    Reason.STORE,
                    f"node {node} can't write to {task.folder} as uid {os.geteuid()} ({error.strerror}): mount ROOT "
                    "there read-write, under the same uid and without squashing",
                ) from None
            check_staging(staging, files, node)
            check_tools(site, uv, task.order.recipe.closure, node)
            fit = True
            compiling = Compiling(Bytecode(root, files), files, uv, site.workers) if site.workers else None

            def tell(phase: str) -> None:
                # A phase may take long without any process that would be ended.
                current().check()
                say({"phase": phase})

            return word_of_filled(Filling(closures, files, uv, compiling).fill(task.order, staging, tell))
    except Exception as error:
        if not fit and not isinstance(error, Refused | Stopped):
            # Whatever it is, it is the node's: told as the build's it would have the node, so soon free again, get
            # every next one.
            told = f"node {node} can't begin to build: {type(error).__name__}: {error}"
            return word_of_error(Refused(Reason.INTERNAL, told), node)
        return word_of_error(error, node)


class Mouth:
    """Says words to the worker. Safe for threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def __call__(self, word: Word) -> None:
        with self._lock:
            self._connection.send_bytes(packed(word))


def _secrets(site: Site, own: Path) -> dict[str, str]:
    """uv's variables with indexes and credentials; a netrc goes into a file that only this user reads."""
    secrets = dict(site.secrets)
    if site.netrc is not None:
        path = own / "netrc"
        path.touch(0o600)
        path.write_text(site.netrc)
        secrets["NETRC"] = str(path)
    return secrets


def _replaced(root: Path, epoch: int) -> bool:
    """Whether a later daemon has become the writer; what can't be read says nothing."""
    try:
        names = os.listdir(root / "locks")
    except OSError:
        return False
    return any(int(match[1]) > epoch for name in names if (match := _EPOCH.fullmatch(name)))


def _given_up(folder: Path) -> bool:
    """Whether a staging folder was removed, as while this host was cut off and the file server gave its hold away: uv
    would make anew what is gone. What can't be read says nothing."""
    try:
        os.stat(folder.with_name(f"{folder.name}.lock"))
    except OSError as error:
        return error.errno in {errno.ENOENT, errno.ESTALE}
    return False


def _watch(connection: Connection, task: Task, scope: Scope) -> None:
    """Ends the build once nobody waits for it."""
    while True:
        try:
            if connection.poll(_LOOK):
                connection.recv_bytes()
        except (EOFError, OSError):
            break
        if _replaced(Path(task.site.root), task.site.epoch) or _given_up(Path(task.folder)):
            break
    scope.end()
    # What hangs on a file server that is away hears nothing.
    threading.Timer(_LAST, os._exit, (1,)).start()


def _logs_to(say: Mouth) -> None:
    """Has what is logged here logged by the daemon."""

    def forward(_: Any, level: str, line: Any) -> Any:
        say({"log": {**{name: str(value) for name, value in line.items()}, "level": level}})
        raise structlog.DropEvent

    structlog.configure(processors=[forward])


def main(descriptor: int) -> None:
    # Ray kills a worker's children with it, and uv would go on without the hand: it is no child of the worker's.
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    # Whoever started Ray may ignore it, and that is inherited: exit codes are thrown away then, what fails of uv looks
    # like a success here, and uv itself can't ask an interpreter what it is.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Workers of other users read what is written here.
    os.umask(0o022)
    connection = Connection(descriptor)
    task = unpack(connection.recv_bytes())
    for secret in task.site.hidden:
        hide(secret)
    say = Mouth(connection)
    _logs_to(say)
    scope = Scope(f"building {task.order.recipe.spec}", task.limit)
    threading.Thread(target=_watch, args=(connection, task, scope), daemon=True).start()
    with scope.entered():
        word = fill(task, say)
    say(word)
    sys.stdout.flush()
    # The watcher's timer is waited for otherwise.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
