"""Plain processes, from Python and from a shell, and Celery."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from recipes.written import commands
from support.fabric import Fabric
from support.waiting import wait_for

SEEN = """
import json, os, subprocess, sys
import httpx
child = subprocess.check_output(["python", "-c", "import sys; print(sys.prefix)"], text=True).strip()
print(json.dumps([sys.prefix, child, os.environ["VIRTUAL_ENV"], sys.argv[1:]]))
"""
BROKER = """
broker_url = "filesystem://"
broker_transport_options = {{
    "data_folder_in": {folder!r}, "data_folder_out": {folder!r}, "control_folder": {folder!r} + "/control",
}}
result_backend = "file://" + {folder!r} + "/results"
worker_pool = "solo"
"""


def prefix_of(fabric: Fabric, spec_id: str) -> str:
    """sys.prefix in the environment that the index names."""
    return str(Path(fabric.index()["python"][spec_id]).parents[1])


def leases(fabric: Fabric, spec_id: str) -> list[Path]:
    """Who leases a spec's closure."""
    folder = fabric.root / "leases" / Path(fabric.index()["python"][spec_id]).parents[2].name
    return [path for path in folder.glob("*") if not path.name.startswith(".")]


@contextmanager
def running(command: str, here: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command in the background, in a group of its own; what is left of it in the end is killed."""
    with (here / "log").open("ab") as log:
        process = subprocess.Popen(
            shlex.split(command), cwd=here, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("name", ["run_in_environment.py", "run_in_environment.sh"])
def test_plain_process_runs_in_the_environment(
    recipe_fabric: Fabric, here: Path, variables: dict[str, str], name: str
) -> None:
    """The command that the recipe tells runs in what the index serves, child processes too, and gets its arguments;
    its exit code is the caller's."""
    (command,) = commands(name)
    command = command.replace("ENVFABRIC_ROOT=/mnt/nas ", "")
    (here / "extract.py").write_text(SEEN)
    done = subprocess.run(
        shlex.split(command), cwd=here, env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    prefix = prefix_of(recipe_fabric, "etl/extract")
    assert json.loads(done.stdout) == [prefix, prefix, prefix, ["--day", "2026-01-31"]]
    (here / "extract.py").write_text("raise SystemExit(3)")
    assert subprocess.run(shlex.split(command), cwd=here, env=variables, timeout=60).returncode == 3
    assert leases(recipe_fabric, "etl/extract") == []


def test_process_that_is_terminated_gives_its_lease_back(
    recipe_fabric: Fabric, here: Path, variables: dict[str, str]
) -> None:
    """While run_in_environment.py runs, the environment is leased; SIGTERM reaches the program in it, which ends in its
    own way, and then the lease is given back."""
    code = "import signal, time; signal.signal(15, lambda *_: exit(7)); open('up', 'w'); time.sleep(600)"
    command = f"{sys.executable} run_in_environment.py etl/extract -c {shlex.quote(code)}"
    with running(command, here, variables) as process:
        wait_for((here / "up").exists, message=(here / "log").read_text() or "the program does not run")
        (held,) = leases(recipe_fabric, "etl/extract")
        assert json.loads(held.read_bytes())["what"].startswith("etl/extract: -c import signal")
        process.terminate()
        assert process.wait(timeout=60) == 7
        assert leases(recipe_fabric, "etl/extract") == []


def test_celery_has_a_queue_for_each_environment(
    recipe_fabric: Fabric, here: Path, tmp_path: Path, variables: dict[str, str]
) -> None:
    """Each worker that celery_app.py tells to start serves its queue in its own environment, with conflicting versions
    of one package, and leases it; SIGTERM ends it in order."""
    broker = tmp_path / "broker"
    (broker / "results").mkdir(parents=True)
    (here / "celeryconfig.py").write_text(BROKER.format(folder=str(broker)))
    daily, legacy, send = commands("celery_app.py")
    sent = f"[{send}, {send.replace('reports.daily', 'reports.legacy')}]"
    got = f"import json, celery_app\nprint(json.dumps([one.get(timeout=90) for one in {sent}]))"
    with ExitStack() as stack:
        workers = [stack.enter_context(running(one, here, variables)) for one in (daily, legacy)]
        sender = recipe_fabric.index()["python"]["reports/daily"]
        done = subprocess.run(
            [sender, "-c", got], cwd=here, env=variables, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr + (here / "log").read_text()
        told = json.loads(done.stdout)
        assert [one["words"] for one in told] == ["1,234,567"] * 2
        assert [one["version"] for one in told] == ["4.12.0", "4.9.0"]
        ids = ("reports/daily", "reports/legacy")
        assert [one["where"] for one in told] == [prefix_of(recipe_fabric, spec_id) for spec_id in ids]
        assert [len(leases(recipe_fabric, spec_id)) for spec_id in ids] == [1, 1]
        for worker in workers:
            worker.terminate()
        assert [worker.wait(timeout=60) for worker in workers] == [0, 0], (here / "log").read_text()
    assert [leases(recipe_fabric, spec_id) for spec_id in ids] == [[], []]
