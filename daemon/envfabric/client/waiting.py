"""`envfabric wait`: until a commit's content is served, or it is certain that it won't be.

Reads index.json as any consumer does, and asks git which of two commits is the newer one, where git and a clone are
at hand. Standard library only; writes nothing.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envfabric.client.api import answered
from envfabric.client.index import (
    EnvfabricError,
    NotReady,
    RootNotFound,
    UnknownEnvironment,
    environment,
    read_index,
)
from envfabric.client.wanted import DEFAULT_TIMEOUT

READY, FAILED, TIMED_OUT = 0, 1, 124
_POLL_FIRST, _POLL_MOST = 0.1, 1.0
_GIT_MOST = 10.0
"""Seconds that git may take for one question; it is asked again later."""
_AT_LEAST = 1.0
"""Seconds for which a last look is waited for, though the time is over."""
_COMMIT = re.compile(r"[0-9a-f]{4,40}")
_IN_MESSAGE = re.compile(r"\b[0-9a-f]{7,40}\b")


class Undecided(Exception):
    """Not served yet; the text says what is waited for."""


class Failed(Exception):
    """It won't be served by waiting; the text says why."""


def wait(
    ids: Sequence[str],
    root: Path,
    *,
    commit: str | None = None,
    timeout: float | None = None,
    repo: str | None = None,
) -> int:
    """Waits, prints a line for each outcome, and gives the exit code: 0 ready, 1 failed, 124 timed out.

    Without `ids` all environments are meant. `repo` is a clone that has `commit`; the current folder otherwise.
    Raises `RootNotFound` where ROOT can't be read at the start, and `ValueError` for what is no commit.
    """
    history = None if commit is None else _History(commit, repo)
    deadline = None if timeout is None else time.monotonic() + timeout
    left = list(dict.fromkeys(ids))
    told, waited, code, pause, first = set[str](), "", READY, _POLL_FIRST, True
    while True:
        # The clock is read first: what was there in time counts.
        late = deadline is not None and time.monotonic() >= deadline
        try:
            index = _index(root, first, deadline)
            if history is not None:
                history.reached(index)
            if not ids:
                return _all(index)
            waited = ""
            for spec_id in list(left):
                try:
                    _say(f"{spec_id}: {_outcome(index, spec_id, commit)}")
                except Undecided as why:
                    waited = waited or str(why)
                    continue
                except Failed as why:
                    _complain(str(why))
                    code = FAILED
                left.remove(spec_id)
            if not left:
                return code
        except (NotReady, Undecided) as why:
            waited = str(why)
        except Failed as why:
            _complain(str(why))
            return FAILED
        except RootNotFound as why:
            # Later it may be a mount that comes back.
            if first:
                raise
            waited = str(why)
        if late:
            _complain(f"timed out after {timeout:g} s: {waited}")
            return TIMED_OUT
        if waited.startswith("no environment ") and waited not in told:
            # May be a slip, and there may be no time limit.
            told.add(waited)
            _complain(f"waiting: {waited}")
        first = False
        time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(pause * 1.5, _POLL_MOST)


def _index(root: Path, first: bool, deadline: float | None) -> dict[str, Any]:
    """The index, waited for no longer than there is time. Raises `RootNotFound` and `NotReady`."""
    if first:
        return answered(DEFAULT_TIMEOUT, lambda: read_index(root), str(root))
    if deadline is None:
        # Nobody is in a hurry: given up and begun again, each look would leave a thread in a mount that hangs.
        return read_index(root)
    return answered(max(deadline - time.monotonic(), _AT_LEAST), lambda: read_index(root), str(root))


def _outcome(index: Mapping[str, Any], spec_id: str, commit: str | None) -> str:
    """What is served of an id. Raises `Undecided` and `Failed`."""
    try:
        entry = environment(index, spec_id)
    except UnknownEnvironment as error:
        # A refused path is in this revision; one that no revision has may be in the next.
        if commit is not None or f"{spec_id} is refused" in str(error):
            raise Failed(str(error)) from None
        raise Undecided(str(error)) from None
    if entry["state"] in {"pending", "building"}:
        raise Undecided(f"{spec_id} is {entry['state']}")
    if entry["pinned"]:
        raise Failed(
            f"{spec_id} is pinned to generation {entry['generation']}, which hides what is committed. End it by "
            f"`envfabric unpin {spec_id}`."
        )
    if entry["suspended"]:
        raise Failed(
            f"{spec_id} is suspended: nothing is built for it. Take `suspend` out of its [tool.envfabric] and commit."
        )
    if entry["state"] != "ready":
        raise Failed(_failure(spec_id, entry))
    return f"ready, generation {entry['generation']}, {index['python'].get(spec_id, '')}"


