"""A browser that is installed, for the tests of the viewer; none is ever downloaded."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


def browser_path() -> str | None:
    """An installed Chromium or Chrome."""
    found = [path for path in map(shutil.which, NAMES) if path]
    return next(iter([*found, *(place for place in PLACES if Path(place).is_file())]), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser; the test is skipped, in one line, where there is none."""
    path = browser_path()
    if path is None:
        pytest.skip("no Chromium or Chrome is installed: the browser tests were not run")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("playwright is not installed: the browser tests were not run")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
