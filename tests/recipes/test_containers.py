"""The Dockerfile and the command that runs its image, as far as they can be tried where no Docker is."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import dockerfile
import pytest
import uv

import envfabric.client.plugin
from recipes.written import RECIPES, commands
from support.fabric import BASE_PYTHON, Fabric

PROJECT = RECIPES.parents[1]
SEEN = "import httpx, os, sys; print(sys.prefix, os.environ['OMP_NUM_THREADS'], *sys.argv[1:])"
STAND_IN = """#!{python}
# Stands where `docker` would, for the image of the Dockerfile: takes Docker's arguments, tells what would be mounted,
# and runs the command with the image's programs and variables.
import argparse, json, os, sys
words = argparse.ArgumentParser()
words.add_argument("verb", choices=["run"])
words.add_argument("--rm", action="store_true", required=True)
words.add_argument("--init", action="store_true", required=True)
words.add_argument("--user", required=True)
words.add_argument("--mount", action="append")
words.add_argument("--workdir")
words.add_argument("--env", action="append")
words.add_argument("image")
words.add_argument("command", nargs=argparse.REMAINDER)
given = words.parse_args()
mounts = [dict(part.partition("=")[::2] for part in one.split(",")) for one in given.mount]
json.dump({{**vars(given), "mount": mounts}}, open({told!r}, "w"))
(place,) = [one["src"] for one in mounts if one["dst"] == given.workdir]
os.chdir(place)
env = {{"PATH": {path!r}, **dict(one.split("=", 1) for one in given.env)}}
os.execvpe(given.command[0], given.command, env)
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """What the Dockerfile makes: the programs of a Python for which its RUN was run, with what its COPY brings, and
    what that installed."""
    folder = tmp_path_factory.mktemp("image")
    binary = uv.find_uv_bin()
    env = {**os.environ, "UV_CACHE_DIR": str(folder / "cache"), "VIRTUAL_ENV": str(folder / "python")}
    env["PATH"] = os.pathsep.join([str(folder / "python/bin"), os.environ["PATH"]])
    build = ["build", "--wheel", "--quiet", "--out-dir", str(folder / "dist"), str(PROJECT)]
    for words in (["venv", "--quiet", "--seed", "--python", BASE_PYTHON, str(folder / "python")], build):
        done = subprocess.run([binary, *words], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    written = {one.cmd: one for one in dockerfile.parse_file(str(RECIPES / "Dockerfile"))}
    source, target = written["COPY"].value
    assert [path.name for path in folder.glob(source)], "COPY finds nothing of what is built"
    (command,) = written["RUN"].value
    assert target in command
    before = installed(folder)
    done = subprocess.run(
        ["sh", "-ec", command.replace(target, f"{folder}/dist/")], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "python/bin", installed(folder) - before


def installed(folder: Path) -> set[str]:
    return {path.name for path in (folder / "python/lib").glob("python3*/site-packages/*.dist-info")}


def test_dockerfile_is_one_for_docker() -> None:
    """Docker's own parser reads it; its base can be chosen, and its variables turn the plugin on and find ROOT."""
    parsed = dockerfile.parse_file(str(RECIPES / "Dockerfile"))
    assert [one.cmd for one in parsed] == ["ARG", "FROM", "COPY", "RUN", "ENV", "ENV"]
    (argument,), (base,) = parsed[0].value, parsed[1].value
    assert base == "${" + argument.partition("=")[0] + "}"
    assert f"--build-arg {argument.partition('=')[0]}=" in commands("Dockerfile")[2]
    variables = {one.value[0]: one.value[1] for one in parsed if one.cmd == "ENV"}
    assert variables["ENVFABRIC_ROOT"] == "/mnt/nas"
    (plugin,) = json.loads(shlex.split(variables["RAY_RUNTIME_ENV_PLUGINS"])[0])
    module, _, name = plugin["class"].rpartition(".")
    assert module == envfabric.client.plugin.__name__
    assert hasattr(envfabric.client.plugin, name)


def test_image_has_envfabric_and_nothing_with_it(image: tuple[Path, set[str]]) -> None:
    """RUN installs the one wheel without an index, and `envfabric exec` works with it."""
    programs, brought = image
    assert {name.partition("-")[0] for name in brought} == {"environment_fabric"}
    subprocess.run([programs / "envfabric", "exec", "--help"], capture_output=True, check=True)


def test_command_in_a_container_runs_in_the_environment(
    image: tuple[Path, set[str]], recipe_fabric: Fabric, here: Path, tmp_path: Path
) -> None:
    """docker-run.sh mounts ROOT at its own path, read-only, and this folder; what is run in the image finds the
    environment by them alone."""
    programs, told = tmp_path / "bin", tmp_path / "told.json"
    programs.mkdir()
    path = f"{image[0]}:/usr/bin:/bin"
    (programs / "docker").write_text(STAND_IN.format(python=sys.executable, told=str(told), path=path))
    (programs / "docker").chmod(0o755)
    (here / "extract.py").write_text(SEEN)
    root = str(recipe_fabric.root)
    (command,) = commands("docker-run.sh")
    done = subprocess.run(
        shlex.split(command),
        cwd=here,
        env={"PATH": f"{programs}:/usr/bin:/bin", "ENVFABRIC_ROOT": root},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    prefix = Path(recipe_fabric.index()["python"]["etl/extract"]).parents[1]
    assert done.stdout.split() == [str(prefix), "2", "--day", "2026-01-31"]
    given = json.loads(told.read_text())
    assert given["mount"][0] == {"type": "bind", "src": root, "dst": root, "readonly": ""}
    assert given["image"] == commands("Dockerfile")[1].split("-t ")[1].split()[0]
    assert given["user"] == f"{os.getuid()}:{os.getgid()}"
