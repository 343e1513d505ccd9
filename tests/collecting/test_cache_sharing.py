"""Wheels that nothing links leave uv's cache, and those that a living closure links stay: sharing is not lost."""

import json
import os
import time
from pathlib import Path

from collecting.conftest import Keeping
from collecting.disk import du, inodes


def add(keeping: Keeping, *names: str) -> None:
    """Wheels of more than 200 KB each, in one file."""
    for name in names:
        keeping.packages.add_wheel(name, "1.0", modules={f"{name}/__init__.py": "VERSION = 1\n" * 20_000})


def file_of(keeping: Keeping, spec_id: str, name: str) -> Path:
    python = Path(keeping.fabric.index()["python"][spec_id])
    (found,) = python.parent.parent.glob(f"lib/python*/site-packages/{name}/__init__.py")
    return found


def archives(keeping: Keeping) -> list[Path]:
    """The unpacked wheels of uv's cache."""
    return list((keeping.root / "uv_cache/archive-v0").iterdir())


def age(keeping: Keeping, days: float = 15) -> None:
    """As if every wheel had been unpacked that long ago."""
    then = time.time() - days * 86400
    for archive in archives(keeping):
        os.utime(archive, (then, then))


def copied(keeping: Keeping, spec_id: str) -> int:
    metadata = keeping.root / "store" / str(keeping.fabric.entry(spec_id)["serving"]) / "metadata.json"
    return int(json.loads(metadata.read_bytes())["link_fallbacks"])


def test_unused_wheels_leave_and_used_ones_are_linked_again(own_keeping: Keeping) -> None:
    """What came back on disk is what gc says; a new closure links the inodes of a living one, and adds little."""
    keeping = own_keeping
    add(keeping, "shared", "private")
    keeping.spec("wf/a", "shared")
    keeping.spec("wf/b", "shared", "private")
    keeping.repo.commit()
    with keeping.fabric.daemon() as daemon:
        daemon.wait_for_index(keeping.repo.head)
        keeping.repo.remove("wf/b")
        keeping.make_true(daemon)
        # Young wheels stay: they may be about to be linked.
        done = keeping.gc()
        assert (len(done["removed"]), done["archives"]) == (1, 0)
        assert len(archives(keeping)) == 2
        age(keeping)
        places = [keeping.root / "store", keeping.root / "trash", keeping.root / "uv_cache/archive-v0"]
        before = du(*places), inodes(*places)
        done = keeping.gc()
        assert (done["removed"], done["archives"]) == ([], 1)
        assert before[0] - du(*places) == done["bytes"] > 200_000
        assert before[1] - inodes(*places) == done["inodes"]
        assert len(archives(keeping)) == 1
        store = du(keeping.root / "store")
        keeping.spec("wf/c", "shared", "gamma==1.0")
        keeping.make_true(daemon)
        assert (
            file_of(keeping, "wf/c", "shared").stat().st_ino
            == file_of(keeping, "wf/a", "shared").stat().st_ino
        )
        assert copied(keeping, "wf/c") == 0
        assert daemon.metric("envfabric_link_fallbacks_total") == 0
        assert du(keeping.root / "store") - store < 200_000
        # What had left is fetched again, and shared again.
        keeping.spec("wf/d", "private")
        keeping.spec("wf/e", "private", "gamma==2.0")
        keeping.make_true(daemon)
        one, two = (file_of(keeping, spec_id, "private").stat() for spec_id in ("wf/d", "wf/e"))
        assert one.st_ino == two.st_ino
        assert keeping.told("verify")["clean"]


def test_wheels_that_left_the_store_lately_stay_for_the_grace_period(own_keeping: Keeping) -> None:
    """The next commit may ask for them again; the control has a shorter one."""
    keeping = own_keeping
    add(keeping, "private")
    keeping.spec("wf/a", "private")
    keeping.make_true()
    keeping.spec("wf/a", "gamma")
    keeping.make_true()
    assert len(keeping.gc()["removed"]) == 1
    age(keeping)
    keeping.rules(grace=20 * 86400)
    assert keeping.gc()["archives"] == 0
    assert len(archives(keeping)) == 2
    keeping.rules(grace=10 * 86400)
    assert keeping.gc()["archives"] == 1
    assert len(archives(keeping)) == 1
