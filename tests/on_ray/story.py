"""What a user does on a cluster of two raylets, one of them without the plugin, told as JSON: run by the tests.

    story.py REPORT OTHER_ROOT   with the cluster's variables in the environment

One cluster for all of it: it takes longer to start than what is done on it. Serve, Data and the `ray job submit`
command are played by recipes_story.py, a raylet that is killed by leases_story.py.
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.runtime_env import RuntimeEnv

import envfabric

ROOT = Path(os.environ["ENVFABRIC_ROOT"])
DOCUMENT = Path(__file__).parents[2] / "docs/ray.md"
LIMIT = 100.0
"""Seconds for what works."""
SOON, ALONE = 10.0, 2
"""Seconds in which what does not work has to say so; and how often it is timed alone where it took longer among many
others, on a machine with other work."""
STORE = 80_000_000
TTL = 3.0
PLUGGED = {"plugged": 0.01}
"""Of the node that has the plugin."""


def look() -> dict[str, Any]:
    """What a task sees of its environment, and a child process of it."""
    import humanize  # type: ignore[import-not-found]

    code = "import humanize, sys; print(sys.prefix, humanize.__version__)"
    return {
        "prefix": sys.prefix,
        "version": humanize.__version__,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "mine": os.environ.get("MINE"),
        "virtual_env": os.environ["VIRTUAL_ENV"],
        "child": subprocess.check_output(["python", "-c", code], text=True).split(),
    }


def look_at(*modules: str) -> dict[str, Any]:
    """`look`, and which of some modules can be imported, and what else the working directory has."""
    found = []
    for name in modules:
        try:
            found.append(__import__(name).__name__)
        except ImportError:
            continue
    here = sorted(name for name in os.listdir() if name.endswith((".log", ".txt")))
    return {**look(), "imported": found, "files": here}


def where() -> str:
    """sys.prefix, which the node's own Python has, too."""
    return sys.prefix


class Looker:
    """An actor."""

    def look(self) -> dict[str, Any]:
        return look()


def leases(spec_id: str) -> dict[str, float]:
    """Who leases a spec's closure, and when it was renewed last."""
    folder = ROOT / "leases" / digest(spec_id)
    try:
        return {path.name: path.stat().st_mtime for path in folder.iterdir() if not path.name.startswith(".")}
    except FileNotFoundError:
        return {}


def digest(spec_id: str) -> str:
    return Path(envfabric.python(spec_id)).parents[2].name


def until(what: Callable[[], bool], limit: float = 60.0) -> bool:
    """Whether it became true."""
    end = time.monotonic() + limit
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def refused(attempt: Callable[[], object]) -> dict[str, Any]:
    """What becomes of what can't be."""
    begun = time.monotonic()
    try:
        kind, text = "ran", str(attempt())
    except Exception as error:
        kind, text = type(error).__name__, str(error)
    return {"kind": kind, "text": text, "seconds": time.monotonic() - begun}


def submitted(client: JobSubmissionClient, runtime_env: dict[str, Any]) -> str:
    """A job, as `ray job submit` submits it. Raises what it says of itself where it fails."""
    job = client.submit_job(entrypoint="true", runtime_env=runtime_env)
    ended = until(lambda: client.get_job_status(job).is_terminal(), LIMIT)
    told = client.get_job_info(job)
    if ended and told.status == JobStatus.FAILED:
        raise RuntimeError(told.message)
    return f"{told.status}: {told.message}"


def cases(other: Path) -> dict[str, Any]:
    """What must not be run, as the value of the key, or as a runtime_env."""

    def there(name: str) -> dict[str, str]:
        return {"id": "wf/new", "digest": name, "root": str(other)}

    return {
        "no digest": "wf/new",
        "unknown": "wf/nowhere",
        "no id": "new",
        "unknown option": {"id": "wf/new", "digset": "x"},
        "gone": "wf/new@0123",
        "no ray": f"wf/none@{digest('wf/none')}",
        "other ray": f"wf/other@{digest('wf/other')}",
        "not mounted": {"id": "wf/new", "digest": "x", "root": f"{other}/nothing"},
        "no interpreter": there("bare"),
        "foreign ray": there("foreign"),
        "foreign interpreter": there("alien"),
        "does not start": there("ends"),
        "other base": there("other-base"),
        "lost ray": there("lost"),
        "other python": there("minor"),
        "hung": there("hung"),
    }


def here(value: Any) -> dict[str, Any]:
    """The same, asked of the client."""
    if isinstance(value, str):
        return envfabric.runtime_env(value)
    return envfabric.runtime_env(f"{value['id']}@{value['digest']}", root=value["root"])


