"""A spec's pyproject.toml as text: made new, and changed so that comments, order, quotes and layout stay.

From text to text; reads and writes no file. What comes out is read again: it says what was asked for and nothing
else has changed, or it is an error.
"""

import copy
import difflib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import tomlkit
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from tomlkit.items import Array, String, Table

from envfabric.core.errors import ConfigError
from envfabric.core.ids import shown
from envfabric.specs import arrays

_WIDTH = 100
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_TEXT_VERSION = re.compile(r"3(\.\d+){1,2}")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a list of requirements: a requirement, a comment, or both."""

    requirement: str | None
    comment: str | None = None


@dataclass(slots=True)
class Draft:
    """What a new spec is to say besides its name."""

    lines: list[Line] = field(default_factory=list)
    constraints: list[Line] = field(default_factory=list)
    prerelease: bool = False
    env_vars: dict[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    excludes: list[str] = field(default_factory=list)

    @property
    def requirements(self) -> list[str]:
        """The requirements without their comments."""
        return [line.requirement for line in self.lines if line.requirement is not None]


@dataclass(frozen=True, slots=True)
class Target:
    """Which list of a pyproject.toml is meant: the dependencies, an extra's, or a group's."""

    extra: str | None = None
    group: str | None = None

    @property
    def path(self) -> tuple[str, ...]:
        """The keys that lead to it."""
        if self.group is not None:
            return ("dependency-groups", self.group)
        if self.extra is not None:
            return ("project", "optional-dependencies", self.extra)
        return ("project", "dependencies")

    @property
    def title(self) -> str:
        """As a message names it."""
        return ".".join(self.path)


def name_of(entry: Any) -> str:
    """The normalised name of a requirement; '' where it is none, as a group's `include-group` is."""
    try:
        return canonicalize_name(Requirement(entry).name) if isinstance(entry, str) else ""
    except InvalidRequirement:
        return ""


def is_name(text: str) -> bool:
    """Whether an extra or a group may be called so."""
    return _NAME.fullmatch(text) is not None


def checked(text: str) -> str:
    """A requirement as a command was given it. Raises `ConfigError` that says what is wrong."""
    try:
        Requirement(text)
    except InvalidRequirement as error:
        reason = shown(str(error).splitlines()[0])
        raise ConfigError(
            f"{shown(text)!r} is no requirement: {reason}. Write it as in dependencies, such as 'numpy>=2,<3'."
        ) from None
    return text.strip()


def new_text(spec_id: str, draft: Draft, python: str | None, default: str) -> str:
    """A new spec's pyproject.toml. `python` is a version or bounds; without it any from `default` on will do."""
    document = tomlkit.document()
    project = tomlkit.table()
    project["name"] = _project_name(spec_id, [name_of(one) for one in draft.requirements])
    project["version"] = "0.1.0"
    version = python is not None and _TEXT_VERSION.fullmatch(python) is not None
    minor = ".".join((python if version and python else default).split(".")[:2])
    project["requires-python"] = python if python and not version else f">={minor}"
    project["dependencies"] = _list(draft.lines)
    document["project"] = project
    tool = tomlkit.table(is_super_table=True)
    own = tomlkit.table(is_super_table=not version)
    if version:
        own["python"] = python
    runtime = _runtime_table(draft)
    if runtime is not None:
        own["runtime-env"] = runtime
    if version or runtime is not None:
        tool["envfabric"] = own
    if draft.constraints or draft.prerelease:
        uv = tomlkit.table()
        if draft.prerelease:
            uv["prerelease"] = "allow"
        if draft.constraints:
            uv["constraint-dependencies"] = _list(draft.constraints)
        tool["uv"] = uv
    if len(tool):
        document["tool"] = tool
    return _spaced(tomlkit.dumps(document))


def add(text: str, requirements: Sequence[str], target: Target = Target()) -> tuple[str, list[str]]:
    """The text with requirements added, and a sentence for each that took another one's place.

    Raises `ConfigError` for what is no requirement, and for a list that can't be changed in its own style.
    """
    said: list[str] = []
    for one in map(checked, requirements):
        current = _values(_parsed(text), target)
        same = [number for number, old in enumerate(current) if name_of(old) == name_of(one)]
        if one in current:
            said.append(f"{one} is there already")
            continue
        if len(same) > 1:
            raise ConfigError(
                f"{target.title} has {len(same)} requirements on {name_of(one)}: "
                f"{', '.join(current[number] for number in same)}. Change them by hand, or remove them first."
            )
        if same:
            said.append(f"{one} takes the place of {current[same[0]]}")
            wanted = [one if number == same[0] else old for number, old in enumerate(current)]
            text = _with_array(text, target, wanted, partial(arrays.replaced, number=same[0], value=one))
            continue
        place = arrays.sorted_place(current, one, _sort_key)
        wanted = [*current[:place], one, *current[place:]]
        text = _with_array(text, target, wanted, partial(arrays.inserted, number=place, value=one))
    return text, said


def remove(text: str, names: Sequence[str], target: Target = Target()) -> tuple[str, list[str]]:
    """The text without the requirements of these names, and those requirements.

    Raises `ConfigError` for a name that none has; it names the nearest.
    """
    gone: list[str] = []
    for name in names:
        wanted = name_of(name)
        found = [one for one in _values(_parsed(text), target) if wanted and name_of(one) == wanted]
        if not found:
            raise ConfigError(_unknown(text, name, target))
        for one in found:
            current = _values(_parsed(text), target)
            at = current.index(one)
            left = current[:at] + current[at + 1 :]
            text = _with_array(text, target, left, partial(arrays.removed, number=at))
        gone += found
    return text, gone


