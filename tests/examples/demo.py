"""`envfabric demo` as a fresh user runs it: a process, an empty HOME, real packages."""

import os
import signal
import subprocess
import sys
import threading
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from prometheus_client.parser import text_string_to_metric_families

import envfabric.client.index
from support.waiting import wait_for

EXAMPLES = Path(__file__).resolve().parents[2] / "specs-example"
SHIPPED = sorted(path.parent.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.glob("*/*/pyproject.toml"))
TIMEOUT = 240.0
"""Seconds for all example specs, with every package fetched from the index."""

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_PASSED = ("SSL_CERT_FILE", "SSL_CERT_DIR", *_PROXIES, *map(str.upper, _PROXIES))


class Demo:
    """One demo folder; the process on it can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "demo"
        self.specs = self.folder / "specs"
        self.nas = self.folder / "nas"
        self.home = folder / "home"
        self.home.mkdir()
        temporary = folder / "tmp"
        temporary.mkdir()
        # How this machine reaches the package index is all that is taken over from it.
        self.environment = {name: os.environ[name] for name in _PASSED if name in os.environ} | {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "TMPDIR": str(temporary),
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            # Run by root an interpreter could write into the sealed environment that it runs from.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.printed: list[str] = []
        self.logged: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._readers: list[threading.Thread] = []

    def start(self) -> dict[str, Any]:
        """Runs `envfabric demo` until it says that all is done; gives the index."""
        self.printed, self.logged = [], []
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", "envfabric", "demo", self.folder],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C at the tests is for them; they pass it on when they end.
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            threading.Thread(target=self.printed.extend, args=(process.stdout,)),
            threading.Thread(target=self.logged.extend, args=(process.stderr,)),
        ]
        for reader in self._readers:
            reader.start()
        self.wait_for(
            lambda: any(line.startswith("The daemon goes on watching") for line in list(self.printed)),
            message="the demo did not say that it is done",
        )
        index = self.index()
        assert index["complete"] is True
        return index

    def stop(self) -> int:
        """Ctrl-C; gives the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(timeout=60)
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends what still runs."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=60)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._process = None

    def wait_for(self, what: Callable[[], bool], *, message: str) -> None:
        """Waits as long as the process runs; what it said is told where it is in vain."""

        def there() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, "the demo has ended"
            return what()

        try:
            wait_for(there, timeout=TIMEOUT, message=message)
        except AssertionError as error:
            error.add_note("".join(self.printed + self.logged[-30:]))
            raise

    def index(self) -> dict[str, Any]:
        """What is published now."""
        return envfabric.client.index.read_index(self.nas)

    def wait_for_commit(self, commit: str) -> dict[str, Any]:
        """The index once it is complete for this commit."""

        def complete() -> bool:
            index = self.index()
            return bool(index["complete"]) and index["revision"] == commit

        self.wait_for(complete, message=f"no complete index of {commit}")
        return self.index()

    def git(self, *arguments: str) -> str:
        """git, as the user runs it in the demo's spec repository."""
        done = subprocess.run(
            ["git", *arguments], cwd=self.specs, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr or done.stdout
        return done.stdout.strip()

    def run(self, *command: str | Path) -> str:
        """Runs a command as that user; gives what it prints."""
        done = subprocess.run(
            command, cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def metric(self, name: str) -> float:
        """One value from the page that the demo has printed."""
        (url,) = {line.split()[1] for line in self.printed if line.startswith("page:")}
        with urllib.request.urlopen(f"{url}metrics", timeout=60) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        (value,) = [one.value for family in families for one in family.samples if one.name == name]
        return float(value)

    def requirements(self, spec_id: str) -> list[Requirement]:
        """What a spec asks for by itself, the extras that it chooses included."""
        loaded = tomllib.loads((self.specs / spec_id / "pyproject.toml").read_text("utf-8"))
        project = loaded["project"]
        extras = loaded.get("tool", {}).get("envfabric", {}).get("extras", [])
        chosen = [text for extra in extras for text in project["optional-dependencies"][extra]]
        return [Requirement(text) for text in [*project["dependencies"], *chosen]]
