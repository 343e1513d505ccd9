"""Which closures the processes of this host run from: real processes, each with its end as the control."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.core.errors import StoreError
from envfabric.store.processes import Running, running
from envfabric.store.root import Root
from store.small_venv import fill
from support.fabric import BASE_PYTHON

DIGEST, OTHER = "a1" * 32, "b2" * 32
WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"
NOTHING = Running()


@pytest.fixture
def venv(root: Root) -> Path:
    """An environment in the store whose interpreter runs."""
    return make(root, DIGEST)


def make(root: Root, name: str) -> Path:
    venv = root.closure(name) / ".venv"
    fill(root, venv)
    (venv / "pyvenv.cfg").write_text(f"home = {os.path.dirname(BASE_PYTHON)}\n")
    (venv / "bin/python").unlink()
    (venv / "bin/python").symlink_to(BASE_PYTHON)
    return venv


@contextlib.contextmanager
def process(*command: str | Path, code: str = WAIT) -> Iterator[subprocess.Popen[str]]:
    """A process that is under way, and has ended afterwards."""
    with subprocess.Popen(
        [*map(str, command), "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()
    assert child.returncode is not None


def generation(root: Root, spec: str, number: int, name: str) -> Path:
    folder = root.generations / spec / str(number)
    folder.mkdir(parents=True)
    (folder / ".venv").symlink_to(f"../../../../store/{name}/.venv")
    return folder


def test_an_interpreter_of_a_closure_counts_until_it_ends(root: Root, venv: Path) -> None:
    """By its first argument."""
    with process(venv / "bin/python"):
        assert running(root) == Running(closures={DIGEST})
    assert running(root) == NOTHING


def test_the_sealed_copy_of_a_digest_is_another_name(root: Root) -> None:
    """`<digest>-2` is found as that, and does not count as `<digest>`."""
    with process(make(root, f"{DIGEST}-2") / "bin/python"):
        assert running(root).closures == {f"{DIGEST}-2"}
    assert running(root) == NOTHING


@pytest.mark.parametrize("form", ["{}", "--python={}", "exec {} worker.py", "/nowhere:{}"])
def test_a_path_in_any_argument_counts(root: Root, venv: Path, form: str) -> None:
    """Also within one, as where a worker is started through a shell."""
    code = f"{WAIT} # {form.format(venv / 'bin/python')}"
    with process(sys.executable, code=code):
        assert running(root).closures == {DIGEST}
    assert running(root) == NOTHING


def test_doubled_slashes_count(root: Root, venv: Path) -> None:
    """A path need not be written in its plainest form."""
    with process(str(venv / "bin/python").replace("/store/", "//store///")):
        assert running(root).closures == {DIGEST}
    assert running(root) == NOTHING


def test_root_by_a_symlink_is_the_same_root(root: Root, venv: Path, tmp_path: Path) -> None:
    """The path as it is configured and as it resolves, whichever the process was started by."""
    (tmp_path / "link").symlink_to(root.path)
    by_link = Root(tmp_path / "link")
    for started in (venv, by_link.closure(DIGEST) / ".venv"):
        with process(started / "bin/python"):
            assert running(by_link).closures == {DIGEST}
        assert running(by_link) == NOTHING


def test_another_root_is_not_this_one(root: Root, tmp_path: Path, venv: Path) -> None:
    """What runs below another folder keeps nothing here."""
    other = Root(tmp_path / "other")
    with process(venv / "bin/python"):
        assert running(other) == NOTHING
        assert running(root) == Running(closures={DIGEST})


def test_envs_gives_the_spec_and_a_generation_its_closure(root: Root, venv: Path) -> None:
    """By envs/ it is not known which closure it was; a generation's link says it."""
    folder = generation(root, "wf/node", 3, DIGEST)
    (root.envs / "wf").mkdir()
    (root.envs / "wf/node").symlink_to("../../generations/wf/node/3")
    with process(root.envs / "wf/node/.venv/bin/python"):
        assert running(root) == Running(specs={"wf/node"})
    with process(folder / ".venv/bin/python"):
        assert running(root) == Running(closures={DIGEST})
    assert running(root) == NOTHING
    assert venv.exists()


def test_paths_that_lead_nowhere_stop_nothing(root: Root, venv: Path) -> None:
    """A generation that is gone, a number without end, ids that are none."""
    words = [f"{root.generations}/wf/node/9/x", f"{root.generations}/wf/node/{'9' * 40}/x"]
    words += [f"{root.envs}/{'w' * 101}/node/x", f"{root.envs}/../x/y", f"{root.store}/", str(root.store)]
    with process(sys.executable, code=f"{WAIT} # {' '.join(words)}"), process(venv / "bin/python"):
        assert running(root) == Running(closures={DIGEST})
    assert running(root) == NOTHING


@pytest.mark.parametrize("deleted", [False, True])
def test_a_mapped_file_counts_where_no_argument_tells(root: Root, deleted: bool) -> None:
    """Native libraries of a closure, also those that were removed under the process."""
    native = make(root, OTHER) / "lib/python3.11/site-packages/alpha/native.so"
    code = (
        "import mmap, os; file = open(os.environ['NATIVE'], 'rb'); "
        f"held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); held[0]; {WAIT}"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIVE", str(native))
        with process(sys.executable, code=code):
            if deleted:
                native.unlink()
            assert running(root) == Running(closures={OTHER})
        assert running(root) == NOTHING


def test_what_cannot_be_read_of_one_process_hides_no_other(root: Root, tmp_path: Path) -> None:
    """Processes without maps, that vanish, or that are no processes."""
    proc = tmp_path / "proc"
    for pid in ("1", "2", "3"):
        (proc / pid).mkdir(parents=True)
    (proc / "1/cmdline").mkdir()
    (proc / "2/cmdline").write_bytes(f"python\0{root.store}/{DIGEST}/.venv/bin/x\0".encode())
    (proc / "3/maps").symlink_to("gone")
    (proc / "self").mkdir()
    (proc / "self/cmdline").write_bytes(f"{root.store}/{OTHER}/x\0".encode())
    assert running(root, proc) == Running(closures={DIGEST})
    (proc / "2/cmdline").unlink()
    assert running(root, proc) == NOTHING


def test_without_proc_nothing_is_known(root: Root, tmp_path: Path) -> None:
    """A /proc that is missing or not mounted is an error: nothing is collected."""
    for _ in ("missing", "empty"):
        with pytest.raises(StoreError, match="Nothing is collected"):
            running(root, tmp_path / "proc")
        (tmp_path / "proc").mkdir(exist_ok=True)


def test_a_generation_that_cannot_be_read_is_an_error(
    root: Root, venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that the NAS fails to give is no proof that nothing runs from it."""
    folder = generation(root, "wf/node", 1, DIGEST)
    real = os.readlink

    def fail(path: Path) -> str:
        if Path(path) == folder / ".venv":
            raise OSError(5, "Input/output error")
        return real(path)

    with process(folder / ".venv/bin/python"):
        assert running(root) == Running(closures={DIGEST})
        monkeypatch.setattr(os, "readlink", fail)
        with pytest.raises(StoreError, match="wf/node 1"):
            running(root)
    assert venv.exists()
