"""Where a Chromium is: `python tests/browser.py` prints its path, or exits with 1."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

# What has no window to draw is the quickest.
NAMES = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
)


def find_browser() -> str | None:
    """One on the path, else Playwright's own build, else None."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


if __name__ == "__main__":
    found = find_browser()
    print(found or "no Chromium found")
    sys.exit(found is None)
