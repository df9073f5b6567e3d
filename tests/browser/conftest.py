"""A real Chromium in front of real clusters. Skipped, with the reason, where there is no playwright or no browser."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.screenshots import browser, chromium, page_of, until

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = (
        "playwright is not installed: pip install playwright"
        if importlib.util.find_spec("playwright") is None
        else "no Chromium on PATH: install one, or set RUMOR_TEST_CHROMIUM"
        if chromium() is None
        else ""
    )
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if missing:
                item.add_marker(pytest.mark.skip(reason=missing))


class Page:
    """One page, and the errors that were raised on it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def until(self, expression: str, limit_s: float = 10.0) -> Any:
        return until(self.page, expression, limit_s)

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def go(self, hash: str) -> None:
        self.page.evaluate("where => { location.hash = where; }", hash)


# No longer than a module: playwright keeps an event loop running, beside which no async test could run.
@pytest.fixture(scope="module")
def one_browser() -> Iterator[Any]:
    with browser() as chromium_browser:
        yield chromium_browser


@pytest.fixture
def open_page(one_browser: Any) -> Iterator[Callable[..., Page]]:
    """`open_page(url)`: a page that is live. The test fails if anything on it raised."""
    pages: list[Page] = []

    def open_one(url: str, look: str = "desktop-light") -> Page:
        pages.append(Page(page_of(one_browser, look, url)))
        return pages[-1]

    yield open_one
    for page in pages:
        page.page.context.close()
        assert page.errors == []
