"""A fabric under test: a spec repository, a NAS folder and a package index, used through the real command.

Nothing is shared with the machine: HOME is empty, and of its variables only PATH gets through.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import uv
from prometheus_client.parser import text_string_to_metric_families

from support import nursery
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

BASE_PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
"""The interpreter that environments under test are made from: the one that the tests' own is made from."""


@dataclass
class Fabric:
    """One fabric below a temporary folder."""

    folder: Path
    packages: SimpleIndex
    repo: SpecRepo
    settings: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    machines_index: bool = False
    """Whether the daemon resolves with the machine's default index; `packages` is one that specs may name."""

    @property
    def root(self) -> Path:
        return self.folder / "nas"

    @property
    def environment(self) -> dict[str, str]:
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", **self.variables}

    def configure(self) -> Path:
        """Writes the settings file: the local index, the tests' interpreter, and what `settings` adds."""
        values: dict[str, Any] = {
            "repo": str(self.repo.path),
            "root": str(self.root),
            "listen": "127.0.0.1:0",
            **({} if self.machines_index else {"index": self.packages.url}),
            "pythons": [BASE_PYTHON],
            "builders": 2,
            **{name: value for name, value in self.settings.items() if not isinstance(value, dict)},
        }
        tables = {"policy": {"indexes": [self.packages.url]}}
        tables |= {name: value for name, value in self.settings.items() if isinstance(value, dict)}
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        for table, content in tables.items():
            lines += [f"[{table}]", *(f"{name} = {json.dumps(value)}" for name, value in content.items())]
        path = self.folder / "envfabric.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def command(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Runs `envfabric` to its end."""
        return nursery.run(
            arguments, cwd=self.folder, env=self.environment | dict(env or {}), timeout=timeout
        )

    def init(self) -> None:
        """Prepares the NAS folder."""
        done = self.command("init", self.root)
        assert done.returncode == 0, done.stderr

    def run_once(self, *flags: str, expect: int = 0) -> dict[str, Any]:
        """`run --once`; gives the index. Fails where the exit code is another."""
        if not self.root.exists():
            self.init()
        done = self.command("run", "--once", "--config", self.configure(), *flags)
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return self.index()

    def index(self) -> dict[str, Any]:
        """What is published now."""
        content: dict[str, Any] = json.loads((self.root / "index.json").read_bytes())
        return content

    def entry(self, spec_id: str) -> dict[str, Any]:
        """What the index says of one spec."""
        found: dict[str, Any] = self.index()["environments"][spec_id]
        return found

    def python(self, spec_id: str, code: str) -> str:
        """Runs code in an environment's interpreter and gives what it prints."""
        interpreter = self.index()["python"][spec_id]
        done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def lock(self, folder: Path, *flags: str) -> None:
        """`uv lock` as a user runs it in a spec's folder; fails where uv does."""
        done = subprocess.run(
            [uv.find_uv_bin(), "lock", *flags],
            cwd=folder,
            env=self.environment | {"UV_CACHE_DIR": str(self.folder / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    @contextlib.contextmanager
    def daemon(self, *flags: str) -> Iterator["RunningDaemon"]:
        """The daemon as a process of its own, ended by SIGTERM with exit code 0."""
        if not self.root.exists():
            self.init()
        hears, tells = os.pipe()
        try:
            process = nursery.start(
                ["run", "--config", self.configure(), *flags],
                cwd=self.folder,
                env=self.environment,
                stderr=tells,
            )
        finally:
            os.close(tells)
        daemon = RunningDaemon(self, process, os.fdopen(hears, encoding="utf-8"))
        try:
            daemon.url = wait_for(
                daemon.find_url, timeout=90, message="the daemon did not say where it serves"
            )
            yield daemon
        finally:
            if process.poll() is None:
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            process.kill()
            process.wait()
            daemon.reader.join(timeout=60)
        assert daemon.killed or process.returncode == 0, "".join(daemon.lines[-20:])


class RunningDaemon:
    """A daemon process and what it says."""

    def __init__(self, fabric: Fabric, process: nursery.Process, told: IO[str]) -> None:
        self.fabric = fabric
        self.process = process
        self.url = ""
        self.lines: list[str] = []
        self.killed = False
        self._told = told
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        with self._told:
            self.lines.extend(iter(self._told.readline, ""))

    def find_url(self) -> str | None:
        assert self.process.poll() is None, "".join(self.lines)
        return next((one["url"] for one in self.events("serving")), None)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one kind so far."""
        parsed = (json.loads(line) for line in list(self.lines) if line.startswith("{"))
        return [one for one in parsed if one["event"] == name]

    def kill(self) -> None:
        """kill -9."""
        self.killed = True
        self.process.kill()
        self.process.wait()

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """One sample's value."""
        # Whoever waits asks often, and of all lines these are few.
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(name)]
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        raise AssertionError(f"no sample {name} {labels}")

    def wait_for_metric(self, name: str, value: float, **labels: str) -> None:
        """Waits until a sample has a value: gauges follow the index by a moment."""
        wait_for(
            lambda: self.metric(name, **labels) == value,
            timeout=60,
            message=f"{name} {labels} is not {value}",
        )

    def wait_for_index(self, commit: str, *, timeout: float = 120) -> dict[str, Any]:
        """The index once it is complete for this commit."""

        def complete() -> dict[str, Any] | None:
            assert self.process.poll() is None, "".join(self.lines)
            with contextlib.suppress(FileNotFoundError):
                index = self.fabric.index()
                if index["revision"] == commit and index["complete"]:
                    return index
            return None

        return wait_for(complete, timeout=timeout, message=f"no complete index of {commit}")
