"""What `full` and `custom` validation of one spec run, and what came of it in words.

It is a matter of the spec and no part of a closure's digest: specs that share a closure may ask for different ones.
Pure, but for the reading of what an import told.
"""

import hashlib
import json
import shlex
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from envfabric.core.errors import Reason, SpecError
from envfabric.core.ids import shown
from envfabric.specs.spec import Spec

IMPORTING = """\
import importlib, os, sys, traceback
told = open(sys.argv[1], "w", buffering=1, encoding="utf-8", errors="backslashreplace")
names, sys.argv[1:] = sys.argv[2:], []
code = 0
for name in names:
    told.write("> " + name + "\\n")
    try:
        importlib.import_module(name)
    except BaseException as error:
        lines = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()
        told.write("! " + (lines or [""])[-1] + "\\n")
        traceback.print_exc()
        code = 1
        break
else:
    told.write(".\\n")
for stream in (sys.stdout, sys.stderr):
    try:
        stream.flush()
    except BaseException:
        pass
# A thread that an import has started may never end.
os._exit(code)
"""
"""Run by an environment's own interpreter: imports modules, and tells a file which, and how it ended."""
_KILLED = 128 + signal.SIGKILL
_TOLD = 64 * 1024
"""Bytes that are read of what an import told: a few lines."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The validation that a closure has to pass before it is published for a spec."""

    kind: str
    """'full' or 'custom'."""
    imports: tuple[str, ...]
    """The modules that the spec names; where it names none, those of `direct`."""
    direct: tuple[str, ...]
    """Normalised names of the direct requirements; none where `imports` has any."""
    command: tuple[str, ...]
    """For `custom`."""
    variables: tuple[tuple[str, str], ...]
    """The spec's env_vars: consumers have them, too."""

    @property
    def key(self) -> str:
        """Equal for all whose validation of one closure is the same."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:20]


def trial_of(spec: Spec) -> Trial | None:
    """What a spec's validation runs; None where nothing of a package is executed."""
    table = spec.table
    if table.validation == "minimal":
        return None
    return Trial(
        table.validation,
        tuple(table.imports),
        () if table.imports else tuple(sorted(spec.requirements)),
        tuple(table.command) if table.validation == "custom" else (),
        tuple(sorted(table.runtime_env.env_vars.items())),
    )


def last_import(told: Path) -> str:
    """The module whose import was begun last; '' where none was."""
    begun = [line[2:] for line in _lines(told) if line.startswith("> ")]
    return shown(begun[-1], 200) if begun else ""


def judge_imports(told: Path, code: int, output: str) -> None:
    """Raises `SpecError` where not every module was imported: validation, or internal where Python was killed."""
    lines = _lines(told)
    if code == 0 and lines[-1:] == ["."]:
        return
    if code == _KILLED:
        raise _killed(f"the import of {last_import(told) or 'its modules'}", output)
    why = next((line[2:] for line in lines if line.startswith("! ")), None)
    if module := last_import(told):
        what = f"the import of {module} " + (
            f"fails: {shown(why, 400)}" if why else f"ended Python: {_end(code)}"
        )
    else:
        what = f"the environment's Python does not start: {_end(code)}{_last(output)}"
    raise SpecError(
        Reason.VALIDATION,
        f"{what.rstrip('.')}. Require what is missing, or name the modules that can be imported here in "
        "tool.envfabric.imports.",
        output,
    )


def judge_command(command: Sequence[str], code: int, output: str) -> None:
    """Raises `SpecError` for a command that failed: validation, or internal where it was killed."""
    if code == _KILLED:
        raise _killed("the command of tool.envfabric", output)
    if code:
        told = shown(shlex.join(command), 200)
        raise SpecError(
            Reason.VALIDATION,
            f"the command of tool.envfabric ended with {_end(code)}{_last(output)}: {told}. The log has its output.",
            output,
        )


def changed(paths: Sequence[str], output: str, *, sure: bool) -> SpecError:
    """What is said of a validation after which what is sealed had changed; `sure`: nobody else can have done it."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    if not sure:
        return SpecError(
            Reason.STORE,
            f"the sealed environment changed during the validation: {shown(', '.join(paths[:3]), 400)}{more}. Others "
            "share these files, so it may have been another's validation. It counts as damaged now, is built again for "
            "whoever needs it, and this spec is validated once more.",
            output,
        )
    return SpecError(
        Reason.VALIDATION,
        f"the validation changed the sealed environment: {shown(', '.join(paths[:3]), 400)}{more}. It counts as "
        "damaged now and is built again for whoever needs it. Imports and the command may write only to their HOME, "
        "TMPDIR and working folder.",
        output,
    )


def _killed(what: str, output: str) -> SpecError:
    """The daemon itself did not: a reason that passes, for the host may have room another time."""
    return SpecError(
        Reason.INTERNAL,
        f"{what} was killed (SIGKILL), and not by the daemon: as a rule the host ran out of memory. It is tried again "
        "by itself; have it need less, or give the daemon more (MemoryMax, fewer builders).",
        output,
    )


def _end(code: int) -> str:
    if code > 128:
        try:
            return signal.Signals(code - 128).name
        except ValueError:
            pass
    return f"exit code {code}"


def _last(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f", {shown(lines[-1], 300)!r}" if lines else ""


def _lines(told: Path) -> list[str]:
    try:
        with told.open("rb") as file:
            return file.read(_TOLD).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
