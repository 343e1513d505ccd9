"""Wheels that an index gives no hash for: hashed by us, with uv's downloads, and held to it at installation."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from envfabric.build.interpreters import Interpreter
from envfabric.build.resolve import Resolution, Resolver
from envfabric.build.uv import Finished, Uv
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
