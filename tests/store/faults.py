"""Faults for the seam of file operations: a step that fails, and a process that is killed at one."""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from envfabric.store.files import Files

CODES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.ESTALE)
"""What a NAS says when it is full, broken, read-only or gone."""

KILLED = 86
"""The exit code of a process that ended at a step, as kill -9 would end it: nothing is cleaned up."""


class Steps:
    """A step that remembers all that is done, and fails at the `fail_at`-th, counted from 0."""

    def __init__(self, fail_at: int | None = None, code: int = errno.EIO) -> None:
        self.fail_at = fail_at
        self.code = code
        self.seen: list[tuple[str, Path]] = []

    def __call__(self, operation: str, path: Path) -> None:
        self.seen.append((operation, path))
        if self.fail_at == len(self.seen) - 1:
            raise OSError(self.code, os.strerror(self.code), str(path))

    @property
    def failed(self) -> bool:
        """Whether the fault happened."""
        return self.fail_at is not None and len(self.seen) > self.fail_at


def each_fault(code: int = errno.EIO) -> Iterator[Steps]:
    """A fault at the first step, at the second one … until there was none to fail any more."""
    number = 0
    while True:
        steps = Steps(number, code)
        yield steps
        if not steps.failed:
            assert number > 0, "nothing went through the seam"
            return
        number += 1


def each_kill() -> Iterator[tuple[int, Callable[[Callable[[Files], object]], bool]]]:
    """For each step: its number, and what runs an action in a process that is killed at that step.

    The runner says whether it was killed; the last one comes to the action's end.
    """
    for number in range(1000):
        alive = True

        def run(action: Callable[[Files], object], number: int = number) -> bool:
            nonlocal alive
            steps = Steps()

            def step(operation: str, path: Path) -> None:
                if len(steps.seen) == number:
                    os._exit(KILLED)
                steps(operation, path)

            code = in_process(lambda: action(Files(step)))
            assert code in (0, KILLED), f"the action failed by itself before step {number}"
            alive = code == KILLED
            return alive

        yield number, run
        if not alive:
            assert number > 0, "nothing went through the seam"
            return


def in_process(action: Callable[[], object]) -> int:
    """Runs an action in a process of its own, which ends without any cleaning up; gives its exit code."""
    return exit_code(start(action))


def start(action: Callable[[], object]) -> int:
    """Starts an action in a process of its own and gives its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    # Whatever becomes of the test, its process does not stay.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(30)
    try:
        action()
        code = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def exit_code(child: int) -> int:
    """Waits for a process that `start` began."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
