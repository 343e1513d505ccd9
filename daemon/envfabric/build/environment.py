"""Builds one closure: uv makes and fills the environment in staging, then it is checked and sealed."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from packaging.utils import canonicalize_name, canonicalize_version

from envfabric.build.closure import Closure
from envfabric.build.interpreters import inspect
from envfabric.build.resolve import Resolution, sync_arguments
from envfabric.build.uv import Uv, failure
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.spec import Spec
from envfabric.store.closures import Closures, Staging
from envfabric.store.files import Files
from envfabric.store.root import now


@dataclass(frozen=True, slots=True)
class Built:
    """A closure that is in the store now."""

    digest: str
    inodes: dict[int, int]
    """Bytes on disk by inode, for the store's accounting."""
    link_fallbacks: int
    phases: dict[str, float]
    """Seconds by phase: sync, seal, validate, total."""


@contextlib.contextmanager
def _phase(name: str, phases: dict[str, float], tell: Callable[[str], None]) -> Iterator[None]:
    tell(name)
    began = time.monotonic()
    yield
    phases[name] = time.monotonic() - began


class Builder:
    """Builds closures on one ROOT. Safe for threads."""

    def __init__(self, closures: Closures, files: Files, uv: Uv) -> None:
        self._closures = closures
        self._files = files
        self._uv = uv
        self._uv_version = uv.version()

    def build(self, spec: Spec, resolution: Resolution, tell: Callable[[str], None]) -> Built:
        """Builds the closure of a spec's resolution into the store.

        `tell` hears the name of each phase as it begins. Raises `SpecError` and `OSError`; the store is as
        it was then.
        """
        closure = resolution.closure
        phases: dict[str, float] = {}
        began = time.monotonic()
        with self._closures.staging() as staging:
            with _phase("sync", phases, tell):
                log = self._sync(spec, resolution, staging)
            with _phase("validate", phases, tell):
                self._validate(closure, staging)
            with _phase("seal", phases, tell):
                inventory = self._closures.seal(staging, self._metadata(closure), log)
                inodes = self._closures.publish(staging, closure.digest, inventory)
        phases["total"] = time.monotonic() - began
        return Built(closure.digest, inodes, inventory.copied, phases)

    def stop(self) -> None:
        """Ends the processes of running builds, and lets none start any more."""
        self._uv.stop()

    def _sync(self, spec: Spec, resolution: Resolution, staging: Staging) -> str:
        self._files.write_new(staging.project / "pyproject.toml", spec.pyproject)
        self._files.write_new(staging.project / "uv.lock", resolution.lock)
        python = resolution.closure.interpreter
        # Without a prompt of its own the staging folder's name would get into the environment.
        prompt = f"envfabric-{resolution.closure.digest[:8]}"
        venv = ["venv", "--relocatable", "--no-project", "--prompt", prompt, "--python", python.path]
        log = ""
        for doing, arguments in (
            ("making the environment", [*venv, str(staging.venv)]),
            (f"installing {spec.id}", sync_arguments(spec.table.extras, spec.table.groups, python)),
        ):
            finished = self._uv.run(
                arguments,
                cwd=staging.project,
                hold=staging.descriptor,
                extra={"UV_PROJECT_ENVIRONMENT": str(staging.venv)},
            )
            log += f"$ uv {' '.join(arguments[:3])} …\n{finished.stderr}"
            if finished.code != 0:
                raise failure(doing, finished, Reason.BUILD_FAILED)
        return log.replace(str(staging.folder), "")

    def _validate(self, closure: Closure, staging: Staging) -> None:
        """What was installed is what was planned, and the interpreter starts; no package code is run."""
        installed = set()
        for info in staging.venv.glob("lib/python*/site-packages/*.dist-info"):
            name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
            installed.add((canonicalize_name(name), canonicalize_version(version)))
        planned = {(one.name, canonicalize_version(one.version)) for one in closure.distributions}
        if installed != planned:
            odd = sorted({name for name, _ in installed ^ planned})
            raise SpecError(
                Reason.VALIDATION,
                f"the environment differs from its lock in {', '.join(odd)}; run `envfabric retry`, and report "
                "it if it stays.",
            )
        # Without site: -I alone would still run the .pth files of packages.
        found = inspect(str(staging.venv / "bin" / "python"))
        wanted = closure.interpreter
        if found is None or (found.version, found.abi) != (wanted.version, wanted.abi):
            raise SpecError(
                Reason.VALIDATION,
                f"{wanted.path} does not start in the environment, or is no longer {wanted.version}; restart the "
                "daemon after an upgrade of Python.",
            )

    def _metadata(self, closure: Closure) -> dict[str, Any]:
        return {
            "schema": 1,
            "digest": closure.digest,
            "inputs": closure.inputs,
            "built_at": now(),
            "uv_version": self._uv_version,
            "python_version": closure.interpreter.version,
            "python_shared": closure.interpreter.shared,
            "ray_version": closure.version_of("ray"),
        }
