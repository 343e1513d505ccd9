"""Makes docs/pictures/: the page of a running daemon and the report of its NAS folder, as a browser shows them.

    envfabric demo                                                       # in another terminal: it prints URL and paths
    python tests/page/pictures.py http://127.0.0.1:PORT/ ~/envfabric-demo/nas

Takes a third argument: the folder for the pictures. Needs chromium and the development group's playwright.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
SIZES = {"page": (1180, 560), "report": (1180, 600)}


def main(url: str, root: str, folder: Path) -> None:
    """Writes page.png and report.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        report = Path(scratch) / "report.html"
        subprocess.run(
            [sys.executable, "-m", "envfabric", "report", "--root", root, "--out", report], check=True
        )
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, address in (("page", url), ("report", report.as_uri())):
            width, height = SIZES[name]
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(address)
            page.screenshot(path=folder / f"{name}.png", full_page=name == "report")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else FOLDER)
