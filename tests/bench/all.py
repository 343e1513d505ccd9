"""Runs every bench, one after the other; each prints its tables.

    uv run python tests/bench/all.py [--quick] [--folder DIR] [--only NAME…]

With --quick the numbers are small: a look at whether all is well, not figures to be quoted. Each bench is a
process of its own. One that can't run here (exit code 2, with a sentence that says why) is passed over; where
another one fails, the exit code is 1 in the end.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
FULL: dict[str, tuple[str, ...]] = {
    "commit_to_index": (),
    "bytecode": (),
    "first_import": (),
    "operations": (),
    "sharing": (),
    "scale": (),
    "hanging": (),
    "soak": (),
    "ray_first_result": (),
    "ray_cluster_start": (),
}
"""Every bench with its arguments."""
QUICK: dict[str, tuple[str, ...]] = {
    "commit_to_index": ("--rounds", "1"),
    "bytecode": ("--rounds", "1", "numpy", "pandas"),
    "first_import": ("--rounds", "1", "numpy", "pandas"),
    "operations": ("numpy", "pandas"),
    "sharing": (
        *("--environments", "4", "--compiled", "1", "--copied", "1"),
        *("--base", "jinja2", "--pool", "rich", "attrs", "httpx", "tqdm", "pyyaml"),
    ),
    "scale": ("--specs", "200", "--sets", "5", "--rounds", "1", "--rest", "3"),
    "hanging": ("--good", "6", "--hanging", "2", "--failing", "2", "--rounds", "1"),
    "soak": ("--commits", "20"),
    "ray_first_result": ("--peers", "pip", "--peer-rounds", "1", "--rounds", "1", "humanize"),
    "ray_cluster_start": ("--peers", "pip", "--nodes", "2", "--workers", "2", "--rounds", "1", "humanize"),
}
_CANNOT = 2


def commands(names: Sequence[str], *, quick: bool, folder: Path | None) -> dict[str, list[str]]:
    """The command of each bench."""
    chosen = QUICK if quick else FULL
    found = {}
    for name in names:
        where = [] if folder is None else ["--folder", str(folder)]
        # What may take any number of values comes last.
        found[name] = [sys.executable, str(HERE / f"{name}.py"), *where, *chosen[name]]
    return found


def run(todo: dict[str, list[str]]) -> dict[str, str]:
    """Runs all of them; what came of each: done, passed over, or failed with its exit code."""
    outcomes = {}
    for name, command in todo.items():
        print(f"\n=== {name}: {' '.join(Path(part).name for part in command[1:])}\n", flush=True)
        began = time.monotonic()
        code = subprocess.run(command, check=False).returncode
        told = {0: "done", _CANNOT: "passed over"}.get(code, f"FAILED with exit code {code}")
        outcomes[name] = told
        print(f"\n{name}: {told} after {time.monotonic() - began:.0f} s", flush=True)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small numbers")
    parser.add_argument("--folder", type=Path, help="where to work; the temporary folder by default")
    parser.add_argument(
        "--only", nargs="+", choices=list(FULL), default=list(FULL), help="these benches only"
    )
    given = parser.parse_args()
    outcomes = run(commands(given.only, quick=given.quick, folder=given.folder))
    print("\n=== all:", ", ".join(f"{name} {told}" for name, told in outcomes.items()))
    raise SystemExit(1 if any(told.startswith("FAILED") for told in outcomes.values()) else 0)


if __name__ == "__main__":
    main()
