"""Credentials on their way in: out of the environment and systemd's folder, into the hands of uv and git alone.

What is taken here stands in no child's environment but the one that needs it, and `redact` knows it from then on, so
that it reaches no log, no message and no file. Reads $CREDENTIALS_DIRECTORY and netrc; writes nothing.
"""

import contextlib
import os
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

from envfabric.core.errors import ConfigError, hide

_FOR_UV = re.compile(r"UV_INDEX_[A-Z0-9_]+_(USERNAME|PASSWORD)|UV_DEFAULT_INDEX|UV_INDEX")
"""Variables that name indexes or hold what they ask for."""
_OF_SETTINGS = {"ENVFABRIC_REPO", "ENVFABRIC_INDEX", "ENVFABRIC_RECONCILE_TOKEN"}
"""Variables of settings that may hold a secret; the settings were read by then."""
_TOKEN = 16
"""Characters of a user's name from which on it is taken for a token: `https://TOKEN@host` has no password."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What was found; its text shows nothing of it."""

    uv: dict[str, str] = field(default_factory=dict, repr=False)
    """Variables for uv's environment."""
    git: Path | None = None
    """A file in the form of `git credential-store`, for the fetch of a remote repository."""


_taken: dict[str, str] = {}


def take_credentials() -> Credentials:
    """Takes them out of this process's environment: the same for everyone who asks in it.

    A file in $CREDENTIALS_DIRECTORY has a variable's name (`UV_INDEX_TEAM_PASSWORD`), or is `netrc` or
    `git-credentials`. Raises `ConfigError` for one that can't be read.
    """
    for name in [one for one in os.environ if _FOR_UV.fullmatch(one)]:
        _taken[name] = os.environ.pop(name)
    # Settings may be spelt in any case.
    for name in [one for one in os.environ if one.upper() in _OF_SETTINGS]:
        hide_secrets(os.environ.pop(name), token=name.upper() == "ENVFABRIC_RECONCILE_TOKEN")
    found = dict(_taken)
    git = None
    # systemd's folder for this service; git and the commands of a build have no business in it.
    if folder := os.environ.pop("CREDENTIALS_DIRECTORY", None) or _taken.get("CREDENTIALS_DIRECTORY"):
        _taken["CREDENTIALS_DIRECTORY"] = folder
        found.pop("CREDENTIALS_DIRECTORY", None)
        try:
            for path in sorted(Path(folder).iterdir()):
                if path.name == "netrc":
                    found["NETRC"] = str(path)
                    _hide_netrc(path)
                elif path.name == "git-credentials":
                    git = path
                    for line in path.read_text("utf-8", "replace").splitlines():
                        _hide_url(line)
                elif _FOR_UV.fullmatch(path.name):
                    found[path.name] = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the credentials in {folder} can't be read: {error}") from error
    for name, value in found.items():
        _hide(name, value)
    if "NETRC" not in found:
        # The operator's own, which uv and git read; it need not be there.
        with contextlib.suppress(OSError, RuntimeError):
            _hide_netrc(Path(os.environ.get("NETRC") or Path.home() / ".netrc"))
    return Credentials(found, git)


def hide_secrets(*addresses: str | None, token: bool = False) -> None:
    """Hides the user and password of each address, or with `token` the whole of each text."""
    for one in addresses:
        if one and token:
            hide(one)
        elif one:
            _hide_url(one)


def _hide(name: str, value: str) -> None:
    if name.endswith("_PASSWORD"):
        hide(value)
    elif name.endswith("_USERNAME"):
        _hide_user(value)
    elif name != "NETRC":
        for word in value.split():
            _hide_url(word.partition("=")[2] if "://" in word.partition("=")[2] else word)


def _hide_url(text: str) -> None:
    try:
        parts = urlsplit(text.strip())
        user, password = parts.username, parts.password
    except ValueError:
        return
    if user:
        _hide_user(user)
        _hide_user(unquote(user))
    if password:
        hide(password)
        hide(unquote(password))


def _hide_user(name: str) -> None:
    # A person's name would be taken out of every message that has it.
    if len(name) >= _TOKEN:
        hide(name)


def _hide_netrc(path: Path) -> None:
    """Hides what a netrc file holds, in whatever form it is. Raises `OSError`."""
    words = path.read_text("utf-8", "replace").split()
    for before, word in pairwise(words):
        if before == "password":
            hide(word.strip('"'))
        elif before == "login":
            _hide_user(word.strip('"'))
