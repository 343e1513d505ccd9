"""One spec: from the bytes of its files to what it asks for, or one clear error.

Nothing is executed and no other file is read.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from envfabric.core.errors import Reason, SpecError
from envfabric.core.ids import shown
from envfabric.specs.markers import Tally
from envfabric.specs.policy import Policy, check_requirements, check_uv_table, check_validation
from envfabric.specs.table import SpecTable, read_table
from envfabric.specs.toml import MAX_BYTES, check_depth, line_of, parse_toml

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_PASSWORD = re.compile(rb"""://[^/\s"'`@:<]{0,200}:[^/\s"'`@:$<{*]{1,200}@""")
"""In a URL; what stands there for another value (`$NAME`, `<name>`, `{name}`, `***`) is none."""
_LONGEST_NAME = 200
_PLAIN_VERSION = re.compile(r"3(\.[0-9]{1,3}){1,2}")


@dataclass(frozen=True, slots=True)
class PythonRequest:
    """Which interpreter a spec asks for: a version or a set of bounds, and where that was said."""

    text: str | None
    """'3.11', '3.11.7' or '>=3.11,<3.13'; None leaves the choice to the daemon."""
    requires: str
    """The project's requires-python, which whatever is chosen must meet; '' for none."""
    origin: str


@dataclass(frozen=True, slots=True)
class Spec:
    """What one spec folder of one commit asks for."""

    id: str
    tree: str
    pyproject: bytes
    lock: bytes | None
    python_version: bytes | None
    name: str
    version: str
    """Both normalised, as uv writes them into a lock."""
    table: SpecTable
    python: PythonRequest
    ray: bool
    requirements: frozenset[str]
    """Normalised names of the direct requirements, those of extras and groups too."""
    ask: str
    """Canonical JSON of all that decides a resolution, the project's name left out."""

    @property
    def inputs(self) -> str:
        """Digest of the files' contents: equal inputs were, and are, the same request."""
        return inputs_digest(self.pyproject, self.lock, self.python_version)


def inputs_digest(pyproject: bytes, lock: bytes | None, python_version: bytes | None) -> str:
    """One digest over the three files, each with its length or its absence."""
    digest = hashlib.sha256()
    for part in (pyproject, lock, python_version):
        digest.update(b"-" if part is None else b"%d:" % len(part) + part)
    return digest.hexdigest()


def read_spec(spec_id: str, tree: str, files: Mapping[str, bytes], policy: Policy) -> Spec:
    """Reads and checks a spec. Raises `SpecError` that names file, line and what to do."""
    raw = files["pyproject.toml"]
    where = f"{spec_id}/pyproject.toml"
    try:
        document = parse_toml(raw, where)
        check_depth(document)
        spec = _read(spec_id, tree, files, document, policy)
        for name in ("pyproject.toml", "uv.lock"):
            _check_credentials(files.get(name, b""), f"{spec_id}/{name}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SpecError(
            Reason.INVALID_SPEC, f"{where} can't be understood: {shown(str(error), 300)}."
        ) from error
    except SpecError as error:
        # What is quoted may have been written for the terminal of whoever reads it.
        told = shown(error.message, 1200)
        line = None if told.startswith(f"{spec_id}/") else line_of(raw, told)
        place = f"{where}:{line}" if line else where
        if not told.startswith(f"{spec_id}/"):
            told = f"{place}: {told}"
        raise SpecError(error.reason, told) from error
    return spec


def _check_credentials(raw: bytes, where: str) -> None:
    """Both files are kept on the NAS for everybody, and env_vars stand in the index. Raises `SpecError`."""
    if found := _PASSWORD.search(raw):
        line = raw.count(b"\n", 0, found.start()) + 1
        raise SpecError(
            Reason.POLICY,
            f"{where}:{line}: a URL with a password in it is not allowed, because everybody can read this file on the "
            "NAS. Take it out, change the password, and give the new one to the daemon or to whoever needs it.",
        )


def _read(
    spec_id: str, tree: str, files: Mapping[str, bytes], document: Mapping[str, Any], policy: Policy
) -> Spec:
    project = document.get("project")
    if not isinstance(project, Mapping):
        raise SpecError(
            Reason.INVALID_SPEC, "there is no [project] table; add one with name, version and dependencies."
        )
    name, version = _project_name(project), _project_version(project)
    tool = document.get("tool", {})
    if not isinstance(tool, Mapping):
        raise SpecError(Reason.INVALID_SPEC, "tool must be a table.")
    uv_table, own = tool.get("uv", {}), tool.get("envfabric", {})
    try:
        table = read_table(own)
    except ValueError as error:
        raise SpecError(Reason.INVALID_SPEC, str(error)) from None
    check_validation(table.validation, table.command, policy)
    if not isinstance(uv_table, Mapping):
        raise SpecError(Reason.INVALID_SPEC, "tool.uv must be a table")
    tally = Tally()
    check_uv_table(uv_table, policy, tally)
    asked = _asked(project, document)
    requirements = _check_asked(asked, table, policy, tally)
    ask = {
        **asked,
        "packaged": "build-system" in document,
        "uv": uv_table,
        "chosen": {"extras": sorted(table.extras), "groups": sorted(table.groups)},
    }
    requires = project.get("requires-python", "")
    return Spec(
        id=spec_id,
        tree=tree,
        pyproject=files["pyproject.toml"],
        lock=files.get("uv.lock"),
        python_version=files.get(".python-version"),
        name=name,
        version=version,
        table=table,
        python=_python_request(spec_id, table, files.get(".python-version"), requires),
        ray=policy.ray if table.ray is None else table.ray,
        requirements=frozenset(canonicalize_name(one.name) for one in requirements),
        ask=json.dumps(ask, sort_keys=True, default=str),
    )


