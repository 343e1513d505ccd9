"""A consumer on one node, in a process of its own: it looks again and again, and says what it saw and when.

    observer.py first ROOT ID MODULE       until the index has ID, then until its interpreter imports MODULE
    observer.py flip ROOT ID --way WAY     until the index and the link in envs/ lead to another closure
    observer.py use ROOT ID --ttl SECONDS  runs from what ID serves, under a lease, and does what stdin says

It prints one JSON object a line, with the time (seconds since 1970) at which the look that saw it began;
`ready` says that what comes now will be watched. It reads, and writes nothing but its lease. A client's memory
of names is the kernel's, not the process's: what one observer has looked at, the next one finds known.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from envfabric.client.index import EnvfabricError, read_index
from envfabric.client.leases import lease

PAUSE = 0.1
"""Seconds between two looks."""

CONSUMER = """
import importlib, os, sys
import beta
kept = open(os.path.join(os.path.dirname(beta.__file__), "kept.py"), "rb", buffering=0)
print("runs", flush=True)
for line in sys.stdin:
    try:
        if line.strip() == "read":
            kept.read()
            print("whole", flush=True)
        else:
            importlib.import_module(line.split()[1])
            print("imported", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
"""
"""What runs from the closure: it has imported one package, opened a file of it, and goes on when it is told."""


def say(event: str, at: float, **details: float | str) -> None:
    """One line for whoever started this process."""
    print(json.dumps({"event": event, "at": at, **details}), flush=True)


def interpreter(root: Path, spec_id: str, *, reader: bool) -> str | None:
    """The path that the index gives for an id, by the project's reader or by a plain open of index.json."""
    with contextlib.suppress(EnvfabricError, OSError):
        index = read_index(root) if reader else json.loads((root / "index.json").read_bytes())
        path: str | None = index["python"].get(spec_id)
        return path
    return None


def link_target(root: Path, spec_id: str, *, open_folder: bool) -> str | None:
    """Where the link envs/<id> leads, read plainly or after its folder was opened."""
    link = root / "envs" / spec_id
    with contextlib.suppress(OSError):
        if open_folder:
            os.close(os.open(link.parent, os.O_RDONLY | os.O_DIRECTORY))
        return os.readlink(link)
    return None


def first(root: Path, spec_id: str, module: str) -> None:
    """From nothing published to an interpreter that runs."""
    interpreter(root, spec_id, reader=True)
    say("ready", time.time())
    while True:
        looked = time.time()
        path = interpreter(root, spec_id, reader=True)
        if path:
            break
        time.sleep(PAUSE)
    say("index", looked)
    while True:
        began = time.time()
        done = subprocess.run([path, "-c", f"import {module}"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            say("runs", began, seconds=time.time() - began)
            return
        say("fails", began, error=done.stderr.strip())
        time.sleep(PAUSE)


def flip(root: Path, spec_id: str, way: str, seconds: float) -> None:
    """Looks plainly for `seconds`, says `ready`, and then looks in the `way` until both lead elsewhere.

    `held` looks plainly, too, while this process keeps the old index.json open.
    """
    folder_first = way == "folder"
    old = (
        interpreter(root, spec_id, reader=folder_first),
        link_target(root, spec_id, open_folder=folder_first),
    )
    warm_until = time.monotonic() + seconds
    while time.monotonic() < warm_until:
        interpreter(root, spec_id, reader=False)
        link_target(root, spec_id, open_folder=False)
        time.sleep(PAUSE)
    with contextlib.ExitStack() as held:
        if way == "held":
            held.enter_context((root / "index.json").open("rb"))
        say("ready", time.time())
        missing = {"index", "link"}
        while missing:
            looked = time.time()
            if "index" in missing and interpreter(root, spec_id, reader=folder_first) not in (old[0], None):
                say("index", looked)
                missing.remove("index")
            looked = time.time()
            if "link" in missing and link_target(root, spec_id, open_folder=folder_first) not in (
                old[1],
                None,
            ):
                say("link", looked)
                missing.remove("link")
            time.sleep(PAUSE)


def use(root: Path, spec_id: str, ttl: float) -> None:
    """A process that runs from what the id serves now, and a lease on that, until the end of stdin.

    `import MODULE` and `read` are done by that process; `release` gives the lease back, `lease` takes
    another one on the same closure, and `start` starts the same interpreter anew.
    """
    path = interpreter(root, spec_id, reader=True)
    assert path is not None
    held = lease(path, ttl=ttl, what="two_clients.py")
    # As root it would write compiled files into what is sealed.
    child = subprocess.Popen(
        [path, "-B", "-c", CONSUMER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    say("ready", time.time())
    for line in sys.stdin:
        began, command, came = time.time(), line.strip(), "done"
        try:
            if command == "release":
                held.release()
            elif command == "lease":
                lease(path, ttl=ttl).release()
            elif command == "start":
                ran = subprocess.run(
                    [path, "-B", "-c", "import beta"], capture_output=True, text=True, check=False
                )
                came = "runs" if ran.returncode == 0 else ran.stderr.strip().splitlines()[-1]
            else:
                child.stdin.write(line)
                child.stdin.flush()
                came = child.stdout.readline().strip()
        except (EnvfabricError, OSError) as error:
            came = f"{type(error).__name__}: {error}"
        say("did", began, came=came)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("first", "flip", "use"))
    parser.add_argument("root", type=Path)
    parser.add_argument("id")
    parser.add_argument("module", nargs="?", default="sys")
    parser.add_argument("--way", choices=("plain", "held", "folder"), default="plain")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long it looks before `ready`")
    parser.add_argument("--ttl", type=float, default=300.0, help="of the lease")
    given = parser.parse_args()
    if given.what == "first":
        first(given.root, given.id, given.module)
    elif given.what == "use":
        use(given.root, given.id, given.ttl)
    else:
        flip(given.root, given.id, given.way, given.seconds)


if __name__ == "__main__":
    main()
