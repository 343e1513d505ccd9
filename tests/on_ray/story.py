"""What a user does on a cluster of two raylets, told as JSON: run by the tests as a program of its own.

    story.py REPORT OTHER_ROOT   with the cluster's variables in the environment

One cluster for all of it: it takes longer to start than what is done on it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.runtime_env import RuntimeEnv

import envfabric
from envfabric.client.driver import decide_for_tasks

ROOT = Path(os.environ["ENVFABRIC_ROOT"])
LIMIT = 100.0
"""Seconds for what works; what does not has to say so in ten."""
STORE = 80_000_000
TTL = 4.0
JOB = """
import humanize, ray, sys
ray.init(log_to_driver=False)
there = ray.get(ray.remote(lambda: sys.prefix).remote())
print("job", humanize.__version__, sys.prefix, there)
"""


def look() -> dict[str, Any]:
    """What a task sees of its environment, and a child process of it."""
    import humanize  # type: ignore[import-not-found]

    return {
        "prefix": sys.prefix,
        "version": humanize.__version__,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "mine": os.environ.get("MINE"),
        "virtual_env": os.environ["VIRTUAL_ENV"],
        "child": subprocess.check_output(
            ["python", "-c", "import sys; print(sys.prefix)"], text=True
        ).strip(),
    }


class Looker:
    """An actor, and a deployment."""

    def look(self) -> dict[str, Any]:
        return look()

    def __call__(self) -> str:
        return str(look()["version"])


def leases(spec_id: str) -> dict[str, float]:
    """Who leases a spec's closure, and when it was renewed last."""
    folder = ROOT / "leases" / Path(envfabric.python(spec_id)).parents[2].name
    try:
        return {path.name: path.stat().st_mtime for path in folder.iterdir() if not path.name.startswith(".")}
    except FileNotFoundError:
        return {}


def until(what: Callable[[], bool], limit: float = 60.0) -> bool:
    """Whether it became true."""
    end = time.monotonic() + limit
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def refused(runtime_env: dict[str, Any]) -> dict[str, Any]:
    """What becomes of a task that can't run."""
    begun = time.monotonic()
    try:
        found = ray.get(ray.remote(look).options(runtime_env=runtime_env).remote(), timeout=LIMIT)
    except Exception as error:
        return {
            "kind": type(error).__name__,
            "text": str(error),
            "seconds": time.monotonic() - begun,
        }
    return {"kind": "ran", "text": str(found), "seconds": time.monotonic() - begun}


def submit(dashboard: str | None, runtime_env: str, *entrypoint: str) -> dict[str, Any]:
    """`ray job submit`, as a user runs it."""
    words = ["--address", f"http://{dashboard}", "--runtime-env-json", runtime_env, "--", *entrypoint]
    done = subprocess.run(
        [Path(sys.executable).with_name("ray"), "job", "submit", *words], capture_output=True, text=True
    )
    return {"code": done.returncode, "text": done.stdout + done.stderr}


def digest(spec_id: str) -> str:
    return Path(envfabric.python(spec_id)).parents[2].name


