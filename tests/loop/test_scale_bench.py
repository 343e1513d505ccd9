"""The benchmark of ten thousand specs, run with a few: it works as shipped and says what it promises to."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import scale
from support.fabric import Fabric

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


def test_broken_promise_ends_a_full_run(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs it in a row of checks hears of it by the exit code; a smaller run promises nothing."""
    for specs, figure, expected in [(scale.FULL, 2.0, True), (scale.FULL, 1.0, False), (60, 2.0, False)]:
        bench = scale.Bench(fabric, specs, 50)
        bench.row("a figure", figure, "s", 1.0)
        bench.row("another", 9.0, "s")
        monkeypatch.setattr(scale, "run", lambda *_, bench=bench: bench)
        monkeypatch.setattr(sys, "argv", ["scale.py", "--folder", str(fabric.folder)])
        if expected:
            with pytest.raises(SystemExit, match="not as promised: a figure"):
                scale.main()
        else:
            scale.main()
