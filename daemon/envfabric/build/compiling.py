"""Gives an environment in staging its bytecode: from the store, and what is missing there compiled once.

The base interpreter compiles, isolated and without site, so nothing of a package is run; where nothing is
missing, no process is started. A source that can't be compiled is no error: it has no bytecode then. Writes
into the build's staging folder, and by way of store/bytecode.py into the bytecode store.
"""

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from envfabric.build.interpreters import Interpreter
from envfabric.build.unpacking import Unpacking
from envfabric.build.uv import Finished, Uv, failure
from envfabric.core.errors import Reason
from envfabric.store.bytecode import Bytecode, Linked, Missing
from envfabric.store.closures import Staging
from envfabric.store.files import Files
from envfabric.store.sealing import Inventory

_COMPILER = Path(__file__).with_name("compiler.py")
_PATIENCE = 60.0
"""Seconds that a build waits for others that compile the same sources: then it does so itself."""
_FEW = 16
"""Sources for which one more worker is started."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the bytecode of one environment came to."""

    linked: int
    """Compiled files that were in the store already, or came into it by one of the environment's own files."""
    compiled: int
    """Sources that were compiled for it."""
    bad: int
    """Sources that do not compile."""
    unfinished: tuple[str, ...]
    """Sources without bytecode that ended the compiler, took more memory than there is, or whose compiled file went
    at this very moment. Relative paths."""
    changed: tuple[str, ...]
    """Sources with other content than they had a moment before under the same time: what uv's cache holds of
    them is damaged. Paths relative to the environment."""


