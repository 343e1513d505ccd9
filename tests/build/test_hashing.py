"""Wheels that an index gives no hash for: hashed by us, with uv's downloads, and held to it at installation."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from envfabric.build.closure import Closure, Distribution
from envfabric.build.hashing import only_wheels, with_hashes
from envfabric.build.interpreters import Interpreter
from envfabric.build.lockfile import Lock, read_lock
from envfabric.build.resolve import Resolution, Resolver
from envfabric.build.uv import Finished, Uv
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy
from envfabric.specs.spec import Spec, read_spec
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.root import Root
from support.simple_index import SimpleIndex


def sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def resolve(resolver: Resolver, spec: Spec, python: Interpreter) -> Resolution:
    return resolver.resolve(spec, python, None)


def test_digest_is_that_of_an_index_with_hashes(
    resolver: Resolver, make_spec: Any, python: Interpreter, index: SimpleIndex
) -> None:
    """The same wheels are the same closure whether their index gives hashes or not; uv's lock stays its own."""
    index.hashes = False
    without = resolve(resolver, make_spec("one", ["beta", "gamma"]), python)
    assert b"sha256" not in without.lock
    for one in without.closure.distributions:
        assert one.hash == sha256(index.folder / one.wheel)
    index.hashes = True
    with_them = resolve(resolver, make_spec("two", ["beta", "gamma"]), python)
    assert without.closure == with_them.closure


def test_only_what_is_installed_is_downloaded(
    root: Root, files: Files, closures: Closures, make_spec: Any, python: Interpreter, index: SimpleIndex
) -> None:
    """Wheels of other platforms and source distributions are not fetched to be hashed."""
    marks: list[int] = []

    class Marking(Uv):
        def run(self, arguments: Sequence[str], **details: Any) -> Finished:
            if arguments[0] == "export":
                marks.append(len(index.requests))
            done = super().run(arguments, **details)
            if arguments[0] == "export":
                marks.append(len(index.requests))
            return done

    index.add_sdist("gamma", "2.0")
    index.add_wheel("gamma", "2.0", tag="cp311-cp311-win_amd64")
    index.add_wheel("windowed", "1.0", tag="cp311-cp311-win_amd64")
    index.hashes = False
    spec = make_spec("one", ["gamma", "windowed; sys_platform == 'win32'"])
    uv = Marking(root, timeout=60, index=index.url)
    resolution = resolve(Resolver(root, files, uv, closures.staging), spec, python)
    assert [one.name for one in resolution.closure.distributions] == ["gamma"]
    start, end = marks
    assert index.requests[start:end] == ["/files/gamma-2.0-py3-none-any.whl"]


def test_changed_wheel_is_another_digest(
    resolver: Resolver, make_spec: Any, python: Interpreter, index: SimpleIndex
) -> None:
    """A wheel that changes under its URL, where no hash says so, is another closure at the next resolution."""
    index.hashes = False
    before = resolve(resolver, make_spec("one", ["gamma"]), python).closure
    index.add_wheel("gamma", "2.0", modules={"gamma/__init__.py": "VERSION = 'other'\n"})
    after = resolve(resolver, make_spec("one", ["gamma"]), python).closure
    assert after.digest != before.digest
    assert after.distributions[0].hash == sha256(index.folder / "gamma-2.0-py3-none-any.whl")