def _all(index: Mapping[str, Any]) -> int:
    """The outcome of a whole revision. Raises `Undecided` while it is incomplete."""
    entries = index["environments"]
    if not index["complete"]:
        waiting = sorted(one for one, entry in entries.items() if entry["state"] in {"pending", "building"})
        more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
        raise Undecided(f"{', '.join(waiting[:3]) or 'the revision'}{more} not built yet")
    bad = {one: entry for one, entry in sorted(entries.items()) if entry["state"] != "ready"}
    for spec_id, entry in bad.items():
        _complain(_failure(spec_id, entry))
    for problem in index["problems"]:
        _complain(f"{problem['path']} ({problem['reason']}): {problem['message']}")
    _say(f"{len(entries) - len(bad)} of {len(entries)} ready at {str(index['revision'])[:12]}")
    # What can't be read now is no part of this revision, and passes.
    lasting = [problem for problem in index["problems"] if problem["reason"] != "fetch"]
    return FAILED if bad or lasting else READY


def _failure(spec_id: str, entry: Mapping[str, Any]) -> str:
    error = entry["error"] or {"reason": "internal", "message": "no reason is given"}
    served = f" Generation {entry['generation']} is still served." if entry["state"] == "stale" else ""
    again = f" It is tried again at {error['retry_at']}." if error.get("retry_at") else ""
    log = f" Log: {error['log']}" if error.get("log") else ""
    return f"{spec_id} {entry['state']} ({error['reason']}): {error['message']}{served}{again}{log}"


@dataclass
class _History:
    """Which revisions have a commit in them, as far as git can tell."""

    commit: str
    repo: str | None
    _known: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        resolved = self._git(
            "rev-parse", "--quiet", "--verify", "--end-of-options", f"{self.commit}^{{commit}}"
        )
        if resolved is not None and resolved.returncode == 0:
            self.commit = resolved.stdout.strip()
        elif not _COMMIT.fullmatch(self.commit.lower()):
            raise ValueError(
                f"{self.commit!r} is no commit that git knows in {self.repo or 'the current folder'}; give its "
                "SHA, or the clone with --repo."
            )
        else:
            self.commit = self.commit.lower()

    def reached(self, index: Mapping[str, Any]) -> None:
        """Returns where the published revision is that commit or a later one. Raises `Undecided`, `Failed`."""
        revision = str(index["revision"])
        if self._in(revision):
            return
        for problem in index["problems"]:
            if problem["reason"] == "policy":
                for named in _IN_MESSAGE.findall(problem["message"]):
                    # Whatever holds a later commit back holds this one back with it; the revision's own name
                    # may stand there too.
                    if not revision.startswith(named) and self._in(named):
                        raise Failed(problem["message"])
        raise Undecided(f"revision {revision[:12]} is published, {self.commit[:12]} is not yet")

    def _in(self, other: str) -> bool:
        if other.startswith(self.commit) or (len(other) < 40 and self.commit.startswith(other)):
            return True
        if other not in self._known:
            done = self._git("merge-base", "--is-ancestor", self.commit, other)
            if done is None or done.returncode not in {0, 1}:
                # The clone may fetch that commit in a moment.
                return False
            self._known[other] = done.returncode == 0
        return self._known[other]

    def _git(self, *arguments: str) -> subprocess.CompletedProcess[str] | None:
        # Inherited GIT_DIR and the like, as a hook of git has them, would mean another repository than `repo`.
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        env |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
        try:
            return subprocess.run(
                ["git", *arguments],
                cwd=self.repo,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_GIT_MOST,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            # A clone on a file system that does not answer is as good as none.
            return None


def run(ids: Sequence[str], root: Path, commit: str | None, timeout: float | None, repo: str | None) -> int:
    """`wait` as a command: wrong usage is 2."""
    try:
        return wait(ids, root, commit=commit, timeout=timeout, repo=repo)
    except ValueError as error:
        _complain(str(error))
        return 2
    except EnvfabricError as error:
        _complain(str(error))
        return FAILED


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _complain(text: str) -> None:
    print(f"envfabric: {text}", file=sys.stderr, flush=True)  # noqa: T201
