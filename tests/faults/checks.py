"""What has to be true after a kill, before and after the restart. Reads only; each failure says what was found.

`while_down` holds at every instant, also between the death of a daemon and the next start. `at_rest` is what
an undisturbed run comes to, and that nothing is left of the disturbance.
"""

import contextlib
import json
import os
import re
import subprocess
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.pins import Pins
from envfabric.store.root import Root
from envfabric.store.usage import Usage, walk_inodes
from envfabric.store.verify import verify
from faults.ground import BAD, UNFETCHABLE, Ground, Requirements
from faults.story import Story

_GONE_WITHIN = 60.0
"""Seconds in which what outlived its daemon has to be cleared away once it has ended."""
_VERSIONS = "import json, sys; print(json.dumps({n: __import__(n).VERSION for n in sys.argv[1:]}))"


class Watcher:
    """Reads the index again and again from the outside, as a consumer does. Use as a context manager."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._last: tuple[int, bytes] = (0, b"")
        self._lock = threading.Lock()
        self.looks = 0
        self.faults: list[str] = []

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @contextlib.contextmanager
    def looking_away(self) -> Iterator[None]:
        """While ROOT is replaced by another: nothing is expected to go on from what was."""
        with self._lock:
            yield
            self._last = (0, b"")

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            try:
                with self._lock:
                    self._look()
            except (ValueError, KeyError, TypeError) as error:
                self.faults.append(f"index.json can't be understood: {error!r}")
                return

    def _look(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            raw = self._root.index.read_bytes()
            index = json.loads(raw)
            sequence, last = int(index["sequence"]), self._last
            if sequence < last[0]:
                self.faults.append(f"sequence {sequence} came after {last[0]}")
            if sequence == last[0] and raw != last[1]:
                self.faults.append(f"sequence {sequence} stands for two documents")
            gone = [path for path in index["python"].values() if not os.path.exists(path)]
            # What left the index a moment ago may be gone at once: there is no grace here.
            if gone and self._root.index.read_bytes() == raw:
                self.faults.append(f"index.json names what is not there: {gone}")
            self._last = sequence, raw
            self.looks += 1


def while_down(ground: Ground, story: Story) -> None:
    """Whatever happened: all that the index names is there, works and is what its generation says."""
    if not ground.root.index.exists():
        return
    index = json.loads(ground.root.index.read_bytes())
    _works(ground, index, again=True)
    served = _served(index)
    report = verify(ground.root, served, workers=2, served=served)
    assert not report.missing, f"served and not there: {report.missing}"
    assert story.damaged or report.clean, f"served and not whole: {report.findings}"


def _works(ground: Ground, index: dict[str, Any], again: bool) -> None:
    """Every path of the index is what its generation says, and imports the versions that were asked for.

    Without `again` those are not run that ran since the last kill: that nothing of them changed is proven.
    """
    entries = index["environments"]
    todo = set()
    for spec_id, path in index["python"].items():
        entry = entries[spec_id]
        folder = ground.generations().folder(spec_id, entry["generation"])
        generation = ground.generations().read(spec_id, entry["generation"])
        assert generation is not None, (
            f"{spec_id} serves generation {entry['generation']}, which is not whole"
        )
        assert generation.digest == entry["serving"], f"{spec_id}: index and generation name two closures"
        assert path == ground.root.python(entry["serving"]), f"{spec_id}: {path}"
        todo.add((path, _requirements(folder)))
    if again:
        ground.ran.clear()
    fresh = sorted(todo - ground.ran)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(_run, path, requirements) for path, requirements in fresh]
    for (path, requirements), run in zip(fresh, runs, strict=True):
        found, wanted = run.result(), dict(one.split("==") for one in requirements)
        assert found == wanted, f"{path} imports {found}, the generations that use it say {wanted}"
    ground.ran |= todo


def _served(index: dict[str, Any]) -> dict[str, list[str]]:
    """The ids of the specs by the closure that they serve."""
    served: dict[str, list[str]] = {}
    for spec_id, entry in index["environments"].items():
        if entry["serving"]:
            served.setdefault(entry["serving"], []).append(spec_id)
    return served


def came_back(ground: Ground, story: Story, asked: str) -> None:
    """After a restart, before a lost order for the spec `asked` is given again: all is of a piece nevertheless."""
    index = json.loads(ground.root.index.read_bytes())
    _as_expected(ground, story, index, but=asked)
    _generations_are_whole(ground)
    _links_agree(ground, index)
    _pins_agree(ground, index)


def at_rest(ground: Ground, story: Story) -> None:
    """After a restart: the state of an undisturbed run, and nothing left of what was interrupted."""
    index = json.loads(ground.root.index.read_bytes())
    _as_expected(ground, story, index)
    _works(ground, index, again=False)
    _staging_is_empty(ground.root)
    _generations_are_whole(ground)
    _links_agree(ground, index)
    _pins_agree(ground, index)
    _account_agrees(ground.root)
    _nothing_half_written(ground.root)
    report = verify(ground.root, None, workers=2, served=_served(index))
    assert report.clean, f"verify: {report.findings}, missing: {report.missing}"


def _as_expected(ground: Ground, story: Story, index: dict[str, Any], but: str | None = None) -> None:
    assert index["revision"] == ground.commit, f"revision {index['revision']}, not {ground.commit}"
    assert index["complete"], "the index is not complete"
    entries = index["environments"]
    assert sorted(entries) == sorted(story.specs), f"{sorted(entries)} are published"
    for spec_id, one in story.specs.items():
        if spec_id == but:
            continue
        entry = entries[spec_id]
        serves = None
        if entry["generation"] is not None:
            serves = _requirements(ground.generations().folder(spec_id, entry["generation"]))
        found = (entry["state"], entry["pinned"], serves)
        assert found == (one.state, one.pinned, one.serves), (
            f"{spec_id} is {found}; an undisturbed run gives {(one.state, one.pinned, one.serves)}; "
            f"wanted {one.wanted}, error {entry['error']}"
        )
        assert (spec_id in index["python"]) == (one.serves is not None), f"{spec_id}: {index['python']}"
        bad = one.wanted[0] in BAD and not one.pinned
        reason = (entry["error"] or {}).get("reason")
        expected = ("fetch" if one.wanted[0] == UNFETCHABLE else "unresolvable") if bad else None
        assert reason == expected, f"{spec_id}: {entry['error']}"


def _staging_is_empty(root: Root) -> None:
    # Whoever still writes there is waited for, and the next looks of the daemon clear up.
    deadline = time.monotonic() + _GONE_WITHIN
    while left := os.listdir(root.staging):
        assert time.monotonic() < deadline, f"left in staging/: {left}"
        time.sleep(0.02)


def _generations_are_whole(ground: Ground) -> None:
    root, generations = ground.root, ground.generations()
    damaged = Closures(root, Files()).damaged()
    for spec_id in generations.specs():
        seen = set()
        for number in generations.numbers(spec_id):
            folder = generations.folder(spec_id, number)
            names = sorted(os.listdir(folder))
            assert names == [".venv", "metadata.json", "pyproject.toml", "uv.lock"], f"{folder}: {names}"
            one = generations.read(spec_id, number)
            assert one is not None, f"{folder}/metadata.json can't be read"
            assert one.digest in damaged or (folder / ".venv/bin/python").exists(), (
                f"{folder}/.venv leads nowhere"
            )
            content = generations.content(one)
            assert content is not None
            key = (content.pyproject, content.lock, one.digest)
            assert key not in seen, f"{folder} is the same as another generation"
            seen.add(key)


def _links_agree(ground: Ground, index: dict[str, Any]) -> None:
    found = {
        str(link.relative_to(ground.root.envs)): os.readlink(link) for link in ground.root.envs.glob("*/*")
    }
    wanted = {
        spec_id: f"../../generations/{spec_id}/{entry['generation']}"
        for spec_id, entry in index["environments"].items()
        if entry["generation"] is not None
    }
    assert found == wanted, f"envs/ has {found}, the index says {wanted}"


def _pins_agree(ground: Ground, index: dict[str, Any]) -> None:
    pins = {one: pin.generation for one, pin in Pins(ground.root, Files()).all().items()}
    pinned = {one: entry["generation"] for one, entry in index["environments"].items() if entry["pinned"]}
    assert pins == pinned, f"the pins are {pins}, the index says {pinned}"


def _account_agrees(root: Root) -> None:
    usage = Usage(root, Files())
    usage.load(keep=False)
    names = sorted(os.listdir(root.store))
    kept = sorted(os.listdir(root.state / "usage"))
    assert kept == names, f"store/ has {names}, the account {kept}"
    inodes: dict[int, int] = {}
    for name in names:
        walked = walk_inodes(root.closure(name))
        assert usage.logical(name) == sum(walked.values()), f"{name}: the account has another size"
        inodes |= walked
    totals = usage.totals()
    found = (totals.closures, totals.inodes, totals.physical_bytes)
    assert found == (len(names), len(inodes), sum(inodes.values())), f"the account says {found}"


def _nothing_half_written(root: Root) -> None:
    """No temporary name where people and commands look."""
    found = [*root.path.iterdir(), *root.store.iterdir()]
    for top in (root.envs, root.generations, root.failures, root.state, root.history):
        found += [Path(folder) / name for folder, _, names in os.walk(top) for name in names]
    left = [path for path in found if re.search(r"\.[0-9a-f]{32}$", path.name)]
    assert not left, f"left half-written: {left}"


def _requirements(folder: Path) -> Requirements:
    return tuple(tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"])


def _run(python: str, requirements: Requirements) -> dict[str, str]:
    names = [one.partition("==")[0] for one in requirements]
    # An interpreter that is root's would write .pyc into the sealed closure.
    done = subprocess.run(
        [python, "-I", "-B", "-c", _VERSIONS, *names],
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{python}: {done.stderr}"
    return dict(json.loads(done.stdout))
