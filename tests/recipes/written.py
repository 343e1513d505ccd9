"""The recipes as they are written in docs/recipes, and the commands that their first lines tell."""

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECIPES = DOCS / "recipes"


def commands(name: str) -> list[str]:
    """What the head of a recipe tells to type: its indented lines."""
    text = (RECIPES / name).read_text("utf-8")
    if name.endswith(".py"):
        return re.findall(r"^    (.+)$", text.split('"""')[1], re.MULTILINE)
    head = re.match(r"(?:#.*\n)+", text)
    assert head is not None, name
    return re.findall(r"^#     (.+)$", head[0], re.MULTILINE)


def documents(name: str) -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return list(yaml.safe_load_all((RECIPES / name).read_text("utf-8")))


def copied(folder: Path) -> Path:
    """The recipes in a folder of the test's own, in which a user would stand."""
    place = folder / "recipes"
    shutil.copytree(RECIPES, place, ignore=shutil.ignore_patterns("__pycache__"))
    return place
