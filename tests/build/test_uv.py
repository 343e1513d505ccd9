"""uv's environment, time limit and process group; what gets in from the daemon's own environment."""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from build.conftest import HOUR, Clock
from envfabric.build import uv
from envfabric.build.scope import Scope, Stopped
from envfabric.build.uv import LOCK_MEMORY, Finished, Uv, failure
from envfabric.core.errors import Reason, SpecError
from envfabric.store.root import Root
from support.simple_index import SimpleIndex
from support.waiting import wait_for

SPAWN = "sh -c 'echo $$ > {pids}/child; exec sleep 600' & echo $$ > {pids}/parent; wait"


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def read_pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.iterdir() if path.read_text().strip()]


@pytest.mark.parametrize("fleet", [True, False])
def test_nothing_of_the_daemons_environment_gets_in(
    root: Root, monkeypatch: pytest.MonkeyPatch, fleet: bool
) -> None:
    """Secrets, Python's and uv's own variables of whoever started the daemon don't reach uv."""
    names = [
        "UV_NO_BUILD", "UV_LINK_MODE", "UV_CACHE_DIR", "UV_PYTHON", "UV_PRERELEASE", "UV_RESOLUTION", "UV_EXTRA_INDEX",
        "UV_FIND_LINKS", "UV_OFFLINE", "UV_NO_BINARY_PACKAGE", "UV_PROJECT_ENVIRONMENT", "UV_EXCLUDE_NEWER",
        "UV_PYTHON_DOWNLOADS", "UV_FROZEN", "UV_WORKING_DIRECTORY", "UV_TORCH_BACKEND", "VIRTUAL_ENV", "PYTHONPATH",
        "PYTHONHOME", "AWS_SECRET_ACCESS_KEY", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "LD_PRELOAD", "SSH_AUTH_SOCK",
        "SOURCE_DATE_EPOCH", "GIT_SSH_COMMAND",
    ]  # fmt: skip
    for name in names:
        monkeypatch.setenv(name, "from the shell")
    environment = Uv(root).environment(fleet=fleet)
    assert "from the shell" not in environment.values()
    fixed = {"UV_NO_BUILD": "1", "UV_LINK_MODE": "hardlink", "UV_CACHE_DIR": f"{root.path}/uv_cache"}
    assert environment.items() >= fixed.items()
    assert environment["UV_PYTHON_DOWNLOADS"] == "never"


@pytest.mark.parametrize(
    "name",
    ["SSL_CERT_FILE", "HTTPS_PROXY", "no_proxy", "NETRC",
     "UV_KEYRING_PROVIDER"],
)  # fmt: skip
@pytest.mark.parametrize("fleet", [True, False])
def test_credentials_certificates_and_proxies_pass(
    root: Root, monkeypatch: pytest.MonkeyPatch, name: str, fleet: bool
) -> None:
    """What uv needs to reach an index gets through, in resolving as in checking and installing."""
    monkeypatch.setenv(name, "needed")
    assert Uv(root).environment(fleet=fleet)[name] == "needed"
    secrets = {"UV_INDEX_PRIVATE_USERNAME": "someone", "UV_INDEX_PRIVATE_PASSWORD": "secret"}
    assert Uv(root, secrets=secrets).environment(fleet=fleet).items() >= secrets.items()


def test_fleet_settings_apply_only_where_the_daemon_resolves(root: Root) -> None:
    """The fleet's index makes a good committed lock look stale, so checking does not see it."""
    secrets = {"UV_DEFAULT_INDEX": "http://shell.example/simple"}
    uv = Uv(root, index="http://fleet.example/simple", secrets=secrets)
    assert uv.environment(fleet=True)["UV_DEFAULT_INDEX"] == "http://fleet.example/simple"
    assert "UV_DEFAULT_INDEX" not in uv.environment(fleet=False)
    assert (
        Uv(root, secrets=secrets).environment(fleet=True)["UV_DEFAULT_INDEX"] == "http://shell.example/simple"
    )


