"""A real Chromium, started once, for the tests of reports."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
NO_BROWSER = (
    "no Chromium found: apt-get install chromium, or python -m playwright install chromium, or CHROMIUM=/path/to/it"
)


@functools.cache
def found() -> str | None:
    """The path of a Chromium: the variable CHROMIUM, a browser on the PATH, or the one that Playwright installed."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    on_path = next((path for path in map(shutil.which, filter(None, names)) if path), None)
    if on_path:
        return on_path
    with sync_playwright() as playwright:
        installed = playwright.chromium.executable_path
    return installed if Path(installed).exists() else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests that need a browser where there is none; with the variable CI set they fail instead."""
    if item.get_closest_marker("browser") and not os.environ.get("CI") and found() is None:
        pytest.skip(NO_BROWSER)


@pytest.fixture(scope="session")
def chromium():
    """The browser."""
    path = found()
    assert path, NO_BROWSER
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET.split())
        yield browser
        browser.close()
