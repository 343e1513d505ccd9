"""Pins: kept on the NAS, whole or not there, and never lost by a read that failed."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from envfabric.core.errors import StoreError
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.pins import Pin, Pins
from envfabric.store.root import Root
from store.faults import CODES, each_fault, each_kill

OLD, NEW = Pin(1, "t1"), Pin(2, "t2")


@pytest.fixture
def pins(root: Root) -> Pins:
    return Pins(root, Files())


def test_pin_is_kept(root: Root, pins: Pins) -> None:
    """What is pinned is read by this process and the next one, until it is taken away; others' pins stay."""
    assert (pins.read("wf/a"), pins.all()) == (None, {})
    pins.set("wf/a", OLD)
    pins.set("wf/b", NEW)
    pins.set("wf/a", NEW)
    later = Pins(root, Files())
    assert later.all() == {"wf/a": NEW, "wf/b": NEW}
    later.remove("wf/a")
    assert (pins.read("wf/a"), pins.read("wf/b")) == (None, NEW)
    pins.remove("wf/b")
    pins.remove("wf/b")
    assert pins.all() == {}
    assert os.listdir(root.state / "pins") == []
    assert os.listdir(root.staging) == []


def test_replaced_only_where_it_is_still_the_same(pins: Pins) -> None:
    """What a step found out about a pin does not undo the one that an order has set since."""
    pins.set("wf/a", OLD)
    pins.replace("wf/a", OLD, NEW)
    assert pins.read("wf/a") == NEW
    for new in (None, Pin(9, "t9")):
        pins.replace("wf/a", OLD, new)
        assert pins.read("wf/a") == NEW
    pins.replace("wf/a", NEW, None)
    assert pins.read("wf/a") is None


def test_kill_at_any_step_of_setting(root: Root, pins: Pins) -> None:
    """Killed at any step, the old pin is in force or the new one; what is half-written is no pin."""
    seen = set()
    for _, run in each_kill():
        pins.set("wf/a", OLD)
        run(lambda files: Pins(root, files).set("wf/a", NEW))
        run_first = Pins(root, Files())
        assert run_first.all() == {"wf/a": run_first.read("wf/a")}
        seen.add(run_first.read("wf/a"))
        assert Closures(root, Files()).recover() == set()
        assert os.listdir(root.staging) == []
    assert seen == {OLD, NEW}


def test_kill_at_any_step_of_the_first_pin(root: Root) -> None:
    """Killed while a spec is pinned for the first time it is pinned or not, and can be pinned then."""
    seen = set()
    for number, run in each_kill():
        spec_id = f"wf-{number}/a"
        run(lambda files, spec_id=spec_id: Pins(root, files).set(spec_id, NEW))  # type: ignore[misc]
        seen.add(Pins(root, Files()).read(spec_id))
        Pins(root, Files()).set(spec_id, NEW)
        assert Pins(root, Files()).all()[spec_id] == NEW
    assert seen == {None, NEW}


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_fault_at_any_step(root: Root, pins: Pins, code: int) -> None:
    """Whichever step fails, the caller hears of it and the old pin stays, also where it should go."""
    for action in ("set", "remove"):
        for steps in each_fault(code):
            pins.set("wf/a", OLD)
            broken = Pins(root, Files(steps))
            with contextlib.suppress(OSError):
                broken.set("wf/a", NEW) if action == "set" else broken.remove("wf/a")
            after = NEW if action == "set" else None
            assert pins.read("wf/a") == (OLD if steps.failed else after)


@pytest.mark.parametrize("raw", ["", "{", "[]", '{"generation": "x", "tree": "t"}', '{"generation": 1}'])
def test_spoilt_pin_is_none(root: Root, pins: Pins, raw: str) -> None:
    """A pin that a hand has spoilt holds nothing, hinders no other, and can be set and taken away."""
    pins.set("wf/a", OLD)
    pins.set("wf/b", OLD)
    (root.state / "pins" / "wf" / "a.json").write_text(raw)
    assert (pins.read("wf/a"), pins.all()) == (None, {"wf/b": OLD})
    pins.set("wf/a", NEW)
    assert pins.read("wf/a") == NEW


def test_pin_that_can_not_be_read_is_not_gone(
    root: Root, pins: Pins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read error is told as one: a pinned spec must not serve something else because of it."""
    pins.set("wf/a", OLD)

    def read_bytes(path: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with monkeypatch.context() as context:
        context.setattr(Path, "read_bytes", read_bytes)
        for ask in (lambda: pins.read("wf/a"), pins.all):
            with pytest.raises(OSError, match="Stale file handle"):
                ask()
    assert pins.read("wf/a") == OLD


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("folder", ["pins", "wf"])
def test_folder_of_pins_that_can_not_be_read_is_not_empty(
    root: Root, pins: Pins, monkeypatch: pytest.MonkeyPatch, folder: str, code: int
) -> None:
    """Where the folder can't be listed that is told: else a start would unpin everything."""
    pins.set("wf/a", OLD)
    for name in ("listdir", "scandir"):
        real = getattr(os, name)

        def listed(path: str | Path, real: Callable[[str | Path], object] = real) -> object:
            if Path(path).name == folder:
                raise OSError(code, os.strerror(code), str(path))
            return real(path)

        monkeypatch.setattr(os, name, listed)
    with pytest.raises(OSError, match=os.strerror(code)):
        pins.all()


def test_stray_files_are_no_pins(root: Root, pins: Pins) -> None:
    """What is no id or no pin in the folder is passed over."""
    pins.set("wf/a", OLD)
    (root.state / "pins" / "stray").touch()
    (root.state / "pins" / "wf" / ".nfs0001").touch()
    (root.state / "pins" / "wf" / "not an id.json").write_text('{"generation": 1, "tree": "t"}')
    (root.state / "pins" / "wf" / "folder.json").mkdir()
    with contextlib.suppress(IsADirectoryError):
        assert pins.all() == {"wf/a": OLD}


def test_lost_mount_takes_no_pin(root: Root, pins: Pins) -> None:
    """Below a mount point without its NAS nothing is made."""
    root.path.rename(root.path.with_name("away"))
    root.path.mkdir()
    with pytest.raises(StoreError, match="is the NAS mounted"):
        pins.set("wf/a", OLD)
    pins.remove("wf/a")
    assert os.listdir(root.path) == []