def test_index_credentials_reach_the_index(root: Root, tmp_path: Path) -> None:
    """uv logs in at a private index with the daemon's variables, and says the password nowhere."""
    project = tmp_path / "project"
    project.mkdir()
    with SimpleIndex(tmp_path / "private", user="reader", password="hidden") as private:
        private.add_wheel("secret-package")
        text = '[project]\nname = "one"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["secret-package"]\n'
        text += f'[[tool.uv.index]]\nname = "own"\nurl = "{private.url}"\ndefault = true\n'
        (project / "pyproject.toml").write_text(text)
        assert Uv(root).run(["lock"], cwd=project).code != 0
        secrets = {"UV_INDEX_OWN_USERNAME": "reader", "UV_INDEX_OWN_PASSWORD": "hidden"}
        done = Uv(root, secrets=secrets).run(["lock"], cwd=project)
    assert done.code == 0, done.stderr
    assert "hidden" not in (project / "uv.lock").read_text() + done.stdout + done.stderr


def test_timeout_ends_the_whole_process_group(root: Root, tmp_path: Path, clock: Clock) -> None:
    """After the time limit the process and its children are gone, and the error says what to raise."""
    pids = tmp_path / "pids"
    pids.mkdir()
    with clock.put_forward_once(lambda: len(read_pids(pids)) == 2), pytest.raises(SpecError) as caught:
        Uv(root, timeout=HOUR).run_command(
            ["sh", "-c", SPAWN.format(pids=pids)], cwd=tmp_path, hold=None, env={"PATH": os.environ["PATH"]}
        )
    assert caught.value.reason is Reason.TIMEOUT
    assert "ran longer than 3600 s" in caught.value.message
    assert "build_timeout" in caught.value.message
    found = read_pids(pids)
    assert len(found) == 2
    wait_for(lambda: all(map(ended, found)), message="a child lives on")


def test_stop_ends_what_runs_and_lets_nothing_start(root: Root, tmp_path: Path) -> None:
    """Stopping ends running processes with their children; each caller hears `Stopped`, later ones at once."""
    pids = tmp_path / "pids"
    pids.mkdir()
    uv = Uv(root)
    heard: list[BaseException] = []

    def work() -> None:
        try:
            command = ["sh", "-c", SPAWN.format(pids=pids)]
            uv.run_command(command, cwd=tmp_path, hold=None, env={"PATH": os.environ["PATH"]})
        except BaseException as error:
            heard.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_for(lambda: len(read_pids(pids)) == 2, message="nothing was started")
    found = read_pids(pids)
    uv.stop()
    thread.join(60)
    assert [type(error) for error in heard] == [Stopped]
    wait_for(lambda: all(map(ended, found)), message="a child lives on")
    with pytest.raises(Stopped):
        uv.run(["--version"], cwd=tmp_path)


def test_number_of_a_process_that_was_waited_for_is_let_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another's by then."""
    killed: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, _: killed.append(group))
    process = subprocess.Popen(["sleep", "600"], text=True, start_new_session=True)
    uv._end(process)
    assert killed == [process.pid]
    process.kill()
    process.wait()
    uv._end(process)
    assert killed == [process.pid]


def test_descriptor_is_inherited_and_nothing_else(root: Root, tmp_path: Path) -> None:
    """A child holds the descriptor that it was given, no other of the daemon's, and no terminal."""
    held, other = (os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("held", "other"))
    os.set_inheritable(other, True)
    try:
        done = Uv(root).run_command(
            ["sh", "-c", "readlink /proc/$$/fd/*; umask"],
            cwd=tmp_path,
            hold=held,
            env={"PATH": os.environ["PATH"]},
        )
    finally:
        os.close(held)
        os.close(other)
    assert str(tmp_path / "held") in done.stdout
    assert str(tmp_path / "other") not in done.stdout
    assert "/dev/null" in done.stdout
    assert done.stdout.splitlines()[-1] == "0022"