def all_refused(dashboard: str | None, other: Path) -> dict[str, dict[str, Any]]:
    """Each case by a task, an actor, a job and the client, many at once: what they do is to wait."""
    task: Any = ray.remote(num_cpus=0, resources=PLUGGED)(look)
    actor: Any = ray.remote(num_cpus=0, resources=PLUGGED)(Looker)
    client = JobSubmissionClient(f"http://{dashboard}")
    envs = {name: {"envfabric": value} for name, value in cases(other).items()}
    envs["pip"] = {**envfabric.runtime_env("wf/new"), "pip": ["six"]}

    def by_task(env: dict[str, Any]) -> object:
        return ray.get(task.options(runtime_env=env).remote(), timeout=LIMIT)

    def by_actor(env: dict[str, Any]) -> object:
        # Not the failure that Ray remembers of the task's.
        mine = {**env, "env_vars": {**env.get("env_vars", {}), "BY": "actor"}}
        return ray.get(actor.options(runtime_env=mine).remote().look.remote(), timeout=LIMIT)

    def by_job(env: dict[str, Any]) -> object:
        return submitted(client, {**env, "env_vars": {**env.get("env_vars", {}), "BY": "job"}})

    def by_client(env: dict[str, Any]) -> object:
        return here(env["envfabric"])

    ways = {"task": by_task, "actor": by_actor, "job": by_job, "client": by_client}
    # The longest first. Ray sets ten runtime_envs up at once on a node: a further one would be timed while it queues.
    names = sorted(envs, key=lambda name: name != "hung")
    with ThreadPoolExecutor(9) as pool:
        waits = {
            name: {way: pool.submit(refused, functools.partial(how, envs[name])) for way, how in ways.items()}
            for name in names
        }
        found = {name: {way: one.result() for way, one in all_of.items()} for name, all_of in waits.items()}
    # How soon it is said is a promise for each by itself: what was late among many is timed once more, alone.
    for name, all_of in found.items():
        for way, one in all_of.items():
            for number in range(ALONE):
                if one["seconds"] < SOON:
                    break
                again = {**envs[name], "env_vars": {**envs[name].get("env_vars", {}), "AGAIN": str(number)}}
                one |= refused(functools.partial(ways[way], again)) | {"alone": number + 1}
    return found


def shipped() -> dict[str, str]:
    """Folders of a user: one that becomes the working_dir, one with a module."""
    folders = {"working_dir": "shipped/code", "module": "shipped/of_modules"}
    for folder in folders.values():
        Path(folder).mkdir(parents=True)
    Path("shipped/code/of_the_folder.py").write_text("")
    Path("shipped/code/kept.txt").write_text("")
    Path("shipped/code/left.log").write_text("")
    Path("shipped/of_modules/__init__.py").write_text("")
    return folders


def example(address: str) -> str:
    """What the document's program prints, run as it stands there for an environment that is here."""
    block = DOCUMENT.read_text().partition("```python\n")[2].partition("```")[0]
    program = Path("example.py")
    program.write_text(block.replace("forecast/score", "wf/moves").replace("/mnt/nas", str(ROOT)))
    done = subprocess.run(
        [sys.executable, program],
        env=os.environ | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run(cluster: Cluster, dashboard: str | None, other: Path) -> dict[str, Any]:
    """All of it, in an order in which nothing waits for what was done before."""
    told: dict[str, Any] = {"took": {}}
    begun = time.monotonic()

    def part(name: str) -> None:
        """Keeps the seconds of a part, for whoever makes it faster."""
        nonlocal begun
        told["took"][name] = round(time.monotonic() - begun, 1)
        begun = time.monotonic()

    task: Any = ray.remote(look_at)
    actor: Any = ray.remote(Looker)
    modules = ("of_the_spec", "of_the_folder", "of_modules")
    new = f"wf/new@{digest('wf/new')}"
    plain = {"num_cpus": 0, "resources": {"plain": 1}}
    refs = {
        "old": task.options(runtime_env=envfabric.runtime_env("wf/old")).remote(*modules),
        "new": task.options(runtime_env=envfabric.runtime_env("wf/new")).remote(),
        # py_executable as a task inherits it from a job in another environment.
        "by hand": task.options(
            runtime_env={"envfabric": new, "py_executable": envfabric.python("wf/old")}
        ).remote(),
        "no plugin": task.options(runtime_env=envfabric.runtime_env("wf/new"), **plain).remote(),
        "no plugin, by hand": ray.remote(where).options(runtime_env={"envfabric": new}, **plain).remote(),
        "moves": task.options(runtime_env=envfabric.runtime_env("wf/moves")).remote(),
    }
    told["ran"] = {name: ray.get(ref, timeout=LIMIT) for name, ref in refs.items()}
    told["own prefix"] = sys.prefix
    part("tasks")

    told["refused"] = all_refused(dashboard, other)
    part("refused")

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
    part("actor")

    config = ROOT.parent / "envfabric.toml"
    words = ["rollback", "wf/moves", "--to", "1", "--config", str(config)]
    done = subprocess.run([sys.executable, "-m", "envfabric", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told["generations"] = [told["ran"]["moves"]["version"], example(cluster.address)]
    part("generations")

    # Another driver, which decides for what is written by hand; and Ray ships folders for a job only.
    folders = shipped()
    together = {
        "envfabric": "wf/new",
        "env_vars": {"MINE": "yes"},
        "working_dir": folders["working_dir"],
        "py_modules": [folders["module"]],
    }
    ray.shutdown()
    os.environ["RAY_RUNTIME_ENV_HOOK"] = "envfabric.client.driver.hook"
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=together)
    told["decided"] = dict(RuntimeEnv(envfabric="wf/new"))
    task = ray.remote(look_at)
    own = task.options(runtime_env={"envfabric": "wf/old"}, **plain).remote(*modules)
    told["hook"] = {
        "job": ray.get(task.remote(*modules), timeout=LIMIT),
        "task": ray.get(own, timeout=LIMIT),
    }
    part("hook")
    return told


def main(report: str, other: str) -> None:
    begun = time.monotonic()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4,
            "resources": {"plugged": 1},
            "object_store_memory": STORE,
            "include_dashboard": True,
            "dashboard_port": 0,
        },
    )
    cluster.add_node(
        num_cpus=0,
        object_store_memory=STORE,
        resources={"plain": 2},
        env_vars={"RAY_RUNTIME_ENV_PLUGINS": "[]"},
    )
    context = ray.init(address=cluster.address, log_to_driver=False)
    started = time.monotonic() - begun
    told = run(cluster, context.dashboard_url, Path(other))
    told["took"]["start"] = round(started, 1)
    Path(report).write_text(json.dumps(told))
    # Whoever runs this ends the cluster; Ray's own way out takes long.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
