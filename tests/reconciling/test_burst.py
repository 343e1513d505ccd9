"""A hundred commits in a second end at the last one, and what lay between them costs next to nothing."""

import os
import subprocess

from envfabric.core.errors import Reason
from support.children import Child, uv_children
from support.fabric import Fabric, RunningDaemon
from support.spec_repo import SpecRepo
from support.waiting import wait_for

COMMITS = 100


def commits(repo: SpecRepo, count: int) -> list[str]:
    """Commits on top of each other, each with another requirement of wf/a, on no branch yet."""
    stream = []
    for number in range(count):
        text = f'[project]\nname = "wf-a"\nversion = "0.{number}"\nrequires-python = ">=3.11"\n'
        text += f'dependencies = ["burst-{number}"]\n'
        parent = f"from {repo.head}" if number == 0 else f"from :{number}"
        stream += [
            f"commit refs/heads/burst\nmark :{number + 1}\ncommitter a <a@example.com> {1700000000 + number} +0000"
        ]
        stream += [f"data 1\nx\n{parent}\nM 100644 inline wf/a/pyproject.toml\ndata {len(text)}\n{text}"]
    marks = repo.path / ".git" / "burst-marks"
    command = ["git", "fast-import", "--quiet", f"--export-marks={marks}"]
    done = subprocess.run(command, cwd=repo.path, input="\n".join(stream) + "\n", text=True, check=False)
    assert done.returncode == 0
    found = dict(line.split() for line in marks.read_text().splitlines())
    return [found[f":{number + 1}"] for number in range(count)]


def failures(daemon: RunningDaemon) -> float:
    return sum(daemon.metric("envfabric_build_failures_total", reason=one.value) for one in Reason)


def test_hundred_commits_in_a_second_end_at_the_last(fabric: Fabric) -> None:
    """While nothing can be resolved, each commit's work replaces the last one's: one build is made, the newest's."""
    fabric.settings["builders"] = 2
    for number in range(COMMITS):
        fabric.packages.add_wheel(f"burst-{number}", "1.0")
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.spec("wf/b", ["alpha"])
    first = fabric.repo.commit()
    burst = commits(fabric.repo, COMMITS)
    with fabric.daemon() as daemon:
        daemon.wait_for_index(first)
        before = daemon.metric("envfabric_builds_total")
        hold = fabric.packages.hold()
        try:
            for commit in burst:
                subprocess.run(
                    ["git", "update-ref", "refs/heads/main", commit], cwd=fabric.repo.path, check=True
                )
            wait_for(lambda: fabric.index()["revision"] == burst[-1] or None, message="the last is not seen")

            def only_one() -> list[Child] | None:
                found = uv_children(daemon.process.pid, "lock")
                waiting = daemon.metric("envfabric_build_queue_length")
                return found if len(found) == 1 and waiting == 0 else None

            newest = wait_for(only_one, message="older resolutions still run, or the newest does not")
            project = os.readlink(f"/proc/{newest[0].pid}/cwd")
            with open(f"{project}/pyproject.toml") as file:
                assert f"burst-{COMMITS - 1}" in file.read()
        finally:
            hold.set()
        index = daemon.wait_for_index(burst[-1])
        assert {one: entry["state"] for one, entry in index["environments"].items()} == {
            "wf/a": "ready",
            "wf/b": "ready",
        }
        assert index["environments"]["wf/a"]["generation"] == 2
        fabric.python("wf/a", f"import burst_{COMMITS - 1}")
        daemon.wait_for_metric("envfabric_builds_in_progress", 0)
        daemon.wait_for_metric("envfabric_build_queue_length", 0)
        daemon.wait_for_metric("envfabric_specs", 2, state="ready")
        assert daemon.metric("envfabric_builds_total") == before + 1
        assert failures(daemon) == 0
        told = [one["commit"] for one in daemon.events("revision")]
        assert told[0] == first
        assert told[-1] == burst[-1]
        assert len(daemon.events("superseded")) <= len(told) - 2
        wait_for(lambda: not list((fabric.root / "staging").iterdir()), message="staging is not empty")
