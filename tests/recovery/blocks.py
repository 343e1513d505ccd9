"""The commands of a page in docs/, carried out on a fabric as they stand there.

A block is the `sh` block below a line `<!-- recover: NAME -->`. Its paths are the pages' own, and stand for the
fabric's: /mnt/nas, /srv/specs.git, /backup. `systemctl` starts and stops the fabric's daemon here; `envfabric` is a
forked command; all other lines go through bash.
"""

import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = r"<!-- recover: {name} -->\n+```sh\n(.*?)```"


def block(page: str, name: str) -> str:
    """The text of a block."""
    found = re.search(_BLOCK.format(name=re.escape(name)), (DOCS / page).read_text("utf-8"), re.DOTALL)
    assert found is not None, f"docs/{page} has no block {name!r}"
    return found[1]


def names(page: str) -> list[str]:
    """The names of a page's blocks."""
    return re.findall(r"<!-- recover: (.*?) -->", (DOCS / page).read_text("utf-8"))


def follow(
    text: str,
    places: Mapping[str, Path],
    environment: Mapping[str, str],
    envfabric: Callable[[list[str]], str],
    systemctl: Callable[[str], None],
) -> str:
    """Carries out a block, each line only when the one before has succeeded; gives what all of it printed."""
    for named, real in places.items():
        text = text.replace(named, str(real))
    said: list[str] = []
    script: list[str] = []

    def through_bash() -> None:
        if script:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
                env=dict(environment),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
            said.append(done.stdout)
            script.clear()

    for line in text.splitlines():
        words = shlex.split(line, comments=True) if line.startswith(("envfabric ", "systemctl ")) else []
        if words and words[0] == "envfabric":
            through_bash()
            said.append(envfabric(words[1:]))
        elif words:
            through_bash()
            assert words[2:] == ["envfabric"], line
            systemctl(words[1])
        else:
            script.append(line)
    through_bash()
    return "\n".join(said)
