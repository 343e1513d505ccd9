"""The processes that a daemon has started, as /proc tells of them."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Child:
    """One process below another."""

    pid: int
    words: tuple[str, ...]
    """Its command line."""

    @property
    def lives(self) -> bool:
        """Whether it runs: a zombie does not, nor does another process that got its number since."""
        return _state(self.pid) not in {None, "Z", "X"} and _words(self.pid) == self.words


def uv_children(pid: int, command: str) -> list[Child]:
    """The uv processes with this subcommand (lock, sync, …) that a daemon is the parent of."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and _parent(int(name)) == pid:
            child = Child(int(name), _words(int(name)))
            if len(child.words) > 1 and Path(child.words[0]).name == "uv" and child.words[1] == command:
                found.append(child)
    return [one for one in found if one.lives]


def _words(pid: int) -> tuple[str, ...]:
    try:
        return tuple(Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1])
    except OSError:
        return ()


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except OSError:
        return []


def _state(pid: int) -> str | None:
    return next(iter(_stat(pid)), None)


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None
