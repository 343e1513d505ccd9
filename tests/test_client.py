"""Consumers: the Python client and the commands that need nothing but the standard library."""

import json
import os
import subprocess
import sys
import threading
import venv
from pathlib import Path
from typing import Any

import pytest

import envfabric
from envfabric.client import commands
from envfabric.client.index import find_root
from support.fabric import Fabric
from support.saved import Saved
from support.simple_index import SimpleIndex

PACKAGE = Path(envfabric.__file__).parent
PATCH = f"3.{sys.version_info[1]}.99"
"""A Python that differs from this one in nothing that Ray minds."""


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have imported ray, whose version would be taken for the cluster's."""
    monkeypatch.delitem(sys.modules, "ray", raising=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex) -> Saved:
    """One environment that is ready, one that failed, one for Ray whose ray is a stand-in wheel."""

    def make(fabric: Fabric) -> None:
        fabric.packages.add_wheel("ray", "9.9")
        runtime = '[tool.envfabric.runtime-env]\nenv_vars = { OMP_NUM_THREADS = "4" }\nexcludes = ["*.log"]\n'
        fabric.repo.spec("wf/ready", ["alpha"], table=runtime)
        fabric.repo.spec("wf/ray", ["ray"], table=runtime + 'working_dir = "s3://bucket/code.zip"')
        fabric.repo.spec("wf/failed", ["no-such-thing"])
        fabric.repo.commit()
        fabric.run_once(expect=1)

    return Saved(tmp_path_factory.mktemp("client"), packages, make)


@pytest.fixture
def served(saved: Saved) -> Fabric:
    return saved.again()


def test_python_gives_the_immutable_interpreter(served: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """ROOT comes from the argument, ENVFABRIC_ROOT or the settings file."""
    expected = served.index()["python"]["wf/ready"]
    assert envfabric.python("wf/ready", root=served.root) == expected
    monkeypatch.setenv("ENVFABRIC_ROOT", str(served.root))
    assert envfabric.python("wf/ready") == expected
    monkeypatch.delenv("ENVFABRIC_ROOT")
    monkeypatch.setenv("ENVFABRIC_CONFIG", str(served.folder / "envfabric.toml"))
    assert envfabric.python("wf/ready") == expected
    assert "/store/" in expected
    assert not os.path.islink(Path(expected).parents[2])


def test_runtime_env_carries_what_the_spec_says(served: Fabric) -> None:
    """py_executable, the plugin's key with the digest, env_vars that lead child processes into the environment,
    working_dir and excludes."""
    python = served.index()["python"]["wf/ray"]
    prefix = str(Path(python).parents[1])
    assert envfabric.runtime_env("wf/ray", root=served.root) == {
        "py_executable": python,
        "envfabric": {"id": "wf/ray", "digest": Path(prefix).parent.name, "root": str(served.root)},
        "env_vars": {"OMP_NUM_THREADS": "4", "VIRTUAL_ENV": prefix, "PATH": f"{prefix}/bin:${{PATH}}"},
        "working_dir": "s3://bucket/code.zip",
        "excludes": ["*.log"],
    }


def test_runtime_env_merges_overrides(served: Fabric) -> None:
    """env_vars are merged, the caller's first; other keys take the spec's place, and None leaves one out."""
    made = envfabric.runtime_env(
        "wf/ray",
        root=served.root,
        env_vars={"OMP_NUM_THREADS": "8", "PATH": "/mine"},
        working_dir=None,
        excludes=["*.csv"],
        envfabric={"ttl": 60},
    )
    folder = os.path.dirname(served.index()["python"]["wf/ray"])
    assert made["env_vars"]["OMP_NUM_THREADS"] == "8"
    assert made["env_vars"]["PATH"] == f"{folder}:/mine"
    assert "working_dir" not in made
    assert made["excludes"] == ["*.csv"]
    assert made["envfabric"]["ttl"] == 60


@pytest.mark.parametrize("name", ["pip", "uv", "conda", "image_uri"])
def test_runtime_env_refuses_what_brings_packages(served: Fabric, name: str) -> None:
    """An environment is complete: what would add to it is refused, with what to do instead."""
    overrides: dict[str, Any] = {name: ["six"]}
    with pytest.raises(ValueError, match=f"{name} can't be combined with envfabric"):
        envfabric.runtime_env("wf/ray", root=served.root, **overrides)


def test_runtime_env_refuses_another_interpreter(served: Fabric) -> None:
    """py_executable may wrap the environment's interpreter, and may not replace it."""
    python = served.index()["python"]["wf/ray"]
    wrapped = f"{python} -X importtime"
    made = envfabric.runtime_env("wf/ray", root=served.root, py_executable=wrapped)
    assert made["py_executable"] == wrapped
    with pytest.raises(envfabric.EnvironmentFailed, match="another interpreter"):
        envfabric.runtime_env("wf/ray", root=served.root, py_executable="python3.12")


def test_runtime_env_stays_with_a_digest(served: Fabric) -> None:
    """ "id@digest" asks for that closure, also when another one is served by now; a wrong one is refused."""
    made = envfabric.runtime_env("wf/ray", root=served.root)
    again = envfabric.runtime_env(f"wf/ray@{made['envfabric']['digest']}", root=served.root)
    assert again == made
    with pytest.raises(envfabric.EnvironmentFailed, match="0123 is not there"):
        envfabric.runtime_env("wf/ray@0123", root=served.root)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("VERSION", "2.60.0", "ray==2.60.0"), ("PYTHON", "3.9.1", 'python = "3.9"'), ("PYTHON", PATCH, None)],
)
def test_runtime_env_refuses_what_does_not_fit_the_cluster(
    served: Fabric, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str | None
) -> None:
    """Another Ray, or another minor of Python, than the settings name is refused with the line to change; another
    patch of Python is not, with which Ray runs."""
    monkeypatch.setenv(f"ENVFABRIC_RAY__{name}", value)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    if words is None:
        with pytest.warns(UserWarning, match=rf'runs {PATCH} .*Write python = "{PATCH}".*MATCH_LEVEL=minor'):
            assert envfabric.runtime_env("wf/ray", root=served.root)
        return
    with pytest.raises(envfabric.EnvironmentFailed, match=words):
        envfabric.runtime_env("wf/ray", root=served.root)


@pytest.mark.parametrize(
    ("spec_id", "error", "words"),
    [
        ("wf/missing", envfabric.UnknownEnvironment, ("wf/missing", "Commit wf/missing/pyproject.toml")),
        (
            "wf/failed",
            envfabric.EnvironmentFailed,
            ("unresolvable", "no-such-thing", "failures/wf/failed.log"),
        ),
    ],
)
def test_what_is_not_served_says_what_to_do(
    served: Fabric, spec_id: str, error: type[Exception], words: tuple[str, ...]
) -> None:
    """A missing or failed id is an error of its own, with the daemon's words."""
    with pytest.raises(error) as caught:
        envfabric.python(spec_id, root=served.root)
    for word in words:
        assert word in str(caught.value)


def test_runtime_env_refuses_what_would_hang(served: Fabric) -> None:
    """An environment without ray, or whose interpreter is not on this machine, is refused at once."""
    with pytest.raises(envfabric.EnvironmentFailed, match="has no ray"):
        envfabric.runtime_env("wf/ready", root=served.root)
    (served.root / "store").rename(served.root / "elsewhere")
    with pytest.raises(envfabric.EnvironmentFailed, match="mounted"):
        envfabric.runtime_env("wf/ray", root=served.root)


def test_runtime_env_waits_for_a_gone_server_no_longer_than_told(tmp_path: Path) -> None:
    """A mount that does not answer is an error: with what to look at, and how to wait longer."""
    (tmp_path / ".envfabric.json").write_text("{}")
    # Whoever opens it waits for ever.
    os.mkfifo(tmp_path / "index.json")
    with pytest.raises(envfabric.RootNotFound, match=r"has not answered .* within 0\.2 s: is the NAS gone"):
        envfabric.runtime_env("wf/a", root=tmp_path, envfabric={"timeout": 0.2})


