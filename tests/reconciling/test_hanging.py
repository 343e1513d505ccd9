"""Specs that hang or fail take their own slots and no others: all that can be made ready is, while they still hang."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from envfabric.store.retries import read_retries
from envfabric.store.root import Root
from support.children import uv_children
from support.fabric import Fabric
from support.waiting import wait_for

BENCH = Path(__file__).resolve().parents[1] / "bench" / "hanging.py"


def test_fifty_specs_of_which_ten_hang_and_ten_fail(fabric: Fabric) -> None:
    """The thirty that build are ready while all ten still hang, with the one build slot that these leave over.

    Five hang in their resolution and five in their build; five can't be resolved and five can't be fetched.
    """
    packages, repo = fabric.packages, fabric.repo
    fabric.settings["builders"] = 6
    # What the index serves its files from is known then, also of packages that it does not have any more.
    repo.spec("first/one", ["beta"])
    repo.commit()
    fabric.run_once()
    kinds = {"good": 30, "asks": 5, "waits": 5, "gone": 5}
    for kind, count in kinds.items():
        for number in range(count):
            packages.add_wheel(f"{kind}-{number}", "1.0")
            folder = repo.spec(f"{kind}/n{number}", [f"{kind}-{number}"], index=packages.url).parent
            if kind in {"waits", "gone"}:
                fabric.lock(folder)
    for number in range(5):
        repo.spec(f"never/n{number}", [f"no-such-package-{number}"])
        packages.remove(f"gone_{number}-1.0-py3-none-any.whl")
    holds = [packages.hold(f"asks-{number}") for number in range(5)]
    holds += [packages.hold(f"waits-{number}", kind="files") for number in range(5)]
    hung = {f"{kind}/n{number}" for kind in ("asks", "waits") for number in range(5)}
    last = repo.commit()
    try:
        with fabric.daemon() as daemon:
            good = {f"good/n{number}" for number in range(30)}
            wait_for(
                lambda: (fabric.root / "index.json").exists() and good <= fabric.index()["python"].keys(),
                timeout=300,
                message="some that build wait for others",
            )
            bad = {f"{kind}/n{number}" for kind in ("gone", "never") for number in range(5)}
            wait_for(
                lambda: all(fabric.entry(one)["state"] == "failed" for one in bad),
                message="not all have failed",
            )
            states = Counter(fabric.entry(one)["state"] for one in hung)
            assert states == {"pending": 5, "building": 5}
            assert not any(hold.is_set() for hold in holds)
            assert len(uv_children(daemon.process.pid, "lock")) == 5
            assert daemon.metric("envfabric_builds_in_progress") >= 5
            for number in range(5):
                assert fabric.entry(f"gone/n{number}")["error"]["retry_at"]
                assert fabric.entry(f"never/n{number}")["error"]["retry_at"] is None
                assert fabric.entry(f"never/n{number}")["error"]["reason"] == "unresolvable"
            kept = read_retries(Root(fabric.root))
            assert set(kept) == {f"gone/n{number}" for number in range(5)}
            # Another commit finds a slot, too, whatever is tried again meanwhile.
            repo.spec("late/one", ["beta"])
            last = repo.commit()
            wait_for(lambda: "late/one" in fabric.index()["python"], message="a new commit waits")
            assert all(fabric.entry(one)["state"] in {"pending", "building"} for one in hung)
            for hold in holds:
                hold.set()
            index = daemon.wait_for_index(last)
            assert {index["environments"][one]["state"] for one in hung | good} == {"ready"}
    finally:
        for hold in holds:
            hold.set()


def test_the_bench_runs_with_few_specs(tmp_path: Path) -> None:
    """The measurement of the same works as shipped, and compares the two times."""
    few = ["--good", "3", "--hanging", "1", "--failing", "2", "--rounds", "1", "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(BENCH), *few], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 specs from the commit until all are served" in done.stdout
    assert "beside / alone: " in done.stdout
    assert list(tmp_path.iterdir()) == [], "what it made is gone"
