"""A closure's manifest: what every path in it is, written at sealing and proven later (store/verify.py).

The file `manifest` is ASCII, one JSON array a line, sorted by path, each path once:

    ["d", path, mode]                   a folder
    ["f", path, mode, size, sha256]     a file
    ["l", path, target]                 a symlink
    ["sha256", digest]                  the last line: of all bytes before it, so the manifest proves itself

Paths are relative to the closure's folder; modes are octal text like "0o444", sizes are bytes. A byte of a
name that is not UTF-8 stands as the surrogate that `os.fsdecode` makes of it. Everything in the folder is
listed, build.log and metadata.json too, except the manifest itself, which has mode 0444. The closure's own
folder is not listed either: it has mode 0755, because an ordinary user can't rename a read-only folder to
another parent.

Pure data here: store/sealing.py makes the lines, store/proof.py holds a closure against them.
"""

import hashlib
import json

Entry = list[str | int]
"""A line of the manifest."""

MANIFEST = "manifest"
DEEPEST = 200
"""Folders that may lie one in the other below a closure: deeper ones break those who walk by recursion."""

_KINDS = {"d": (str, str, str), "l": (str, str, str), "f": (str, str, str, int, str)}


class Lines(dict[str, str]):
    """The lines of a manifest that is being made, by path: the kind, a space, and what follows the path.

    Text and no object for each line: 18 000 of those set the garbage collector off again and again, which took a
    fifth of a warm build's time.
    """

    def add_file(self, path: str, mode: str, size: int, digest: str) -> None:
        """Lists a file."""
        self[path] = f'f "{mode}", {size}, "{digest}"'

    def add_folder(self, path: str, mode: str) -> None:
        """Lists a folder."""
        self[path] = f'd "{mode}"'

    def add_link(self, path: str, target: str) -> None:
        """Lists a symlink."""
        self[path] = f"l {json.dumps(target)}"


def write_manifest(lines: Lines) -> bytes:
    """The manifest as it is written."""
    ordered = sorted(lines)
    # All names in one call, four times as fast as one by one: no JSON string has a line end inside.
    names = json.dumps(ordered, separators=("\n", ":"))[1:-1].split("\n") if ordered else []
    found = zip(names, map(lines.__getitem__, ordered), strict=True)
    body = "".join([f'["{line[0]}", {name}, {line[2:]}]\n' for name, line in found]).encode("ascii")
    return body + _last_line(body)


def read_manifest(raw: bytes) -> list[Entry]:
    """The lines of a manifest without its last one, sorted by path.

    Raises `ValueError` for one that is not as `write_manifest` made it, with what is wrong with it.
    """
    start = raw.rfind(b"\n", 0, -1) + 1
    body, last = raw[:start], raw[start:]
    if not last.startswith(b'["sha256", '):
        raise ValueError("its last line is no checksum: it is cut off, or something was added to it")
    # Compared as bytes: a changed case, space or line end is damage too.
    if last != _last_line(body):
        raise ValueError("its checksum is not that of its lines: it was changed")
    try:
        # One array: four times as fast as line by line. No line of `write_manifest` has a line end inside.
        entries = json.loads(b"[" + body[:-1].replace(b"\n", b",") + b"]") if body.isascii() else None
    except ValueError:
        entries = None
    if entries is None or len(entries) != body.count(b"\n"):
        raise ValueError("its lines are not JSON in ASCII, one array each")
    before = ""
    for entry in entries:
        types = tuple(map(type, entry)) if isinstance(entry, list) else ()
        if types[:1] != (str,) or _KINDS.get(entry[0]) != types:
            raise ValueError(f"a line of it is not known: {json.dumps(entry)[:200]}")
        if entry[1] <= before:
            raise ValueError(f"its lines are not sorted by path: {json.dumps(entry)[:200]}")
        before = entry[1]
    return list(entries)


def _last_line(body: bytes) -> bytes:
    return f'["sha256", "{hashlib.sha256(body).hexdigest()}"]\n'.encode("ascii")
