"""Runs the validation of a spec, `full` or `custom`, against a closure in the store, before it is published for it.

It is run there, and not while the closure is built: specs with other validations share it, and neither a failure nor
a change of the validation says anything of what was built. Packages' code runs here as the daemon's user, see
docs/validation.md: it gets a time limit, a folder of this host that is thrown away, no variable of the daemon's, and
all that it starts is ended. Writes staging/, state/validated/ and, by build/unseen, state/trying/; a closure that it
finds changed it marks as damaged.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, cast

from envfabric.build.modules import modules_of
from envfabric.build.scope import Stopped, current
from envfabric.build.stamps import differing, linked, stamps
from envfabric.build.survivors import end_survivors
from envfabric.build.trial import IMPORTING, Trial, changed, judge_command, judge_imports, last_import
from envfabric.build.unseen import Unseen
from envfabric.core.errors import SpecError, redact
from envfabric.store.closures import Closures, Staging
from envfabric.store.files import Files
from envfabric.store.root import Root, now
from envfabric.store.sweep import TOUCHED
from envfabric.telemetry import logs

WARDEN = Path(__file__).with_name("warden.py")
_PATH = "/usr/local/bin:/usr/bin:/bin"
_LOOK = 1.0
"""Seconds after which a command is looked at that says nothing."""
_PATIENCE = 15.0
"""Seconds that a command's keeper has to end all that it started; what hangs on a dead mount is left to it."""
_KEPT = 64_000
"""Bytes of a run's output that are kept: the last ones."""
_RECORDED = 8_000
"""Characters of it that the record of a passed validation keeps."""


@dataclass(eq=False, slots=True)
class _Kept:
    """A command under its keeper."""

    keeper: subprocess.Popen[bytes]
    hold: IO[bytes]
    """The keeper's standard input: once it is closed, from any thread, the keeper ends all."""
    output: IO[bytes]

    def give_up(self) -> None:
        # One byte tells the keeper that it was us, and not our end. Any thread may have closed it a moment ago.
        with contextlib.suppress(OSError, ValueError):
            self.hold.write(b".")
        with contextlib.suppress(OSError):
            self.hold.close()


@dataclass(slots=True)
class _Bench:
    """Where one validation runs."""

    staging: Staging
    folder: Path
    """On this host, with a short name: sockets below TMPDIR have to fit into 107 bytes, and the NAS is spared."""
    venv: Path
    variables: Mapping[str, str]
    log: str = ""


@dataclass(eq=False, slots=True)
class _Alone:
    """One validation under way, and whether another of the same closure was, at any time of it."""

    others: bool = False


