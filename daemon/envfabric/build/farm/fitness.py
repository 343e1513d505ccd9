"""Whether a node can build for a daemon: it has to see the same ROOT, as the same user, with the same tools.

Anything else would make other closures, or copies where links are meant, without a word. Writes two files into the
build's staging folder, and removes them.
"""

import os
import pwd
import stat

from envfabric.build.closure import Closure
from envfabric.build.farm.words import Refused, Site
from envfabric.build.interpreters import Interpreter, inspect
from envfabric.build.uv import Uv
from envfabric.core.errors import Reason
from envfabric.store.closures import Staging
from envfabric.store.files import Files
from envfabric.store.root import Root

_PROBE = "farm-probe"


def check_root(site: Site, root: Root, node: str) -> None:
    """The node's ROOT is the daemon's, and the user is, too. Raises `Refused`."""
    if os.geteuid() != site.uid:
        raise Refused(
            Reason.STORE,
            f"node {node} runs Ray as {_user(os.geteuid())} and the daemon is {_user(site.uid)}: the one could not "
            "hardlink the other's files. Start Ray there as the daemon's user",
        )
    try:
        marker = root.marker.read_bytes()
    except OSError as error:
        raise Refused(
            Reason.STORE,
            f"node {node} does not see ROOT at {root.path}: {error.strerror}. Mount it there, at the same path",
        ) from None
    if marker != site.marker:
        raise Refused(
            Reason.STORE,
            f"node {node} has another folder at {root.path} than the daemon: its {root.marker.name} differs. Mount "
            "the same ROOT there",
        )


def check_staging(staging: Staging, files: Files, node: str) -> None:
    """The staging folder can be written to and linked in, by the user who owns the daemon's files.

    Raises `Refused`.
    """
    first, second = staging.folder / _PROBE, staging.folder / f"{_PROBE}.link"
    theirs = staging.folder / f"{_PROBE}.theirs"
    lock = staging.folder.with_name(f"{staging.folder.name}.lock")
    try:
        try:
            files.write_new(first, b"")
            files.link(first, second)
            # What the daemon made is what the cache and the bytecode store are full of.
            files.link(lock, theirs)
            made, owner = os.lstat(first), os.fstat(staging.descriptor).st_uid
        finally:
            for path in (first, second, theirs):
                files.unlink(path)
    except OSError as error:
        raise Refused(
            Reason.STORE,
            f"node {node} can't write and link in {staging.folder.parent}: {error.strerror}. Mount ROOT there "
            "read-write, as a file system with hardlinks",
        ) from None
    if made.st_uid != owner or not stat.S_ISREG(made.st_mode):
        raise Refused(
            Reason.STORE,
            f"what node {node} writes belongs to {_user(made.st_uid)} and what the daemon writes to {_user(owner)}: "
            "give both the same user on the file server (no squashing, the same idmap)",
        )


def check_tools(site: Site, uv: Uv, closure: Closure, node: str) -> None:
    """uv and the interpreter are the daemon's. Raises `Refused`."""
    version = uv.version()
    if version != site.uv_version:
        raise Refused(
            Reason.INTERNAL,
            f"node {node} has uv {version} and the daemon has {site.uv_version}: their caches share nothing. Install "
            f"uv=={site.uv_version} in Ray's Python there",
        )
    wanted = closure.interpreter
    found = inspect(wanted.path)
    if found is None or (found.version, found.abi) != (wanted.version, wanted.abi):
        has = "does not start there" if found is None else f"is {found.version} there"
        raise Refused(
            Reason.INTERNAL,
            f"{wanted.path}, Python {wanted.version} for the daemon, {has} on node {node}: install the same one at "
            "this path, or have interpreters in ROOT/pythons",
        )
    check_platform(closure, found, node)


def check_platform(closure: Closure, found: Interpreter, node: str) -> None:
    """What is made on the node runs where the daemon's own would. Raises `Refused`.

    `found` is the closure's interpreter as it describes itself there.
    """
    wanted = closure.interpreter
    if found.platform != wanted.platform:
        raise Refused(
            Reason.INTERNAL,
            f"node {node} is {found.platform} and the daemon's host is {wanted.platform}: environments are made for "
            "the one and don't run on the other. Keep the node out of the farm with farm.resources",
        )
    theirs, ours = _libc(found.libc), _libc(wanted.libc)
    if theirs[0] != ours[0] or theirs[1] < ours[1]:
        raise Refused(
            Reason.INTERNAL,
            f"node {node} has {_told(found.libc)} and the daemon's host has {_told(wanted.libc)}: wheels that were "
            "chosen for the daemon's need not start there. Update the node's system, or keep it out of the farm with "
            "farm.resources",
        )
    built = [one.name for one in closure.distributions if one.built]
    if built and theirs != ours:
        # What a newer one compiles asks for symbols that the older one lacks; wheels are chosen by the daemon's.
        raise Refused(
            Reason.INTERNAL,
            f"node {node} has {_told(found.libc)} and the daemon's host has {_told(wanted.libc)}: what is built from "
            f"source there ({', '.join(built)}) need not load elsewhere. Have one system on all hosts, or allow no "
            "building from source",
        )


def _libc(text: str) -> tuple[str, tuple[int, ...]]:
    """The name of a C library and its version, to be compared: 'glibc 2.36'."""
    name, _, version = text.partition(" ")
    return name, tuple(int(part) for part in version.split(".") if part.isdecimal())


def _told(libc: str) -> str:
    return "a C library that is not glibc" if libc == "unknown" else libc


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
