"""Wheels that an index gives no hash for: hashed here, so that the closure names what they hold.

The download is uv's (`uv export` to a pylock.toml fetches what it has no hash for, and not from its
cache), so credentials, proxies and certificates are those of every other download. Works in a folder of its own
in staging; nothing else on ROOT is written here.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from envfabric.build.exact import only
from envfabric.build.interpreters import Interpreter
from envfabric.build.lockfile import Lock
from envfabric.build.room import Room
from envfabric.build.uv import Uv, failure
from envfabric.core.errors import Reason, SpecError
from envfabric.store.files import Files


def hash_wheels(
    uv: Uv, files: Files, folder: Path, hold: int, pyproject: bytes, lock: Lock, urls: Sequence[str],
    python: Interpreter, room: Room,
) -> dict[str, str]:  # fmt: skip
    """'sha256:…' by URL of wheels that `lock` names without one; each is downloaded to learn it.

    Works in `folder`, a new one in staging, within `room`. Raises `SpecError`.
    """
    project = only(pyproject, lock, urls)
    files.make_folder(folder)
    files.write_new(folder / "pyproject.toml", project.pyproject)
    files.write_new(folder / "uv.lock", project.lock)
    arguments = ["export", "--frozen", "--no-default-groups", "--no-emit-project", "--format", "pylock.toml"]
    # With the fleet's indexes: their credentials may be needed, and a frozen lock does not change by them.
    finished = uv.run([*arguments, "--python", python.path], cwd=folder, hold=hold, fleet=True, room=room)
    doing = f"hashing {', '.join(url.rsplit('/', 1)[-1] for url in urls)}, which the index gives no hash for"
    if finished.code != 0:
        raise failure(doing, finished, Reason.UNRESOLVABLE)
    packages = tomllib.loads(finished.stdout).get("packages", [])
    found = {wheel["url"]: wheel.get("hashes", {}) for one in packages for wheel in one.get("wheels", [])}
    missing = [url for url in urls if "sha256" not in found.get(url, {})]
    if missing:
        raise SpecError(
            Reason.UNRESOLVABLE,
            f"{doing}: uv did not say what {missing[0]} hashes to. Have the index give hashes, or require a "
            "version from another one.",
        )
    return {url: f"sha256:{found[url]['sha256']}" for url in urls}