@pytest.mark.parametrize(
    "command", [["which", "wf/a"], ["runtime-env", "wf/a"], ["exec", "wf/a", "--", "true"]]
)
def test_commands_wait_for_a_gone_server_no_longer_than_told(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """`--timeout` is for an answer of the NAS, `--wait` for a build: a NAS that is gone is not waited for as long."""
    (tmp_path / ".envfabric.json").write_text("{}")
    os.mkfifo(tmp_path / "index.json")
    given = ["--root", str(tmp_path), "--timeout", "0.2", "--wait", "100000"]
    assert commands.main([command[0], *given, *command[1:]]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "has not answered" in told.err
    assert "within 0.2 s" in told.err
    assert "--timeout 30" in told.err


def test_waiting_ends_in_its_time_where_the_server_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`envfabric wait` says so where it never saw the index, and times out where it did."""
    index = {"schema": 1, "revision": "c" * 40, "python": {}, "environments": {}, "problems": []}
    (tmp_path / "index.json").write_text(json.dumps(index))
    words = ["wait", "--root", str(tmp_path), "--timeout", "2", "wf/a"]
    codes: list[int] = []
    waits = threading.Thread(target=lambda: codes.append(commands.main(words)))
    waits.start()
    # As what was read before is replaced by what never answers.
    os.mkfifo(tmp_path / "hangs")
    os.rename(tmp_path / "hangs", tmp_path / "index.json")
    waits.join(60)
    assert codes in ([124], [1])
    assert "has not answered" in capsys.readouterr().err


def test_runtime_env_takes_the_cluster_of_the_settings(served: Fabric, tmp_path: Path) -> None:
    """`--config` names the cluster that has to be fit: another patch of Python is said on standard error, beside the
    JSON; another Ray is refused with the line to write."""
    for cluster, code, words in (
        (f'python = "{PATCH}"', 0, f"envfabric: warning: wf/ray has Python 3.{sys.version_info[1]}."),
        ('version = "2.60.0"', 1, 'Write "ray==2.60.0"'),
    ):
        config = tmp_path / "cluster.toml"
        config.write_text(f'root = "{served.root}"\n[ray]\n{cluster}\n')
        done = served.command("runtime-env", "wf/ray", "--config", config)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert str(config) in done.stderr
        if code == 0:
            assert json.loads(done.stdout) == envfabric.runtime_env("wf/ray", root=served.root)


def test_root_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unmounted NAS and an unknown ROOT are named as such."""
    with pytest.raises(envfabric.RootNotFound, match="mounted"):
        envfabric.python("wf/a", root=tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENVFABRIC_ROOT", raising=False)
    with pytest.raises(envfabric.RootNotFound, match="give root=…, set ENVFABRIC_ROOT"):
        envfabric.python("wf/a")
    with pytest.raises(envfabric.RootNotFound, match="give --root, ENVFABRIC_ROOT"):
        find_root()


def test_pending_is_an_error_or_is_waited_for(fabric: Fabric) -> None:
    """Without wait= a pending id is NotReady; with it, the call returns when it is served, or fails."""
    hold = fabric.packages.hold("held")
    fabric.packages.add_wheel("held", "1.0")
    fabric.repo.spec("wf/other", ["alpha"])
    first = fabric.repo.commit()
    with fabric.daemon() as daemon:
        daemon.wait_for_index(first)
        with pytest.raises(envfabric.UnknownEnvironment):
            envfabric.python("wf/held", root=fabric.root, wait=0.2)
        fabric.packages.add_wheel("ray", "9.9")
        fabric.repo.spec("wf/held", ["held", "ray"])
        fabric.repo.spec("wf/broken", ["no-such-thing"])
        fabric.repo.commit()
        with pytest.raises(envfabric.EnvironmentFailed):
            envfabric.python("wf/broken", root=fabric.root, wait=60)
        with pytest.raises(envfabric.NotReady, match="pending"):
            envfabric.python("wf/held", root=fabric.root)
        results: list[str] = []

        def waits() -> None:
            made = envfabric.runtime_env("wf/held", root=fabric.root, wait=60)
            results.append(made["py_executable"])

        waiter = threading.Thread(target=waits)
        waiter.start()
        hold.set()
        waiter.join(timeout=60)
        assert results == [fabric.index()["python"]["wf/held"]]


def test_commands_print_for_scripts(served: Fabric) -> None:
    """`which` prints the path, `runtime-env` JSON; failures go to standard error with exit code 1."""
    root = ("--root", str(served.root))
    done = served.command("which", "wf/ready", *root)
    assert (done.returncode, done.stdout.strip()) == (0, served.index()["python"]["wf/ready"])
    done = served.command("runtime-env", "wf/ray", *root)
    assert json.loads(done.stdout) == envfabric.runtime_env("wf/ray", root=served.root)
    for words in (("which", "wf/failed"), ("which", "wf/missing"), ("runtime-env", "wf/ready")):
        done = served.command(*words, *root)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("envfabric: ")
    assert served.command("which", *root).returncode == 2


def test_exec_runs_inside_the_environment(served: Fabric) -> None:
    """The command finds the environment's programs first, gets its env_vars, and its exit code comes back."""
    code = (
        "import alpha, os, sys; print(os.environ['OMP_NUM_THREADS'], os.environ['VIRTUAL_ENV']); sys.exit(7)"
    )
    done = served.command("exec", "--root", served.root, "wf/ready", "--", "python", "-c", code)
    assert done.returncode == 7, done.stderr
    threads, prefix = done.stdout.split()
    assert threads == "4"
    assert f"{prefix}/bin/python" == served.index()["python"]["wf/ready"]
    done = served.command("exec", "--root", served.root, "wf/ready", "--", "no-such-program")
    assert done.returncode == 127
    assert "no-such-program: not found" in done.stderr
    assert served.command("exec", "--root", served.root, "wf/ready").returncode == 2


def test_exec_takes_no_other_python(served: Fabric, tmp_path: Path) -> None:
    """On a machine that lacks the base interpreter nothing is run: the next `python` in PATH would be another one."""
    elsewhere = tmp_path / "elsewhere"
    there = Path(served.index()["python"]["wf/ready"].replace(str(served.root), str(elsewhere)))
    there.parent.mkdir(parents=True)
    there.symlink_to("/no/such/python")
    text = (served.root / "index.json").read_text()
    (elsewhere / "index.json").write_text(text.replace(str(served.root), str(elsewhere)))
    done = served.command("exec", "--root", elsewhere, "wf/ready", "--", "python", "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (1, "")
    assert "base interpreter /no/such/python is missing" in done.stderr


def test_status_shows_all_and_one(served: Fabric) -> None:
    """A line for each spec with its error, all about one, and the same as JSON; exit code 1 for no such id."""
    root = ("--root", str(served.root))
    lines = served.command("status", *root).stdout.splitlines()
    line = next(line for line in lines if line.startswith("wf/failed"))
    assert "failed" in line
    assert "unresolvable: resolving wf/failed" in line
    one = served.command("status", "wf/ready", *root).stdout
    assert served.index()["python"]["wf/ready"] in one
    unused: dict[str, Any] = {"error": None, "closures": []}
    told = json.loads(served.command("status", "--json", *root).stdout)
    assert told == {**served.index(), "in_use": unused}
    entry = json.loads(served.command("status", "wf/failed", "--json", *root).stdout)
    assert entry == {**served.entry("wf/failed"), "closure": None, "in_use": unused}
    assert served.command("status", "wf/missing", *root).returncode == 1


def test_base_distribution_needs_no_packages(served: Fabric, tmp_path: Path) -> None:
    """In a bare interpreter the client and its commands work, and other commands name the extra."""
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    env = {"PYTHONPATH": str(PACKAGE.parent), "PATH": os.environ["PATH"]}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(bare / "bin" / "python"), *words]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    done = run("-m", "envfabric", "which", "--root", str(served.root), "wf/ready")
    assert (done.returncode, done.stdout.strip()) == (0, served.index()["python"]["wf/ready"])
    code = f"import envfabric; print(envfabric.runtime_env('wf/ray', root={str(served.root)!r})['py_executable'])"
    assert run("-c", code).stdout.strip() == served.index()["python"]["wf/ray"]
    done = run("-m", "envfabric", "status")
    assert done.returncode == 2
    assert "environment-fabric[daemon]" in done.stderr


def test_built_wheel_installs_and_has_no_dependencies(tmp_path: Path) -> None:
    """The wheel that users get carries the command, the example specs and no requirement of the base."""
    import uv

    binary = str(uv.find_uv_bin())
    project = PACKAGE.parents[1]
    subprocess.run(
        [binary, "build", "--wheel", "--quiet", "--out-dir", tmp_path, project],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("environment_fabric-*.whl")
    place = tmp_path / "venv"
    subprocess.run([binary, "venv", "--quiet", "--python", sys.executable, place], check=True)
    install = [binary, "pip", "install", "--quiet", "--offline", "--python", str(place), str(wheel)]
    subprocess.run(install, check=True)
    listed = subprocess.run(
        [binary, "pip", "list", "--quiet", "--python", place, "--format", "json"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert [one["name"] for one in json.loads(listed.stdout)] == ["environment-fabric"]
    done = subprocess.run(
        [place / "bin" / "envfabric", "which", "x/y", "--root", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "mounted" in done.stderr
    examples = next(place.glob("lib/python*/site-packages/envfabric/specs-example"))
    assert sorted(path.name for path in examples.glob("*/*/pyproject.toml"))
