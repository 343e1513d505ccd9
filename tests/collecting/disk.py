"""What lies on disk, counted without the project's own code, and how it gets damaged."""

import os
import subprocess
from pathlib import Path


def du(*paths: Path) -> int:
    """Bytes on disk as du counts them, each inode once over all paths."""
    command = ["du", "-sc", "--block-size=1", *map(str, paths)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(told.splitlines()[-1].split()[0])


def inodes(*paths: Path) -> int:
    """How many inodes there are, each once over all paths."""
    command = ["find", *map(str, paths), "-printf", r"%i\n"]
    return len(set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))


def flip(path: Path) -> None:
    """Flips one byte in the middle of a sealed file: mode, size and times say nothing of it."""
    status = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(status.st_mode & 0o7777)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def unsealed(folder: Path) -> None:
    """rm -rf of a sealed folder, as its owner does it."""
    subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    subprocess.run(["rm", "-rf", folder], check=True)
