"""Addresses of git and URL sources, taken apart and held against those that the settings list.

They are compared by their parts, never as text: `https://host.example.evil/` begins like `https://host.example`, and
`/team/../other` like `/team/`. What uv might read in another way than this module is refused, so that both mean the
same place: it puts variables into addresses, cuts the revision off a git address, and decodes what is escaped.
Pure; nothing is fetched.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

_CHARACTERS = re.compile(r"[A-Za-z0-9._~/:@%+=,;&!()*#\[\]-]+")
"""No $, which uv takes for a variable; no ?, of which nobody knows what the server makes; no backslash, no space."""
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|[0-9a-f:.]+")
_USER = re.compile(r"[A-Za-z0-9._-]+")
_PORTS = {"http": 80, "https": 443, "ssh": 22}
_HASHES = re.compile(r"(sha256|sha384|sha512)=[0-9a-f]+|egg=[A-Za-z0-9._-]+")
_LONGEST = 2000


@dataclass(frozen=True, slots=True)
class Address:
    """Where a source is."""

    scheme: str
    """Of git sources without its `git+`."""
    user: str
    """Of ssh only: it chooses what the host shows."""
    host: str
    port: int
    segments: tuple[str, ...]
    """The path's parts, decoded; a git revision is no part of them."""
    subdirectory: str = ""


def parse_address(text: str, *, git: bool = False) -> Address:
    """The parts of an address; `git` for one that names a repository and perhaps its revision.

    Raises `ValueError` whose text says what is wrong with it, and never repeats a password.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text)} characters, at most {_LONGEST} are read")
    if not _CHARACTERS.fullmatch(text) or re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ValueError("it has characters that are not taken in an address; no variable and no query is")
    parts = urlsplit(text)
    scheme = parts.scheme.removeprefix("git+")
    if scheme not in _PORTS or (scheme == "ssh" and not git):
        raise ValueError(
            "only https and http addresses are, and ssh ones of git; nothing on the builder is read"
        )
    user, _, password = (parts.username or ""), None, parts.password
    if password is not None or (user and (scheme != "ssh" or not _USER.fullmatch(user))):
        raise ValueError("it carries credentials; give those to the daemon")
    if "@" in parts.netloc and not user:
        raise ValueError("its user is empty")
    host = parts.hostname or ""
    if not _HOST.fullmatch(host):
        raise ValueError("its host can't be read")
    path = parts.path
    if git and "@" in path:
        # As uv does it: what follows the last @ is the revision.
        path = path.rpartition("@")[0]
        if "@" in path:
            raise ValueError("it has more than one @")
    _segments(parts.path)
    return Address(
        scheme, user, host, parts.port or _PORTS[scheme], _segments(path), _fragment(parts.fragment)
    )


def is_listed(address: Address, prefixes: Iterable[str]) -> bool:
    """Whether one of the listed addresses is the beginning of this one, part by part."""
    for prefix in prefixes:
        try:
            known = parse_address(prefix, git=prefix.startswith(("git+", "ssh:")))
        except ValueError:
            continue
        same = (known.scheme, known.user, known.host, known.port)
        if same == (address.scheme, address.user, address.host, address.port) and (
            address.segments[: len(known.segments)] == known.segments
        ):
            return True
    return False


def check_subdirectory(text: str) -> None:
    """Raises `ValueError` for one that might lead out of the source."""
    parts = text.split("/")
    if not re.fullmatch(r"[A-Za-z0-9._/-]+", text) or any(part in {"", ".", ".."} for part in parts):
        raise ValueError("its subdirectory must be a plain relative path without '..'")


def _segments(path: str) -> tuple[str, ...]:
    found = [unquote(part) for part in path.strip("/").split("/")] if path.strip("/") else []
    for part in found:
        if part in {"", ".", ".."} or "%" in part or "/" in part or "\\" in part or not part.isprintable():
            raise ValueError("its path must be plain, without '..', empty or doubly escaped parts")
    return tuple(found)


def _fragment(text: str) -> str:
    subdirectory = ""
    for part in text.split("&") if text else []:
        key, _, value = part.partition("=")
        if key == "subdirectory":
            subdirectory = unquote(value)
            check_subdirectory(subdirectory)
        elif not _HASHES.fullmatch(part):
            raise ValueError("after # only subdirectory=, egg= and a hash are read")
    return subdirectory
