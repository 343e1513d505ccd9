"""Which closures and interpreters the processes of this host run from, so that the collector leaves those alone.

Reads /proc and links of ROOT, changes nothing, and says too much rather than too little. It can't see:
processes of other hosts; what another user's process has loaded (its maps need that user or root, its
command line does not, except under hidepid); processes that see ROOT at another path, in a container
for instance; one that hides its command line and has loaded nothing but Python files. All those need a
lease.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from envfabric.core.errors import StoreError
from envfabric.core.ids import is_id
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.root import Root

_NAME = rb"[A-Za-z0-9][A-Za-z0-9._-]*"
# That of one without the lock has a plus: cpython-3.14.0+freethreaded-linux-x86_64-gnu.
_PYTHON = rb"[A-Za-z0-9][A-Za-z0-9._+-]*"


@dataclass(frozen=True, slots=True)
class Running:
    """What was found."""

    closures: set[str] = field(default_factory=set)
    """Names below ROOT/store."""
    specs: set[str] = field(default_factory=set)
    """Ids whose path below ROOT/envs was used: which of their generations it was then is not known."""
    pythons: dict[str, str] = field(default_factory=dict)
    """Names below ROOT/pythons, each with the number of a process."""


def running(root: Root, proc: Path = Path("/proc")) -> Running:
    """What the processes of this host run from, by their command lines and memory maps.

    A process that ends meanwhile, or that may not be read, is passed over. Raises `StoreError` where
    /proc or a generation's link can't be read at all: that is no proof that nothing runs.
    """
    try:
        processes = [name for name in os.listdir(proc) if name.isdecimal()]
    except OSError as error:
        raise StoreError(_no_proc(proc, error.strerror or str(error))) from error
    if not processes:
        raise StoreError(_no_proc(proc, "it lists no process"))
    stored = re.compile(_below(root, "store") + b"/(" + _NAME + b")")
    served = re.compile(_below(root, "envs") + b"/(" + _NAME + b"/" + _NAME + b")")
    generated = re.compile(_below(root, "generations") + b"/(" + _NAME + b"/" + _NAME + rb")/(\d+)")
    based = re.compile(_below(root, "pythons") + b"/(" + _PYTHON + b")")
    closures: set[bytes] = set()
    specs: set[bytes] = set()
    generations: set[tuple[bytes, bytes]] = set()
    pythons: dict[str, str] = {}
    for process in processes:
        # The maps have the paths that symlinks led to; deleted files stand there, too, under their old path.
        maps = _content(f"{proc}/{process}/maps")
        closures.update(stored.findall(maps))
        # Anywhere in it: an interpreter may stand within an argument, as in `sh -c "exec …"`. A path
        # that only looks like ROOT's keeps a closure too long, which does no harm.
        line = re.sub(rb"//+", b"/", _content(f"{proc}/{process}/cmdline"))
        closures.update(stored.findall(line))
        specs.update(served.findall(line))
        generations.update(generated.findall(line))
        pythons.update((os.fsdecode(name), process) for name in based.findall(maps) + based.findall(line))
    found = Running({os.fsdecode(name) for name in closures}, pythons=pythons)
    found.specs.update(spec for raw in specs if is_id(spec := os.fsdecode(raw)))
    kept = Generations(root, Files())
    for raw, number in generations:
        spec = os.fsdecode(raw)
        try:
            name = kept.name_of(spec, int(number)) if is_id(spec) and len(number) < 10 else None
        except OSError as error:
            raise StoreError(
                f"the generation {spec} {int(number)} can't be read: {error.strerror}. Check the NAS mount."
            ) from error
        if name is not None:
            found.closures.add(name)
    return found


def _below(root: Root, folder: str) -> bytes:
    """A pattern for a folder of ROOT: as it is configured, and as it is called where symlinks are resolved."""
    path = str(root.path / folder)
    real = os.path.realpath(root.path)
    ways = dict.fromkeys((path, os.path.join(real, folder), os.path.realpath(path)))
    return b"(?:" + b"|".join(re.escape(os.fsencode(way)) for way in ways) + b")"


def _content(path: str) -> bytes:
    """A file of /proc; nothing where it is gone or may not be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _no_proc(proc: Path, what: str) -> str:
    return (
        f"{proc} can't be read ({what}), so which closures are run from is not known. Nothing is collected "
        "until it is mounted."
    )
