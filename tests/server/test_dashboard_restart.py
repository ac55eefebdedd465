"""The dashboard when its server goes and comes back; with a browser of its own, since there errors are expected."""

import httpx
from playwright.sync_api import expect

from spool.server import ServerSettings
from spool.server.serve import Serving
from tests.browser import open_page


def test_it_comes_back_after_a_restart_of_the_server(tmp_path):
    url = f"sqlite:///{tmp_path}/spool.db"
    first = Serving(url, ServerSettings(port=0, auth=False))
    first.start()
    second = None
    try:
        with open_page("WebSocket", "ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE") as page:
            page.goto(first.url)
            expect(page.locator("#link")).to_have_attribute("data-link", "up")
            page.evaluate("window.marked = true")
            first.stop()
            expect(page.locator("#link")).to_have_attribute("data-link", "down")
            expect(page.locator(".health")).to_contain_text("Not connected")
            second = Serving(url, ServerSettings(port=first.port, auth=False))
            second.start()
            expect(page.locator("#link")).to_have_attribute("data-link", "up", timeout=15_000)
            httpx.post(f"{second.url}/api/v1/jobs", json={"task": "echo", "queue": "after"}).raise_for_status()
            expect(page.locator("tr[data-queue=after]")).to_be_visible()
            assert page.evaluate("window.marked")
    finally:
        for each in (first, second):
            if each is not None:
                each.stop()


def test_a_list_that_could_not_be_had_comes_when_the_server_is_back(tmp_path):
    url = f"sqlite:///{tmp_path}/spool.db"
    first = Serving(url, ServerSettings(port=0, auth=False))
    first.start()
    second = None
    try:
        with open_page("WebSocket", "ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE") as page:
            for path in ("/jobs", "/dead"):
                page.goto(first.url + path)
                expect(page.locator("#link")).to_have_attribute("data-link", "up")
                expect(page.locator(".empty")).to_be_visible()
                first.stop()
                expect(page.locator("#link")).to_have_attribute("data-link", "down")
                page.evaluate("dispatchEvent(new PopStateEvent('popstate'))")
                expect(page.get_by_role("alert")).to_have_text("The server cannot be reached")
                second = Serving(url, ServerSettings(port=first.port, auth=False))
                second.start()
                expect(page.get_by_role("alert")).to_have_count(0, timeout=15_000)
                expect(page.locator(".empty")).to_be_visible()
                first, second = second, None
    finally:
        for each in (first, second):
            if each is not None:
                each.stop()