def run(cluster: Cluster, second: Any, dashboard: str | None, other: Path) -> dict[str, Any]:
    """All of it, in an order in which nothing waits for what was done before."""
    told: dict[str, Any] = {}
    task: Any = ray.remote(look)
    actor: Any = ray.remote(Looker)
    moving = envfabric.runtime_env("wf/moves")
    wanted = {
        "old": envfabric.runtime_env("wf/old"),
        "new": envfabric.runtime_env("wf/new", env_vars={"MINE": "yes"}),
        # By hand; py_executable as a task inherits it from a job in another environment.
        "by hand": {"envfabric": f"wf/new@{digest('wf/new')}", "py_executable": envfabric.python("wf/old")},
    }
    told["two at once"] = {
        name: ray.get(one, timeout=LIMIT)
        for name, one in {
            name: task.options(runtime_env=env).remote() for name, env in wanted.items()
        }.items()
    }

    cases: dict[str, dict[str, Any]] = {
        "no digest": {"envfabric": "wf/new"},
        "no id": {"envfabric": "new"},
        "unknown option": {"envfabric": {"id": "wf/new", "digset": "x"}},
        "pip": {**envfabric.runtime_env("wf/new"), "pip": ["six"]},
        "gone": {"envfabric": "wf/new@0123"},
        "no ray": {"envfabric": f"wf/none@{digest('wf/none')}"},
        "other ray": {"envfabric": f"wf/other@{digest('wf/other')}"},
        "no interpreter": {"envfabric": {"id": "wf/new", "digest": "bare", "root": str(other)}},
        "not mounted": {"envfabric": {"id": "wf/new", "digest": "x", "root": f"{other}/nothing"}},
        "hung": {"envfabric": {"id": "wf/new", "digest": "hung", "root": str(other)}},
    }
    told["refused"] = {name: refused(case) for name, case in cases.items()}

    made = actor.options(runtime_env=envfabric.runtime_env("wf/actor", envfabric={"ttl": TTL})).remote()
    seen = ray.get(made.look.remote(), timeout=LIMIT)
    (holder,) = leases("wf/actor")
    first = leases("wf/actor")[holder]
    renewed = until(lambda: leases("wf/actor").get(holder, 0) > first)
    content = json.loads((ROOT / "leases" / digest("wf/actor") / holder).read_bytes())
    ray.kill(made)
    told["actor"] = {
        **seen,
        "renewed": renewed,
        "lease": content,
        "given back": until(lambda: not leases("wf/actor")),
    }

    before = ray.get(task.options(runtime_env=moving).remote(), timeout=LIMIT)
    config = ROOT.parent / "envfabric.toml"
    words = ["rollback", "wf/moves", "--to", "1", "--config", str(config)]
    done = subprocess.run([sys.executable, "-m", "envfabric", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = ray.get(task.options(runtime_env=envfabric.runtime_env("wf/moves")).remote(), timeout=LIMIT)
    told["generations"] = [before["version"], after["version"]]

    # From here on this driver decides for what is written by hand.
    decide_for_tasks()
    told["decided"] = dict(RuntimeEnv(envfabric="wf/new"))
    told["decided ran"] = ray.get(task.options(runtime_env={"envfabric": "wf/new"}).remote(), timeout=LIMIT)

    deployment: Any = serve.deployment(
        Looker, ray_actor_options={"runtime_env": envfabric.runtime_env("wf/new")}
    )
    told["serve"] = serve.run(deployment.bind()).remote().result(timeout_s=LIMIT)
    serve.shutdown()  # type: ignore[no-untyped-call]

    printed = subprocess.check_output([sys.executable, "-m", "envfabric", "runtime-env", "wf/new"], text=True)
    told["job"] = submit(dashboard, printed, "python", "-c", JOB)
    told["job refused"] = submit(dashboard, json.dumps(cases["no ray"]), "true")
    told["job undecided"] = submit(dashboard, json.dumps(cases["no digest"]), "true")

    there = envfabric.runtime_env("wf/actor", envfabric={"ttl": TTL})
    lost = actor.options(resources={"second": 1}, runtime_env=there).remote()
    ray.get(lost.look.remote(), timeout=LIMIT)
    (holder,) = leases("wf/actor")
    cluster.remove_node(second, allow_graceful=False)
    told["killed"] = {
        "left behind": holder in leases("wf/actor"),
        "ended": until(lambda: leases("wf/actor").get(holder, 0) + TTL < time.time(), 60),
    }
    return told


def main(report: str, other: str) -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 3,
            "object_store_memory": STORE,
            "include_dashboard": True,
            "dashboard_port": 0,
        },
    )
    second = cluster.add_node(num_cpus=1, object_store_memory=STORE, resources={"second": 1})
    context = ray.init(address=cluster.address, log_to_driver=False)
    told = run(cluster, second, context.dashboard_url, Path(other))
    Path(report).write_text(json.dumps(told))
    # Whoever runs this ends the cluster; Ray's own way out takes long, and fails for the raylet that was killed.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
