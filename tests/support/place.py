"""A ROOT with real uv on it, resolvers and builders of any policy, and uv as a committer runs it."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from envfabric.build.environment import Builder, Built, recipe_of
from envfabric.build.interpreters import Interpreter
from envfabric.build.resolve import Resolution, Resolver
from envfabric.build.uv import Finished, Uv
from envfabric.core.errors import SpecError
from envfabric.specs.policy import Policy
from envfabric.specs.spec import Spec, read_spec
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.root import Root
from support.fabric import BASE_PYTHON
from support.simple_index import SimpleIndex


class _Counted(Uv):
    """Keeps the arguments of every process."""

    runs: list[list[str]]

    def run(self, arguments: Sequence[str], **details: Any) -> Finished:
        self.runs.append(list(arguments))
        return super().run(arguments, **details)


@dataclass
class Place:
    """One fabric's parts, without its loop."""

    folder: Path
    index: SimpleIndex
    root: Root
    python: Interpreter
    policy: Policy
    exclude_newer: str | None = None
    files: Files = field(default_factory=Files)
    runs: list[list[str]] = field(default_factory=list)

    @property
    def closures(self) -> Closures:
        return Closures(self.root, self.files)

    def uv(self, index: str | None = None) -> Uv:
        """uv whose default index is `index`, else the one that uv has by itself."""
        made = _Counted(self.root, timeout=120, index=index)
        made.runs = self.runs
        return made

    def resolver(self) -> Resolver:
        """A new one, as after a restart, by the policy and the bound that are set now."""
        closures = self.closures
        return Resolver(
            self.root, self.files, self.uv(), closures.staging, 86400.0, self.policy, self.exclude_newer
        )

    def spec(
        self,
        requires: Sequence[str] = (),
        *,
        name: str = "one",
        tail: str = "",
        lock: bytes | None = None,
        local: bool = True,
    ) -> Spec:
        """A spec; `local` names the index in it, as its default one."""
        lines = ["[project]", f"name = {json.dumps(name)}", 'version = "0.1.0"']
        lines += ['requires-python = ">=3.11"', f"dependencies = {json.dumps(list(requires))}", tail]
        if local:
            lines += ["[[tool.uv.index]]", 'name = "local"', f'url = "{self.index.url}"', "default = true"]
        content = {"pyproject.toml": "\n".join([*lines, ""]).encode()}
        return read_spec(
            f"wf/{name}", "0" * 40, content | ({} if lock is None else {"uv.lock": lock}), self.policy
        )

    def get(self, spec: Spec, base: bytes | None = None, resolver: Resolver | None = None) -> Resolution:
        """As the daemon asks: what is known for the key, else uv."""
        made = resolver or self.resolver()
        key = made.key(spec, self.python, base)
        return made.known(spec, key) or made.resolve(spec, self.python, base)

    def refusal(self, spec: Spec, base: bytes | None = None) -> SpecError:
        """Why a spec is not resolved; nothing is left in staging."""
        with pytest.raises(SpecError) as caught:
            self.get(spec, base)
        assert list(self.root.staging.iterdir()) == []
        return caught.value

    def build(self, spec: Spec, resolution: Resolution) -> Built:
        """Builds it by a builder that remembers nothing."""
        return Builder(self.closures, self.files, self.uv()).build(
            recipe_of(spec, resolution), lambda phase: None
        )

    def by_hand(self, arguments: Sequence[str], spec: Spec, lock: bytes | None) -> tuple[int, bytes, str]:
        """uv in a checkout of the spec, as its committer runs it: exit code, uv.lock afterwards, and what it said."""
        checkout = self.folder / "checkout"
        checkout.mkdir(exist_ok=True)
        (checkout / "pyproject.toml").write_bytes(spec.pyproject)
        (checkout / "uv.lock").unlink(missing_ok=True)
        if lock is not None:
            (checkout / "uv.lock").write_bytes(lock)
        environment = {name: os.environ[name] for name in ("PATH", "HOME")}
        environment |= {"UV_CACHE_DIR": str(self.folder / "cache"), "UV_PYTHON_DOWNLOADS": "never"}
        done = subprocess.run(
            [self.uv().binary, *arguments, "--python", BASE_PYTHON],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, (checkout / "uv.lock").read_bytes(), done.stderr

    def locked_by_hand(self, requires: Sequence[str], **details: Any) -> bytes:
        """The uv.lock that a committer of these requirements commits."""
        code, lock, said = self.by_hand(["lock"], self.spec(requires, **details), None)
        assert code == 0, said
        return lock

    def fits(self, spec: Spec, lock: bytes) -> bool:
        """Whether `uv lock --check` accepts a lock beside the spec's own pyproject.toml."""
        return self.by_hand(["lock", "--check"], spec, lock)[0] == 0


def versions(resolution: Resolution) -> dict[str, str]:
    """The versions of a resolution by name."""
    return {one.name: one.version for one in resolution.closure.distributions}
