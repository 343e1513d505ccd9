"""`envfabric doctor`: whether the spec repository can be reached as the daemon reaches it, and who has its port.

git runs with the daemon's own environment for it (specs/remote, specs/plumbing), ends in its time, writes nothing and
asks nobody; what it says is shown without a credential. Of the port only pages are read.
"""

import http.client
import json
import os
import re
import stat
import time
from pathlib import Path

from envfabric.client.doctor_writer import moment
from envfabric.client.findings import Finding, owner, user
from envfabric.core.errors import ConfigError, redact
from envfabric.service.credentials import hide_secrets, take_credentials
from envfabric.service.settings import Settings, address
from envfabric.specs.plumbing import SAFE_CONFIG, Git, TimedOut, plain_environment
from envfabric.specs.remote import Remote, remote_of
from envfabric.specs.signatures import Signatures

_MOST = 64 * 1024 * 1024
"""Bytes of a page that are read."""
_LATE = 300.0
"""Seconds for which a look at the repository may take longer than its interval."""


def of_git(settings: Settings, timeout: float, root: Path | None, credentials: Path | None) -> list[Finding]:
    """Whether the repository, its branch and the spec folder are there for this user.

    `credentials` is the unit's file for git, where it names one: systemd shows it to the daemon alone.
    """
    repo = settings.repo or ""
    taken = take_credentials().git
    if taken is None and credentials is not None and os.access(credentials, os.R_OK):
        for line in credentials.read_text("utf-8", "replace").splitlines():
            hide_secrets(line)
        taken = credentials
    try:
        remote = remote_of(repo, taken)
    except ConfigError as error:
        return [Finding("git", "problem", str(error), "Correct repo in the settings.")]
    try:
        found = _remote(remote, settings, timeout) if remote else _local(Path(repo), settings, timeout)
    except TimedOut:
        do = "Look at the way there: git ls-remote by hand, or the mount that the repository lies on."
        found = Finding("git", "problem", f"{redact(repo)}: git gave no answer within {timeout:g} s", do)
    except FileNotFoundError:
        found = Finding("git", "problem", "git is not installed on this host", "Install git.")
    if found.level == "problem" and not _is_daemon(root):
        # Keys and credential helpers are a user's: this one's say nothing of the daemon's.
        whose = owner(root / "store") if root else "the daemon's user"
        do = f"{found.do or ''} This was tried as {user()}: run it as {whose}.".strip()
        return [Finding("git", "warning", found.found, do)]
    return [found]


def of_signatures(settings: Settings) -> list[Finding]:
    """Whether commits can be checked by the lists that are named."""
    told = settings.signatures
    try:
        Signatures(told.required, told.allowed_signers, told.gnupg_home)
        for path in (told.allowed_signers, told.gnupg_home):
            if told.required and path is not None and not os.access(path, os.R_OK):
                raise ConfigError(f"{path} can't be read by {user()}")
    except ConfigError as error:
        return [
            Finding(
                "signatures",
                "problem",
                str(error),
                "Without it no commit is made true: correct the settings.",
            )
        ]
    if not told.required:
        return [Finding("signatures", "ok", "not required: whoever can push decides what is built")]
    found = []
    for path in (told.allowed_signers, told.gnupg_home):
        if path is not None and stat.S_IMODE(path.stat().st_mode) & 0o022:
            do = f"chmod go-w {path}: whoever writes there can let any commit pass."
            found.append(Finding("signatures", "problem", f"{path} may be written by others", do))
    lists = " and ".join(str(one) for one in (told.allowed_signers, told.gnupg_home) if one)
    return found or [Finding("signatures", "ok", f"required, by {lists}")]


def of_port(settings: Settings, timeout: float, root: Path | None) -> list[Finding]:
    """Who answers where the daemon serves, and what it says of itself."""
    host, port = address(settings.listen)
    check = "port"
    if port == 0:
        return [Finding(check, "info", "listen takes any free port: the daemon's log says which", None)]
    # Where it listens everywhere it listens on loopback, too.
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    try:
        code, body = _get(near, port, "/healthz", timeout)
    except ConnectionRefusedError:
        do = "Start the daemon: systemctl start envfabric. On another machine than its host this is as it should be."
        return [Finding(check, "warning", f"nobody listens on {settings.listen}", do)]
    except (OSError, http.client.HTTPException) as error:
        do = f"See who has it (ss -ltnp 'sport = :{port}'), or choose another with listen."
        told = f"{settings.listen} gives no answer of a daemon: {type(error).__name__}: {error}"
        return [Finding(check, "problem", told, do)]
    if not re.match(rb"last round [0-9.]+ s ago", body):
        do = f"See who has it (ss -ltnp 'sport = :{port}'), or choose another with listen: the daemon exits with 2."
        return [
            Finding(
                check, "problem", f"another program answers on {settings.listen} ({code} to /healthz)", do
            )
        ]
    if code != 200:
        told = f"the daemon's loop hangs: {body.decode().strip()}"
        do = "Its log says where (journalctl -u envfabric); with the watchdog on systemd restarts it."
        return [Finding(check, "problem", told, do)]
    found = _published(near, port, timeout, root, settings.listen)
    return found or _figures(near, port, timeout, settings)


