"""Which modules are imported where a spec names none: those that the direct requirements' RECORDs name."""

from pathlib import Path

import pytest

from envfabric.build.modules import MOST, modules_of


def installed(venv: Path, name: str, *paths: str) -> None:
    info = venv / f"lib/python3.11/site-packages/{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "RECORD").write_text("".join(f"{path},sha256=x,1\n" for path in (*paths, f"{info.name}/RECORD")))


@pytest.mark.parametrize(
    ("paths", "modules"),
    [
        (["one/__init__.py", "one/deep/__init__.py", "one/x.py"], ["one"]),
        (["one.py", "two.py"], ["one", "two"]),
        (["_one.py", "two.py"], ["two"]),
        (["_one.cpython-311-x86_64-linux-gnu.so"], ["_one"]),
        (["one.abi3.so", "one.libs/two.so", "one-stubs/__init__.pyi"], ["one"]),
        (["one/__init__.cpython-311-x86_64-linux-gnu.so"], ["one"]),
        (["space/__init__.pyi", "space/cloud/store/__init__.py", "space/cloud/mod.py"],
         ["space.cloud.mod", "space.cloud.store"]),
        (["one/__init__.py", "tests/__init__.py", "docs/conf.py", "setup.py"], ["one"]),
        (["tests/__init__.py"], ["tests"]),
        (["../../../bin/tool", "one/data.txt", "../../../share/man.py", "/etc/x.py"], []),
        (['"a,b/__init__.py"', "class-x/__init__.py"], []),
        ([f"space/m{n}.py" for n in range(2 * MOST)], None),
    ],
)  # fmt: skip
def test_names_of_a_wheel(tmp_path: Path, paths: list[str], modules: list[str] | None) -> None:
    """Packages and modules by name, namespaces by what is in them; private ones, tests and other files are left out."""
    installed(tmp_path, "a", *paths)
    installed(tmp_path, "other", "other/__init__.py")
    found = modules_of(tmp_path, ["a", "absent"])
    assert len(found) == MOST if modules is None else found == modules