def test_password_in_what_uv_says_is_hidden(root: Root, tmp_path: Path) -> None:
    """A URL with a password on stderr loses it before anybody keeps it; a signal is an exit code below 0."""
    script = f"echo 'see https://user:hidden@x.example/simple' >&2; kill -{signal.SIGTERM.value} $$"
    done = Uv(root).run_command(
        ["sh", "-c", script], cwd=tmp_path, hold=None, env={"PATH": os.environ["PATH"]}
    )
    assert (done.code, done.stderr) == (-signal.SIGTERM, "see https://***@x.example/simple\n")


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("error: No space left on device (os error 28)", Reason.NO_SPACE),
        ("error: Failed to fetch: `http://x`\n  cause: No space left on device", Reason.NO_SPACE),
        ("error: Failed to fetch: `http://x`", Reason.FETCH),
        ("error: Read-only file system (os error 30)", Reason.STORE),
        ("  × No solution found when resolving dependencies", Reason.UNRESOLVABLE),
        ("error: something new", Reason.BUILD_FAILED),
        ("", Reason.BUILD_FAILED),
    ],
)
def test_failures_have_reasons(stderr: str, reason: Reason) -> None:
    """uv's words decide the reason; what is not known is the caller's, and the message never is empty."""
    error = failure("installing wf/a", Finished(2, "", stderr, 0.1), Reason.BUILD_FAILED)
    assert error.reason is reason
    assert error.message.startswith("installing wf/a: ")
    assert error.output == stderr
    assert "exit code 2" in error.message or stderr


