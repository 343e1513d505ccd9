"""The source of the specs by the settings: a repository on this machine, or a remote one by its mirror.

Whoever uses it need not know which: it is read in the same way, `soon` and `behind` say nothing of a local one.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from envfabric.core.errors import ConfigError
from envfabric.loop.fetching import Fetching
from envfabric.service.settings import Settings
from envfabric.specs.mirror import Mirror
from envfabric.specs.remote import remote_of
from envfabric.specs.repository import Repository, SourceError
from envfabric.telemetry.metrics import Metrics


class Source:
    """One source for the life of a process. The repository belongs to the loop's thread; `soon` is for any."""

    def __init__(
        self, settings: Settings, credentials: Path | None, metrics: Metrics, moved: Callable[[], None]
    ) -> None:
        """`credentials` is a file for git; `moved` hears when a look is worth it. Raises `ConfigError`."""
        if not settings.repo:
            raise ConfigError(
                "the spec repository is not given: use --repo, ENVFABRIC_REPO or repo in envfabric.toml"
            )
        self._settings = settings
        self._metrics = metrics
        self._moved = moved
        self._opened: Repository | None = None
        self._mirror: Mirror | None = None
        self._fetching: Fetching | None = None
        remote = remote_of(settings.repo, credentials)
        if remote is None:
            self._opened = Repository(Path(settings.repo), settings.branch, settings.path)
        else:
            fetch = settings.fetch
            self._mirror = Mirror(remote, settings.branch, settings.path, fetch.state, fetch.timeout)

    @property
    def remote(self) -> bool:
        """Whether it is fetched from elsewhere."""
        return self._mirror is not None

    @property
    def present(self) -> bool:
        """Whether there is something to read: a remote has been fetched once."""
        return self._mirror is None or self._mirror.present

    @property
    def repository(self) -> Repository:
        """What is read. Raises `SourceError` where a mirror is not there, or can't be opened."""
        if self._opened is not None:
            return self._opened
        if self._mirror is None:
            raise SourceError("there is no repository")
        try:
            self._opened = Repository(self._mirror.path, None, self._settings.path, self._doubt)
        except ConfigError as error:
            self._doubt()
            raise SourceError(f"the mirror can't be read: {error}") from error
        return self._opened

    def behind(self) -> str | None:
        """Why what is read may not be what the remote has by now; None where nothing speaks for that."""
        return self._fetching.behind if self._fetching else None

    def soon(self) -> None:
        """Asks for a fetch now, where there is something to fetch. Safe in a signal handler."""
        if self._fetching is not None:
            self._fetching.soon()

    def prepare(self) -> None:
        """Makes the place for a mirror. Raises `ConfigError` where that can't be."""
        if self._mirror is not None:
            self._mirror.prepare()

    def fetch(self) -> None:
        """Fetches in this thread. Raises `SourceError`."""
        if self._mirror is not None:
            self._metrics.fetches.inc()
            try:
                self._mirror.fetch()
            except SourceError:
                self._metrics.fetch_failures.inc()
                raise

    def stop(self) -> None:
        """Ends a fetch that is under way; safe in a signal handler, which may have interrupted its beginning."""
        if self._mirror is not None:
            self._mirror.stop()

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Keeps the mirror up to date meanwhile, in a thread."""
        if self._mirror is None:
            yield
            return
        self._fetching = Fetching(self._mirror, self._metrics, self._settings.fetch.interval, self._moved)
        self._fetching.start()
        try:
            yield
        finally:
            self._fetching.close()

    def _doubt(self) -> None:
        if self._fetching is not None:
            self._fetching.doubt()
        elif self._mirror is not None:
            self._mirror.doubt()
