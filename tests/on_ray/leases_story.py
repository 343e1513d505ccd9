"""What keeps an environment that nothing but a Ray actor on another raylet uses, told as JSON: run by the tests.

    leases_story.py REPORT CONFIG SPECS   with the cluster's variables in the environment

A daemon watches the spec repository meanwhile; collections are ordered from it.
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
from ray.cluster_utils import Cluster

import envfabric

ROOT = Path(os.environ["ENVFABRIC_ROOT"])
LIMIT = 120.0
STORE = 80_000_000
TTL = 18.0
"""Of the lease whose node dies. Renewed every 6 s until then, and waited for: no clock is turned back."""
LONG = 600.0
"""Of the other one: longer than all of this takes on the slowest machine, so that what ends it is the actor's end."""


class Actor:
    """What goes on in an environment after its spec was removed."""

    def look(self, module: str) -> dict[str, Any]:
        """Imports something that was not read before."""
        __import__(module)
        return {"prefix": sys.prefix, "file": sys.modules[module].__file__, "pid": os.getpid()}


def until(what: Callable[[], bool]) -> None:
    """Waits; raises `TimeoutError`."""
    end = time.monotonic() + LIMIT
    while not what():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.1)


def leases(name: str) -> dict[str, float]:
    """Who leases a closure, and when that was renewed last, by the server's clock."""
    try:
        found = [one for one in (ROOT / "leases" / name).iterdir() if not one.name.startswith(".")]
        return {path.name: path.stat().st_mtime for path in found}
    except FileNotFoundError:
        return {}


def server_now() -> float:
    path = ROOT / "leases" / ".now"
    path.write_text(".")
    found = path.stat().st_mtime
    path.unlink()
    return found


def stored() -> list[str]:
    return sorted(name for name in os.listdir(ROOT / "store") if not name.startswith("."))


def say(*words: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "envfabric", *words, "--json"], capture_output=True, text=True
    )
    assert done.returncode in codes, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def collect(config: str) -> dict[str, Any]:
    """`envfabric gc`, and what is in the store then."""
    told = say("gc", "--config", config)
    return {"removed": told["removed"], "kept": told["kept"], "stored": stored(), "at": server_now()}


def remove(specs: Path, *ids: str) -> None:
    """Commits their removal, and waits until the daemon has published that."""
    git = ["git", "-C", str(specs), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run([*git, "rm", "-rq", *ids], check=True)
    subprocess.run([*git, "commit", "-qm", "removed"], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()

    def published() -> bool:
        index = json.loads((ROOT / "index.json").read_bytes())
        return bool(index["revision"] == head and index["complete"])

    until(published)


def run(cluster: Cluster, second: Any, config: str, specs: Path) -> dict[str, Any]:
    names = {one: Path(envfabric.python(f"wf/{one}")).parents[2].name for one in ("ends", "dies", "stays")}
    told: dict[str, Any] = {"names": names}
    remote: Any = ray.remote(Actor)
    actors = {
        one: remote.options(
            num_cpus=1,
            resources={"second": 1},
            runtime_env=envfabric.runtime_env(f"wf/{one}", envfabric={"ttl": ttl}),
        ).remote()
        for one, ttl in (("ends", LONG), ("dies", TTL))
    }
    told["before"] = {one: ray.get(actor.look.remote("ray"), timeout=LIMIT) for one, actor in actors.items()}
    remove(specs, "wf/ends", "wf/dies")
    told["used"] = collect(config)
    told["status"] = say("status")["in_use"]
    told["doctor"] = say("doctor", "--ray", codes=(0, 1))["findings"]
    told["after"] = {
        one: ray.get(actor.look.remote("jsonschema"), timeout=LIMIT) for one, actor in actors.items()
    }
    ray.kill(actors["ends"])
    until(lambda: not leases(names["ends"]))
    told["ended"] = collect(config)

    cluster.remove_node(second, allow_graceful=False)
    (renewed,) = leases(names["dies"]).values()
    told["died"] = collect(config) | {"ends": renewed + TTL}
    # The agent sees that its raylet is gone a moment later, and may renew once more; for ever it would fail this.
    until(lambda: all(server_now() > at + TTL for at in leases(names["dies"]).values()))
    told["over"] = collect(config)
    told["left"] = {one: os.path.lexists(ROOT / "leases" / names[one]) for one in ("ends", "dies")}
    return told


def main(report: str, config: str, specs: str) -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False},
    )
    second = cluster.add_node(num_cpus=2, object_store_memory=STORE, resources={"second": 2})
    ray.init(address=cluster.address, log_to_driver=False)
    told = run(cluster, second, config, Path(specs))
    Path(report).write_text(json.dumps(told))
    # Whoever runs this ends the cluster; Ray's own way out takes long, and fails for the raylet that was killed.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
