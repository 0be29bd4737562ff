"""A headless Chromium for tests that look at pages, if this machine has one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""Programs looked for on the PATH; Debian's package of the first name suffices."""
PATIENCE_MS = 90_000
"""A page on a busy machine may take its time."""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Return the browser; skips the test, with the reason, if playwright or a Chromium is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'llaso[dev]'")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no Chromium on the PATH ({', '.join(NAMES)}): apt-get install {NAMES[0]}")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium refuses to run as root otherwise
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=sandbox)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_page(browser: Browser, url: str, width: int, height: int = 900) -> Iterator[Page]:
    """Return a page at a width.

    On leaving it, the test fails if the page has asked another host for anything, or said an error.
    """
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    home = urlsplit(url).netloc
    page.on("request", lambda request: wrong.append(request.url) if _elsewhere(request.url, home) else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(url)
    yield page
    page.close()
    assert not wrong


def _elsewhere(url: str, home: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != home
