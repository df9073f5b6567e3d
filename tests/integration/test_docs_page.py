"""/docs in a real Chromium: every call is drawn, a form sends what it shows, and nothing breaks the page's own policy.

Skipped where playwright or a Chromium is not installed.
"""

from __future__ import annotations

import shutil

import pytest
from aiohttp.test_utils import TestServer

from cluster.config import Config
from node.gateway import app
from node.gateway.routes import ROUTES
from tests.fake_engine import FakeEngine

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
LIMIT_MS = 15_000
PHONE = {"width": 390, "height": 800}


async def test_the_page_draws_every_call_and_tries_one() -> None:
    engine = FakeEngine(Config(node_id="n1", port=5001, api_token="t0ken"))
    async with TestServer(app.build(engine)) as server, playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM)
        page = await browser.new_page(viewport=PHONE)
        page.set_default_timeout(LIMIT_MS)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)

        await page.goto(str(server.make_url("/docs")))
        await page.get_by_text("this call needs the API token. Enter it above.").wait_for()
        complaints.clear()  # the browser reported the 401
        await page.get_by_label("API token").fill("t0ken")
        await page.get_by_label("API token").press("Tab")

        calls = page.locator("main > details")
        await calls.first.wait_for()
        assert await calls.count() == sum(route.is_public for route in ROUTES)
        await page.get_by_label("Find").fill("replay")
        assert await page.locator("main > details:visible").count() == 1
        await page.get_by_label("Find").fill("")

        submit = page.locator("#submit")
        await submit.locator("summary").first.click()
        await submit.get_by_label("Body", exact=True).fill('{"type": "noop", "data": "<script>alert(1)</script>"}')
        await submit.get_by_role("button", name="Send").click()
        await submit.locator("[role=status] .status[data-kind='2']").wait_for()
        (task,) = engine.tasks.values()
        await submit.get_by_text(task.id).wait_for()
        assert await submit.get_by_text("Authorization: Bearer $RUMOR_API_TOKEN").count() == 1
        assert "t0ken" not in await page.locator("main").inner_text()
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert complaints == []
        await browser.close()
