"""The project that uv installs from: one file for each distribution of the closure, with the closure's hash."""

import tomllib
from typing import Any

import pytest

from envfabric.build.closure import Closure, Distribution
from envfabric.build.exact import Exact, exact, only
from envfabric.build.interpreters import Interpreter
from envfabric.build.lockfile import read_lock
from envfabric.core.errors import Reason, SpecError

COMMIT = "0123" * 10
LOCK = """\
version = 1
revision = 3
requires-python = ">=3.11"
resolution-markers = ["sys_platform == 'linux'"]

[[package]]
name = "one"
version = "1.0"
source = { registry = "https://x.example/simple" }
dependencies = [{ name = "two", marker = "os_name == 'nt'" }]
sdist = { url = "https://x.example/one-1.0.tar.gz", hash = "sha256:44" }
wheels = [
    { url = "https://x.example/one-1.0-py3-none-any.whl"%s },
    { url = "https://x.example/one-1.0-cp311-cp311-win_amd64.whl", size = 7 },
]

[[package]]
name = "two"
version = "1.0"
source = { registry = "https://y.example/simple" }
wheels = [{ url = "https://y.example/two-1.0-py3-none-any.whl", hash = "sha256:22", size = 7 }]

[[package]]
name = "three"
version = "1.0"
source = { url = "https://z.example/three-1.0.tar.gz", subdirectory = "in" }
sdist = { hash = "sha256:33" }

[[package]]
name = "four"
source = { git = "https://z.example/four?rev=main#0123012301230123012301230123012301230123" }

[[package]]
name = "own"
version = "1"
source = { virtual = "." }
dependencies = [{ name = "one" }]
"""
PYPROJECT = b"""\
[project]
name = "own"
dependencies = ["one[x]"]
[project.optional-dependencies]
gpu = ["two"]
[tool.uv]
sources = { one = { index = "x" } }
conflicts = [[{ extra = "gpu" }, { extra = "cpu" }]]
environments = ["sys_platform == 'linux'"]
exclude-newer = "2026-01-01"
[[tool.uv.index]]
name = "x"
url = "https://x.example/simple"
"""
PYTHON = Interpreter("/p", "3.11.7", "cpython", "cpython-311", "linux-x86_64", "glibc 2.36")
ONE = Distribution("one", "1.0", "one-1.0-py3-none-any.whl", "sha256:11")
TWO = Distribution("two", "1.0", "two-1.0-py3-none-any.whl", "sha256:22")
THREE = Distribution(
    "three", "1.0", "three-1.0.tar.gz", "sha256:33", "https://z.example/three-1.0.tar.gz#subdirectory=in"
)
REPOSITORY = f"https://z.example/four?rev=main#{COMMIT}"
FOUR = Distribution("four", "1.0", "git", f"git:{COMMIT}", REPOSITORY)
URL = f"https://x.example/{ONE.wheel}"


def made(weak: str, *distributions: Distribution) -> Exact:
    lock = read_lock((LOCK % weak).encode(), "wf/a/uv.lock", None)
    return exact(PYPROJECT, lock, Closure(PYTHON, distributions), "wf/a/uv.lock")


def packages(project: Exact) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in tomllib.loads(project.lock.decode())["package"]}


def test_nothing_but_the_closure_is_in_the_lock() -> None:
    """Each distribution has one file or its repository, no condition and no edge; the project requires all of them."""
    project = made(', hash = "sha256:11"', ONE, TWO, THREE, FOUR)
    found = packages(project)
    own = found.pop("envfabric-environment")
    assert own["dependencies"] == [{"name": name} for name in found]
    assert found == {
        "one": {
            "name": "one",
            "version": "1.0",
            "source": {"registry": "https://x.example/simple"},
            "wheels": [{"url": URL, "hash": "sha256:11"}],
        },
        "two": {
            "name": "two",
            "version": "1.0",
            "source": {"registry": "https://y.example/simple"},
            "wheels": [{"url": f"https://y.example/{TWO.wheel}", "hash": "sha256:22"}],
        },
        "three": {
            "name": "three",
            "version": "1.0",
            "source": {"url": "https://z.example/three-1.0.tar.gz", "subdirectory": "in"},
            "sdist": {"hash": "sha256:33"},
        },
        "four": {"name": "four", "source": {"git": REPOSITORY}},
    }
    assert project.registries == ("https://x.example/simple", "https://y.example/simple")
    assert project.ours == ()


