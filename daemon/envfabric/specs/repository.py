"""A local git repository, read through git's plumbing: committed trees only, never the work tree.

GitPython is used for the git command and its `cat-file --batch` process, nothing else. A source
belongs to one thread.
"""

import contextlib
import hashlib
import re
import resource
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import git

from envfabric.core.errors import ConfigError
from envfabric.specs.plumbing import SAFE_CONFIG, git_folder, in_environment, plain_environment

TOO_LARGE = "envfabric.too-large"
"""The file in a mirror that lists the blobs which were not fetched because of their size, an object id a line."""
TOO_LARGE_FROM = 32 * 1024 * 1024
"""Bytes above which, packed, a single spec file is not fetched; no spec may have such a file."""


MAX_ENTRIES = 1_000_000
"""Most files and folders below the spec folder."""
MOST_LISTED = 128 * 1024 * 1024
"""Bytes of their paths, modes and ids: a few kilobytes of objects can unfold to more than any memory holds."""
_LONGEST_PART = 4096 + 64
"""Bytes of a path with mode and id that is read: no host could have a longer one, and a spec's has some hundred."""
MOST_MEMORY = 1024**3
"""Bytes of memory of a git process that lists."""
_NO_BRANCH = re.compile(r"^[-/]|\.\.|[ ~^:?*\[\\]|@\{|//|(^|/)\.|\.lock(/|$)|[./]$")
"""What git allows in no ref's name, or would take for an option."""


@dataclass(frozen=True, slots=True)
class TreeItem:
    """One entry of a commit's tree: its mode (octal text), object type, object id and path."""

    mode: str
    kind: str
    oid: str
    path: str


class SourceError(Exception):
    """The repository can't be read now: what git said. The last revision stays in force."""


class TooMuch(SourceError):
    """A commit asks for more than is read: no later look changes that, only another commit or another setting."""


class _Git(git.Git):
    """git in an environment of its own: GitPython would hand on all of ours, with secrets and every GIT_ variable."""

    def execute(self, command: Any, *more: Any, **options: Any) -> Any:
        mine = (f"{name}={value}" for name, value in self.environment().items())
        return super().execute(["env", "-i", *mine, *command], *more, **options)


class _Repo(git.Repo):
    GitCommandWrapperType = _Git


