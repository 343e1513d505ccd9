"""A folder of specs in somebody's clone: its entries as git would commit them, and one spec's files in it.

Asks git for names only and runs no hook, filter or monitor of the clone. Writes pyproject.toml and uv.lock of one
spec folder, each by one rename; never follows a link, never leaves the folder of specs, never commits.
"""

import contextlib
import os
import stat
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from envfabric.core import ids
from envfabric.core.errors import ConfigError, Reason, SpecError
from envfabric.specs.repository import TreeItem
from envfabric.specs.toml import MAX_BYTES

_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*")


def top_of(folder: Path) -> Path | None:
    """The top folder of the git work tree that `folder` lies in; None where it lies in none."""
    out = _git(folder, "rev-parse", "--show-toplevel")
    return Path(os.fsdecode(out.rstrip(b"\n"))) if out else None


def list_items(folder: Path, below: str = "") -> list[TreeItem]:
    """The entries below a folder of specs as a commit of all of them would have; below one path of it, if given.

    In a git work tree what git ignores is left out. An entry's object id is its path. Raises `ConfigError`, `OSError`.
    """
    if top_of(folder) is None:
        paths = _walked(folder, below)
    else:
        where = ("--", below) if below else ()
        listed = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", *where)
        if listed is None:
            raise ConfigError(f"git can't list the files of {folder}; what does `git status` there say?")
        paths = iter(dict.fromkeys(os.fsdecode(one) for one in listed.split(b"\0") if one))
    items: dict[str, TreeItem] = {}
    for path in sorted(paths):
        # A folder in git's answer is another repository: it would be committed as a submodule.
        item = _item(folder, path.rstrip("/"))
        if item is None:
            continue
        parts = item.path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            items.setdefault(parent, TreeItem("040000", "tree", parent, parent))
        items[item.path] = item
    return list(items.values())


def spec_folder(specs: Path, spec_id: str) -> Path:
    """Where a spec's folder is or would be. Raises `ConfigError` for a wrong id, or a way that leads over a link."""
    if not ids.is_id(spec_id):
        raise ConfigError(
            f"{ids.shown(spec_id)!r} is no spec id: an id is <workflow>/<node>, each part takes {ids.ALLOWED}."
        )
    folder = specs
    for part in spec_id.split("/"):
        folder = folder / part
        with contextlib.suppress(FileNotFoundError):
            mode = os.lstat(folder).st_mode
            if not stat.S_ISDIR(mode):
                what = "a symlink" if stat.S_ISLNK(mode) else "a file"
                raise ConfigError(f"{folder} is {what}; a spec's folder is a plain folder.")
    return folder


def read_file(folder: Path, name: str, where: str) -> bytes | None:
    """One of a spec folder's files, or None where there is none. `where` is its path in messages.

    Raises `SpecError` for what is no regular file or too long, and `OSError`.
    """
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if (folder / name).is_symlink():
            raise SpecError(Reason.INVALID_SPEC, f"{where} is a symlink; make it a regular file.") from error
        raise
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SpecError(Reason.INVALID_SPEC, f"{where} is no regular file.")
        if found.st_size > MAX_BYTES[name]:
            raise SpecError(
                Reason.INVALID_SPEC,
                f"{where} has {found.st_size} bytes; at most {MAX_BYTES[name]} are read.",
            )
        return file.read()


def write_file(folder: Path, name: str, data: bytes) -> None:
    """Puts a file into a spec's folder by one rename; an old one's mode stays. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    temporary = folder / f".{name}.{uuid.uuid4().hex}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "wb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(descriptor, stat.S_IMODE(os.lstat(target).st_mode))
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _item(folder: Path, path: str) -> TreeItem | None:
    try:
        mode = os.lstat(folder / path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        # Still in git's index and gone from the work tree: a commit of what is here would not have it.
        return None
    if stat.S_ISLNK(mode):
        return TreeItem("120000", "blob", path, path)
    if stat.S_ISDIR(mode):
        return TreeItem("160000", "commit", path, path)
    if not stat.S_ISREG(mode):
        return None
    return TreeItem("100755" if mode & stat.S_IXUSR else "100644", "blob", path, path)


def _walked(folder: Path, below: str) -> Iterator[str]:
    top = os.fspath(folder)
    for place, folders, files in os.walk(os.path.join(top, below)):
        folders[:] = sorted(name for name in folders if name != ".git")
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in files + links:
            yield os.path.relpath(os.path.join(place, name), top)


def _git(folder: Path, *arguments: str) -> bytes | None:
    """git's answer, or None where it has none: no git, no work tree."""
    # A hook that runs us names its own repository and index in GIT_…: what counts here is the folder.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_LITERAL_PATHSPECS": "1",
        "LC_ALL": "C",
    }
    try:
        done = subprocess.run([*_GIT, *arguments], cwd=folder, env=env, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout
