"""Bytecode with the real interpreter: loadable, compiled once, nothing is run, and no source is an error."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from build.conftest import HOUR, Clock
from envfabric.build import compiling
from envfabric.build.compiling import Compiled, Compiling
from envfabric.build.interpreters import Interpreter
from envfabric.build.room import Room
from envfabric.build.scope import Stopped
from envfabric.build.uv import Finished, Uv
from envfabric.core.errors import Reason, SpecError
from envfabric.store.bytecode import Bytecode
from envfabric.store.closures import Closures, Staging
from envfabric.store.files import Files
from envfabric.store.root import Root
from envfabric.store.sealing import Hashes, take_inventory
from support.waiting import wait_for

SITE = "lib/python3.11/site-packages"


class Counted(Uv):
    """uv that remembers what was run beside it."""

    def __init__(self, root: Root, timeout: float = 60) -> None:
        super().__init__(root, timeout)
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []

    def run_command(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        hold: int | None,
        env: Mapping[str, str],
        room: Room | None = None,
    ) -> Finished:
        self.commands.append(list(command))
        self.environments.append(dict(env))
        assert hold is not None, "recovery would not see that it still runs"
        return super().run_command(command, cwd=cwd, hold=hold, env=env, room=room)

    @property
    def compilers(self) -> int:
        """How often a compiler was started."""
        return sum("compile" in command for command in self.commands)


@pytest.fixture
def counted(root: Root) -> Counted:
    return Counted(root)


@pytest.fixture
def giving(root: Root, files: Files, counted: Counted) -> Compiling:
    """What is under test, with two workers."""
    return Compiling(Bytecode(root, files), files, counted, workers=2)


@pytest.fixture
def staging(closures: Closures) -> Iterator[Staging]:
    with closures.staging() as one:
        yield one


def fill(staging: Staging, contents: Mapping[str, str | bytes]) -> Path:
    """Puts sources into the environment in staging; gives its site-packages."""
    site = staging.venv / SITE
    site.mkdir(parents=True)
    for name, content in contents.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return site


def give(giving: Compiling, python: Interpreter, staging: Staging, hashes: Hashes | None = None) -> Compiled:
    """Gives the environment in staging its bytecode, as a build does."""
    return giving.compile(python, staging, take_inventory(staging.closure, hashes or Hashes()))


def compiled(site: Path) -> list[Path]:
    return sorted(site.rglob("*.pyc"))


def run(python: Interpreter, site: Path, code: str) -> str:
    """What code prints that imports from this folder. It writes nothing, as a worker without rights."""
    return subprocess.run(
        [python.path, "-I", "-B", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_import_takes_it_without_a_look_at_the_source(
    giving: Compiling, staging: Staging, python: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import loads what was compiled, names the real path, and reads no source: any time on it will do."""
    # It makes the standard library's own compilers write files that check their source.
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    text = "def where():\n    return where.__code__.co_filename\nVALUE = 'compiled'\n"
    site = fill(staging, {"mod.py": text, "pack/__init__.py": "", "pack/inner.py": text})
    assert give(giving, python, staging) == Compiled(1, 2, 0, (), ())
    for source in (site / "mod.py", site / "pack/inner.py"):
        source.chmod(0o644)
        source.write_text("VALUE = 'source'\nraise RuntimeError\n")
    for module, path in (("mod", "mod.py"), ("pack.inner", "pack/inner.py")):
        told = run(python, site, f"import {module} as one; print(one.VALUE, one.where())")
        assert told == f"compiled {site / path}"
    # Flags 1: by hash, unchecked.
    assert {path.read_bytes()[4:8] for path in compiled(site)} == {b"\1\0\0\0"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in compiled(site)} == {0o444}


def test_second_environment_starts_no_compiler(
    giving: Compiling, counted: Counted, closures: Closures, python: Interpreter
) -> None:
    """What is known costs no process at all; only what is new is compiled."""
    contents = {f"m{number}.py": f"N = {number}\n" for number in range(50)}
    with closures.staging() as first:
        fill(first, contents)
        assert give(giving, python, first).compiled == 50
    before = len(counted.commands)
    with closures.staging() as second:
        fill(second, contents)
        assert give(giving, python, second) == Compiled(50, 0, 0, (), ())
    assert len(counted.commands) == before
    with closures.staging() as third:
        site = fill(third, {**contents, "new.py": "N = -1\n"})
        assert give(giving, python, third) == Compiled(50, 1, 0, (), ())
        assert len(compiled(site)) == 51
    assert counted.compilers == 2


def test_equal_sources_are_compiled_once(giving: Compiling, staging: Staging, python: Interpreter) -> None:
    """Three hundred empty files are one job and one inode."""
    site = fill(staging, {f"p{number}/__init__.py": "" for number in range(300)})
    assert give(giving, python, staging) == Compiled(299, 1, 0, (), ())
    assert len(compiled(site)) == 300
    assert len({path.stat().st_ino for path in compiled(site)}) == 1


@pytest.mark.parametrize(
    "bad",
    [b"print 1\n", b"x = (\n", b"\0", b"# coding: none-such\n", b"\xff\xfe", b"{{ template }}: x\n"],
    ids=["python2", "unclosed", "nul", "coding", "utf16", "template"],
)
def test_source_that_does_not_compile_is_no_error(
    giving: Compiling, counted: Counted, closures: Closures, python: Interpreter, bad: bytes
) -> None:
    """It has no bytecode, the others have theirs, and it is not tried again."""
    for _ in range(2):
        with closures.staging() as staging:
            site = fill(staging, {"bad.py": bad, "also/bad.py": bad, "good.py": "G = 1\n"})
            done = give(giving, python, staging)
            assert (done.bad, done.linked + done.compiled) == (2, 1)
            assert [path.name for path in compiled(site)] == [f"good.{_tag()}.pyc"]
    assert counted.compilers == 1


def test_source_beyond_the_compilers_means_is_no_error(
    giving: Compiling, staging: Staging, python: Interpreter
) -> None:
    """Nesting that no compiler follows leaves one source without bytecode, or with it; the others have theirs."""
    deep = {"deep.py": "-" * 200_000 + "1\n", "sum.py": "+".join(["x"] * 50_000) + "\n"}
    site = fill(staging, {**deep, **{f"m{number}.py": f"N = {number}\n" for number in range(40)}})
    give(giving, python, staging)
    assert len([path for path in compiled(site) if path.name.startswith("m")]) == 40


def compiler_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """Puts the lines into the compiler, where a job begins."""
    text = compiling._COMPILER.read_text()
    head = '    """Does one job. Raises `OSError`."""\n'
    assert head in text
    script = tmp_path / "compiler.py"
    script.write_text(text.replace(head, head + lines))
    monkeypatch.setattr(compiling, "_COMPILER", script)