def _published(host: str, port: int, timeout: float, root: Path | None, listen: str) -> list[Finding]:
    """What is wrong with what the daemon there has published."""
    code, _ = _get(host, port, "/readyz", timeout)
    if code != 200:
        do = "Wait for the first build, or see `envfabric status` and the log."
        return [
            Finding(
                "port", "warning", f"the daemon on {listen} has published nothing yet (/readyz {code})", do
            )
        ]
    served = json.loads(_get(host, port, "/index.json", timeout)[1]).get("root")
    if root is not None and served != str(root):
        do = "Give the other one its own listen, or the right --root."
        return [Finding("port", "problem", f"the daemon on {listen} serves {served}, not {root}", do)]
    return []


def _figures(host: str, port: int, timeout: float, settings: Settings) -> list[Finding]:
    """Since when the loop has had no success, and whether this one writes."""
    _, text = _get(host, port, "/metrics", timeout)
    figures = dict(
        re.findall(r"^envfabric_(\w+) ([0-9.e+]+)$", text.decode("utf-8", "replace"), re.MULTILINE)
    )
    found = [Finding("port", "ok", f"the daemon answers on {settings.listen}")]
    if float(figures.get("writer", 1)) == 0:
        told = "this daemon stands by: another one writes"
        return [*found, Finding("last success", "info", told, "The finding `writer` says who.")]
    last = float(figures.get("reconcile_last_success_timestamp_seconds", 0))
    if last == 0:
        return [
            *found,
            Finding(
                "last success",
                "warning",
                "no look at the repository has succeeded since the start",
                "See `git` here, and the log (journalctl -u envfabric).",
            ),
        ]
    age = time.time() - last
    every = max(settings.interval, settings.fetch.interval)
    told = f"the repository was last looked at with success at {moment(last)}, {age:.0f} s ago"
    if age > every + _LATE:
        return [
            *found,
            Finding(
                "last success", "problem", told, "See `git` here, and the log (journalctl -u envfabric)."
            ),
        ]
    return [*found, Finding("last success", "ok", told)]


def _local(path: Path, settings: Settings, timeout: float) -> Finding:
    check, real = "git", path.resolve()
    until = time.monotonic() + timeout
    # As the daemon: who names a repository trusts it, whoever owns it; and none is looked for above.
    config = {**SAFE_CONFIG, "safe.directory": "*"}
    env = plain_environment() | {"GIT_CEILING_DIRECTORIES": str(real.parent)}
    git, at = Git(), ("-C", str(real))

    def ask(*words: str) -> tuple[int, str, str]:
        done = git.run((*at, *words), env=env, config=config, timeout=until - time.monotonic())
        return done.code, done.out.decode("utf-8", "replace").strip(), done.err.strip()

    code, _, said = ask("rev-parse", "--git-dir")
    if code:
        do = (
            "Give repo the top folder of a work tree or a bare repository, and let the daemon's user read it."
        )
        why = (
            "is not there" if not os.path.lexists(real) else f"is no repository for {user()}: {_short(said)}"
        )
        return Finding(check, "problem", f"{real} {why}", do)
    ref = f"refs/heads/{settings.branch}" if settings.branch else "HEAD"
    code, commit, said = ask("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if code:
        do = "Commit to it, or choose another with branch."
        return Finding(check, "problem", f"{real}: {settings.branch or 'HEAD'} has no commit", do)
    below = "/".join(Path(settings.path.strip("/")).parts)
    if below and ask("rev-parse", "--verify", "--quiet", f"{commit}:{below}")[0]:
        do = "Correct path in the settings, or commit the folder."
        return Finding(check, "problem", f"{real}: {commit[:12]} has no folder {below}", do)
    whose = (
        ""
        if real.stat().st_uid == os.geteuid()
        else f", {owner(real)}'s (the daemon needs no safe.directory)"
    )
    return Finding(
        check, "ok", f"{real}{whose}: {settings.branch or 'HEAD'} is {commit[:12]}, {below or '.'} is there"
    )


def _remote(remote: Remote, settings: Settings, timeout: float) -> Finding:
    check, ref = "git", f"refs/heads/{settings.branch}" if settings.branch else "HEAD"
    done = Git().run(
        ("ls-remote", "--exit-code", "origin", ref),
        env=remote.environment(),
        config=SAFE_CONFIG | remote.configuration(),
        timeout=timeout,
    )
    if done.code == 0:
        commit = done.out.split(b"\t")[0].decode("ascii", "replace")
        return Finding(check, "ok", f"{remote.url}: {settings.branch or 'HEAD'} is {commit[:12]}")
    if done.code == 2 and not done.err.strip():
        do = "Choose another with branch, or push to it."
        return Finding(
            check, "problem", f"{remote.url} answers, and has no branch {settings.branch or 'HEAD'}", do
        )
    do = "See the address, and the way there (proxy, certificates: the README's settings)."
    if re.search(
        r"could not read (Username|Password)|Authentication failed|error: 40[13]|Permission denied", done.err
    ):
        do = "Give credentials: LoadCredential=git-credentials or netrc in the unit, or a key for ssh."
    elif "Host key verification failed" in done.err:
        do = "Put the host's key into known_hosts of the daemon's user."
    return Finding(check, "problem", f"{remote.url} can't be reached: {_short(done.err)}", do)


def _get(host: str, port: int, path: str, timeout: float) -> tuple[int, bytes]:
    """Status and body of a page. Raises `OSError` and `HTTPException`."""
    # By hand, and no proxy of the environment between.
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(_MOST)
    finally:
        connection.close()


def _is_daemon(root: Path | None) -> bool:
    """Whether this user is the one whose ROOT it is."""
    try:
        return root is None or (root / "store").stat().st_uid == os.geteuid()
    except OSError:
        return True


def _short(said: str) -> str:
    return "; ".join(one.strip() for one in said.splitlines() if one.strip())[-400:] or "git says nothing"
