"""An index of thousands of environments in every state, with long errors, and closures of known sizes on a ROOT."""

import random
from pathlib import Path

from envfabric.core.errors import Reason
from envfabric.index.document import Entry, Failure, Index, State
from envfabric.specs.tree import Problem
from envfabric.store.files import Files
from envfabric.store.root import Root, now
from envfabric.store.usage import Usage

CLOSURES = 40
HTML = "<script>alert('x')</script><img src=x onerror=alert(1)>&\""
"""What somebody may have written into an error."""
NEEDLE = "needle-in-the-hay"


def many(count: int) -> Index:
    """An index of `count` environments, the same one for each count."""
    some = random.Random(count)
    states: tuple[State, ...] = ("ready", "stale", "failed", "building", "pending")
    drawn = some.choices(states, (90, 3, 4, 1, 2), k=count)
    entries: dict[str, Entry] = {}
    for n, state in enumerate(drawn):
        closure = f"{n % CLOSURES:064x}"
        serves = state in {"ready", "stale"}
        failure = Failure(
            some.choice([Reason.UNRESOLVABLE, Reason.BUILD_FAILED, Reason.FETCH]),
            f"no version of package-{n} fits {HTML if n % 7 == 0 else 'what the others ask for'}. Change one of them.",
            f"/nas/failures/flow-{n // 20:04}/node-{n % 20}.log",
            f"{n:040x}",
            now(-60.0 * n),
        )
        entries[f"flow-{n // 20:04}/node-{n % 20}"] = Entry(
            state,
            f"{n:040x}",
            f"{n:040x}",
            serving=closure if serves else None,
            generation=n % 12 + 1 if serves else None,
            built_at=now(-3600.0 * (n + 1)) if serves else None,
            python_version="3.11.7" if serves else None,
            ray_version="2.60.0" if serves and n % 2 else None,
            error=failure if state in {"stale", "failed"} else None,
        )
    worst = Failure(Reason.BUILD_FAILED, f"{NEEDLE} {HTML}", "/nas/failures/zz/last.log", "c" * 40, now())
    entries["zz/last"] = Entry("failed", "t" * 40, "c" * 40, error=worst)
    problems = (Problem(f"odd{HTML}/pyproject.toml", Reason.INVALID_SPEC, f"no id {HTML}"),)
    return Index("c" * 40, 4217, now(-90.0), entries, problems)


def keep_sizes(root: Root) -> None:
    """Writes down what the index's closures take: each 3 MiB of its own and 10 MiB that all of them link."""
    (root.state / "usage").mkdir(parents=True, exist_ok=True)
    root.staging.mkdir(exist_ok=True)
    (root.path / ".envfabric.json").write_text('{"schema": 1}')
    for n in range(CLOSURES):
        root.closure(f"{n:064x}").mkdir(parents=True)
        Usage(root, Files()).keep(f"{n:064x}", {1: 10 << 20, n + 2: 3 << 20})


def root_of(folder: Path) -> Root:
    """A ROOT for `many`, with sizes and the first failure's log."""
    root = Root(folder / "nas")
    keep_sizes(root)
    return root