@pytest.mark.parametrize("name", ["UV_INDEX_STRATEGY", "UV_INDEX_URL", "UV_INDEX_OWN_URL", "UV_INDEX_"])
def test_of_index_variables_only_credentials_pass(
    root: Root, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A variable that begins like an index's credentials and decides something else does not reach uv."""
    monkeypatch.setenv(name, "from the shell")
    for fleet in (True, False):
        assert name not in Uv(root).environment(fleet=fleet)


def test_child_that_left_the_group_is_ended(root: Root, tmp_path: Path, clock: Clock) -> None:
    """After the time limit a process with a group of its own, which the group's end missed, is gone too."""
    script = f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600' & wait"
    with clock.put_forward_once(lambda: _number(tmp_path / "pid")), pytest.raises(SpecError) as caught:
        Uv(root, timeout=HOUR).run_command(
            ["sh", "-c", script], cwd=tmp_path, hold=None, env={"PATH": os.environ["PATH"]}
        )
    assert caught.value.reason is Reason.TIMEOUT
    pid = _number(tmp_path / "pid")
    assert pid is not None
    wait_for(lambda: ended(pid), message="it lives on")


@pytest.mark.parametrize("how", ["timeout", "scope", "stop"])
def test_child_that_gave_up_all_blocks_nobody(root: Root, tmp_path: Path, clock: Clock, how: str) -> None:
    """One that left the group and its environment and keeps the pipes is not waited for, however the end came."""
    script = f"setsid env -i sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600' & wait"
    uv = Uv(root, timeout=HOUR)
    scope = Scope()
    heard: list[BaseException] = []

    def work() -> None:
        try:
            with scope.entered():
                uv.run_command(
                    ["sh", "-c", script], cwd=tmp_path, hold=None, env={"PATH": os.environ["PATH"]}
                )
        except BaseException as error:
            heard.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        pid = wait_for(lambda: _number(tmp_path / "pid"), message="nothing was started")
        if how == "scope":
            scope.end()
        elif how == "stop":
            uv.stop()
        else:
            clock.put_forward()
        thread.join(60)
        assert [type(error) for error in heard] == [SpecError if how == "timeout" else Stopped]
        assert not ended(pid), "the trap is live: the child holds the pipes"
    finally:
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        thread.join(60)


def _number(path: Path) -> int | None:
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text else None


def test_a_steps_time_is_that_of_all_its_processes(root: Root, tmp_path: Path, clock: Clock) -> None:
    """The limit ends a step's second process, which alone had time enough, with its grandchildren, and says so."""
    pids = tmp_path / "pids"
    pids.mkdir()
    uv = Uv(root, timeout=2 * HOUR)
    env = {"PATH": os.environ["PATH"]}
    with Scope("building wf/a", limit=HOUR).entered():
        assert uv.run_command(["sh", "-c", "exit 3"], cwd=tmp_path, hold=None, env=env).code == 3
        with clock.put_forward_once(lambda: len(read_pids(pids)) == 2), pytest.raises(SpecError) as caught:
            uv.run_command(["sh", "-c", SPAWN.format(pids=pids)], cwd=tmp_path, hold=None, env=env)
        found = read_pids(pids)
        with pytest.raises(SpecError, match="building wf/a ran longer than 3600 s"):
            uv.run_command(["touch", str(tmp_path / "third")], cwd=tmp_path, hold=None, env=env)
    assert caught.value.reason is Reason.TIMEOUT
    assert "building wf/a ran longer than 3600 s and was ended, during sh -c" in caught.value.message
    assert "build_timeout" in caught.value.message
    assert len(found) == 2
    wait_for(lambda: all(map(ended, found)), message="a child lives on")
    assert not (tmp_path / "third").exists()
    assert uv.run_command(["sh", "-c", "true"], cwd=tmp_path, hold=None, env=env).code == 0


def test_end_of_a_step_ends_its_process_and_no_other(root: Root, tmp_path: Path) -> None:
    """Who ends a step kills what it runs, children included; another step's process runs on."""
    uv, env = Uv(root, timeout=600), {"PATH": os.environ["PATH"]}
    scopes = [Scope(), Scope()]
    heard: dict[int, BaseException | int] = {}

    def work(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            with scopes[number].entered():
                script = SPAWN.format(pids=folder)
                heard[number] = uv.run_command(["sh", "-c", script], cwd=tmp_path, hold=None, env=env).code
        except BaseException as error:
            heard[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    folders = [tmp_path / "0", tmp_path / "1"]
    try:
        wait_for(
            lambda: all(one.exists() and len(read_pids(one)) == 2 for one in folders), message="not begun"
        )
        first, second = map(read_pids, folders)
        scopes[0].end()
        threads[0].join(60)
        assert isinstance(heard[0], Stopped)
        wait_for(lambda: all(map(ended, first)), message="a child lives on")
        assert not any(map(ended, second))
        os.kill(int((folders[1] / "child").read_text()), signal.SIGKILL)
        threads[1].join(60)
        assert heard[1] == 0
    finally:
        uv.stop()


def test_temporary_folder_stays_empty(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: SimpleIndex
) -> None:
    """uv leaves nothing where the daemon's temporary files are, whether it succeeds or is ended."""
    temporary, project = tmp_path / "tmp", tmp_path / "project"
    temporary.mkdir()
    project.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (project / "pyproject.toml").write_text(
        '[project]\nname = "one"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["gamma"]\n'
    )
    for arguments in (["lock"], ["sync", "--frozen"], ["lock", "--check"]):
        assert Uv(root, index=index.url).run(arguments, cwd=project, fleet=True).code == 0
    said = Uv(root).run_command(
        ["sh", "-c", 'echo "$TMPDIR"; touch "$TMPDIR/left"'],
        cwd=project,
        hold=None,
        env={"PATH": os.environ["PATH"]},
    )
    assert Path(said.stdout.strip()).parent == temporary
    held = index.hold("gamma")
    (project / "uv.lock").unlink()
    with pytest.raises(SpecError):
        Uv(root, timeout=0.5, index=index.url).run(["lock", "--upgrade"], cwd=project, fleet=True)
    held.set()
    assert list(temporary.iterdir()) == []


def test_memory_of_resolving_is_bounded(root: Root, tmp_path: Path) -> None:
    """A lock that asks for all memory ends alone: the process that resolves has a limit, an installing one none."""
    tool = tmp_path / "tool"
    tool.write_text(
        '#!/bin/sh\n[ "$1" = lock ] && while [ "$(ulimit -v)" = unlimited ]; do :; done\nulimit -v\n'
    )
    tool.chmod(0o755)
    environment = {"PATH": os.environ["PATH"]}
    limited = Uv(root).run_command([str(tool), "lock"], cwd=tmp_path, hold=None, env=environment)
    assert limited.stdout == f"{LOCK_MEMORY // 1024}\n"
    free = Uv(root).run_command([str(tool), "sync"], cwd=tmp_path, hold=None, env=environment)
    assert free.stdout == "unlimited\n"


def test_home_gets_no_folder_of_uv(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv makes no folder for its credentials in a home that has none; one that is there is used."""
    home = tmp_path / "somebody"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\necho "${UV_CREDENTIALS_DIR:-none} $TMPDIR"\n')
    tool.chmod(0o755)

    def told() -> list[str]:
        environment = Uv(root).environment(fleet=True)
        done = Uv(root).run_command([str(tool), "lock"], cwd=tmp_path, hold=None, env=environment)
        return done.stdout.split()

    place, temporary = told()
    assert place == f"{temporary}/credentials"
    (home / ".local/share/uv/credentials").mkdir(parents=True)
    assert told()[0] == "none"
