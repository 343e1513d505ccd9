"""An index with packages whose import goes wrong in each way, and several versions of a package named ray."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

WRITES = """
import pathlib, sys
path = pathlib.Path(sys.prefix, "lib", f"python3.{sys.version_info.minor}", "site-packages", "alpha", "__init__.py")
path.chmod(0o644)
with path.open("a") as file:
    file.write("CHANGED = 1\\n")
"""
CACHES = """
import os
with open(os.path.join(os.path.dirname(__file__), "cache"), "w") as file:
    file.write("a table")
"""


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleIndex]:
    """alpha, beta (which requires alpha), ray in two versions, and those that go wrong when they are imported."""
    with SimpleIndex(tmp_path_factory.mktemp("packages")) as index:
        index.add_wheel("alpha", "1.0")
        index.add_wheel("beta", "1.0", requires=["alpha"])
        index.add_wheel("ray", "2.50.0")
        index.add_wheel("ray", "2.60.0")
        index.add_wheel("over-ray", "1.0", requires=["ray==2.50.0"])
        for name, code in {
            "lacking": "print('before')\nimport not_there\n",
            "leaving": "import os\nos._exit(0)\n",
            "crashing": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n",
            "exiting": "raise SystemExit(3)\n",
            "hanging": "import pathlib, os, time\nif os.environ.get('MARKS'): "
            "pathlib.Path(os.environ['MARKS'], 'hangs').write_text(os.getcwd())\ntime.sleep(1000)\n",
            "writing": WRITES,
            "caching": CACHES,
            "starved": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
            "threading-on": "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n",
        }.items():
            module = name.replace("-", "_")
            index.add_wheel(name, "1.0", modules={f"{module}/__init__.py": code})
        yield index


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """A folder for what the code under validation leaves; specs name it in MARKS."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


@pytest.fixture
def trusting(tmp_path: Path, packages: SimpleIndex) -> Fabric:
    """A fabric that allows every kind of validation."""
    fabric = Fabric(tmp_path, packages, SpecRepo(tmp_path / "specs"))
    fabric.settings["policy"] = {"indexes": [packages.url], "validation": ["full", "custom"]}
    return fabric


def table(kind: str, *lines: str, **variables: object) -> str:
    """`[tool.envfabric]` with a kind of validation, further lines, and env_vars."""
    text = f'[tool.envfabric]\nvalidate = "{kind}"\n' + "".join(f"{line}\n" for line in lines)
    if variables:
        pairs = ", ".join(f'{name} = "{value}"' for name, value in variables.items())
        text += f"[tool.envfabric.runtime-env]\nenv_vars = {{ {pairs} }}\n"
    return text