def test_source_that_ends_the_compiler_costs_only_itself(
    giving: Compiling, staging: Staging, python: Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that are killed are replaced; what they had in hand is told, and half of a file does not stay."""
    compiler_that(
        tmp_path,
        monkeypatch,
        '    if b"deadly" in source:\n'
        '        open(target, "wb").write(b"half")\n'
        "        os.kill(os.getpid(), 9)\n",
    )
    names = [f"deadly{number}" for number in range(4)]
    site = fill(
        staging,
        {**{f"{one}.py": f"{one} = 1\n" for one in names}, **{f"m{n}.py": f"N = {n}\n" for n in range(60)}},
    )
    done = give(giving, python, staging)
    assert sorted(done.unfinished) == [f"{SITE}/{one}.py" for one in names]
    assert done.compiled == len(compiled(site)) == 60


def test_changed_source_poisons_nothing(
    root: Root, files: Files, counted: Counted, staging: Staging, python: Interpreter
) -> None:
    """A source with other content than was hashed is refused and told; no key gets another source's code."""
    hashes = Hashes()
    giving = Compiling(Bytecode(root, files), files, counted)
    site = fill(staging, {"x.py": "X = 1\n", "y.py": "Y = 1\n"})
    source = site / "x.py"
    status = source.stat()
    hashes.of(str(source), status)
    source.write_text("X = 2\n")
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    done = give(giving, python, staging, hashes)
    assert (done.changed, done.compiled) == ((f"{SITE}/x.py",), 1)
    assert [path.name for path in compiled(site)] == [f"y.{_tag()}.pyc"]
    assert len([path for path in root.bytecode.rglob("*") if path.is_file()]) == 1


def test_nothing_of_a_package_is_run(
    giving: Compiling, counted: Counted, staging: Staging, python: Interpreter, tmp_path: Path
) -> None:
    """Neither a source, nor what site would start, nor a codec that a source names takes part in compiling."""
    mark = tmp_path / "ran"
    evil = f"open({str(mark)!r}, 'w')\n"
    site = fill(
        staging,
        {
            **{
                f"{name}.py": evil
                for name in ("sitecustomize", "usercustomize", "marshal", "hashlib", "evil")
            },
            "encodings/__init__.py": evil,
            "evil.pth": f"import os; {evil}",
            "user.py": "# coding: evil\n",
        },
    )
    for name in ("hashlib.py", "struct.py"):
        (staging.folder / name).write_text(evil)
    give(giving, python, staging)
    assert len(compiled(site)) == 6
    assert not mark.exists()
    # The base interpreter, isolated and without site: what a user or an administrator added takes no part either.
    assert [command[:3] for command in counted.commands] == [[python.path, "-I", "-S"]] * 2


def test_daemons_variables_do_not_reach_the_compiler(
    giving: Compiling,
    counted: Counted,
    staging: Staging,
    python: Interpreter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No credential, and nothing that steers Python."""
    for name in ("UV_INDEX_ONE_PASSWORD", "PYTHONSTARTUP", "PYTHONOPTIMIZE"):
        monkeypatch.setenv(name, "2")
    fill(staging, {"x.py": "X = 1\n"})
    give(giving, python, staging)
    assert {name for one in counted.environments for name in one} == {"LC_ALL", "PATH"}


def test_two_builds_at_once_compile_once(
    giving: Compiling, counted: Counted, closures: Closures, python: Interpreter
) -> None:
    """The second waits for what the first compiles, and shares it."""
    contents = {f"m{number}.py": f"N = {number}\n" * 50 for number in range(60)}
    together = threading.Barrier(3)

    def one(_: int) -> tuple[Compiled, set[int]]:
        with closures.staging() as staging:
            site = fill(staging, contents)
            together.wait(60)
            done = give(giving, python, staging)
            inodes = {path.stat().st_ino for path in compiled(site)}
            # An inode that is gone may be given again.
            together.wait(60)
            return done, inodes

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(one, range(3)))
    assert sum(done.compiled for done, _ in outcomes) == 60
    assert all(done.compiled + done.linked == 60 for done, _ in outcomes)
    assert outcomes[0][1] == outcomes[1][1] == outcomes[2][1]


def test_read_error_is_told(root: Root, counted: Counted, staging: Staging, python: Interpreter) -> None:
    """What the compiler can't read or write is an `OSError` of the build, as the system gave it."""

    def step(operation: str, path: Path) -> None:
        if operation == "write" and path.name.startswith("compile."):
            (site / "x.py").unlink()

    giving = Compiling(Bytecode(root, Files(step)), Files(step), counted)
    site = fill(staging, {"x.py": "X = 1\n"})
    with pytest.raises(FileNotFoundError):
        give(giving, python, staging)


def test_endless_compiler_is_ended(
    root: Root,
    files: Files,
    staging: Staging,
    python: Interpreter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
) -> None:
    """The time limit of a build holds for its workers, too: none outlives it."""
    pids = tmp_path / "pids"
    compiler_that(
        tmp_path,
        monkeypatch,
        f"    open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n    import time; time.sleep(300)\n",
    )
    slow = Counted(root, timeout=HOUR)
    giving = Compiling(Bytecode(root, files), files, slow, workers=2)
    fill(staging, {f"m{number}.py": f"N = {number}\n" for number in range(40)})
    with clock.put_forward_once(pids.exists), pytest.raises(SpecError) as caught:
        give(giving, python, staging)
    assert caught.value.reason == Reason.TIMEOUT
    wait_for(lambda: not any(map(_lives, pids.read_text().split())), message="a worker outlived its build")


def test_stopping_ends_it(
    giving: Compiling,
    counted: Counted,
    staging: Staging,
    python: Interpreter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A daemon that stops does not wait for compilers."""
    began = tmp_path / "began"
    compiler_that(
        tmp_path, monkeypatch, f"    open({str(began)!r}, 'w').close()\n    import time; time.sleep(300)\n"
    )
    fill(staging, {"x.py": "X = 1\n"})
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(give, giving, python, staging)
        wait_for(began.exists, message="no compiler began")
        counted.stop()
        giving.stop()
        with pytest.raises(Stopped):
            future.result(60)


def test_interpreter_that_fails_is_told(
    giving: Compiling, staging: Staging, python: Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that does not work at all fails the build: nothing is sealed without bytecode in silence."""
    script = tmp_path / "compiler.py"
    script.write_text("raise SystemExit('no such thing')\n")
    monkeypatch.setattr(compiling, "_COMPILER", script)
    fill(staging, {"x.py": "X = 1\n"})
    with pytest.raises(SpecError, match="no such thing"):
        give(giving, python, staging)


def test_odd_names_are_compiled(giving: Compiling, staging: Staging, python: Interpreter) -> None:
    """Names with spaces, line ends, dots and bytes that are no UTF-8 are as good as any."""
    names: list[Any] = ["a b.py", "new\nline.py", "a.b.py", os.fsdecode(b"\xff\xfe.py"), "naïve-名.py"]
    site = fill(staging, dict.fromkeys(names, "X = 1\n"))
    give(giving, python, staging)
    assert {path.name for path in compiled(site)} == {f"{name[:-3]}.{_tag()}.pyc" for name in names}


def _lives(pid: str) -> bool:
    """Whether a process is there that is not only waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _tag() -> str:
    # The tests' own interpreter is made from the same one.
    return str(sys.implementation.cache_tag)
