"""A program named git in front of the real one, for what git itself does not do when a test wants it."""

import os
import shutil
from pathlib import Path

import pytest


def before_git(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Runs `script`, lines for sh, before each git that is found by PATH; `$*` are git's arguments."""
    real = shutil.which("git")
    front = folder / "in-front"
    front.mkdir()
    (front / "git").write_text(f'#!/bin/sh\n{script}\nexec {real} "$@"\n')
    (front / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{front}{os.pathsep}{os.environ['PATH']}")
