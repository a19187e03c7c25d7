"""Opens pages in a real browser, offline."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Opened:
    """A page, and what it complained about or asked the network for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(offline=True, **options)
        self.page, self.complaints = self.context.new_page(), []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url))
        self.page.goto(path.as_uri())

    def _note(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.complaints.append(url)

    def shown(self) -> int:
        return int(self.page.locator(".shot:visible").count())

    def fitting(self) -> int:
        found = re.search(r"of (\d+) images", self.page.locator("#shown").inner_text())
        return int(found[1]) if found else 0


def draw(report: Path, picture: Path) -> None:
    """Draw the summary of a report beside its worst images, for the documentation (JPEG)."""
    import cv2
    import numpy as np
    from playwright.sync_api import sync_playwright

    parts = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = Opened(browser, report, viewport={"width": 1200, "height": 1000}, color_scheme="light")
        for place in ("header", "#images"):
            opened.page.evaluate("id => document.querySelector(id).scrollIntoView({behavior: 'instant'})", place)
            parts.append(cv2.imdecode(np.frombuffer(opened.page.screenshot(), np.uint8), cv2.IMREAD_COLOR))
        browser.close()
    both = cv2.resize(np.hstack(parts), None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    picture.write_bytes(cv2.imencode(".jpg", both, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())


if __name__ == "__main__":  # python -m tests.support.chromium report.html docs/report.jpg
    draw(*map(Path, sys.argv[1:]))
