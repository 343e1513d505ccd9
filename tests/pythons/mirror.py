"""A mirror of Pythons made on the spot: the machine's own, packed as python-build-standalone packs one."""

import contextlib
import hashlib
import io
import json
import platform
import re
import sys
import sysconfig
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from support.fabric import BASE_PYTHON

MINOR = f"3.{sys.version_info.minor}"
VERSION = f"{MINOR}.{sys.version_info.micro}"
KEY = f"cpython-{VERSION}-linux-{platform.machine()}-gnu"
_LEFT_OUT = (
    "asyncio curses dbm dist-packages distutils ensurepip html http idlelib lib2to3 multiprocessing pydoc_data "
    "site-packages sitecustomize.py sqlite3 test tests tkinter turtledemo unittest wsgiref xml xmlrpc __pycache__ "
    "_pydecimal.py _pyio.py aifc.py bdb.py cgi.py difflib.py doctest.py ftplib.py imaplib.py mailbox.py "
    "modulefinder.py nntplib.py optparse.py pdb.py pickletools.py plistlib.py profile.py pstats.py pydoc.py smtpd.py "
    "smtplib.py socketserver.py ssl.py statistics.py tarfile.py telnetlib.py trace.py turtle.py wave.py webbrowser.py"
)
_LIBRARIES_LEFT_OUT = (
    "_codecs_",
    "_curses",
    "_decimal",
    "_elementtree",
    "_sqlite3",
    "_ssl",
    "_test",
    "_tkinter",
    "audioop",
)
"""What neither uv nor a test needs: unpacking and compiling it would take most of the tests' time."""
_ENCODINGS = (
    "__init__ aliases ascii cp437 idna latin_1 raw_unicode_escape unicode_escape utf_16 utf_8 utf_8_sig"
)


def pack(folder: Path) -> Path:
    """Makes the archive, and downloads.json beside it, which names it."""
    archive = (
        folder
        / f"cpython-{VERSION}+20260101-{platform.machine()}-unknown-linux-gnu-install_only_stripped.tar.gz"
    )
    with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
        packed.add(BASE_PYTHON, f"python/bin/python{MINOR}")
        for name in ("python", "python3"):
            link = tarfile.TarInfo(f"python/bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, f"python{MINOR}"
            packed.addfile(link)
        packed.add(sysconfig.get_path("stdlib"), f"python/lib/python{MINOR}", filter=_kept)
        for library in Path(sys.base_prefix, "lib").glob("libpython3*.so*"):
            packed.add(library, f"python/lib/{library.name}")
        for source in Path(sysconfig.get_path("stdlib")).glob("_sysconfigdata_*.py"):
            # As theirs says it: uv writes there where it has installed.
            text = re.sub(r"""(["'])prefix\1: (["'])[^"']*\2""", "'prefix': '/install'", source.read_text())
            _add_text(packed, f"lib/python{MINOR}/{source.name}", text)
        _add_text(packed, f"lib/pkgconfig/python-{MINOR}.pc", "prefix=/install\nlibdir=${prefix}/lib\n")
        # Theirs find the interpreter that lies beside them.
        quotes, beside = 3 * "'", f'"$(dirname -- "$(realpath -- "$0")")/python{MINOR}"'
        script = f'#!/bin/sh\n{quotes}exec\' {beside} "$0" "$@"\n\' {quotes}\n'
        _add_text(packed, f"bin/idle{MINOR}", script + "print('idle')\n", mode=0o755)
    write_list(folder, archive.as_uri(), hashlib.sha256(archive.read_bytes()).hexdigest())
    return archive


def _add_text(packed: tarfile.TarFile, name: str, text: str, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(f"python/{name}")
    entry.size, entry.mode = len(text.encode()), mode
    packed.addfile(entry, io.BytesIO(text.encode()))


def write_list(folder: Path, url: str, digest: str, version: str = VERSION) -> Path:
    """The list of downloads in uv's form, with one Python that lies at `url`."""
    major, minor, patch = map(int, version.split("."))
    entry = {
        "name": "cpython",
        "arch": {"family": platform.machine(), "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": major,
        "minor": minor,
        "patch": patch,
        "prerelease": "",
        "url": url,
        "sha256": digest,
        "variant": None,
        "build": "20260101",
    }
    path = folder / "downloads.json"
    path.write_text(json.dumps({KEY.replace(VERSION, version): entry}))
    return path


def _kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = entry.name.rsplit("/", 1)[-1]
    if name in _LEFT_OUT.split() or name.startswith(("config-", "_sysconfigdata_")):
        return None
    if "/lib-dynload/" in entry.name and name.startswith(_LIBRARIES_LEFT_OUT):
        return None
    if "/encodings/" in entry.name and name.removesuffix(".py") not in _ENCODINGS.split():
        return None
    # uv refuses an archive with a link that leads out of it, as a distribution's own Python has.
    return None if entry.issym() and entry.linkname.startswith("/") else entry


class Served:
    """The archive over HTTP: half of it at first, and the rest when the test says so."""

    def __init__(self, archive: Path) -> None:
        self.asked: list[str] = []
        self.half = threading.Event()
        """Half of the archive is on its way."""
        self.go_on = threading.Event()
        content = archive.read_bytes()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if self.path != f"/{archive.name}":
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(content[: len(content) // 2])
                    self.wfile.flush()
                    outer.half.set()
                    outer.go_on.wait(120)
                    self.wfile.write(content[len(content) // 2 :])

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator["Served"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self.go_on.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()
