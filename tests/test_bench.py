"""The benches work: each in its smallest size, with small wheels and no network. No figure is judged here."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench import all as every
from bench.first_import import compiled_and_written
from bench.sharing import disk_usage, sets
from bench.soak import MORE, Sample, is_flat, thirds
from support.namespace import Finished, run_alone
from support.tracing import count, operations, repeats
from support.wheels import make_wheel

BENCH = Path(__file__).resolve().parent / "bench"

TRACE = """\
100 execve("/nas/bin/python", ["python"], 0x7ffe /* 3 vars */) = 0
100 openat(AT_FDCWD</home/me>, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3</etc/ld.so.cache>
100 newfstatat(AT_FDCWD</home/me>, "/envfabric-marker/next/sync", 0x7ffc, 0) = -1 ENOENT (No such file or directory)
100 mkdir("/nas/staging", 0777) = 0
100 chdir("/nas/staging") = 0
100 mkdir("one", 0777) = 0
100 mkdir("/nasty/one", 0777) = 0
100 openat(AT_FDCWD</nas/staging>, "one/f\\303\\251", O_RDWR|O_CREAT|O_EXCL, 0644) = 4</nas/staging/one/f\\303\\251>
100 newfstatat(4</nas/staging/one/f\\303\\251>, "", {st_mode=S_IFREG|0644, ...}, AT_EMPTY_PATH) = 0
100 fchmod(4</nas/staging/one/f\\303\\251>, 0444) = 0
100 clone3({flags=CLONE_VM|CLONE_VFORK, exit_signal=SIGCHLD}, 88 <unfinished ...>
101 execve("/tools/uv", ["uv", "sync"], 0x7ffe /* 3 vars */ <unfinished ...>
100 <... clone3 resumed>)             = 101
101 <... execve resumed>)             = 0
101 statx(AT_FDCWD</nas/staging>, "../uv_cache", AT_STATX_SYNC_AS_STAT, STATX_ALL, 0x7ffc) = -1 ENOENT (No such file)
101 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 102
102 execve("/nas/bin/python", ["python"], 0x7ffe /* 3 vars */) = 0
102 linkat(9</nas/uv_cache>, "a", 10</nas/staging/one>, "a", 0) = 0
102 getdents64(9</nas/uv_cache>, 0x55d0 /* 3 entries */, 32768 <unfinished ...>
101 rename("/tmp/x", "/nas/staging/one/x") = 0
102 <... getdents64 resumed>)         = 72
100 stat("/envfabric-marker/next/seal", 0x7ffc) = -1 ENOENT (No such file or directory)
100 lstat("/nas/staging/one", {st_mode=S_IFDIR|0755, ...}) = 0
100 lstat("/nas/staging/one", {st_mode=S_IFDIR|0755, ...}) = 0
100 symlink("/nas/no/path/of/a/call", "/tmp/link") = 0
100 symlinkat("python", AT_FDCWD</nas/staging>, "one/python3") = 0
100 fsync(4</tmp/elsewhere>) = 0
100 +++ exited with 0 +++
"""


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of a few modules each."""
    folder = tmp_path_factory.mktemp("bench-wheels")
    for name in ("alder", "birch", "cedar", "elm", "hazel"):
        code = {"__init__": f"from {name} import one\n", "one": "VALUE = 1\n", "empty": ""}
        make_wheel(folder, name, modules={f"{name}/{module}.py": text for module, text in code.items()})
    return folder


def bench(name: str, folder: Path, *arguments: str | Path, path: str | None = None) -> Finished:
    """Runs a bench where there is no network, and nothing of this user's settings."""
    env = {
        "PATH": path or os.environ["PATH"],
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(folder),
    }
    return run_alone([sys.executable, BENCH / f"{name}.py", *arguments], env=env, cwd=folder, timeout=300)


def can_trace() -> bool:
    """Whether strace is here, and may do what it does."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True).returncode == 0


def test_first_import_is_proven(tmp_path: Path, wheels: Path) -> None:
    """The bench of first imports ends with its proof, and compares three environments."""
    done = bench("first_import", tmp_path, "--rounds", "1", "--module", "alder", "--wheels", wheels, "alder")
    assert done.code == 0, done.out + done.err
    assert "2 modules from bytecode, 0 compiled, 0 written" in done.out
    assert "a first import compiles nothing and writes nothing" in done.out
    assert not list(tmp_path.glob("envfabric-bench-*"))


def test_compiled_sources_are_seen(tmp_path: Path, wheels: Path) -> None:
    """What `python -v` says of an environment without bytecode counts as compiled and written."""
    package = tmp_path / "lib/alder"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("VALUE = 1\n")
    command = [sys.executable, "-v", "-c", "import alder"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package.parent)}
    first, second = (
        subprocess.run(command, env=env, capture_output=True, text=True, check=True).stderr for _ in range(2)
    )
    compiled, written, loaded = compiled_and_written(first, tmp_path)
    assert compiled == [str(package / "__init__.py")]
    assert len(written) == 1
    assert loaded == 0
    assert compiled_and_written(second, tmp_path) == ([], [], 1)


def test_bytecode_is_compared(tmp_path: Path, wheels: Path) -> None:
    """The bench of environments with bytecode has a line for each phase, and both ratios."""
    done = bench("bytecode", tmp_path, "--rounds", "1", "--wheels", wheels, "alder")
    assert done.code == 0, done.out + done.err
    for line in ("sync", "validate", "bytecode", "seal", "--compile-bytecode", "at most 3.0", "store empty"):
        assert line in done.out


def test_sharing_is_counted(tmp_path: Path, wheels: Path) -> None:
    """The bench of shared bytes has a line for each way, and an equal closure takes nothing and no build."""
    numbers = ["--environments", "3", "--compiled", "1", "--copied", "1"]
    sets_of = ["--base", "alder", "--pool", "birch", "cedar", "elm", "hazel"]
    done = bench("sharing", tmp_path, *numbers, "--wheels", wheels, *sets_of)
    assert done.code == 0, done.out + done.err
    for way in (
        "fabric, with bytecode",
        "the same by du",
        "uv sync, hardlinks",
        "--compile-bytecode",
        "copies",
    ):
        assert way in done.out
    row = next(line for line in done.out.splitlines() if "a closure that is there (0 builds)" in line)
    assert row.split("│")[3].strip() == "0"


def test_disk_usage_counts_an_inode_once(tmp_path: Path) -> None:
    """Two names of one file take the bytes of one."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (tmp_path / "one/file").write_bytes(b"x" * 50_000)
    alone = disk_usage(tmp_path / "one")
    empty = disk_usage(tmp_path / "two")
    os.link(tmp_path / "one/file", tmp_path / "two/file")
    assert disk_usage(tmp_path / "one", tmp_path / "two") == alone + empty
    assert disk_usage(tmp_path / "two") == alone


def test_requirement_sets_are_the_same_each_time() -> None:
    """The sets overlap, differ, and do not change from run to run; too many are refused in words."""
    found = sets(6, ["a"], ["b", "c", "d", "e", "f", "g"])
    assert found == sets(6, ["a"], ["b", "c", "d", "e", "f", "g"])
    assert len({tuple(one) for one in found}) == 6
    assert all(one[0] == "a" for one in found)
    with pytest.raises(SystemExit, match="ask for fewer"):
        sets(6, ["a"], ["b", "c"])


def test_soak_is_true(tmp_path: Path) -> None:
    """A short soak leaves an index that is what the specs ask for, and no process behind."""
    done = bench("soak", tmp_path, "--commits", "5")
    assert "5 commits in" in done.out, done.out + done.err
    assert "problems []; verify 0" in done.out
    assert "beyond these in the end: none" in done.out
    assert "flat, and true" in done.out
    assert done.code == 0


def test_growth_is_not_flat() -> None:
    """The soak's rule: a third as at first is flat, memory or descriptors that go on growing are not."""
    grows = [Sample(n, 50_000_000 + n * 1_000_000, 20 + n, 9, 2, 3) for n in range(60)]
    first, last, highest = thirds(grows, "memory")
    assert highest == 109_000_000
    assert not is_flat("memory", first, last)
    assert not is_flat("descriptors", *thirds(grows, "descriptors")[:2])
    assert is_flat("threads", *thirds(grows, "threads")[:2])
    assert set(MORE) <= set(Sample.__dataclass_fields__)


@pytest.mark.skipif(not can_trace(), reason="strace is not here, or may not trace")
def test_operations_are_counted(tmp_path: Path, wheels: Path) -> None:
    """The bench of operations counts a build by phase, and a first import, beside uv's."""
    done = bench("operations", tmp_path, "--wheels", wheels, "--module", "alder", "alder", "birch")
    assert done.code == 0, done.out + done.err
    for told in ("bytecode", "seal", "fabric / bare uv:", "what could still fall", "first `import alder`"):
        assert told in done.out
    links = next(line for line in done.out.splitlines() if line.startswith("│ link "))
    assert all(int(links.split("│")[column]) > 0 for column in (2, 5, 7, 8))


def test_operations_without_strace(tmp_path: Path) -> None:
    """Where strace is missing, the bench says what to install and exits 2."""
    command = [sys.executable, str(BENCH / "operations.py")]
    env = {"PATH": str(tmp_path / "nothing")}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "install the package strace" in done.stderr
    assert "Traceback" not in done.stderr


def test_trace_is_counted_below_the_folder() -> None:
    """Each call below the folder counts once, by kind, phase and program; relative paths are made whole."""
    found = list(operations(TRACE.splitlines(), Path("/nas"), Path("/home/me"), ["uv"]))
    told = [(one.kind, one.paths[-1], one.phase, one.program) for one in found]
    assert told == [
        ("open", "/nas/bin/python", "", "python"),
        ("mkdir", "/nas/staging", "next/sync", "python"),
        ("stat", "/nas/staging", "next/sync", "python"),
        ("mkdir", "/nas/staging/one", "next/sync", "python"),
        ("create", "/nas/staging/one/fé", "next/sync", "python"),
        ("stat of an open file", "/nas/staging/one/fé", "next/sync", "python"),
        ("chmod", "/nas/staging/one/fé", "next/sync", "python"),
        ("stat", "/nas/uv_cache", "next/sync", "uv"),
        ("open", "/nas/bin/python", "next/sync", "uv"),
        ("link", "/nas/staging/one/a", "next/sync", "uv"),
        ("list a folder", "/nas/uv_cache", "next/sync", "uv"),
        ("rename", "/nas/staging/one/x", "next/sync", "uv"),
        ("stat", "/nas/staging/one", "next/seal", "python"),
        ("stat", "/nas/staging/one", "next/seal", "python"),
        ("symlink", "/nas/staging/one/python3", "next/seal", "python"),
    ]
    assert [one.paths[-1] for one in found if one.failed] == ["/nas/uv_cache"]
    assert count(found)["stat"] == 4
    assert count(found).total() == len(found) - 1
    assert repeats(found) == Counter({"stat": 1, "open": 1})


def test_every_bench_is_run_by_the_one_command(tmp_path: Path) -> None:
    """all.py knows each bench, and gives none an option that it does not have."""
    names = {path.stem for path in BENCH.glob("*.py")} - {"all"}
    assert set(every.FULL) == set(every.QUICK) == names
    quick, full = (every.commands(sorted(names), quick=each, folder=tmp_path) for each in (True, False))
    for name in names:
        command = [*quick[name], *full[name]]
        helped = subprocess.run([*command[:2], "--help"], capture_output=True, text=True, check=True).stdout
        assert {part for part in command if part.startswith("--")} <= set(re.findall(r"--[a-z-]+", helped))


def test_a_bench_that_cannot_run_is_passed_over(tmp_path: Path) -> None:
    """all.py passes over exit code 2, and fails in the end where a bench failed."""
    script = "import sys; sys.exit(int(sys.argv[1]))"
    done = every.run({name: [sys.executable, "-c", script, name] for name in ("0", "2", "3")})
    assert done == {"0": "done", "2": "passed over", "3": "FAILED with exit code 3"}
