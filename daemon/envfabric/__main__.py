"""The `envfabric` command: consumers' commands need nothing installed, the others the daemon's packages."""

import sys
from collections.abc import Callable
from typing import Any

from envfabric.client import commands


def _daemon() -> Callable[..., Any] | None:
    """What `doctor` looks at as on the daemon's host; None where its packages are not installed."""
    try:
        from envfabric.service.checkup import look
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            # GitPython ends its own import where there is no git: of all commands this one has to say so.
            from envfabric.client.doctor import absent

            return absent(str(error))
        if error.name is not None and error.name.split(".")[0] == "envfabric":
            raise
        return None
    return look


def _run(arguments: list[str]) -> None:
    if arguments and arguments[0] in commands.SUMMARIES:
        sys.exit(commands.main(arguments, _daemon))
    try:
        from envfabric.cli.app import run
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "envfabric":
            raise
        known = ", ".join(commands.SUMMARIES)
        print(  # noqa: T201
            f"envfabric: {error.name} is not installed. {known} work without it; for every other command "
            "install environment-fabric[daemon].",
            file=sys.stderr,
        )
        sys.exit(2)
    run(arguments)


def main() -> None:
    """Runs the command line and exits: 0 done, 1 something failed, 2 wrong usage or configuration."""
    try:
        _run(sys.argv[1:])
    except KeyboardInterrupt:
        # Before the daemon's own handlers are in place; the shell's convention for SIGINT.
        sys.exit(130)


if __name__ == "__main__":
    main()
