"""Runs the loop as a process: one turn after another as the writer of ROOT, and standing by in between.

The order of a start: settings, repository, ROOT, port, then the writer's lock. Everything before the
lock is wrong usage (exit code 2); without the lock the daemon stands by and takes over. A remote that
is away is no wrong usage: until its first fetch the daemon stands by as well.
"""

import contextlib
import importlib.metadata
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from envfabric.build.uv import Uv
from envfabric.core.errors import ConfigError, StoreError
from envfabric.index.document import Index
from envfabric.index.publisher import Publisher
from envfabric.loop.reconciler import Reconciler
from envfabric.loop.watch import RefWatch
from envfabric.service.assembly import assemble
from envfabric.service.credentials import hide_secrets, take_credentials
from envfabric.service.http import HttpServer, Shown
from envfabric.service.notify import Notifier, status
from envfabric.service.settings import Settings, address
from envfabric.service.source import Source
from envfabric.service.standby import STANDBY_INTERVAL, Standby
from envfabric.service.start import first_commit, required, token_of, writing
from envfabric.service.watchdog import Watchdog, summary
from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.signatures import Signatures
from envfabric.store.files import Files
from envfabric.store.leases import Leases
from envfabric.store.prepare import claim_source
from envfabric.store.probe import probe
from envfabric.store.requests import Answer, Request, who
from envfabric.store.root import open_root
from envfabric.store.writer import Busy, Writer
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics


class Daemon:
    """The daemon with everything that outlives a turn as the writer."""

    def __init__(self, settings: Settings, *, adopt: bool = False, files: Files | None = None) -> None:
        """Opens repository and ROOT. Raises `ConfigError`."""
        # Workers of other users read what is written here.
        os.umask(0o022)
        self._settings = settings
        self._adopt = adopt
        self._files = files or Files()
        self._notifier = Notifier()
        self._watchdog = Watchdog(self._notifier, self._describe)
        self._state = "starting"
        self._log = logs.get()
        self._stopping = False
        self._reconciler: Reconciler | None = None
        self._publisher: Publisher | None = None
        self._stood_by = False
        self._told_waiting = ""
        # First of all: what goes wrong from here on may repeat them.
        self._credentials = take_credentials()
        hide_secrets(settings.repo, settings.index, *settings.policy.indexes)
        hide_secrets(token_of(settings), token=True)
        # From here on the NAS is touched, which may hang.
        self._watchdog.declare(f"starting: opening {settings.root}")
        self._watchdog.start()
        self.root = open_root(required(settings.root, "root", "the NAS folder"))
        told = settings.signatures
        # A list that is not there is told at the start, not when the first commit comes.
        Signatures(told.required, told.allowed_signers, told.gnupg_home)
        self.metrics = Metrics()
        self._standby = Standby(self.root, self.metrics, self._watchdog)
        self._source = Source(settings, self._credentials.git, self.metrics, self._look_soon)
        self._watchdog.declare("starting: reading the spec repository")
        self._check_start()
        self.metrics.describe(importlib.metadata.version("environment-fabric"), self._uv().version())

    @property
    def repository(self) -> Repository:
        """The repository that is read: the remote's mirror where it is a remote one.

        Raises `SourceError` while there is no mirror.
        """
        return self._source.repository

    @property
    def reconciler(self) -> Reconciler | None:
        """The loop while this daemon is the writer."""
        return self._reconciler

    def stop(self, *_: int | FrameType | None) -> None:
        """Ends the daemon soon; safe in a signal handler."""
        if self._stopping:  # A second signal inside the first would wait for a lock of its own thread.
            return
        self._stopping = True
        self._state = "stopping: ends its builds and gives ROOT back"
        # At once: from here on TimeoutStopSec counts, and not the watchdog.
        self._watchdog.close()
        self._notifier.tell("STOPPING=1", status(self._state))
        self._standby.end_pause()
        self._source.stop()
        if self._reconciler is not None:
            self._reconciler.stop()

    def reconcile(self, *_: int | FrameType | None) -> None:
        """Asks for a fetch and a look now; safe in a signal handler and in any thread."""
        self._source.soon()
        if self._reconciler is not None:
            self._reconciler.look_soon()

    def _reload(self, *_: int | FrameType | None) -> None:
        self.reconcile()
        self._notifier.reloaded()

    def _look_soon(self) -> None:
        reconciler = self._reconciler
        if reconciler is not None:
            reconciler.look_soon()
        else:
            self._standby.end_pause()

    def run(self, on_start: Callable[[str], None], on_round: Callable[[], None] = lambda: None) -> None:
        """Serves until `stop`. `on_start` hears the HTTP server's URL.

        A turn as the writer that ends by a lost lock or a NAS that is away is followed by standing by, and
        the next turn. Raises `ConfigError`, and what the first try of the lock raises.
        """
        host, port = address(self._settings.listen)
        self._source.prepare()
        shown = Shown(
            self.root,
            self.metrics,
            self._published,
            lambda: self._watchdog.heartbeat,
            self.reconcile,
            token_of(self._settings),
            lambda: self._watchdog.wait,
        )
        with HttpServer(host, port, shown) as server, self._signals(reload=True), self._source.followed():
            on_start(server.url)
            first = True

            def each_round() -> None:
                # The start is over: what ends a turn from now on is waited for.
                nonlocal first
                first = False
                self._watchdog.beat()
                on_round()

            while not self._stopping:
                if (why := self._nothing_to_read()) is not None:
                    self._wait_for_the_source(why)
                    first = False
                    continue
                self._told_waiting = ""
                try:
                    # Ready means: the settings hold and the lock was tried. A standby is ready, too.
                    with self._as_writer(wait=True, first=first) as writer:
                        if writer is not None:
                            first = first and not self._stood_by
                            self._loop(writer, once=False, on_round=each_round)
                except (ConfigError, SourceError, StoreError, OSError) as error:
                    # What is wrong at a start is told by the exit code; later the daemon waits for it to pass.
                    if first and not (isinstance(error, SourceError) and self._source.remote):
                        raise
                    self._log.error("turn as the writer ended", error=str(error))
                    self._say(f"standing by: {error}")
                    self._standby.pause()
                first = False

    def run_once(self, on_round: Callable[[], None] = lambda: None) -> Index | None:
        """Makes the revision true once and gives what is published.

        None where it was stopped before that. Raises `ConfigError` where another daemon holds ROOT,
        `SourceError`, `StoreError` and `OSError`.
        """
        with self._signals(), self._as_writer(wait=False) as writer:
            try:
                self._source.fetch()
            except SourceError:
                if not self._stopping:
                    raise
            index = (
                self._loop(writer, once=True, on_round=on_round) if writer and not self._stopping else None
            )
        return None if self._stopping else index

    def carry_out(
        self,
        command: str,
        arguments: dict[str, Any],
        on_round: Callable[[], None],
        before: Callable[[], None] = lambda: None,
    ) -> Answer:
        """Carries out an order in the place of a daemon; `before` is called once ROOT is held.

        Raises `Busy` where another process holds ROOT, `ConfigError`, `SourceError`, `StoreError`, `OSError`.
        """
        # The lock first: while another holds it Ctrl-C ends the command, as anywhere.
        with Writer(self.root, self._files).acquire() as writer, self._signals():
            before()
            if not self._source.present:
                self._source.fetch()
            with self._turn(writer, once=True) as reconciler:
                return reconciler.carry_out(Request("", command, arguments, who()), on_round)

    def _loop(self, writer: Writer, *, once: bool, on_round: Callable[[], None]) -> Index | None:
        with self._turn(writer, once=once) as reconciler:
            watch = RefWatch(*self.repository.watched(), reconciler.look_soon)

            def each_round() -> None:
                watch.ensure()
                if (state := writing(self.root, writer.epoch)) != self._state:
                    self._say(state)
                on_round()

            try:
                return reconciler.run(on_round if once else each_round)
            finally:
                self._watchdog.declare(f"ending the turn as the writer of {self.root.path}")
                watch.close()

    @contextlib.contextmanager
    def _turn(self, writer: Writer, *, once: bool) -> Iterator[Reconciler]:
        """One turn as the writer: ROOT is probed and claimed, and the loop put together."""
        root, files = self.root, self._files
        # Until the first round is over.
        self._watchdog.declare(f"opening {root.path}: probing it, and reading what is published")
        found = probe(root, files)
        for sentence in found.degraded:
            self._log.warning("ROOT is degraded", what=sentence)
        roots = self.repository.root_commits(self._check_source())
        claim_source(root, files, roots, self.repository.spec_path, self._adopt)
        Leases(root, files).use(self._settings.leases)
        parts = assemble(
            self._settings,
            root,
            files,
            self.repository,
            writer,
            self._uv(),
            self.metrics,
            once=once,
            adopt=self._adopt,
            behind=self._source.behind,
            counted=self._counted,
        )
        self._reconciler, self._publisher = parts
        # The operator's word was for this turn: a later one finds ROOT handed over, or someone else's.
        self._adopt = False
        if self._stopping:
            self._reconciler.stop()
        try:
            yield self._reconciler
        finally:
            self._standby.show(self._publisher.published)
            self._reconciler = self._publisher = None

    def _counted(self, done: int, total: int) -> None:
        """The store is counted, closure by closure: ten thousand of a copied ROOT take longer than one wait."""
        self._watchdog.advance(f"counting what the store takes: {100 * done // max(total, 1)} %")

    def _uv(self) -> Uv:
        # For each turn anew: the last one's was stopped for good.
        return Uv(self.root, self._settings.build_timeout, self._settings.index, self._credentials.uv)

    @contextlib.contextmanager
    def _as_writer(self, *, wait: bool, first: bool = True) -> Iterator[Writer | None]:
        """The writer's lock; with `wait` a standby waits for it, and gets None when it is stopped."""
        writer = Writer(self.root, self._files)
        told = blind = self._stood_by = False
        while True:
            self._watchdog.declare(f"waiting for {self.root.path}")
            try:
                writer.acquire()
                break
            except Busy as error:
                if not wait:
                    raise ConfigError(f"{error}; it makes the revision true by itself") from None
                blind = False
                if not told:
                    self._log.info("standby", reason=str(error))
                    self._say(f"standby: {error}", ready=True)
                told = self._stood_by = True
            except (StoreError, OSError) as error:
                # A standby outlives a NAS that goes away; at a start it is an error like any other.
                if first and not told:
                    raise
                if not blind:
                    self._log.warning("standby can't see ROOT", error=str(error))
                    self._say(f"standby can't see ROOT: {error}")
                blind = True
            self._standby.pause()
            if self._stopping:
                yield None
                return
            self._standby.look()
        self.metrics.writer.set(1)
        self._say(writing(self.root, writer.epoch), ready=True)
        try:
            yield writer
        finally:
            self.metrics.writer.set(0)
            writer.release()

    def _nothing_to_read(self) -> str | None:
        """Why a turn as the writer can't begin yet, where the source is a remote one; asked before ROOT is held."""
        if not self._source.present:
            return "waiting for the first fetch of the spec repository"
        if self._source.remote:
            self._watchdog.declare(f"waiting for {self.root.path}")
            try:
                self._check_source()
            except (SourceError, ConfigError, StoreError, OSError) as error:
                return str(error)
        return None

    def _wait_for_the_source(self, why: str) -> None:
        """One moment of standing by for a remote; a fetch ends it."""
        if why != self._told_waiting:
            self._told_waiting = why
            self._log.warning("standby", reason=why)
            self._say(f"standing by: {why}", ready=True)
        # What was read and does not do is asked for less often than what is not there: it costs git some work.
        self._standby.pause(self._settings.interval if self._source.present else STANDBY_INTERVAL)
        self._standby.look()

    def _check_start(self) -> None:
        """What is wrong with the source and ends a start. Raises `ConfigError`.

        Of a remote's mirror only that it is another's: what can't be read of it is what the next fetch mends.
        """
        if not self._source.present:
            return
        try:
            self._check_source()
        except SourceError as error:
            if not self._source.remote:
                raise ConfigError(str(error)) from error

    def _check_source(self) -> str:
        return first_commit(self.repository, self.root, remote=self._source.remote, adopt=self._adopt)

    def _published(self) -> Index | None:
        # Read once: other threads ask, and a turn may end meanwhile.
        publisher = self._publisher
        return publisher.published if publisher else self._standby.seen

    def _say(self, state: str, *, ready: bool = False) -> None:
        """What `systemctl status` shows from now on; with `ready`, also that the start is over."""
        self._state = state
        if self._stopping:
            return
        self._watchdog.beat()
        self._notifier.tell(*(["READY=1"] if ready else []), status(self._describe()))

    def _describe(self) -> str:
        # The watchdog's thread asks from its first moment on, when most of this object is not there yet.
        ready = self._notifier.ready
        return summary(self._state, self._published() if ready else None, started=ready)

    @contextlib.contextmanager
    def _signals(self, *, reload: bool = False) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {signal.SIGINT: self.stop, signal.SIGTERM: self.stop}
        if reload:
            handlers[signal.SIGHUP] = self._reload
        old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
