"""No recipe is there only to be read."""

from pathlib import Path

from recipes.written import DOCS, RECIPES

TESTS = Path(__file__).resolve().parents[1]
THERE = sorted(path.name for path in RECIPES.iterdir() if path.name != "__pycache__")


def test_every_recipe_is_tried_by_a_test() -> None:
    """Each file of docs/recipes is run, or held against its schema, by a test that names it."""
    tests = [*TESTS.glob("recipes/test_*.py"), *TESTS.glob("on_ray/*recipes*.py")]
    text = "".join(path.read_text() for path in tests)
    assert [name for name in THERE if f'"{name}"' not in text] == []


def test_every_recipe_is_in_the_index() -> None:
    """docs/recipes.md has a link to each of them, and to no file that is not there."""
    text = (DOCS / "recipes.md").read_text("utf-8")
    linked = {part.split(")")[0] for part in text.split("](recipes/")[1:]}
    assert sorted(linked) == THERE
