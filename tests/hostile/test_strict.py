"""The strict settings of docs/policy.md: what they refuse beyond the default, and that signatures come first."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from support.fabric import Fabric

PAGE = Path(__file__).parents[2] / "docs/policy.md"


@pytest.fixture
def strict() -> dict[str, Any]:
    """The settings as the page has them."""
    return tomllib.loads(PAGE.read_text().split("```toml\n")[1].split("```")[0])


def test_strict_policy_refuses_more(fabric: Fabric, strict: dict[str, Any]) -> None:
    """A key that is not on the short list, and an exception to the cooldown, are refused; both say which setting."""
    fabric.settings["policy"] = {**strict["policy"], "indexes": [fabric.packages.url]}
    # Releases of the tests' index tell no age.
    fabric.settings["policy"].pop("cooldown")
    fabric.settings["policy"]["max_packages"] = 1
    fabric.repo.spec("good/one", ["alpha"])
    fabric.repo.spec("bad/key", ["alpha"], table='[tool.uv]\nprerelease = "allow"')
    fabric.repo.spec("bad/many", ["beta"])
    fabric.repo.commit()
    index = fabric.run_once(expect=1)
    errors = {spec_id: entry["error"] for spec_id, entry in index["environments"].items()}
    assert errors["good/one"] is None
    assert errors["bad/key"]["reason"] == errors["bad/many"]["reason"] == "policy"
    assert "Allowed are: constraint-dependencies, exclude-newer." in errors["bad/key"]["message"]
    assert "bad/key/pyproject.toml:" in errors["bad/key"]["message"]
    assert "max_packages" in errors["bad/many"]["message"], errors["bad/many"]["message"]


def test_unsigned_collection_is_held_back(fabric: Fabric, strict: dict[str, Any]) -> None:
    """With required signatures nothing of an unsigned commit is read, built or published."""
    signers = fabric.folder / "allowed_signers"
    signers.write_text(
        "somebody@example.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHc0cmU0dGhpcmR5LWJ5dGVzLW9mLW5vdGhpbmch\n"
    )
    fabric.settings["signatures"] = {**strict["signatures"], "allowed_signers": str(signers)}
    fabric.repo.spec("good/one", ["alpha"])
    fabric.repo.commit()
    fabric.init()
    done = fabric.command("run", "--once", "--config", fabric.configure())
    assert done.returncode == 1, done.stdout + done.stderr
    assert "sign" in done.stdout + done.stderr
    assert list((fabric.root / "store").iterdir()) == []