def _project_name(project: Mapping[str, Any]) -> str:
    name = project.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SpecError(Reason.INVALID_SPEC, f"project.name must be a package name, not {shown(repr(name))}.")
    if len(name) > _LONGEST_NAME:
        raise SpecError(
            Reason.INVALID_SPEC,
            f"project.name must be a package name of at most {_LONGEST_NAME} characters, this one has {len(name)}.",
        )
    return canonicalize_name(name)


def _project_version(project: Mapping[str, Any]) -> str:
    if project.get("dynamic"):
        raise SpecError(
            Reason.POLICY,
            f"project.dynamic = {shown(repr(project['dynamic']))} would run the project's own build backend; write "
            'the values down instead, for example version = "0".',
        )
    version = project.get("version")
    if version is None:
        raise SpecError(Reason.INVALID_SPEC, 'project.version is missing; add version = "0.1.0".')
    try:
        return str(Version(version if isinstance(version, str) else ""))
    except InvalidVersion:
        raise SpecError(
            Reason.INVALID_SPEC,
            f'project.version must be a version such as "0.1.0", not {shown(repr(version))}.',
        ) from None


def _asked(project: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    asked = {
        "requires-python": project.get("requires-python", ""),
        "dependencies": project.get("dependencies", []),
        "optional-dependencies": project.get("optional-dependencies", {}),
        "dependency-groups": document.get("dependency-groups", {}),
    }
    kinds = {"dependencies": list, "optional-dependencies": dict, "dependency-groups": dict}
    for key, kind in kinds.items():
        if not isinstance(asked[key], kind):
            title = key if key == "dependency-groups" else f"project.{key}"
            what = "list" if kind is list else "table of lists"
            raise SpecError(Reason.INVALID_SPEC, f"{title} must be a {what}.")
    if not isinstance(asked["requires-python"], str):
        raise SpecError(Reason.INVALID_SPEC, "project.requires-python must be a string")
    asked["dependencies"] = sorted(asked["dependencies"], key=str)
    return asked


def _check_asked(
    asked: Mapping[str, Any], table: SpecTable, policy: Policy, tally: Tally
) -> list[Requirement]:
    found = check_requirements(asked["dependencies"], "project.dependencies", policy, tally)
    for key, title in (
        ("optional-dependencies", "project.optional-dependencies"),
        ("dependency-groups", "dependency-groups"),
    ):
        for name, texts in asked[key].items():
            if not isinstance(texts, list):
                raise SpecError(Reason.INVALID_SPEC, f"{title}.{name} must be a list")
            plain = [text for text in texts if not (key == "dependency-groups" and isinstance(text, dict))]
            found += check_requirements(plain, f"{title}.{shown(name, 60)}", policy, tally)
    for key, chosen in (("optional-dependencies", table.extras), ("dependency-groups", table.groups)):
        known = {canonicalize_name(name) for name in asked[key]}
        for name in chosen:
            if canonicalize_name(name) not in known:
                kind = "extras" if key == "optional-dependencies" else "groups"
                raise SpecError(
                    Reason.INVALID_SPEC,
                    f"tool.envfabric.{kind} names {shown(name)!r}, which the project does not define; it defines "
                    f"{shown(', '.join(sorted(known)), 300) or 'none'}.",
                )
    return found


def _python_request(
    spec_id: str, table: SpecTable, version_file: bytes | None, requires: str
) -> PythonRequest:
    if len(requires) > 200:
        raise SpecError(Reason.INVALID_SPEC, "project.requires-python is longer than 200 characters.")
    try:
        SpecifierSet(requires)
    except InvalidSpecifier:
        raise SpecError(
            Reason.INVALID_SPEC,
            f'project.requires-python = {shown(requires)!r} is no version specifier such as ">=3.11".',
        ) from None
    if table.python is not None:
        return PythonRequest(_version_request(table.python, "tool.envfabric.python"), requires, "spec")
    if version_file is not None:
        where = f"{spec_id}/.python-version"
        if len(version_file) > MAX_BYTES[".python-version"]:
            raise SpecError(Reason.INVALID_SPEC, f"{where} is too long to be a version.")
        lines = [line.strip() for line in version_file.decode("utf-8", "replace").splitlines()]
        words = [line for line in lines if line and not line.startswith("#")]
        if len(words) != 1 or not _PLAIN_VERSION.fullmatch(words[0]):
            raise SpecError(
                Reason.INVALID_SPEC,
                f"{where} must hold one version such as 3.11 or 3.11.7; paths and other names are not read.",
            )
        return PythonRequest(words[0], requires, ".python-version")
    return PythonRequest(None, requires, "requires-python" if requires else "default")


def _version_request(text: str, where: str) -> str:
    if _PLAIN_VERSION.fullmatch(text):
        return text
    try:
        bounds = SpecifierSet(text)
    except InvalidSpecifier:
        bounds = SpecifierSet()
    if not str(bounds):
        raise SpecError(
            Reason.INVALID_SPEC,
            f"{where} = {shown(text)!r} must be a version such as 3.11 or 3.11.7, or bounds.",
        )
    return str(bounds)
