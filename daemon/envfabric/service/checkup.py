"""`envfabric doctor` on the daemon's host: its settings, and whether what they name is as the daemon needs it.

Calls the other looks in an order in which a finding explains those after it: settings and ROOT's tools here, git and
the port in checkup_reach, the unit in checkup_unit. Writes nothing, but for the store's own probe with --write; starts
no code of a package, and shows no credential.
"""

import importlib.metadata
import os
import re
import stat
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from envfabric.build.uv import Uv
from envfabric.client.doctor import Asked
from envfabric.client.findings import Finding, owner, some, within
from envfabric.client.index import find_config
from envfabric.core.errors import ConfigError, redact
from envfabric.service import checkup_reach, checkup_unit
from envfabric.service.credentials import hide_secrets
from envfabric.service.settings import Settings, load_settings
from envfabric.store.files import Files
from envfabric.store.mounts import one_mount
from envfabric.store.probe import probe
from envfabric.store.root import Root

_SECRET = re.compile(r"://[^/@\s]+@")
"""An address with a user or a password in it."""


def look(asked: Asked) -> list[Finding]:
    """Everything that is looked at on the daemon's host; on another one little of it, and why."""
    unit, findings = checkup_unit.find(asked.timeout)
    config = Path(asked.config) if asked.config else find_config() or (unit.config if unit else None)
    settings: list[Settings] = []
    found, in_time = within(asked.timeout, "settings", lambda: _settings(asked.root, config, settings))
    # First what the others stand on.
    findings = [*found, *findings]
    if unit is not None and in_time:
        # Also where the settings are closed to this user, or wrong: then it says that it fails.
        installed, answers = unit, asked.root is not None
        named = settings[0].root if settings else None
        place = asked.root or (Path(os.path.abspath(named)) if named else None)
        findings += within(
            asked.timeout, "unit", lambda: checkup_unit.of_unit(installed, place, config, answers=answers)
        )[0]
    if not in_time or not settings:
        return findings
    told = settings[0]
    # A fetch may take longer than a look at a file.
    longer = 2 * asked.timeout
    credentials = unit.git_credentials if unit else None
    more: list[tuple[str, float, Callable[[], list[Finding]]]] = [
        ("git", longer, lambda: checkup_reach.of_git(told, asked.timeout, asked.root, credentials)),
        ("signatures", asked.timeout, lambda: checkup_reach.of_signatures(told)),
        ("port", longer, lambda: checkup_reach.of_port(told, asked.timeout, asked.root)),
    ]
    if asked.root is not None:
        root = Root(asked.root)
        more = [
            ("uv", asked.timeout, lambda: _uv(root)),
            ("links", 6 * asked.timeout, lambda: _links(root, write=asked.write)),
            ("pythons", asked.timeout, lambda: _pythons(told, root, asked)),
            *more,
        ]
    more.append(("ray settings", asked.timeout, lambda: _ray(told, asked)))
    for check, seconds, one in more:
        findings += within(seconds, check, one)[0]
    return [_redacted(one) for one in findings]


def _settings(root: Path | None, config: Path | None, into: list[Settings]) -> list[Finding]:
    check = "settings"
    if config is None and "ENVFABRIC_REPO" not in os.environ:
        told = "no settings file here: what the daemon needs was not looked at"
        do = "On the daemon's host give --config FILE, or write /etc/envfabric/envfabric.toml."
        return [Finding(check, "info", told, do)]
    try:
        settings = load_settings(config, {"root": root}, discover=False)
    except ConfigError as error:
        if isinstance(error.__cause__, PermissionError):
            do = f"Run this as root, or as the daemon's user: {config} may hold what others must not read."
            return [Finding(check, "info", str(error), do)]
        return [
            Finding(
                check, "problem", str(error), "Correct it: the daemon does not start with it (exit code 2)."
            )
        ]
    hide_secrets(settings.repo, settings.index, *settings.policy.indexes)
    if not settings.repo:
        told = f"{config} names no repo: it is a consumer's, and what the daemon needs was not looked at"
        return [Finding(check, "info", told, "On the daemon's host give its file with --config.")]
    into.append(settings)
    found = _open_files(config)
    if not found:
        found.append(Finding(check, "ok", f"{config or 'ENVFABRIC_… variables'}, every key known"))
    return found


def _open_files(config: Path | None) -> list[Finding]:
    """Files with credentials that others may read."""
    found = []
    netrc = Path(os.environ.get("NETRC") or os.path.expanduser("~/.netrc"))
    for path, secret in ((config, _has_secret), (netrc, lambda path: True)):
        if path is None:
            continue
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if not mode & 0o004 or not secret(path):
                continue
        except (OSError, ValueError):
            continue
        told = f"{path} holds credentials, and others may read it (mode {mode:04o})"
        do = f"chmod 0640 {path}, its group the daemon's; or hand them over by LoadCredential (README)."
        found.append(Finding("settings", "warning", told, do))
    return found


def _has_secret(path: Path) -> bool:
    content = tomllib.loads(path.read_text("utf-8"))
    policy = content.get("policy")
    named = [content.get("repo"), content.get("index")]
    named += policy.get("indexes", []) if isinstance(policy, dict) else []
    in_address = any(_SECRET.search(str(one)) and not str(one).startswith("ssh:") for one in named if one)
    return "reconcile_token" in content or in_address


def _uv(root: Root) -> list[Finding]:
    check = "uv"
    needed = next(
        (
            match[1]
            for one in importlib.metadata.requires("environment-fabric") or []
            if (match := re.match(r"uv==([0-9][^\s;]*)", one))
        ),
        None,
    )
    try:
        uv = Uv(root)
        version = uv.version()
    except Exception as error:
        do = "Install environment-fabric[daemon] anew: it brings its uv."
        return [Finding(check, "problem", f"uv can't be run: {type(error).__name__}: {error}", do)]
    found = []
    if needed is not None and version != needed:
        told = f"{uv.binary} is {version}, and this release is made for {needed}: the forms of its cache may differ"
        found.append(
            Finding(check, "problem", told, f"Install environment-fabric[daemon] anew, or uv=={needed}.")
        )
    try:
        mount = one_mount(root)
    except ConfigError as error:
        found.append(Finding(check, "problem", str(error), "Put ROOT's folders on one mount."))
    else:
        cache, store = root.uv_cache.stat(), root.store.stat()
        if cache.st_uid != store.st_uid:
            told = f"uv_cache/ is {owner(root.uv_cache)}'s, and store/ is {owner(root.store)}'s: links become copies"
            do = f"chown -R {owner(root.store)} {root.uv_cache}: whose file it is not, the kernel lets not link it."
            found.append(Finding(check, "problem", told, do))
        elif stat.S_IMODE(cache.st_mode) & 0o022:
            told = f"{root.uv_cache} may be written by others (mode {stat.S_IMODE(cache.st_mode):04o})"
            do = f"chmod go-w {root.uv_cache}: whoever writes there changes environments to come."
            found.append(Finding(check, "problem", told, do))
        elif not found:
            found.append(
                Finding(check, "ok", f"{version} ({uv.binary}), its cache on the store's {mount.kind}")
            )
    return found


def _links(root: Root, *, write: bool) -> list[Finding]:
    """By trying it, where that is asked for and nothing would be left that another user owns."""
    check = "links"
    whose = root.store.stat().st_uid
    if not write:
        do = f"As {owner(root.store)}: `envfabric doctor --write`."
        return [Finding(check, "info", "links, renames, modes and locks were not tried: that writes", do)]
    if os.geteuid() != whose:
        told = (
            "links, renames, modes and locks were not tried: another user's files say nothing of the daemon's"
        )
        return [Finding(check, "info", told, f"Run this as {owner(root.store)}, who owns the store.")]
    try:
        done = probe(root, Files())
    except ConfigError as error:
        return [Finding(check, "problem", str(error), "The daemon does not start on it (exit code 2).")]
    found = [
        Finding(check, "warning", one, "See what it says; `init` and each start of the daemon say it.")
        for one in done.degraded
    ]
    if not found:
        found.append(
            Finding(check, "ok", f"links, renames, modes and locks of {done.file_system} do as they must")
        )
    return found


