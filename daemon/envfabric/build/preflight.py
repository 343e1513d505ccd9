"""What a spec that requires Ray needs to run on the cluster: its Ray, and its minor of Python.

Ray connects no two versions of itself, and a worker of another minor of Python crashes; of other patch versions it
says so and runs, but for the driver of a submitted job. What is wrong is found before anything is built, and told with
the line to write. Reads no file and runs nothing; interpreters are chosen by way of `Interpreters`.
"""

import json
from dataclasses import dataclass, replace

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from envfabric.build.interpreters import Interpreter, Interpreters
from envfabric.core.errors import Reason, SpecError
from envfabric.core.ids import shown
from envfabric.specs.spec import PythonRequest, Spec
from envfabric.specs.toml import line_of


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that environments are for, from the settings; None for what they don't say."""

    ray: str | None = None
    """Its Ray, in full."""
    python: str | None = None
    """Its Python, in full."""


def choose(spec: Spec, interpreters: Interpreters, cluster: Cluster, *, here: bool = False) -> Interpreter:
    """The interpreter for a spec: where it requires Ray the cluster's own, else one of its minor, if its wish allows.

    `here`: no mirror is waited for. Raises `SpecError`: validation for one that does not go with the cluster,
    unresolvable where none fits; and what `Interpreters.choose` does.
    """
    asked = spec.python
    if not spec.ray or cluster.python is None:
        return interpreters.choose(asked, here=here)
    missing: SpecError | None = None
    for wish in _wishes(asked, cluster.python):
        try:
            wanted = replace(asked, text=wish, origin="[ray] python in the settings")
            return interpreters.choose(wanted, here=here)
        except SpecError as error:
            if error.reason.passing:
                # The mirror does not answer: taking another version now would fix the spec to it for good.
                raise
            missing = error
    try:
        found = interpreters.choose(asked, here=here)
    except SpecError as error:
        raise missing or error from None
    other = not fits_python(spec, found.version, cluster)
    if missing is not None and other and _admits(asked.requires, cluster.python):
        # The spec can't help it that the cluster's is not installed.
        raise missing
    check_python(spec, found.version, cluster)
    return found


def _wishes(asked: PythonRequest, python: str) -> list[str]:
    """What to ask for first: the cluster's own version, then its minor, as far as the spec's wish lets them pass."""
    text = asked.text
    if text is not None and text[0].isdecimal():
        # A minor, or a version in full.
        own = python == text or python.startswith(f"{text}.")
        return [python] if own and SpecifierSet(asked.requires).contains(python) else []
    both = ",".join(filter(None, (text, asked.requires)))
    wishes = [python] if SpecifierSet(both).contains(python) else []
    if text is None:
        return [*wishes, minor(python)]
    return [*wishes, f"{text},=={minor(python)}.*"] if _admits(both, python) else wishes


def fits_python(spec: Spec, version: str, cluster: Cluster) -> bool:
    """Whether an environment of this Python may be served for a spec."""
    return not spec.ray or cluster.python is None or minor(version) == minor(cluster.python)


def check_python(spec: Spec, version: str, cluster: Cluster) -> None:
    """Raises `SpecError` (validation) where this is no Python for the spec, with the line to write."""
    if fits_python(spec, version, cluster):
        return
    wanted = cluster.python or ""
    low = minor(wanted)
    requires = spec.python.requires
    also = ""
    if requires and not _admits(requires, wanted):
        also = f"project.requires-python = {shown(requires)!r} would have to admit that, too"
    if spec.python.origin == ".python-version":
        place, line = f"{spec.id}/.python-version:1", f"Write {low} there"
    else:
        own = "tool.envfabric.python" if spec.table.python is not None else "project.requires-python"
        place = _place(spec, line_of(spec.pyproject, own))
        line = f'Write python = "{low}" in [tool.envfabric]'
    raise SpecError(
        Reason.VALIDATION,
        f"{place}: this spec is for Ray and gets Python {version}, but the cluster runs {wanted}: workers of another "
        f"minor version crash. {line}{'; ' if also else ''}{also}, or set ray = false in [tool.envfabric].",
    )


def check_ray(spec: Spec, found: str | None, cluster: Cluster) -> None:
    """Raises `SpecError` (validation) where a spec that requires Ray gets none, or another, with the line to write."""
    if not spec.ray:
        return
    wanted = cluster.ray
    if found is not None and (wanted is None or Version(found) == Version(wanted)):
        return
    # Only now: most specs are right.
    place, extras = _required(spec)
    line = f'"ray{extras}=={wanted}"' if wanted else f'"ray{extras}==<the cluster\'s version>"'
    if found is None:
        raise SpecError(
            Reason.VALIDATION,
            f"{place}: this spec is for Ray but its environment has no ray: a task in it would hang for ever. Add "
            f"{line} to project.dependencies, or set ray = false in [tool.envfabric].",
        )
    lock = f", and lock anew (envfabric lock {spec.id})" if spec.lock is not None else ""
    raise SpecError(
        Reason.VALIDATION,
        f"{place}: the environment has ray {shown(found, 60)} but the cluster runs {wanted}, and Ray connects no two "
        f"versions of itself. Write {line} in project.dependencies{lock}.",
    )


def _required(spec: Spec) -> tuple[str, str]:
    """Where a spec requires ray, or would, and the extras that it asks for there, as they are written."""
    start = line_of(spec.pyproject, "project.dependencies")
    for text in json.loads(spec.ask)["dependencies"]:
        try:
            one = Requirement(text)
        except InvalidRequirement:
            # What uv reads all the same is not asked.
            continue
        if canonicalize_name(one.name) == "ray":
            extras = f"[{','.join(sorted(one.extras))}]" if one.extras else ""
            return _place(spec, _line_from(spec, start, text)), shown(extras, 200)
    return _place(spec, start), ""


def _line_from(spec: Spec, start: int | None, text: str) -> int | None:
    """The line with `text` in quotes, from the one on where its list begins; that one where it is written otherwise."""
    lines = spec.pyproject.decode("utf-8", "replace").split("\n")
    for number in range(start or 1, len(lines) + 1):
        line = lines[number - 1]
        if start is not None and number > start and (line[:1].isalnum() or line.startswith("[")):
            # The next key or table: it is not in there any more.
            break
        if line.find(f'"{text}"') >= 0 or line.find(f"'{text}'") >= 0:
            return number
    return start


def minor(version: str) -> str:
    """'3.11' of '3.11.7'."""
    return ".".join(version.split(".")[:2])


def _admits(requires: str, wanted: str) -> bool:
    """Whether bounds let any patch version of a minor pass, as far as a few tries tell."""
    bounds = SpecifierSet(requires)
    return any(bounds.contains(one) for one in (wanted, *(f"{minor(wanted)}.{patch}" for patch in range(30))))


def _place(spec: Spec, line: int | None) -> str:
    where = f"{spec.id}/pyproject.toml"
    return f"{where}:{line}" if line else where
