"""Distributions of a few hundred bytes, written without any build tool.

The same arguments give the same bytes, so a file that is removed and made again keeps its hash.
"""

import base64
import gzip
import hashlib
import io
import itertools
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# It needs nothing from an index, and it has no hook for metadata alone: to learn what the
# distribution requires, an installer has to run setup.py.
BACKEND = """\
import pathlib, runpy, shutil

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    runpy.run_path("setup.py", run_name="__main__")
    (wheel,) = pathlib.Path("prebuilt").glob("*.whl")
    shutil.copy(wheel, wheel_directory)
    return wheel.name
"""
BUILD_SYSTEM = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def normalized(name: str) -> str:
    """The name as an index spells it in its addresses (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    requires: Sequence[str] = (),
    modules: Mapping[str, str] | None = None,
    scripts: Mapping[str, str] | None = None,
    tag: str = "py3-none-any",
    requires_python: str | None = None,
) -> Path:
    """Write a valid wheel; without `modules`, it is one package whose VERSION is the version."""
    package = normalized(name).replace("-", "_")
    info = f"{package}-{version}.dist-info"
    files = dict(modules) if modules is not None else {f"{package}/__init__.py": f'VERSION = "{version}"\n'}
    files[f"{info}/METADATA"] = _metadata(name, version, requires, requires_python)
    purelib = str(tag.endswith("-any")).lower()
    tags = "".join(
        f"Tag: {'-'.join(t)}\n" for t in itertools.product(*(t.split(".") for t in tag.split("-")))
    )
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {purelib}\n{tags}"
    if scripts:
        entries = [f"{script} = {target}" for script, target in scripts.items()]
        files[f"{info}/entry_points.txt"] = "\n".join(["[console_scripts]", *entries, ""])
    record = [_recorded(path, content.encode()) for path, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            member = zipfile.ZipInfo(path)  # dated 1980
            member.external_attr = 0o100644 << 16
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return _put(folder / f"{package}-{version}-{tag}.whl", packed.getvalue())


def make_sdist(folder: Path, name: str, version: str = "1.0", *, setup_py: str = "", **details: Any) -> Path:
    """Write a source distribution that tells its requirements only to those who build it.

    Each build runs `setup_py` in the unpacked folder, as a script, without setuptools; if that
    succeeds, the result is the wheel that make_wheel writes from the same `details`.
    """
    files = {"pyproject.toml": BUILD_SYSTEM, "backend.py": BACKEND, "setup.py": setup_py}
    # Before version 2.2, installers must not trust the metadata of a source distribution.
    files["PKG-INFO"] = _metadata(name, version, (), details.get("requires_python"))
    contents = {path: text.encode() for path, text in files.items()}
    with tempfile.TemporaryDirectory() as scratch:
        wheel = make_wheel(Path(scratch), name, version, **details)
        contents[f"prebuilt/{wheel.name}"] = wheel.read_bytes()
    top = "-".join(wheel.name.split("-")[:2])
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, content in contents.items():
            member = tarfile.TarInfo(f"{top}/{path}")  # dated 1970
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return _put(folder / f"{top}.tar.gz", gzip.compress(packed.getvalue(), mtime=0))


def _metadata(name: str, version: str, requires: Sequence[str], requires_python: str | None) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Python: {requires_python}"] if requires_python else []
    return "\n".join([*lines, *(f"Requires-Dist: {each}" for each in requires), ""])


def _recorded(path: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(data)}"


def _put(path: Path, data: bytes) -> Path:
    # Renamed into place, because an index may be listing the folder at this moment.
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    return part.replace(path)