class Repository:
    """A work tree or bare repository on this machine, on one branch, with specs below one folder."""

    def __init__(
        self,
        path: Path,
        branch: str | None = None,
        spec_path: str = "",
        doubted: Callable[[], None] = lambda: None,
    ) -> None:
        """Opens the repository; `branch=None` follows its HEAD. `doubted` hears that git could not read something.

        Raises `ConfigError` where there is no repository, or where `spec_path` leaves it.
        """
        self.path = path.resolve()
        self._doubted = doubted
        self.branch = branch
        self.spec_path = "/".join(Path(spec_path.strip("/")).parts)
        if ".." in Path(self.spec_path).parts:
            raise ConfigError(f"path {spec_path!r} must stay inside the repository, without '..'")
        check_branch(branch)
        try:
            self._repo = _Repo(self.path, search_parent_directories=False)
        except (git.exc.InvalidGitRepositoryError, git.exc.NoSuchPathError) as error:
            raise ConfigError(
                f"{self.path} is no git repository. Give --repo the top folder of a work tree, or a bare "
                "repository; a folder of specs inside it is given with --path."
            ) from error
        # Named, not found: git would look around from the daemon's own folder if this one vanished.
        environment = plain_environment() | git_folder(Path(self._repo.git_dir))
        # An operator who names a repository trusts it, whoever owns it.
        environment |= in_environment({**SAFE_CONFIG, "safe.directory": "*"})
        # None takes out what GitPython itself found in our environment.
        self._repo.git.update_environment(**environment, GIT_COMMON_DIR=None, GIT_OBJECT_DIRECTORY=None)
        kind = self._repo.git.rev_parse("--show-object-format", with_exceptions=False)
        if kind == "sha256":
            raise ConfigError(
                f"{self.path} has SHA-256 object names, which are not supported yet; use SHA-1."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the git process that was kept for reading objects."""
        self._repo.close()

    @property
    def git_folder(self) -> Path:
        """What git calls GIT_DIR."""
        return Path(self._repo.git_dir)

    def head(self) -> str | None:
        """The commit that the branch points at; None while it has none.

        Raises `SourceError` where git can't tell.
        """
        ref = f"refs/heads/{self.branch}" if self.branch else "HEAD"
        commit = self._ask("rev-parse", "--quiet", "--verify", f"{ref}^{{commit}}")
        if commit is None and (target := self._ask("rev-parse", "--quiet", "--verify", ref)) is not None:
            self._doubted()
            raise SourceError(f"{ref} in {self.path} points at {target}, which is no commit that can be read")
        return commit

    def root_commits(self, commit: str) -> list[str]:
        """The ancestors of `commit` without a parent, the oldest first: they name the repository in any clone."""
        return self._run("rev-list", "--max-parents=0", commit).decode().split()[::-1]

    def has_spec_path(self, commit: str) -> bool:
        """Whether `commit` has the folder with the specs. Raises `SourceError` where that can't be read."""
        if not self.spec_path:
            return True
        listed = list(
            self._listing(commit, "ls-tree", "-d", "-z", "--full-tree", commit, "--", self.spec_path)
        )
        return any(line.split(b" ", 2)[1] == b"tree" for line in listed)

    def tree(self, commit: str, below: Sequence[str] = ()) -> list[TreeItem]:
        """Every entry below the spec folder at `commit`, folders too, paths relative to it.

        With `below` only what lies at and below these paths, and the folders that lead there. None where there is
        no spec folder. Raises `SourceError`.
        """
        if not self.has_spec_path(commit):
            return []
        items = []
        asked = ("ls-tree", "-r", "-t", "-z", "--full-tree", self._specs_of(commit), "--", *below)
        for line in self._listing(commit, *asked):
            head, _, path = line.partition(b"\t")
            mode, kind, oid = head.decode("ascii").split(" ")
            items.append(TreeItem(mode, kind, oid, path.decode("utf-8", "surrogateescape")))
        return items

    def changes(self, before: str, after: str) -> set[str]:
        """The paths below the spec folder that differ between two commits, folders and what they held too.

        Raises `SourceError` where one of them can't be read, which after a rewritten history says little.
        """
        trees = (self._specs_of(before), self._specs_of(after))
        listed = self._listing(
            after, "diff-tree", "-r", "-t", "-z", "--name-only", "--no-renames", *trees, "--"
        )
        return {path.decode("utf-8", "surrogateescape") for path in listed}

    def _listing(self, commit: str, command: str, *arguments: str) -> Generator[bytes]:
        """What a git command lists of a commit, part by part, each of which ends with a NUL.

        Read as it comes, and git is ended where the reader stops. A part above `_LONGEST_PART` is left
        out: trees take names of any length. Raises `SourceError`.
        """
        try:
            process: Any = self._repo.git.execute(["git", command, *arguments], as_process=True)
        except (git.exc.GitError, OSError) as error:
            raise self._failed(command, error) from error
        # A difference is put together in memory before the first of it is told. Packs that are only mapped don't count.
        with contextlib.suppress(OSError):
            resource.prlimit(process.proc.pid, resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
        try:
            rest, parts, size = b"", 0, 0
            while chunk := process.stdout.read(1 << 16):
                *whole, rest = (rest + chunk).split(b"\0")
                # Of a part that is too long no more is kept than shows that it is.
                rest = rest[: _LONGEST_PART + 1]
                parts, size = parts + len(whole), size + len(chunk)
                if parts > MAX_ENTRIES or size > MOST_LISTED:
                    raise unfolds(commit)
                yield from (part for part in whole if len(part) <= _LONGEST_PART)
            process.wait()
        except (git.exc.GitError, OSError) as error:
            if "memory" not in str(error):
                self._doubted()
            raise self._failed(command, error) from error
        finally:
            process.proc.kill()
            process.proc.wait()
            for stream in (process.proc.stdout, process.proc.stderr):
                if stream is not None:
                    stream.close()

    def _specs_of(self, commit: str) -> str:
        return f"{commit}:{self.spec_path}" if self.spec_path else commit

    def size(self, oid: str) -> int:
        """The size in bytes of an object; `TOO_LARGE_FROM` for one that a mirror left out because it is larger.

        Raises `SourceError` where it is missing or corrupt.
        """
        try:
            return self._size(oid)
        except SourceError:
            if oid in self._left_out():
                return TOO_LARGE_FROM
            raise

    def _size(self, oid: str) -> int:
        with self._reading(oid):
            return int(self._repo.git.get_object_header(oid)[2])

    def _left_out(self) -> list[str]:
        try:
            return (self.git_folder / TOO_LARGE).read_text("ascii", "replace").split()
        except OSError:
            return []

    def read(self, oid: str) -> bytes:
        """The content of a blob. Raises `SourceError` where the object is missing or corrupt."""
        with self._reading(oid):
            data = bytes(self._repo.git.get_object_data(oid)[3])
            # cat-file gives what it could unpack of a damaged object without a word.
            if _blob_id(data) != oid:
                raise ValueError("its content is damaged")
            return data

    def read_many(self, oids: Iterable[str], most: int) -> dict[str, bytes]:
        """The contents of blobs in two exchanges with git: as many as come to `most` bytes together.

        What is missing, corrupt or too much is left out; `size` and `read` say why.
        """
        found: dict[str, bytes] = {}
        wanted = list(dict.fromkeys(oids))
        if not wanted:
            return found
        with contextlib.suppress(SourceError):
            # The first of each kind starts git's process where there is none.
            sizes = {wanted[0]: self._size(wanted[0])}
            with self._reading(wanted[0]):
                answers = self._answers(self._repo.git.cat_file_header, wanted[1:])
                sizes |= {oid: size for oid, kind, size in answers if kind == b"blob"}
            together = accumulate(sizes.values())
            fitting = [oid for oid, up_to in zip(sizes, together, strict=True) if up_to <= most]
            found |= {oid: self.read(oid) for oid in fitting[:1]}
            with self._reading(wanted[0]):
                process: Any = self._repo.git.cat_file_all
                for oid, kind, size in self._answers(process, fitting[1:]):
                    data = process.stdout.read(size + 1)[:-1] if kind == b"blob" else b""
                    if _blob_id(data) == oid:
                        found[oid] = data
        return found

    def _answers(self, process: Any, oids: list[str]) -> Iterator[tuple[str, bytes, int]]:
        """Asks for many objects at once, and gives the first line of each answer: id, type, size.

        The questions are few enough to fit into the pipe: git may wait with its answers until they are read.
        """
        if not oids:
            return
        process.stdin.write("".join(f"{oid}\n" for oid in oids).encode())
        process.stdin.flush()
        for oid in oids:
            found, kind, *size = process.stdout.readline().split()
            if found != oid.encode():
                raise ValueError(f"git answered of {found!r}")
            yield oid, kind, int(size[0]) if size else 0

    def watched(self) -> tuple[list[Path], list[Path]]:
        """Folders whose changes can mean a new commit: (to be watched deeply, flat only)."""
        common = Path(self._repo.common_dir)
        own = Path(self._repo.git_dir)
        deep = [common / "refs", common / "reftable"]
        return [path for path in deep if path.is_dir()], list(dict.fromkeys([common, own]))

    @contextlib.contextmanager
    def _reading(self, oid: str) -> Iterator[None]:
        try:
            yield
        except (git.exc.GitError, ValueError, OSError) as error:
            # The cat-file process may be gone, or be out of step with what is asked of it.
            self._repo.git.clear_cache()
            if oid not in self._left_out():
                self._doubted()
            raise SourceError(f"object {oid} of {self.path} can't be read: {error}") from error

    def _ask(self, command: str, *arguments: str) -> str | None:
        """What git answers, or None where it says no. Raises `SourceError` where it says why."""
        try:
            status, out, err = self._repo.git.execute(
                ["git", command, *arguments], with_extended_output=True, with_exceptions=False
            )
        except (git.exc.GitError, OSError) as error:
            self._doubted()
            raise self._failed(command, error) from error
        if status == 0:
            return str(out)
        if err and command == "rev-parse":
            self._doubted()
            raise SourceError(f"git {command} {arguments[-1]} in {self.path}: {err}")
        return None

    def _run(self, command: str, *arguments: str) -> bytes:
        try:
            out = self._repo.git.execute(
                ["git", command, *arguments], stdout_as_string=False, strip_newline_in_stdout=False
            )
        except (git.exc.GitError, OSError) as error:
            self._repo.git.clear_cache()
            self._doubted()
            raise self._failed(command, error) from error
        if not isinstance(out, bytes):
            raise SourceError(f"git {command} gave no output")
        return out

    def _failed(self, command: str, error: Exception) -> SourceError:
        # Without the command line, which begins with the environment.
        told = re.sub(r"^\s*stderr: ", "", getattr(error, "stderr", "")).strip() or type(error).__name__
        return SourceError(
            f"git {command} in {self.path}: {told if isinstance(error, git.exc.GitError) else error}"
        )


def check_branch(branch: str | None) -> None:
    """Raises `ConfigError` for what can't be a branch's name, here or in a remote."""
    if branch is not None and (_NO_BRANCH.search(branch) or not branch.isprintable()):
        raise ConfigError(f"branch {branch!r} is not a branch name")


def unfolds(commit: str) -> TooMuch:
    """A spec folder with more in it than is read."""
    return TooMuch(
        f"the spec folder of commit {commit[:12]} has, or changes, more than {MAX_ENTRIES} entries or "
        f"{MOST_LISTED >> 20} MB of paths, and no more are read. Give the specs a folder of their own (--path)."
    )


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
