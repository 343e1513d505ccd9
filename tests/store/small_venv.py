"""A small environment as uv leaves it: files linked from a cache, scripts, a symlink, odd names."""

import hashlib
import json
import os
import stat
import sys
from pathlib import Path

from envfabric.store.closures import Closures, Staging
from envfabric.store.root import Root

PACKAGES = ".venv/lib/python3.11/site-packages"
ODD_NAMES = (
    b"new\nline.txt",
    "naïve-名.txt".encode(),
    b"not-utf-8-\xff\xfe.txt",
    b'quote"back\\slash.txt',
    b" space ",
    b"-rf",
)
METADATA = {"schema": 1, "inputs": {}}


def fill(root: Root, venv: Path, *packages: str) -> None:
    """Makes an environment with these packages; each one's files are links to the same cache files."""
    site = venv / "lib" / "python3.11" / "site-packages"
    for package in packages or ("alpha",):
        cached = root.uv_cache / package
        if not cached.exists():
            cached.mkdir()
            (cached / "__init__.py").write_text(f"NAME = {package!r}\n" * 2000)
            (cached / "native.so").write_bytes(package.encode() * 5000)
            (cached / "native.so").chmod(0o700)
            (cached / "empty.py").touch()
            for name in ODD_NAMES:
                Path(os.fsdecode(os.fsencode(cached) + b"/" + name)).write_bytes(name)
        folder = site / package
        folder.mkdir(parents=True)
        for file in cached.iterdir():
            os.link(file, folder / file.name)
        info = site / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "RECORD").write_text(f"{package}/__init__.py,,\n")
    (site / "_virtualenv.py").write_text("# written by uv\n")
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / "bin" / "tool").write_text("#!/bin/sh\nexit 0\n")
    (venv / "bin" / "tool").chmod(0o4700)
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\n")


def build(closures: Closures, root: Root, digest: str, *packages: str) -> dict[int, int]:
    """Takes a small environment all the way into the store; gives its bytes by inode."""
    with closures.staging() as staging:
        fill(root, staging.venv, *packages)
        return publish(closures, staging, digest)


def publish(closures: Closures, staging: Staging, digest: str) -> dict[int, int]:
    """Seals, describes and publishes what is in staging; gives its bytes by inode."""
    inventory = closures.take_inventory(staging)
    closures.describe(staging, inventory, METADATA | {"digest": digest}, f"built {digest}\n")
    _, inodes = closures.publish(staging, digest, inventory)
    return inodes


def listing(closure: Path) -> list[list[object]]:
    """What a manifest of this closure has to say, found without the project's own code."""
    found: list[list[object]] = []
    top = os.fsencode(closure)
    for parent, folders, files in os.walk(top):
        for name in (*folders, *files):
            raw = os.path.join(parent, name)
            path = os.fsdecode(os.path.relpath(raw, top))
            status = os.lstat(raw)
            mode = oct(stat.S_IMODE(status.st_mode))
            if raw == os.path.join(top, b"manifest"):
                continue
            if stat.S_ISLNK(status.st_mode):
                found.append(["l", path, os.fsdecode(os.readlink(raw))])
            elif stat.S_ISDIR(status.st_mode):
                found.append(["d", path, mode])
            else:
                with open(raw, "rb") as file:
                    content = file.read()
                found.append(["f", path, mode, len(content), hashlib.sha256(content).hexdigest()])
    return sorted(found, key=lambda line: str(line[1]))


def manifest(closure: Path) -> list[list[object]]:
    """The lines of the manifest that lies in a closure, without the one that proves the others."""
    *lines, last = (closure / "manifest").read_bytes().splitlines(keepends=True)
    assert json.loads(last) == ["sha256", hashlib.sha256(b"".join(lines)).hexdigest()]
    assert all(line.isascii() and line.endswith(b"\n") for line in (*lines, last))
    return [json.loads(line) for line in lines]


def assert_whole(closure: Path) -> None:
    """Fails where a closure is not exactly what its manifest says, or lacks what describes it."""
    assert {path.name for path in closure.iterdir()} == {".venv", "manifest", "metadata.json", "build.log"}
    assert json.loads((closure / "metadata.json").read_bytes())["schema"] == 1
    assert manifest(closure) == listing(closure)
    assert stat.S_IMODE(closure.stat().st_mode) == 0o755
    for name in ("manifest", "metadata.json", "build.log"):
        assert stat.S_IMODE((closure / name).stat().st_mode) == 0o444