def _with_array(text: str, target: Target, wanted: list[Any], change: Callable[[str], str]) -> str:
    """The text with one array changed. Raises `ConfigError` where anything else would change with it."""
    document = tomlkit.parse(text)
    table: Any = document
    for key in target.path[:-1]:
        table = table.get(key) if isinstance(table, Mapping) else None
    if table is None:
        changed = _with_table(text, target, change("[]"))
    else:
        key = target.path[-1]
        if key in table:
            table[key] = _array(change(table[key].as_string()))
        else:
            _put_new(table, key, _array(change("[]")), target)
        changed = tomlkit.dumps(document)
    if _parsed(changed) != _expected(text, target, wanted):
        raise ConfigError(
            f"{target.title} is written in a way that can't be changed without changing more; do it by hand."
        )
    return changed


def _with_table(text: str, target: Target, array: str) -> str:
    """With a new table at the end: anywhere else it would come between a comment and what that is about."""
    if target.path[0] == "project" and "project" not in _parsed(text):
        raise ConfigError("there is no [project] table; make the spec with `envfabric new`.")
    line_break = "\r\n" if "\r\n" in text else "\n"
    gap = "" if not text else line_break if text.endswith("\n") else 2 * line_break
    key = tomlkit.key(target.path[-1]).as_string()
    return f"{text}{gap}[{'.'.join(target.path[:-1])}]{line_break}{key} = {array}{line_break}"


def _put_new(table: Any, key: str, array: Array, target: Target) -> None:
    after = [name for name in ("requires-python", "version", "name") if name in table]
    if target.path == ("project", "dependencies") and after and isinstance(table, Table):
        # Where the examples have it; at the table's end it would stand behind entry points and URLs.
        table.value._insert_after(after[0], key, array)
    else:
        table[key] = array


def _expected(text: str, target: Target, wanted: list[Any]) -> dict[str, Any]:
    expected = copy.deepcopy(_parsed(text))
    table = expected
    for key in target.path[:-1]:
        table = table.setdefault(key, {})
    table[target.path[-1]] = wanted
    return expected


def _array(text: str) -> Array:
    return cast(Array, tomlkit.parse(f"x = {text}\n")["x"])


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"pyproject.toml is not valid TOML: {error}. Nothing was changed.") from None


def _values(document: Mapping[str, Any], target: Target) -> list[Any]:
    value: Any = document
    for key in target.path:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{target.title} can't be reached: a part of its name is no table.")
        value = value.get(key, {} if key != target.path[-1] else [])
    if not isinstance(value, list):
        raise ConfigError(f"{target.title} is no list.")
    return value


def _sort_key(text: Any) -> str:
    return f"{name_of(text)}\0{text.casefold()}" if isinstance(text, str) else ""


def _unknown(text: str, name: str, target: Target) -> str:
    document = _parsed(text)
    known = {name_of(one) for one in _values(document, target) if isinstance(one, str)}
    project = document.get("project", {})
    others = [Target(extra=one) for one in project.get("optional-dependencies", {})]
    others += [Target(group=one) for one in document.get("dependency-groups", {})]
    for other in [Target(), *others]:
        if other != target and canonicalize_name(name) in map(name_of, _values(document, other)):
            flag = (
                f"--extra {other.extra}" if other.extra else f"--group {other.group}" if other.group else ""
            )
            return f"{target.title} has no {name}, but {other.title} has; give {flag or 'no --extra or --group'}."
    close = difflib.get_close_matches(canonicalize_name(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(known)) or 'none'}."
    return f"{target.title} has no {shown(name)!r}; {hint}"


def _project_name(spec_id: str, required: Sequence[str]) -> str:
    name = canonicalize_name(spec_id.replace("/", "-").strip("._-"))
    # A project that is named like what it requires means the project itself to uv.
    return f"{name}-spec" if name in required else name


def _list(lines: Sequence[Line]) -> Array:
    array = tomlkit.array()
    for line in lines:
        words = [] if line.requirement is None else [_string(line.requirement)]
        array.add_line(*words, comment=line.comment)
    if lines:
        array.add_line(indent="")
    return array


def _string(text: str) -> String:
    # A marker's own quotes stay readable.
    return tomlkit.string(text, literal='"' in text and "'" not in text and text.isprintable())


def _runtime_table(draft: Draft) -> Table | None:
    if not (draft.env_vars or draft.working_dir is not None or draft.excludes):
        return None
    runtime = tomlkit.table()
    if draft.working_dir is not None:
        runtime["working_dir"] = draft.working_dir
    if draft.excludes:
        excludes = tomlkit.array()
        excludes.extend(draft.excludes)
        runtime["excludes"] = excludes.multiline(len(excludes.as_string()) > _WIDTH)
    if draft.env_vars:
        inline = tomlkit.inline_table()
        inline.update(draft.env_vars)
        if len(inline.as_string()) <= _WIDTH:
            runtime["env_vars"] = inline
        else:
            table = tomlkit.table()
            table.update(draft.env_vars)
            runtime["env_vars"] = table
    return runtime


def _spaced(text: str) -> str:
    """One empty line before each table, and one line break at the end."""
    return re.sub(r"\n+\[", "\n\n[", text).strip("\n") + "\n"
