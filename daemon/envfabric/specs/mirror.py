"""A bare mirror of one branch of a remote repository, in local state: what the loop reads instead of the network.

It stands in its place only since its first fetch was whole. One that can't be read is fetched anew beside, and renamed
into its place; until then what can be read of the old one is. Its own configuration names no remote and no
credential: a reader of what is missing asks nobody. May not touch ROOT. `fetch` belongs to one thread at a time.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from envfabric.core.errors import ConfigError
from envfabric.specs.following import FOLLOWED, Fetch, NotServed
from envfabric.specs.plumbing import Git, Stopped, TimedOut
from envfabric.specs.remote import Remote
from envfabric.specs.repository import SourceError, check_branch


class Mirror:
    """The mirror of a remote's branch, or of what its HEAD points at, for one spec folder."""

    def __init__(
        self, remote: Remote, branch: str | None, spec_path: str, state: Path | None, timeout: float
    ) -> None:
        """`state` is the folder for mirrors where the settings name one; `timeout` the seconds that a fetch may take.

        Raises `ConfigError` for what can't be a branch, and where no folder is named and there is no home for one.
        """
        check_branch(branch)
        self.remote = remote
        self.branch = branch
        self._spec_path = spec_path.strip("/")
        self._timeout = timeout
        self._git = Git()
        self._doubted = threading.Event()
        told = "\n".join((remote.url, branch or "", self._spec_path))
        name = hashlib.sha256(told.encode()).hexdigest()[:16]
        folder = (state or state_folder()) / "mirrors"
        self.path = folder / f"{name}.git"
        self._new, self._old = folder / f"{name}.new", folder / f"{name}.old"
        self._lock, self._whole = folder / f"{name}.lock", folder / f"{name}.unfiltered"

    def prepare(self) -> None:
        """Makes the folder for mirrors, for its owner alone. Raises `ConfigError` where that can't be."""
        folder = self.path.parent
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            os.close(os.open(self._lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise ConfigError(
                f"{folder} can't hold the mirror of {self.remote.url}: {error.strerror}. Name a folder on a local disk "
                "with fetch.state in the settings."
            ) from error

    @property
    def present(self) -> bool:
        """Whether there is a mirror: it stands in its place only since its first fetch was whole."""
        # A folder that is closed for who asks holds none for him.
        return os.path.isdir(self.path)

    def doubt(self) -> None:
        """Something of the mirror could not be read: the next fetch looks into it. Safe in any thread."""
        self._doubted.set()

    def stop(self) -> None:
        """Ends a fetch that is running, and lets none begin any more. Safe in any thread."""
        self._git.stop()

    def fetch(self) -> str:
        """Brings the mirror to where the remote is, mends it if need be, and gives the commit.

        Raises `SourceError` with what the remote or git said; what was there before stays in force then.
        """
        deadline = time.monotonic() + self._timeout
        try:
            self.prepare()
        except ConfigError as error:
            raise SourceError(str(error)) from error
        try:
            with self._alone(deadline) as hold:
                run = Fetch(
                    self._git,
                    deadline,
                    hold,
                    self.remote,
                    self.branch,
                    self._spec_path,
                    filtered=not self._whole.exists(),
                )
                try:
                    return self._fetch(run)
                except NotServed:
                    # The server filters, but gives no content by its id.
                    self._whole.touch(mode=0o600)
                    run.filtered = False
                    return self._replace(run)
        except TimedOut:
            raise SourceError(
                f"{self.remote.url} can't be fetched: it took longer than fetch.timeout = {self._timeout:g} s and was "
                "ended. It is tried again by itself, a first fetch from its beginning: where the repository is large "
                "or the way to it slow, raise fetch.timeout in the settings."
            ) from None
        except Stopped:
            raise SourceError("the fetch was interrupted") from None
        except OSError as error:
            raise SourceError(f"the mirror of {self.remote.url} can't be written: {error}") from error

    def _fetch(self, run: Fetch) -> str:
        if not self.present and (self._new / FOLLOWED).is_file():
            # Killed between the two renames of a replacement.
            self._new.rename(self.path)
        doubted = self._doubted.is_set()
        self._doubted.clear()
        try:
            if not self.present or (doubted and not run.sound(self.path)):
                return self._replace(run)
            try:
                return run.update(self.path, again=doubted)
            except SourceError:
                # The fault may lie here: a mirror that git can't add to is fetched anew.
                if doubted or not run.answers() or run.sound(self.path):
                    raise
                return self._replace(run)
        except BaseException:
            # Nothing was mended yet.
            if doubted:
                self._doubted.set()
            raise

    def _replace(self, run: Fetch) -> str:
        """A new mirror in the place of the old one; the old one stays until the new one is whole."""
        for path in (self._new, self._old):
            if path.exists():
                shutil.rmtree(path)
        run.begin(self._new)
        commit = run.update(self._new)
        if self.path.exists():
            self.path.rename(self._old)
        # Between these two a reader finds none for an instant, and looks again.
        self._new.rename(self.path)
        # The new one is in force, whatever becomes of this; what is left is removed before the next replacement.
        shutil.rmtree(self._old, ignore_errors=True)
        return commit

    @contextlib.contextmanager
    def _alone(self, deadline: float) -> Iterator[int]:
        """Other daemons of this host may share the mirror. Gives the descriptor that holds the lock."""
        descriptor = os.open(self._lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self._git.stopping:
                        raise Stopped from None
                    if time.monotonic() > deadline:
                        raise SourceError(
                            f"{self.remote.url} can't be fetched: another process has been fetching it into "
                            f"{self.path} for {self._timeout:g} s; it is tried again by itself"
                        ) from None
                    time.sleep(0.05)
            yield descriptor
        finally:
            # Not left to close: a credential helper that stays in the background has the descriptor, too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def state_folder() -> Path:
    """Where this host keeps mirrors unless the settings say it. Raises `ConfigError` where there is no home."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    if given := os.environ.get("XDG_STATE_HOME"):
        return Path(given) / "envfabric"
    try:
        return Path.home() / ".local" / "state" / "envfabric"
    except RuntimeError:
        raise ConfigError(
            "there is no home folder for the mirror of the spec repository: name a folder with fetch.state"
        ) from None
