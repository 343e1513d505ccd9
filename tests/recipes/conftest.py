"""One fabric for all recipes that need no cluster, with the environments that they name."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.conftest import remove
from examples.demo import EXAMPLES
from recipes.written import copied
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

VARIABLES = '[tool.envfabric.runtime-env]\nenv_vars = { OMP_NUM_THREADS = "2" }\n'


@pytest.fixture(scope="session")
def recipe_fabric(tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex) -> Iterator[Fabric]:
    """The example's etl/extract, and two environments with Celery that want two versions of one package."""
    folder = tmp_path_factory.mktemp("recipes")
    fabric = Fabric(folder, packages, SpecRepo(folder / "specs"), machines_index=True)
    example = (EXAMPLES / "etl/extract/pyproject.toml").read_text()
    fabric.repo.write("etl/extract/pyproject.toml", f"{example}\n{VARIABLES}")
    fabric.repo.spec("reports/daily", ["celery>=5.6,<6", "humanize==4.12.0"])
    fabric.repo.spec("reports/legacy", ["celery>=5.6,<6", "humanize==4.9.0"])
    fabric.repo.commit()
    try:
        fabric.run_once()
        yield fabric
    finally:
        remove(folder)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the recipes in it."""
    return copied(tmp_path)


@pytest.fixture
def variables(recipe_fabric: Fabric) -> dict[str, str]:
    """A user's variables: `python` and `envfabric` are those of an installation that has nothing else to do with it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return recipe_fabric.environment | {"ENVFABRIC_ROOT": str(recipe_fabric.root), "PATH": path}
