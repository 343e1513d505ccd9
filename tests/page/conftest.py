"""A real browser, and pages of it that notice every message, error and request."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect, sync_playwright

from support.tools import tool

Open = Callable[..., Page]
# Five seconds by default, which a machine with much to do may need for ten thousand rows.
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium without a window; its profile and home are below pytest's folder."""
    program = tool("chromium", package="chromium")
    folder = str(tmp_path_factory.mktemp("browser"))
    with pytest.MonkeyPatch.context() as patch:
        # The driver makes the profile.
        patch.setenv("TMPDIR", folder)
        patch.setenv("HOME", folder)
        with sync_playwright() as driver:
            found = driver.chromium.launch(
                executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            yield found
            found.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens an address, with `clock` under a clock that the test moves; at the end nothing was said in the console, and
    no other server was asked for anything."""
    contexts: list[BrowserContext] = []
    said: list[str] = []
    asked: list[str] = []

    def refuse(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    def go(url: str, *, clock: bool = False, **details: Any) -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 720}, **details)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", refuse)
        page.on("request", lambda request: asked.append(request.url))
        if clock:
            page.clock.install()
        page.goto(url)
        return page

    yield go
    urls = {page.url for context in contexts for page in context.pages}
    for context in contexts:
        context.close()
    assert said == []
    starts = ("data:", *("/".join(url.split("/")[:3]) for url in urls))
    assert [one for one in asked if not one.startswith(starts)] == []