def test_what_is_not_of_the_closure_is_left_out() -> None:
    """A package that the lock has for another platform does not reach uv."""
    assert packages(made(', hash = "sha256:11"', ONE)).keys() == {"one", "envfabric-environment"}


def test_settings_of_fetching_stay() -> None:
    """Indexes, by whose names credentials are found, and what binds build requirements stay; what chooses goes."""
    document = tomllib.loads(made(', hash = "sha256:11"', ONE).pyproject.decode())
    assert document["tool"]["uv"] == {
        "exclude-newer": "2026-01-01",
        "index": [{"name": "x", "url": "https://x.example/simple"}],
    }
    assert document["project"].keys() == {"name", "version", "requires-python"}


@pytest.mark.parametrize(
    "weak", ["", ', hash = "md5:aa"', ', size = 3, upload-time = "x"', ', hash = "md5:a", size = 3']
)
def test_hash_is_put_in_for_uv_to_prove(weak: str) -> None:
    """Where the lock has no hash, or one that can be forged, uv is given the closure's."""
    project = made(weak, ONE, TWO)
    assert project.ours == ("one",)
    assert packages(project)["one"]["wheels"] == [{"url": URL, "hash": "sha256:11"}]


@pytest.mark.parametrize(
    "other",
    [
        Distribution("one", "1.0", ONE.wheel, "sha256:99"),
        Distribution("one", "1.0", "one-1.0-x.whl", "sha256:11"),
        Distribution("one", "2.0", ONE.wheel, "sha256:11"),
        Distribution("one", "1.0", ONE.wheel, "sha256:11", "https://z.example/one-1.0-py3-none-any.whl"),
        Distribution("one", "1.0", "one-1.0-cp311-cp311-win_amd64.whl", "https://x.example/unhashed"),
        Distribution("four", "1.0", "git", "git:9999", "https://z.example/four?rev=main#9999"),
    ],
)
def test_lock_of_another_closure_is_refused(other: Distribution) -> None:
    """A lock that lacks the closure's file, hash, origin or commit is never built under that digest."""
    with pytest.raises(SpecError, match=r"wf/a/uv\.lock names no ") as caught:
        made(', hash = "sha256:11"', other, TWO)
    assert caught.value.reason is Reason.VALIDATION


def test_project_is_named_like_none_of_its_distributions() -> None:
    """uv would take the project itself for a distribution of its name."""
    text = (LOCK % "").replace('"one"', '"envfabric-environment"')
    one = Distribution("envfabric-environment", "1.0", ONE.wheel, "sha256:11")
    lock = read_lock(text.encode(), "wf/a/uv.lock", None)
    project = exact(PYPROJECT, lock, Closure(PYTHON, (one,)), "wf/a/uv.lock")
    assert packages(project).keys() == {"envfabric-environment", "envfabric-environment-x"}


def test_texts_stay_what_they_are() -> None:
    """Quotes, control characters and other alphabets in a lock are no way to write more into the one for uv."""
    odd = 'https://x.example/\\u007f\\n\\"é\\\\/one-1.0-py3-none-any.whl'
    lock = read_lock((LOCK % "").replace(URL, odd).encode(), "wf/a/uv.lock", None)
    found = packages(exact(PYPROJECT, lock, Closure(PYTHON, (ONE,)), "wf/a/uv.lock"))
    url = 'https://x.example/\x7f\n"é\\/one-1.0-py3-none-any.whl'
    assert found["one"]["wheels"] == [{"url": url, "hash": "sha256:11"}]


@pytest.mark.parametrize("weak", ["", ', hash = "md5:aa"'])
def test_wheels_to_be_hashed_stand_alone(weak: str) -> None:
    """uv is asked to hash the wheels asked for, and sees no other file."""
    lock = read_lock((LOCK % weak).encode(), "wf/a/uv.lock", None)
    found = packages(only(PYPROJECT, lock, [URL]))
    assert found.keys() == {"one", "envfabric-environment"}
    assert found["one"]["wheels"] == [{"url": URL}]
    assert "sdist" not in found["one"]
