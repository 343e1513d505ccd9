"""Kills the daemon with SIGKILL again and again, at drawn moments of its work, and proves what is left each time.

    uv run python tests/faults/kill_rounds.py --rounds 300 [--seed N] [--minutes M] [--keep]

What a round is, and what the report says: docs/faults.md. Exit code 0: every round ended well and, with 300
rounds or more, every kind of step was hit; 1: one did not, or a kind was never hit. Needs no root and no
network besides 127.0.0.1.
"""

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envfabric.store.files import Files
from faults.rounds import FULL, Failed, Result, play


def main() -> int:
    """Runs the command; gives its exit code."""
    parser = argparse.ArgumentParser(description="Kill the daemon at drawn moments, and prove what is left.")
    parser.add_argument("--rounds", type=int, default=FULL, metavar="N", help=f"rounds to play ({FULL})")
    parser.add_argument("--minutes", type=float, metavar="M", help="play for this long instead")
    parser.add_argument("--seed", type=int, metavar="N", help="draw the same moments as the run that said so")
    parser.add_argument("--keep", action="store_true", help="leave the fabric where it is")
    parser.add_argument("--quiet", action="store_true", help="no line for each round")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    # Its path may have no other characters than ROOT's: not TMPDIR, which may be anything.
    folder = Path(tempfile.mkdtemp(prefix="envfabric-faults-", dir="/tmp"))
    print(f"seed {seed}, in {folder}", flush=True)
    began = time.monotonic()

    def tell(line: str) -> None:
        if not arguments.quiet:
            print(f"{time.monotonic() - began:7.1f} s  {line}", flush=True)

    kept = arguments.keep
    try:
        result = play(folder, rounds=arguments.rounds, minutes=arguments.minutes, seed=seed, tell=tell)
    except Failed as failed:
        kept = True
        print(f"FAILED: {failed}\nThe fabric and the daemons' log are in {folder}", flush=True)
        return 1
    finally:
        if not kept:
            # Not shutil's: an ordinary user can't remove what is in a sealed folder.
            Files().remove_tree(folder)
    return report(result)


def report(result: Result) -> int:
    """Prints what a run came to; gives the exit code."""
    drawing = result.drawing
    print("\n".join(drawing.report()))
    done = ", ".join(f"{name} {number}" for name, number in sorted(result.operations.items()))
    print(f"rounds: {result.rounds} ({done})")
    print(f"kills: {result.kills} in {len(drawing.seen) - len(drawing.unhit)} of {len(drawing.seen)} kinds")
    print(f"moments that did not come: {result.missed}")
    print(f"restarts killed, too: {result.restarts_killed}")
    print(f"uv processes that outlived their daemon into the next one: {result.outlived}")
    print(f"indexes read meanwhile: {result.looks}")
    print(f"seconds: {result.seconds:.0f}")
    if result.rounds >= FULL and (drawing.unhit or not result.outlived or not result.restarts_killed):
        print(f"FAILED: never hit: {', '.join(drawing.unhit) or 'no uv that outlived, or no restart'}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