class Compiling:
    """What gives environments their bytecode, on one ROOT. Safe for threads."""

    def __init__(
        self,
        bytecode: Bytecode,
        files: Files,
        uv: Uv,
        workers: int | None = None,
        told: Callable[["Compiled"], None] = lambda _: None,
    ) -> None:
        """`workers` are the processes that compile for one environment: by default one for each core; `told` hears
        what each environment's bytecode came to, in the build's thread."""
        self._bytecode = bytecode
        self._files = files
        self._uv = uv
        self._told = told
        self._workers = workers or len(os.sched_getaffinity(0))
        # Two builds that miss the same sources would compile them twice.
        self._claims = Unpacking(_PATIENCE)
        self._facts: dict[Interpreter, tuple[str, str]] = {}

    def compile(self, interpreter: Interpreter, staging: Staging, inventory: Inventory) -> Compiled:
        """Links and compiles the bytecode of the environment in staging, which `interpreter` is the base of.

        What the environment gets is added to its `inventory`.

        Raises `SpecError` where the interpreter fails or runs out of time, `Stopped`, and `OSError`.
        """
        done = self._give(interpreter, staging, inventory)
        self._told(done)
        return done

    def _give(self, interpreter: Interpreter, staging: Staging, inventory: Inventory) -> Compiled:
        tag, kind = self._facts_of(interpreter, staging)
        if tag == "-":
            return Compiled(0, 0, 0, (), ())
        linked = self._bytecode.link(inventory, tag, kind)
        if not linked.missing:
            return Compiled(linked.files, 0, linked.bad, (), ())
        # One job for each content: an environment has hundreds of empty sources.
        alike: dict[str, list[Missing]] = {}
        for one in linked.missing:
            alike.setdefault(one.key, []).append(one)
        with self._claims.of(alike):
            done = self._compile(interpreter, staging, inventory, alike, linked)
        # What is missing again some day is claimed again.
        self._claims.forget(alike)
        return done

    def distrust(self) -> None:
        """Has everything in the store proven once more before it is linked: for repair."""
        self._bytecode.distrust()

    def stop(self) -> None:
        """Lets no build wait for another any more; processes are ended by `Uv.stop`."""
        self._claims.stop()

    def _compile(
        self,
        interpreter: Interpreter,
        staging: Staging,
        inventory: Inventory,
        alike: dict[str, list[Missing]],
        linked: Linked,
    ) -> Compiled:
        todo: list[Missing] = []
        unfinished: list[str] = []
        for same in alike.values():
            # Another build may have compiled it while this one waited.
            if self._bytecode.link_one(inventory, same[0]):
                linked.files += 1
                unfinished += self._link_rest(inventory, staging, same, linked)
            elif self._bytecode.is_bad(same[0]):
                linked.bad += len(same)
            else:
                todo.append(same[0])
        # The longest first: no worker is left alone with one at the end.
        todo.sort(key=lambda one: os.lstat(one.source).st_size, reverse=True)
        outcomes = self._outcomes(interpreter, staging, todo) if todo else {}
        if todo:
            # Before they are counted: some file systems know a file's blocks only once it is written out.
            self._files.flush(staging.descriptor, staging.folder)
        compiled, changed = 0, []
        for number, one in enumerate(todo):
            outcome = outcomes.get(number, "?")
            same = alike[one.key]
            if outcome == "+":
                self._bytecode.adopt(inventory, one)
                compiled += 1
                unfinished += self._link_rest(inventory, staging, same, linked)
                continue
            paths = [_within(staging, each) for each in same]
            if outcome == "-":
                self._bytecode.mark_bad(one)
                linked.bad += len(same)
            elif outcome == "!":
                changed += paths
            else:
                # A worker that was killed may have written a part of it.
                self._files.unlink(Path(one.target))
                unfinished += paths
        return Compiled(linked.files, compiled, linked.bad, tuple(unfinished), tuple(changed))

    def _link_rest(
        self, inventory: Inventory, staging: Staging, same: list[Missing], linked: Linked
    ) -> list[str]:
        """Links what was just found or made for the first of those alike; gives the paths that got nothing: it
        may be gone again."""
        missed = []
        for one in same[1:]:
            if self._bytecode.link_one(inventory, one):
                linked.files += 1
            else:
                missed.append(_within(staging, one))
        return missed

    def _outcomes(self, interpreter: Interpreter, staging: Staging, todo: list[Missing]) -> dict[int, str]:
        """What the compiler said of each job by its number. Raises `OSError` that it met, and `SpecError`."""
        jobs = staging.folder / f"compile.{uuid.uuid4().hex}"
        fields = (field for one in todo for field in (one.key, one.source, one.target))
        self._files.write_new(jobs, b"".join(os.fsencode(field) + b"\0" for field in fields))
        workers = min(self._workers, 1 + len(todo) // _FEW)
        finished = self._run(interpreter, staging, "compile", str(jobs), str(workers))
        found = {}
        for line in finished.stdout.splitlines():
            number, _, outcome = line.partition(" ")
            if not number.isdecimal() or int(number) >= len(todo):
                # Nothing of the compiler's: whose outcome is missing counts as unfinished.
                continue
            if outcome.startswith("E"):
                code = int(outcome.split()[1])
                raise OSError(code, os.strerror(code), todo[int(number)].target)
            found[int(number)] = outcome
        return found

    def _facts_of(self, interpreter: Interpreter, staging: Staging) -> tuple[str, str]:
        # By all that is known of it: an upgrade in place is another interpreter.
        if interpreter not in self._facts:
            tag, kind = self._run(interpreter, staging, "facts").stdout.split()
            self._facts[interpreter] = tag, kind
        return self._facts[interpreter]

    def _run(self, interpreter: Interpreter, staging: Staging, *arguments: str) -> Finished:
        # Its own environment: no variable of the daemon's reaches it, and no credential.
        finished = self._uv.run_command(
            [interpreter.path, "-I", "-S", "-B", "-W", "ignore", str(_COMPILER), *arguments],
            cwd=staging.folder,
            hold=staging.descriptor,
            env={"LC_ALL": "C.UTF-8", "PATH": os.defpath},
        )
        if finished.code != 0:
            raise failure(f"compiling with {interpreter.path}", finished, Reason.BUILD_FAILED)
        return finished


def _within(staging: Staging, one: Missing) -> str:
    return os.path.relpath(one.source, staging.venv)
