"""What `envfabric doctor` finds, each with what to do; and how long a look may take before that is what is found.

Every look at the NAS runs in a thread that is left behind when its time is over: a mount that hangs is a finding,
and holds nobody up. Knows nothing of what is looked at. Standard library only.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "info", "warning", "problem"]
"""`info`: worth knowing, or not looked at; nothing is wrong by it."""

SCHEMA = 1
"""The form of the JSON: keys are only added in it."""

DEFAULT_TIMEOUT = 10.0
"""Seconds that one look may take."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    found: str
    do: str | None = None
    """What to do about it; None where nothing has to be done."""


_COUNTED: tuple[Level, ...] = ("problem", "warning")

Look = Callable[[], list[Finding]]


def within(seconds: float, check: str, look: Look) -> tuple[list[Finding], bool]:
    """What a look finds, and whether it came to its end in time; an exception of it is a finding, too."""
    found: list[Finding] = []

    def run() -> None:
        try:
            found.extend(look())
        except Exception as error:
            # Whatever goes wrong while one thing is looked at must not hide all the others.
            found.append(Finding(check, "problem", f"{type(error).__name__}: {error}", "Look at it by hand."))

    thread = threading.Thread(target=run, name=f"doctor {check}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        told = Finding(
            check,
            "problem",
            f"no answer within {seconds:g} s",
            "A network file system that does not answer looks like this: check the mount and its server, or give a "
            "slow one more time with --timeout.",
        )
        return [told], False
    return found, True


def code(findings: Sequence[Finding]) -> int:
    """The exit code: 1 where there is a problem."""
    return int(any(one.level == "problem" for one in findings))


def as_text(findings: Sequence[Finding]) -> str:
    """A line for each finding, what to do below it, and a last line that counts."""
    width = max((len(one.check) for one in findings), default=0)
    lines = []
    for one in findings:
        lines.append(f"{one.level:<8} {one.check:<{width}}  {_line(one.found)}")
        if one.do is not None:
            lines.append(f"{'':<8} {'':<{width}}  -> {_line(one.do)}")
    problems, warnings = (_counted(findings, level) for level in _COUNTED)
    lines.append(f"{problems} and {warnings} on {os.uname().nodename}, as {user()}")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> str:
    """The same for programs."""
    told = {
        "schema": SCHEMA,
        "host": os.uname().nodename,
        "user": user(),
        "problems": sum(one.level == "problem" for one in findings),
        "warnings": sum(one.level == "warning" for one in findings),
        "findings": [asdict(one) for one in findings],
    }
    return json.dumps(told, indent=2)


def user() -> str:
    """Who this process is, by name where there is one."""
    with contextlib.suppress(KeyError, ImportError):
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


def owner(path: str | os.PathLike[str]) -> str:
    """Whose a file is, by name where there is one. Raises `OSError`."""
    uid = os.stat(path).st_uid
    with contextlib.suppress(KeyError, ImportError):
        import pwd

        return pwd.getpwuid(uid).pw_name
    return f"uid {uid}"


def some(names: Sequence[str], most: int = 3) -> str:
    """Names for a line: of many the first."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _counted(findings: Sequence[Finding], level: Level) -> str:
    count = sum(one.level == level for one in findings)
    return f"{count} {level}{'' if count == 1 else 's'}"


def _line(text: str) -> str:
    return " ".join(text.split())
