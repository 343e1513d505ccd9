"""Programs that tests use and Python packages don't bring: found, or told as what is missing.

`.ci/run` installs all of them, and there a missing one fails: nothing may be passed over unseen.
"""

import os
import shutil

import pytest


def tool(*names: str, package: str) -> str:
    """The path of the first of `names` on PATH; `package` is Debian's name of what brings it.

    Skips the test with that reason where there is none, and fails it where `CI` is set.
    """
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    told = f"needs {' or '.join(names)} (Debian's package {package})"
    if os.environ.get("CI"):
        pytest.fail(told)
    pytest.skip(told)
