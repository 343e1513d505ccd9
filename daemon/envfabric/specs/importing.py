"""What other tools' files say of an environment, as the draft of a spec: pip's requirements, Ray's runtime_env.

What has no place in a spec is never dropped without a word: it is reported with where it stood and what to do. Reads
files only in the folder tree of the first one; expands no variable, asks no index, runs nothing.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from envfabric.core.errors import ConfigError, redact
from envfabric.core.ids import shown
from envfabric.specs.writing import Draft, Line

_MOST_BYTES = 1 << 20
_MOST_FILES = 100
_COMMENT = re.compile(r"(?:^|\s+)#(.*)$")
_HASH = re.compile(r"\s--hash[=\s]\s*\S+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTION = re.compile(r"(-[a-zA-Z]|--[a-z-]+)(?:[=\s]\s*|(?<=^-[a-zA-Z]))?(.*)")

_INDEX = (
    "set `index` in the daemon's settings, or write a [[tool.uv.index]] that policy.indexes there allows; its "
    "credentials go to the daemon, never into a spec"
)
_OPTIONS = {
    "-e": "an editable project can't be part of a sealed environment: publish it to an index and require a version",
    "-i": _INDEX,
    "--extra-index-url": f"{_INDEX}; uv takes a name from the first index that has it",
    "--no-index": _INDEX,
    "-f": "only indexes are read: publish these files to one",
    "--trusted-host": "give the daemon's host the certificate (SSL_CERT_FILE)",
    "--no-binary": "source distributions are not built: require versions that have a wheel, or have the name added to "
    "policy.build_from_source in the daemon's settings",
    "--require-hashes": "nothing is lost: the lock holds a hash of every file",
    "--prefer-binary": "nothing is lost: wheels are what is installed",
    "--only-binary": "nothing is lost: wheels are what is installed",
}
_SHORT = {
    "--editable": "-e",
    "--index-url": "-i",
    "--pypi-url": "-i",
    "--find-links": "-f",
    "--requirement": "-r",
}
_SHORT |= {"--constraint": "-c"}

_RUNTIME = {
    "conda": "a fabric's environments are made by uv from an index: require the packages by their names there, and "
    'set the Python with `[tool.envfabric] python = "3.11"`',
    "container": "the environment runs on the node as it is: leave the image to the cluster",
    "image_uri": "the environment runs on the node as it is: leave the image to the cluster",
    "py_modules": "publish them as a package to an index and require a version, or put them into working_dir",
    "py_executable": "it is what the fabric gives: `envfabric runtime-env ID` prints it",
    "java_jars": "give it beside what `envfabric runtime-env ID` prints",
    "config": "give it beside what `envfabric runtime-env ID` prints; set-up takes no time any more",
    "worker_process_setup_hook": "give it beside what `envfabric runtime-env ID` prints",
}
_OTHERWISE = "give it beside what `envfabric runtime-env ID` prints"


@dataclass(frozen=True, slots=True)
class Left:
    """Something that was not taken over."""

    where: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.where}: not taken over: {shown(redact(self.what))}: {self.advice}"


@dataclass(slots=True)
class Imported:
    """A draft, what was left out of it, and what else is to be said."""

    draft: Draft = field(default_factory=Draft)
    left: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Says something once."""
        if text not in self.notes:
            self.notes.append(text)


def from_requirements(path: Path, into: Imported | None = None) -> Imported:
    """A requirements file of pip's, with what it includes by -r and -c. Raises `ConfigError`."""
    found = into or Imported()
    _Reader(found, path.parent.resolve()).file(path, path.name, constraint=False)
    return found


