"""What a Prometheus sees of two fabrics while people commit, lease and collect, and things break: one story for the
module's tests, told once."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from observing.prom import Prometheus, prometheus
from support.fabric import Fabric, RunningDaemon
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

MAIN, OTHER = "envfabric-main", "envfabric-other"
KEEP_NOTHING = {
    "grace": 0,
    "generations": 1,
    "generation_age": 0,
    "trash_age": 0,
    "interval": 0,
    "scan": False,
}


@dataclass
class Scene:
    """What the tests look at once the story is told."""

    prometheus: Prometheus
    began: float
    exported: str = ""
    """What the writer answers on /metrics."""
    standby: str = ""
    """What the standby answers."""
    writer_at: str = ""
    standby_at: str = ""
    fired: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The alerts that were waited for."""
    quiet: set[str] = field(default_factory=set)
    """Those that fired before anything was broken."""


@contextlib.contextmanager
def told(folder: Path) -> Iterator[Scene]:
    """The scene, with Prometheus still running."""
    with contextlib.ExitStack() as stack:
        fabrics = []
        for name in ("main", "other"):
            place = folder / name
            place.mkdir()
            index = stack.enter_context(SimpleIndex(place / "packages"))
            for package in ("alpha", "beta", "gamma", "slow", "slower", "slowest", "lost"):
                # Each with bytecode of its own.
                index.add_wheel(package, "1.0", modules={f"{package}/__init__.py": f'NAME = "{package}"\n'})
            fabrics.append(Fabric(place, index, SpecRepo(place / "specs")))
            fabrics[-1].settings |= {
                "interval": 1,
                "builders": 1,
                "gc": KEEP_NOTHING,
                "prune": {"share": 1.0},
            }
            fabrics[-1].repo.spec("wf/first", ["alpha"])
            fabrics[-1].repo.commit()
        main, other = fabrics
        with contextlib.ExitStack() as daemons:
            writer = daemons.enter_context(main.daemon())
            writer.wait_for_index(main.repo.head)
            standby = daemons.enter_context(main.daemon())
            wait_for(lambda: standby.events("standby"), message="nobody stands by")
            failing = daemons.enter_context(other.daemon())
            failing.wait_for_index(other.repo.head)
            at = {one: one.url.removeprefix("http://") for one in (writer, standby, failing)}
            data = folder / "prometheus"
            data.mkdir()
            jobs = {MAIN: [at[writer], at[standby]], OTHER: [at[failing]]}
            seen = stack.enter_context(prometheus(data, jobs))
            scene = Scene(seen, time.time(), writer_at=at[writer], standby_at=at[standby])
            # Counters have to be seen before they grow.
            wait_for(lambda: seen.value("count(envfabric_writer)") == 3, message="not all are scraped")
            _ordinary_day(main, writer)
            _seen(seen, "envfabric_gc_removed_total", 1)
            _seen(seen, 'sum(envfabric_drift_total{kind="link"})', 1)
            _seen(seen, "envfabric_leases > 1", 2)
            wait_for(
                lambda: seen.value(f'envfabric_specs{{instance="{at[standby]}", state="ready"}}') == 4,
                message="the standby does not follow",
            )
            scene.exported, scene.standby = writer.get("/metrics")[1], standby.get("/metrics")[1]
            scene.quiet = set(seen.firing())
            _break(main, other, writer, scene)
        scene.fired["EnvfabricAbsent"] = seen.wait_firing("EnvfabricAbsent")
        yield scene


def _seen(prometheus: Prometheus, expr: str, value: float) -> None:
    wait_for(
        lambda: (prometheus.value(f"max({expr})") or 0) >= value, timeout=120, message=f"{expr} < {value}"
    )


def _ordinary_day(fabric: Fabric, daemon: RunningDaemon) -> None:
    """Commits, good and bad; a shared environment; a lease on the current and on the last; a collection; a hand."""
    repo = fabric.repo
    repo.spec("wf/same", ["alpha"])
    repo.spec("wf/moves", ["beta"])
    repo.spec("wf/leased", ["gamma"])
    repo.spec("wf/wrong", ["alpha==7"])
    daemon.wait_for_index(repo.commit())
    _lease(fabric, "wf/leased", "node-1")
    _lease(fabric, "wf/first", "node-2")
    repo.spec("wf/moves", ["beta", "alpha"])
    repo.spec("wf/leased", ["gamma", "alpha"])
    daemon.wait_for_index(repo.commit())
    done = fabric.command("gc", "--config", fabric.configure())
    assert done.returncode == 0, done.stderr
    link = fabric.root / "envs" / "wf" / "first"
    link.unlink()
    link.symlink_to("elsewhere")


def _lease(fabric: Fabric, spec_id: str, host: str) -> None:
    folder = fabric.root / "leases" / str(fabric.entry(spec_id)["serving"])
    folder.mkdir(exist_ok=True)
    told = {"schema": 1, "holder": f"{host}.1.a", "host": host, "pid": 1, "ttl": 3600, "what": "a test"}
    (folder / f"{host}.1.a").write_text(json.dumps(told))


def _break(main: Fabric, other: Fabric, writer: RunningDaemon, scene: Scene) -> None:
    """An index that is down, one that hangs, and a repository that is away, each for as long as its alert wants."""
    seen = scene.prometheus
    other.packages.fail_with = 503
    other.repo.spec("wf/lost", ["lost"])
    other.repo.commit()
    # More than there are slots for questions to uv.
    held = [main.packages.hold(name) for name in ("slow", "slower", "slowest")]
    for name in ("slow", "slower", "slowest"):
        main.repo.spec(f"wf/{name}", [name])
    main.repo.commit()
    wait_for(lambda: any("slow" in one for one in main.packages.requests), message="nobody asks for slow")
    git = main.repo.path / ".git"
    os.rename(git, git.with_name("away"))
    for alert, job in (
        ("EnvfabricReconcileStuck", MAIN),
        ("EnvfabricBuildsFailing", OTHER),
        ("EnvfabricIndexStale", MAIN),
    ):
        scene.fired[alert] = seen.wait_firing(alert, job)
    os.rename(git.with_name("away"), git)
    for one in held:
        one.set()
    scene.fired["EnvfabricPublishSlow"] = seen.wait_firing("EnvfabricPublishSlow", MAIN)
    wait_for(
        lambda: (
            not any(one["labels"]["job"] == MAIN for one in seen.firing().get("EnvfabricReconcileStuck", []))
        ),
        timeout=120,
        message="the alert does not end with its cause",
    )
    assert writer.process.poll() is None