def _pythons(settings: Settings, root: Root, asked: Asked) -> list[Finding]:
    """Whether what is served was made from interpreters that the settings allow."""
    check = "pythons"
    bases: dict[str, str] = {}
    for spec_id, python in asked.index.get("python", {}).items():
        try:
            bases.setdefault(os.path.normpath(Path(python).parent / os.readlink(python)), spec_id)
        except OSError:
            # Another look tells of it.
            continue
    if not settings.pythons:
        outside = sorted(one for one in bases if not Path(one).is_relative_to(root.pythons))
        if outside:
            told = f"outside of ROOT: {some(outside)}; each node needs them at the same path"
            do = f"Name them in pythons, so that no other is taken, or put Pythons below {root.pythons}."
            return [Finding(check, "info", told, do)]
    allowed = [root.pythons, *(Path(one) for one in settings.pythons)]
    places = [one.resolve() for one in allowed]
    for base, spec_id in bases.items():
        if settings.pythons and not any(Path(os.path.realpath(base)).is_relative_to(one) for one in places):
            told = f"{spec_id} was made from {base}, which is none of pythons ({', '.join(settings.pythons)})"
            return [Finding(check, "warning", told, f"`envfabric refresh {spec_id}`, or name it in pythons.")]
    missing = [one for one in settings.pythons if not os.path.exists(one)]
    if missing:
        return [
            Finding(
                check, "warning", f"pythons names what is not there: {some(missing)}", "Correct the settings."
            )
        ]
    return [
        Finding(
            check,
            "ok",
            f"{len(bases)} interpreters, all where pythons allows them" if bases else "none served",
        )
    ]


def _ray(settings: Settings, asked: Asked) -> list[Finding]:
    """Whether what is served fits the cluster of the settings, and this host its farm."""
    check, told = "ray settings", settings.ray
    served = asked.index.get("python", {})
    entries = {name: one for name, one in asked.index.get("environments", {}).items() if name in served}
    found = []
    wrong = {name: one["ray_version"] for name, one in entries.items() if one.get("ray_version")}
    other = sorted(name for name, version in wrong.items() if told.version and version != told.version)
    if other:
        text = f"{len(other)} served with another ray than {told.version} (ray.version): {some(other)}"
        do = f'Write "ray=={told.version}" in their dependencies, or correct ray.version.'
        found.append(Finding(check, "warning", text, do))
    lacking = sorted(set(entries) - set(wrong)) if told.required else []
    if lacking:
        do = "Add ray to their dependencies, or write ray = false in their [tool.envfabric]."
        found.append(Finding(check, "info", f"ray.required, and served without ray: {some(lacking)}", do))
    found += _farm(settings)
    if not found and not told.version and wrong:
        text = f"{len(wrong)} environments have ray, and ray.version is not set: what does not fit the cluster is built"
        found.append(
            Finding(check, "info", text, "Set ray.version and ray.python to the cluster's, in full.")
        )
    if not found:
        text = (
            f"ray {told.version}, {len(wrong)} environments have it" if told.version else "none is asked for"
        )
        found.append(Finding(check, "ok", text))
    return found


def _farm(settings: Settings) -> list[Finding]:
    if settings.farm.executor != "ray":
        return []
    check = "farm"
    try:
        # Without importing it: that takes seconds, and is the executor's affair.
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        do = f"Install ray=={settings.ray.version or '<the cluster’s version>'} beside the daemon ({sys.prefix})."
        return [Finding(check, "problem", "farm.executor = ray, and ray is not installed here", do)]
    if settings.ray.version and version != settings.ray.version:
        told = f"ray {version} is installed beside the daemon, and ray.version is {settings.ray.version}"
        return [
            Finding(
                check, "problem", told, f"Install ray=={settings.ray.version}: Ray connects no two versions."
            )
        ]
    minor, wanted = f"{sys.version_info[0]}.{sys.version_info[1]}", settings.ray.python
    if wanted and ".".join(wanted.split(".")[:2]) != minor:
        do = f"Run the daemon by Python {wanted}."
        return [
            Finding(check, "problem", f"the daemon runs by Python {minor}, and ray.python is {wanted}", do)
        ]
    return [Finding(check, "ok", f"ray {version} beside the daemon; `envfabric doctor --ray` asks the node")]


def _redacted(one: Finding) -> Finding:
    return Finding(one.check, one.level, redact(one.found), None if one.do is None else redact(one.do))
