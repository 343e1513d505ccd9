"""Where a remote spec repository is and how git gets in: its address, what may carry it, and its credentials.

A user and password in the address are taken out here, once: they reach git by its environment alone, and no command
line, file, log or message. Runs nothing and writes nothing.
"""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from envfabric.core.errors import ConfigError, hide, redact
from envfabric.core.reaching import VARIABLES

_SCP = re.compile(
    r"(?P<user>[A-Za-z0-9._+-]+@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>[^:].*)"
)
"""`user@host:path`, git's short form of ssh."""
_ALLOWED = "a folder on this machine, https://…, ssh://…, user@host:path or file:///…"
_PASSED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    *VARIABLES,
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
)
_USER, _PASSWORD, _FILE = "ENVFABRIC_GIT_USER", "ENVFABRIC_GIT_PASSWORD", "ENVFABRIC_GIT_FILE"
# Both answer only when they are asked: git also tells helpers what worked, to be written down, and what did not.
_FROM_URL = (
    f"""!f() {{ test "$1" = get && printf 'username=%s\\npassword=%s\\n' "${_USER}" "${_PASSWORD}"; }}; f"""
)
_FROM_FILE = f"""!f() {{ test "$1" = get && exec git credential-store --file="${_FILE}" get; }}; f"""
_CARRIES = {"https": "https:ssh", "ssh": "https:ssh", "http": "http:https", "file": "file"}
"""What git may use for an address, also after a redirection: never less protected than what was asked for."""
# The server's own settings don't count for a folder; who names it trusts it, whoever owns it.
_LOCAL_SERVER = "git -c 'safe.directory=*' -c uploadpack.allowFilter=true upload-pack"


@dataclass(frozen=True, slots=True)
class Remote:
    """A remote repository; its text shows no credential."""

    url: str
    """The address without user and password, but with ssh's user."""
    scheme: str
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    credentials: Path | None = field(default=None, repr=False)
    """A file in the form of `git credential-store`."""

    def configuration(self) -> dict[str, str]:
        """git's settings for reaching it, as they go into the environment of a fetch."""
        found = {"remote.origin.url": self.url}
        if self.scheme == "file":
            found["remote.origin.uploadpack"] = _LOCAL_SERVER
        if (mine := self._helper) is not None:
            # The operator's helpers are left out: one of them may write down what worked.
            found |= {"credential.helper": "", f"credential.{self._host}.helper": mine}
        if self.user is not None and self.password is None:
            found[f"credential.{self._host}.username"] = self.user
        return found

    def environment(self, ssh: str = "ssh") -> dict[str, str]:
        """The environment of a fetch, from nothing: nobody is asked, and nothing but this is reached.

        `ssh` is the command that the operator's settings of git name; GIT_SSH_COMMAND goes before it, as in git.
        """
        found = {name: os.environ[name] for name in _PASSED if name in os.environ}
        ssh = os.environ.get("GIT_SSH_COMMAND", ssh)
        found |= {
            "LC_ALL": "C",
            "GIT_ALLOW_PROTOCOL": _CARRIES[self.scheme],
            "GIT_TERMINAL_PROMPT": "0",
            # Empty, not unset: git would ask core.askPass and SSH_ASKPASS then.
            "GIT_ASKPASS": "",
            "GCM_INTERACTIVE": "never",
            "GIT_SSH_COMMAND": f"{ssh} -o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=4",
        }
        if self.password is not None:
            found |= {_USER: self.user or "", _PASSWORD: self.password}
        elif self.credentials is not None:
            found[_FILE] = str(self.credentials)
        return found

    @property
    def _helper(self) -> str | None:
        if self.password is not None:
            return _FROM_URL
        return _FROM_FILE if self.credentials is not None else None

    @property
    def _host(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


def remote_of(repo: str, credentials: Path | None = None) -> Remote | None:
    """The remote that a `repo` setting names; None where it is a folder of this machine.

    Raises `ConfigError` for an address of a kind that is not followed.
    """
    if not repo.isprintable() or repo != repo.strip():
        raise ConfigError(f"repo = {redact(repo)!r} has blanks around it or characters that can't be shown")
    if "://" not in repo:
        if re.match(r"[A-Za-z0-9+.-]+::", repo):
            raise ConfigError(f"repo = {redact(repo)!r}: git's remote helpers are not used; give {_ALLOWED}.")
        if _SCP.fullmatch(repo) and not Path(repo).exists():
            return Remote(repo, "ssh")
        return None
    try:
        parts = urlsplit(repo)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"repo = {redact(repo)!r} is no address: {error}") from None
    scheme = parts.scheme.lower()
    if parts.password is not None or (parts.username and scheme in {"http", "https"}):
        # Either may be a token, and git's own messages may name it.
        for secret in (parts.password or parts.username or "",):
            hide(secret)
            hide(unquote(secret))
    _check(scheme, parts, redact(repo))
    if scheme in {"ssh", "file"}:
        return Remote(repo, scheme)
    user, password = (None if one is None else unquote(one) for one in (parts.username, parts.password))
    if any(not one.isprintable() for one in (user or "", password or "")):
        raise ConfigError(f"repo = {redact(repo)!r}: user and password can't hold control characters")
    host = parts.netloc.rpartition("@")[2]
    return Remote(parts._replace(netloc=host).geturl(), scheme, user, password, credentials)


def _check(scheme: str, parts: SplitResult, shown: str) -> None:
    if scheme not in _CARRIES:
        raise ConfigError(f"repo = {shown!r}: {scheme}:// is not followed; give {_ALLOWED}.")
    host = parts.hostname or ""
    if scheme == "file":
        if host not in {"", "localhost"} or not parts.path.startswith("/"):
            raise ConfigError(
                f"repo = {shown!r}: write file:// and an absolute path, such as file:///srv/specs.git"
            )
        return
    if not host or host.startswith("-"):
        raise ConfigError(f"repo = {shown!r} names no host")
    if scheme == "ssh" and parts.password is not None:
        raise ConfigError(f"repo = {shown!r}: ssh takes no password from an address; use a key or an agent.")
    if scheme == "http" and not _is_loopback(host):
        raise ConfigError(
            f"repo = {shown!r}: without TLS anybody on the way could write specs; use https:// or ssh://. "
            "http:// is taken from this machine only."
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