class Trials:
    """The validations on one ROOT. Safe for threads; each closure and trial is one thread's at a time."""

    def __init__(
        self,
        root: Root,
        files: Files,
        closures: Closures,
        observe: Callable[[float], None],
        mend: Callable[[str], None],
    ) -> None:
        """`observe` hears how many seconds a validation took; `mend` the name of a closure that one changed.

        Raises `OSError` where what was left under way can't be read.
        """
        self._root = root
        self._files = files
        self._closures = closures
        self._observe = observe
        self._mend = mend
        self.unseen = Unseen(root, files)
        # When the record was last looked at.
        self._passed: dict[tuple[str, str], float] = {}
        # Those under way, by closure; each is true as long as it was alone there.
        self._under_way: dict[str, list[_Alone]] = {}
        # Those after which a closure had changed, once, with others who may have done it.
        self._doubted: set[tuple[str, str]] = set()
        self._running: set[_Kept] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def passed(self, digest: str, trial: Trial) -> bool:
        """Whether a closure's content has passed this validation. What has not is tried again each time."""
        known = (digest, trial.key)
        seen = self._passed.get(known)
        if seen is not None and time.monotonic() - seen < TOUCHED:
            return True
        record = self._record(digest, trial)
        try:
            used = record.stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            self._passed.pop(known, None)
            return False
        if abs(time.time() - used) > TOUCHED:
            # A mark for the collector, and not content: where it can't be made, the record goes a little early.
            with contextlib.suppress(OSError):
                os.utime(record)
        self._passed[known] = time.monotonic()
        return True

    def run(self, digest: str, name: str, trial: Trial) -> None:
        """Validates the closure `name`, and records that it passed.

        Raises `SpecError` (validation, timeout; store where it may be innocent of a change, internal where it was
        killed), `Stopped`, `StoreError`, `OSError`.
        """
        began, known = time.monotonic(), (digest, trial.key)
        closure = self._root.closure(name)
        failure: SpecError | Stopped | None = None
        self._look_again(name)
        with (
            self._closures.staging() as staging,
            _own_folder() as folder,
            self._among(name) as alone,
            self.unseen.marked(name),
        ):
            venv = closure / ".venv"
            bench = _Bench(staging, folder, venv, _variables(venv, folder, trial))
            before = stamps(closure)
            try:
                self._try(bench, trial)
            except (SpecError, Stopped) as error:
                failure = error
            # Also after one that was ended: its last step may have been the bad one.
            if paths := differing(before, stamps(closure)):
                self._closures.mark_damaged(
                    name, [f"{path}: changed while it was validated" for path in paths]
                )
        seconds = time.monotonic() - began
        self._observe(seconds)
        if paths:
            # One that is in doubt gets a second try, and no third: it would have the closure built again for ever.
            sure = known in self._doubted or not (alone.others or linked(closure, paths))
            self._doubted.add(known)
            self._mend(name)
            raise changed(paths, bench.log, sure=sure)
        if failure is not None:
            raise failure
        self._note(digest, trial, bench.log, seconds)
        logs.get().info("validated", closure=name, kind=trial.kind, seconds=round(seconds, 3))

    def _look_again(self, name: str) -> None:
        """Raises `SpecError` (store) where a closure was changed by a validation that nobody saw the end of."""
        paths = self.unseen.prove(name, lambda: self._stopping)
        if self._stopping:
            raise Stopped
        if paths:
            self._closures.mark_damaged(name, paths)
            self._mend(name)
        self.unseen.proven([name])
        if paths:
            raise changed([path.partition(": ")[0] for path in paths], "", sure=False)

    def stop(self) -> None:
        """Ends what runs, and lets nothing start any more."""
        with self._lock:
            self._stopping = True
            for kept in self._running:
                kept.give_up()

    @contextlib.contextmanager
    def _among(self, name: str) -> Iterator["_Alone"]:
        """Tells each of those on one closure at the same time of the others."""
        one = _Alone()
        with self._lock:
            there = self._under_way.setdefault(name, [])
            one.others = bool(there)
            for other in there:
                other.others = True
            there.append(one)
        try:
            yield one
        finally:
            with self._lock:
                there.remove(one)
                if not there:
                    del self._under_way[name]

    def _try(self, bench: _Bench, trial: Trial) -> None:
        told = bench.folder / "told"
        if modules := trial.imports or modules_of(bench.venv, trial.direct):
            python = str(bench.venv / "bin" / "python")
            code, output = self._run(
                bench,
                [python, "-c", IMPORTING, str(told), *modules],
                lambda: f"the import of {last_import(told) or 'its modules'}",
            )
            bench.log += f"# imported: {', '.join(modules)}\n{output}"
            judge_imports(told, code, bench.log)
        else:
            bench.log += "# the direct requirements bring no module to import\n"
        if trial.command:
            code, output = self._run(bench, trial.command, lambda: "its command")
            bench.log += f"$ {json.dumps(trial.command)}\n{output}"
            judge_command(trial.command, code, bench.log)

    def _run(self, bench: _Bench, command: Sequence[str], doing: Callable[[], str]) -> tuple[int, str]:
        """Exit code and output of a command, with all that it started ended.

        Raises `Stopped`, and `SpecError` (timeout) that names what it was `doing`.
        """
        scope = current()
        scope.check()
        job = {
            "command": list(command),
            "cwd": str(bench.folder / "work"),
            "env": dict(bench.variables),
            "folder": str(bench.folder),
        }
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(WARDEN)],
            bufsize=0,
            cwd="/",
            env={"LC_ALL": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Recovery sees that it still runs; the keeper itself ends when this process is gone.
            pass_fds=(bench.staging.descriptor,),
            umask=0o077,
        )
        kept = _Kept(keeper, cast("IO[bytes]", keeper.stdin), cast("IO[bytes]", keeper.stdout))
        try:
            left = memoryview(json.dumps(job).encode() + b"\n")
            with contextlib.suppress(BrokenPipeError):
                while left:
                    left = left[kept.hold.write(left) :]
            with self._lock:
                self._running.add(kept)
                if self._stopping:
                    kept.give_up()
            with scope.ended_by(kept.give_up):
                output = _follow(kept, scope.deadline)
            given_up = kept.hold.closed
        finally:
            with self._lock:
                self._running.discard(kept)
            _close(kept, bench)
        if given_up:
            if not self._stopping:
                scope.check(doing(), bench.log + output)
            raise Stopped
        return keeper.returncode, output

    def _record(self, digest: str, trial: Trial) -> Path:
        return self._root.state / "validated" / f"{digest}-{trial.key}.json"

    def _note(self, digest: str, trial: Trial, log: str, seconds: float) -> None:
        path = self._record(digest, trial)
        self._root.require_marker()
        self._files.make_folder(path.parent, self._root.state)
        content = {
            "schema": 1,
            "digest": digest,
            "at": now(),
            "seconds": round(seconds, 3),
            "trial": asdict(trial),
        }
        data = json.dumps({**content, "output": log[-_RECORDED:]}, indent=2).encode()
        self._files.write_atomic(path, data, via=self._root.staging)
        self._passed[digest, trial.key] = time.monotonic()


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder of this host with an empty home, tmp and work in it, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ef-"))
    try:
        for name in ("home", "tmp", "work"):
            (folder / name).mkdir(0o700)
        yield folder
    finally:
        with contextlib.suppress(OSError):
            # Not shutil's: what was run may have left folders without the right to write.
            Files().remove_tree(folder)


