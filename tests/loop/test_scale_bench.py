"""The benchmark of ten thousand specs, run with a few: it works as shipped and says what it promises to."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "scale.py"
FIGURES = (
    "builds alone",
    "specs served, from an empty store",
    "beside the builds",
    "publications meanwhile",
    "memory at its most",
    "full reconcile",
    "to its first uv process",
    "writing the index",
    "a burst of",
    "a look that finds nothing new",
    "processor at rest",
    "a client's lookup",
)


def test_scale_bench_runs_with_few_specs(tmp_path: Path) -> None:
    """One command fills, restarts, commits and looks, and prints one table with every figure in it."""
    few = ["--specs", "60", "--sets", "3", "--rounds", "1", "--rest", "0.5", "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *few], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    for figure in FIGURES:
        assert figure in done.stdout
    assert list(tmp_path.iterdir()) == [], "what it made is gone"
