"""A real browser looks at a page: what does it complain about, what does it fetch, what is there?

Chromium as the system has it, driven by playwright. Where there is none the tests that need one are
skipped, and in continuous integration they fail.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)


@dataclass
class Look:
    """A page that is open in the browser."""

    page: Any
    said: list[str] = field(default_factory=list)
    """On the console, and errors of scripts."""
    fetched: list[str] = field(default_factory=list)
    """Addresses beside the page's own."""

    @property
    def text(self) -> str:
        return self.page.inner_text("body")

    def evaluate(self, expression: str) -> Any:
        """What an expression is there."""
        return self.page.evaluate(expression)

    @property
    def overflow_px(self) -> int:
        """By how much the page is wider than the window."""
        return self.evaluate("document.documentElement.scrollWidth - innerWidth")


@contextmanager
def opened(chromium: Any, file: Path, width: int = 1200, scheme: str = "light") -> Iterator[Look]:
    """Open a file in a window of this width."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    look = Look(page)
    page.on("console", lambda message: look.said.append(message.text))
    page.on("pageerror", lambda error: look.said.append(str(error)))
    page.on("request", lambda request: look.fetched.append(request.url))
    page.goto(file.absolute().as_uri())
    look.fetched.remove(page.url)
    yield look
    context.close()