def from_runtime_env(text: str, where: str, base: Path) -> Imported:
    """Ray's runtime_env, from its JSON. Files that it names are looked for in `base`. Raises `ConfigError`."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}. It is what --runtime-env-json is given.") from None
    if isinstance(raw, dict) and set(raw) == {"runtime_env"}:
        raw = raw["runtime_env"]
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} is no runtime_env: that is an object with keys such as pip and env_vars.")
    found = Imported()
    for key, value in raw.items():
        if value is None:
            continue
        if key in {"pip", "uv"}:
            _packages(found, key, value, where, base)
        elif key == "env_vars" and isinstance(value, Mapping):
            _variables(found, value, where)
        elif key == "working_dir" and isinstance(value, str):
            found.draft.working_dir = value
            if "://" not in value:
                found.note(
                    f"working_dir {value!r} is taken as it is written: a folder on the machine that submits the job."
                )
        elif key == "excludes" and isinstance(value, list):
            found.draft.excludes += [one for one in value if isinstance(one, str)]
        else:
            found.left.append(Left(where, _brief(key, value), _RUNTIME.get(key, _OTHERWISE)))
    if not any(re.match(r"ray\b", one, re.IGNORECASE) for one in found.draft.requirements):
        found.note(
            "ray is not among the requirements, and a Ray task would hang in an environment without it: "
            "`envfabric add` with the spec's id and ray==<the cluster's version>."
        )
    return found


def _packages(found: Imported, key: str, value: Any, where: str, base: Path) -> None:
    if isinstance(value, Mapping):
        for name, one in value.items():
            if name != "packages" and one not in (None, False):
                advice = "the fabric has its own uv, and checks what it installs"
                found.left.append(Left(where, _brief(f"{key}.{name}", one), advice))
        value = value.get("packages", [])
    if isinstance(value, str):
        from_requirements(base / value, found)
    elif isinstance(value, list):
        reader = _Reader(found, base.resolve())
        for one in value:
            if isinstance(one, str):
                reader.line(one, where, base, constraint=False)
            else:
                found.left.append(
                    Left(where, _brief(key, one), "a requirement is a string such as 'numpy>=2'")
                )
    else:
        found.left.append(Left(where, _brief(key, value), "it is neither a list nor the path of a file"))


def _variables(found: Imported, value: Mapping[str, Any], where: str) -> None:
    for name, one in value.items():
        if not _VARIABLE.fullmatch(name) or isinstance(one, (dict, list)) or one is None:
            advice = "a variable's name takes letters, digits and '_', and its value is a string"
            found.left.append(Left(where, f"env_vars.{name}", advice))
        else:
            text = str(one).lower() if isinstance(one, bool) else str(one)
            found.draft.env_vars[name] = text


def _brief(key: str, value: Any) -> str:
    return shown(f"{key} = {json.dumps(value, default=str)}", 80)


class _Reader:
    """Reads requirements files; what it finds goes into one draft."""

    def __init__(self, found: Imported, top: Path) -> None:
        self._found = found
        self._top = top
        self._read: set[tuple[Path, bool]] = set()

    def file(self, path: Path, where: str, *, constraint: bool) -> None:
        resolved = path.resolve()
        if (resolved, constraint) in self._read:
            return
        self._read.add((resolved, constraint))
        if len(self._read) > _MOST_FILES:
            raise ConfigError(f"{where}: more than {_MOST_FILES} files are included.")
        for number, text in _logical_lines(_text_of(resolved, where)):
            self.line(text, f"{where}:{number}", path.parent, constraint=constraint)

    def line(self, text: str, where: str, folder: Path, *, constraint: bool) -> None:
        """One line of a requirements file, its continuations joined."""
        draft = self._found.draft
        into = draft.constraints if constraint else draft.lines
        match = _COMMENT.search(text)
        comment = _printable(match[1]) if match else None
        text = (text[: match.start()] if match else text).strip()
        if not text:
            if comment:
                into.append(Line(None, comment))
            return
        if text.startswith("-"):
            self._option(text, where, folder)
            return
        plain = _HASH.sub("", f" {text}").strip()
        if plain != text:
            self._found.note("hashes were left out: the lock that the daemon makes has one for each file.")
        requirement = self._requirement(plain, where)
        if requirement is None:
            return
        if not any(line.requirement == requirement for line in into):
            into.append(Line(requirement, comment))

    def _requirement(self, text: str, where: str) -> str | None:
        plain, _, options = text.partition(" --")
        if options:
            self._leave(where, f"--{options}", "options of single requirements are not known to uv")
        try:
            requirement = Requirement(plain)
        except InvalidRequirement:
            if "${" in text:
                advice = "variables are not read: write down what it stands for"
            elif re.match(r"(git|hg|svn|bzr)\+|[a-z]+://", text) or "://" in text:
                advice = "only releases from an index are taken: publish it to one and require a version"
            elif "/" in text or text.startswith(".") or text.endswith((".whl", ".tar.gz", ".zip")):
                advice = "a path leads nowhere on the NAS: publish it to an index and require a version"
            else:
                advice = "it is no requirement such as 'numpy>=2,<3'"
            self._leave(where, text, advice)
            return None
        if requirement.url is not None:
            self._leave(
                where, text, "only releases from an index are taken: publish it to one and require a version"
            )
            return None
        return plain.strip()

    def _option(self, text: str, where: str, folder: Path) -> None:
        match = _OPTION.match(text)
        name, value = (match[1], match[2].strip()) if match else (text, "")
        name = _SHORT.get(name, name)
        if name in {"-r", "-c"}:
            target = folder / value
            if "://" in value or not target.resolve().is_relative_to(self._top):
                advice = (
                    f"only files below {self._top} are read; copy it there, or its requirements into the spec"
                )
                self._leave(where, text, advice)
                return
            shown_path = target.resolve().relative_to(self._top).as_posix()
            self.file(target, shown_path, constraint=name == "-c")
        elif name == "--pre":
            self._found.draft.prerelease = True
        else:
            self._leave(where, text, _OPTIONS.get(name, "uv has no such option in a project"))

    def _leave(self, where: str, what: str, advice: str) -> None:
        self._found.left.append(Left(where, what, advice))


def _text_of(path: Path, where: str) -> str:
    try:
        # Looked at first: a pipe would be waited for.
        if not path.is_file():
            raise ConfigError(f"{where}: there is no file {path}.")
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{where}: {path} can't be read: {error.strerror}") from error
    if len(raw) > _MOST_BYTES:
        raise ConfigError(f"{where} has more than {_MOST_BYTES} bytes; that is no list of requirements.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8: {error.reason}.") from None


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations, and the number of the first; pip joins before it looks for comments."""
    joined, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        start = start or number
        # A comment is not continued.
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            joined += line[:-1] + " "
            continue
        yield start, joined + line
        joined, start = "", 0
    if joined:
        yield start, joined


def _printable(comment: str) -> str | None:
    # A remark may be an option that was taken out, with its password.
    return redact("".join(one if one.isprintable() else " " for one in comment)).strip() or None