def test_password_of_an_index_is_uvs_business(
    root: Root, files: Files, closures: Closures, make_spec: Any, python: Interpreter, tmp_path: Path,
    uv: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Hashing uses the credentials that resolving and installing use, and writes them nowhere."""
    with SimpleIndex(tmp_path / "closed", user="me", password="secret-word", hashes=False) as closed:
        closed.add_wheel("alpha", "1.0")
        monkeypatch.setenv("UV_INDEX_CLOSED_USERNAME", "me")
        monkeypatch.setenv("UV_INDEX_CLOSED_PASSWORD", "secret-word")
        text = (
            '[project]\nname = "one"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["alpha"]\n'
            f'[[tool.uv.index]]\nname = "closed"\nurl = "{closed.url}"\ndefault = true\n'
        )
        spec = read_spec("wf/one", "0" * 40, {"pyproject.toml": text.encode()}, Policy(indexes=(closed.url,)))
        found = Resolver(root, files, uv, closures.staging).resolve(spec, python, None)
        assert found.closure.distributions[0].hash == sha256(closed.folder / "alpha-1.0-py3-none-any.whl")
        assert b"secret" not in found.lock


def test_kept_for_an_hour_only(
    resolver: Resolver, make_spec: Any, python: Interpreter, index: SimpleIndex, root: Root
) -> None:
    """An outcome with our hashes is asked anew after an hour, also for a committed lock."""
    index.hashes = False
    lock = resolve(resolver, make_spec("one", ["gamma"], local=True), python).lock
    spec = make_spec("one", ["gamma"], local=True, files={"uv.lock": lock})
    key = resolver.key(spec, python, None)
    assert resolve(resolver, spec, python) == resolver.known(spec, key)
    record = root.state / "resolutions" / f"{key}.json"
    kept = json.loads(record.read_bytes())
    record.write_text(json.dumps({**kept, "at": kept["at"] - 4000}))
    assert resolver.known(spec, key) is None
    record.write_text(json.dumps({**kept, "at": kept["at"] - 4000, "hashed_here": False}))
    assert resolver.known(spec, key) is not None


LOCK = """\
version = 1
requires-python = ">=3.11"

[[package]]
name = "one"
version = "1.0"
source = { registry = "https://x.example/simple" }
sdist = { url = "https://x.example/one-1.0.tar.gz" }
wheels = [
    { url = "https://x.example/one-1.0-py3-none-any.whl"%s },
    { url = "https://x.example/one-1.0-cp311-cp311-win_amd64.whl", size = 7 },
]

[[package]]
name = "two"
version = "1.0"
source = { registry = "https://x.example/simple" }
wheels = [{ url = "https://x.example/two-1.0-py3-none-any.whl", hash = "sha256:22", size = 7 }]

[[package]]
name = "own"
version = "1"
source = { virtual = "." }
"""


def read(text: str) -> Lock:
    return read_lock(text.encode(), "wf/a/uv.lock")


PYTHON = Interpreter("/p", "3.11.7", "cpython", "cpython-311", "linux-x86_64", "glibc 2.36")
ONE = Distribution("one", "1.0", "one-1.0-py3-none-any.whl", "sha256:11")
TWO = Distribution("two", "1.0", "two-1.0-py3-none-any.whl", "sha256:22")
URL, TWO_URL = (f"https://x.example/{one.wheel}" for one in (ONE, TWO))


@pytest.mark.parametrize(
    "weak", ["", ', hash = "md5:aa"', ', size = 3, upload-time = "x"', ', hash = "md5:a", size = 3']
)
def test_hash_is_put_in_for_uv_to_prove(weak: str) -> None:
    """The lock for a build has our hash where there was none, or one that can be forged; all else is the same."""
    lock = read(LOCK % weak)
    text, names = with_hashes(lock, Closure(PYTHON, (ONE, TWO)), "wf/a/uv.lock")
    assert names == ["one"]
    found = {w["url"]: w.get("hash") for p in read(text).packages for w in p["wheels"]}
    assert (found[URL], found[TWO_URL]) == ("sha256:11", "sha256:22")
    assert len(text.splitlines()) == len(lock.text.splitlines())


def test_lock_with_hashes_is_left_alone() -> None:
    """Nothing is put into a lock that has all of them."""
    lock = read(LOCK % ', hash = "sha256:11"')
    assert with_hashes(lock, Closure(PYTHON, (ONE, TWO)), "wf/a/uv.lock") == (lock.text, [])


@pytest.mark.parametrize(
    "other",
    [
        Distribution("one", "1.0", ONE.wheel, "sha256:99"),
        Distribution("one", "1.0", "one-1.0-x.whl", "sha256:11"),
    ],
)
def test_lock_of_another_closure_is_refused(other: Distribution) -> None:
    """A lock whose hash is not the closure's, or that lacks its wheel, is never built under that digest."""
    with pytest.raises(SpecError) as caught:
        with_hashes(read(LOCK % ', hash = "sha256:11"'), Closure(PYTHON, (other, TWO)), "wf/a/uv.lock")
    assert caught.value.reason is Reason.VALIDATION


def test_lock_that_can_not_be_edited_is_refused() -> None:
    """A lock that is right as TOML and not written as uv does is refused with what to do."""
    start = '{ url = "https://x.example/one-1.0-py3'
    lock = read((LOCK % "").replace(start, start.replace("url", '"url"')))
    with pytest.raises(SpecError, match="Run `uv lock`") as caught:
        with_hashes(lock, Closure(PYTHON, (ONE, TWO)), "wf/a/uv.lock")
    assert caught.value.reason is Reason.LOCK_STALE


@pytest.mark.parametrize("weak", ["", ', hash = "md5:aa"'])
def test_reduced_lock_leaves_one_download(weak: str) -> None:
    """What uv is asked to hash is the wheels asked for: no other file without a hash stays in the lock."""
    packages = read(only_wheels(LOCK % weak, [URL])).packages
    assert [(w["url"], w.get("hash")) for p in packages for w in p["wheels"]] == [
        (URL, None),
        (TWO_URL, "sha256:22"),
    ]
    assert not any("sdist" in one for one in packages)
