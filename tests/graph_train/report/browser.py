"""A headless Chromium that must be installed; tests download nothing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Opened:
    """A rendered page, with its console messages and requests."""

    def __init__(self, page: Any, file: Path) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on(
            "console", lambda message: self.errors.append(message.text) if message.type in ("error", "warning") else 0
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda asked: self.requests.append(asked.url))
        page.goto(file.resolve().as_uri())
        page.wait_for_selector("html[data-ready=yes]")

    def points(self) -> list[int]:
        """Return the number of data points of each line of each chart."""
        lines = self.page.locator(".chart path.line")
        return [int(lines.nth(number).get_attribute("data-points")) for number in range(lines.count())]


def find_chromium() -> str:
    """Return the path of the browser; skip the test if it or Playwright is missing."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    found = os.environ.get("CHROMIUM") or next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here: install it (Debian: apt-get install chromium), or name it in CHROMIUM")
    return found


@contextmanager
def opened(file: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Opened]:
    """Open a file in headless Chromium at desktop or phone size."""
    executable = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        scheme: Any = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        try:
            yield Opened(context.new_page(), file)
        finally:
            browser.close()
