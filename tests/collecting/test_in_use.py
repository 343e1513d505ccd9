"""What is in use stays: a process that goes on importing, and a step of the daemon that has just found it."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from collecting.conftest import Keeping
from envfabric.service.daemon import Daemon
from envfabric.service.settings import load_settings
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.root import open_root
from store.small_venv import build
from support.waiting import wait_for

CODE = """\
import sys
print("ready", flush=True)
for line in sys.stdin:
    print(__import__(line.strip(), fromlist=["VALUE"]).VALUE, flush=True)
"""


@pytest.mark.parametrize("by", ["store", "envs"], ids=["by the closure's path", "by the path for people"])
def test_a_process_goes_on_importing_from_what_nothing_refers_to(own_keeping: Keeping, by: str) -> None:
    """New modules, while collections run over its closure; when it has ended the closure goes."""
    keeping = own_keeping
    modules = {"late/__init__.py": "VALUE = 0\n"} | {f"late/m{n}.py": f"VALUE = {n}\n" for n in range(4)}
    keeping.packages.add_wheel("late", "1.0", modules=modules)
    keeping.rules(scan=True)
    keeping.spec("wf/a", "late")
    keeping.make_true()
    closure = keeping.serving("wf/a")
    python = keeping.root / ("store" if by == "store" else "envs")
    python /= f"{closure if by == 'store' else 'wf/a'}/.venv/bin/python"
    with subprocess.Popen(
        [python, "-c", CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"

            def imports(module: str) -> str:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{module}\n")
                process.stdin.flush()
                return process.stdout.readline().strip()

            assert imports("late") == "0"
            keeping.spec("wf/a", "gamma")
            keeping.make_true()
            if by == "store":
                kept = keeping.dry_run()["kept"][closure]
                assert kept == ["a process of this host runs from it"]
            assert keeping.gc()["removed"] == []
            if by == "store":
                assert imports("late.m1") == "1"
            with keeping.maybe_daemon():
                assert keeping.gc()["removed"] == []
                if by == "store":
                    assert imports("late.m2") == "2"
            assert (keeping.root / "store" / closure / "manifest").exists()
        finally:
            process.kill()
    assert keeping.gc()["removed"] == [closure]


class Halt:
    """Stops the daemon at a step of the file seam until it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.armed = threading.Event()

    def __call__(self, operation: str, path: Path) -> None:
        # The first file of a generation: its closure is in the store, and nothing on ROOT names it yet.
        if self.armed.is_set() and operation == "write" and path.parent.name.startswith("generation-"):
            self.armed.clear()
            self.reached.set()
            assert self.go_on.wait(60)


def test_a_collection_between_build_and_generation_takes_nothing(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At that moment only the step's claim keeps the closure; a witness beside it goes by the same run."""
    home = keeping.fabric.environment["HOME"]
    monkeypatch.setenv("HOME", home)
    keeping.spec("wf/stays", "alpha")
    keeping.make_true()
    keeping.rules(interval=0.05)
    keeping.fabric.settings["interval"] = 0.05
    halt = Halt()
    daemon = Daemon(load_settings(keeping.fabric.configure(), {}), files=Files(halt))
    thread = threading.Thread(target=daemon.run, args=(lambda url: None,))
    thread.start()
    try:
        halt.armed.set()
        keeping.spec("wf/new", "gamma==1.0")
        keeping.repo.commit()
        assert halt.reached.wait(60)
        (new,) = keeping.stored() - {keeping.serving("wf/stays")}
        root = open_root(keeping.root)
        for number in range(2):
            # It comes after every digest in the alphabet: when it is gone the others were looked at.
            witness = f"z{number}"
            build(Closures(root, Files()), root, witness)
            wait_for(lambda w=witness: w not in keeping.stored(), message="no collection ran")  # type: ignore[misc]
            assert new in keeping.stored()
        halt.go_on.set()
        wait_for(lambda: "wf/new" in keeping.fabric.index()["python"], message="the spec is not served")
        assert keeping.serving("wf/new") == new
        keeping.repo.remove("wf/new")
        keeping.repo.commit()
        wait_for(lambda: new not in keeping.stored(), message="the claim outlives its step")
    finally:
        halt.go_on.set()
        daemon.stop()
        thread.join(60)
    assert not thread.is_alive()
