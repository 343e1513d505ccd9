"""Credentials are taken out of the environment, and no text that is shown has them from then on."""

import os
from pathlib import Path

import pytest

from envfabric.core import errors
from envfabric.core.errors import ConfigError, redact
from envfabric.service import credentials
from envfabric.service.credentials import hide_secrets, take_credentials

TOKEN = "glpat-0123456789abcdef"


@pytest.fixture(autouse=True)
def nothing_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has taken nothing yet, in a home without netrc."""
    monkeypatch.setattr(errors, "_hidden", {})
    monkeypatch.setattr(credentials, "_taken", {})
    for name in list(os.environ):
        if name.startswith(("UV_", "ENVFABRIC_")) or name in {"NETRC", "CREDENTIALS_DIRECTORY"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """systemd's folder for the service."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


@pytest.mark.parametrize(
    "name", ["ENVFABRIC_REPO", "ENVFABRIC_INDEX", "ENVFABRIC_RECONCILE_TOKEN", "envfabric_repo"]
)
def test_settings_with_secrets_reach_no_child(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The variables of settings that may hold one are gone from the environment, and what they hold is hidden."""
    url = "https://user:of-the-host@git.example/specs.git"
    monkeypatch.setenv(name, "of-the-host" if name.endswith("TOKEN") else url)
    monkeypatch.setenv("ENVFABRIC_ROOT", "/mnt/nas")
    take_credentials()
    assert name not in os.environ
    assert os.environ["ENVFABRIC_ROOT"] == "/mnt/nas"
    assert redact("it said of-the-host") == "it said ***"


def test_a_token_without_a_password() -> None:
    """A user of an address is a token where it is as long as one; a person's name stays readable."""
    hide_secrets(f"https://{TOKEN}@git.example/specs.git", "https://alice@git.example/specs.git", None)
    assert redact(f"{TOKEN} of alice") == "*** of alice"


def test_a_user_of_an_index_that_is_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same by uv's variable for the user."""
    monkeypatch.setenv("UV_INDEX_TEAM_USERNAME", TOKEN)
    assert take_credentials().uv == {"UV_INDEX_TEAM_USERNAME": TOKEN}
    assert redact(TOKEN) == "***"


@pytest.mark.parametrize("where", ["credentials", "variable", "home"])
def test_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Passwords of whichever netrc uv and git read are hidden, and tokens that stand for a user."""
    path = tmp_path / (".netrc" if where == "home" else "netrc")
    if where == "credentials":
        path = tmp_path / "credentials" / "netrc"
        path.parent.mkdir()
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent))
    elif where == "variable":
        monkeypatch.setenv("NETRC", str(path))
    path.write_text(
        f'machine a login alice\n  password of-alice\ndefault login {TOKEN} password "quoted-one"\n'
    )
    take_credentials()
    assert redact(f"alice: of-alice, {TOKEN}, quoted-one") == "alice: ***, ***, ***"


@pytest.mark.parametrize("name", ["netrc", "git-credentials", "UV_INDEX_TEAM_PASSWORD"])
def test_a_credential_that_can_not_be_read(folder: Path, name: str) -> None:
    """The folder is named in an error of the configuration."""
    (folder / name).mkdir()
    with pytest.raises(ConfigError, match=str(folder)):
        take_credentials()


def test_git_credentials(folder: Path) -> None:
    """A file in the form of `git credential-store`: both its passwords and its tokens are hidden."""
    path = folder / "git-credentials"
    path.write_text(f"https://alice:of%2Falice@git.example\nhttps://{TOKEN}:x@other.example\n")
    assert take_credentials().git == path
    assert redact(f"of%2Falice of/alice {TOKEN}") == "*** *** ***"