def _variables(venv: Path, folder: Path, trial: Trial) -> dict[str, str]:
    return {
        **dict(trial.variables),
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PATH": f"{venv}/bin:{_PATH}",
        "VIRTUAL_ENV": str(venv),
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
    }


def _follow(kept: _Kept, deadline: float) -> str:
    """The output of a command until it ends, the last of it; it is given up at the deadline."""
    descriptor = kept.output.fileno()
    # Not select(), which knows no descriptor above 1023.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    tail, dropped = bytearray(), 0
    last: float | None = None
    while True:
        clock = time.monotonic()
        if clock >= deadline:
            kept.give_up()
        if kept.hold.closed:
            last = clock + _PATIENCE if last is None else last
            if clock >= last:
                break
        wait = _LOOK if kept.hold.closed else max(0.0, min(_LOOK, deadline - clock))
        if poll.poll(wait * 1000):
            data = os.read(descriptor, 1 << 16)
            if not data:
                break
            tail += data
            if len(tail) > 2 * _KEPT:
                dropped += len(tail) - _KEPT
                del tail[:-_KEPT]
        elif kept.keeper.poll() is not None:
            # Somebody who left has the pipe still.
            break
    dropped += max(0, len(tail) - _KEPT)
    text = redact(tail[-_KEPT:].decode("utf-8", "replace"))
    text += "\n" if text and not text.endswith("\n") else ""
    return f"… {dropped} bytes before\n{text}" if dropped else text


def _close(kept: _Kept, bench: _Bench) -> None:
    """The keeper is gone afterwards, with all that it kept."""
    kept.give_up()
    for _ in range(2):
        with contextlib.suppress(subprocess.TimeoutExpired):
            kept.keeper.wait(_PATIENCE)
            break
        kept.keeper.kill()
    kept.output.close()
    # Where its keeper was killed, or could not become the next of kin of what loses its parent.
    end_survivors(bench.variables["TMPDIR"])
