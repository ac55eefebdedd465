"""The dashboard when answers are late, lost or overtake each other, and when the stream says strange things.

Requests are held on their way by the browser; what the live stream says is altered there.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, Route, WebSocketRoute, expect

from tests.browser import open_page
from tests.server.served import Served, serving
from tests.server.test_dashboard import Site, log_in, open_

COUNTS = dict.fromkeys(("lost", "dead", "unfinished", "duplicated"), 0)
RESULT = {"kind": "spool-bench", "started": "", "result": {"per_s": 1, "done": 1} | COUNTS}


class FaultySite(Site):
    """A server without a worker; `jobs` by queue: a and b have a dead one each, many has 60 ready ones."""

    def __init__(self, served: Served) -> None:
        self.url, self.served, self.token = served.url, served, served.token("admin")
        self.client = served.anonymous(headers={"Authorization": f"Bearer {self.token}"})
        self.queues = 3

    def stir(self, page: Page, times: int = 5) -> None:
        """Let new queues come, and the page see each of them: a turn of the stream, half a second, for each."""
        for _ in range(times):
            self.queues += 1
            self.enqueue("nobody", queue=f"again-{self.queues}")
            expect(page.get_by_role("link", name=f"Queues {self.queues}", exact=True)).to_be_visible()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[FaultySite]:
    with serving(f"sqlite:///{tmp_path_factory.mktemp('store')}/spool.db") as served:
        app = served.app

        @app.task(queue="a", retries=0)
        async def of_a() -> None:
            raise ValueError("a is no good")

        @app.task(queue="b", retries=0)
        async def of_b() -> None:
            raise ValueError("b is no good")

        of_a.enqueue()
        of_b.enqueue()
        served.run_all(app)
        site = FaultySite(served)
        for _ in range(60):
            site.enqueue("nobody", queue="many")
        yield site


@pytest.fixture(scope="module")
def browser(site) -> Iterator[Page]:
    with open_page("401 (Unauthorized)") as page:
        log_in(page, site, site.token)
        yield page


@pytest.fixture
def page(browser) -> Iterator[Page]:
    # In a context of its own, with the same session: what is routed stays so.
    assert browser.context.browser is not None
    context = browser.context.browser.new_context(storage_state=browser.context.storage_state())
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    context.close()
    assert not wrong, wrong


class Held(list[Route]):
    """Requests that wait on their way to the server until they are let go, and with them those that follow."""

    def __init__(self, page: Page, address: re.Pattern[str]) -> None:
        super().__init__()
        self._open = False
        page.route(address, self._hold)

    def _hold(self, route: Route) -> None:
        if self._open:
            route.continue_()
        else:
            self.append(route)

    def let_go(self) -> None:
        self._open = True
        for route in self:
            route.continue_()


def settled(page: Page) -> None:
    """Wait until what was let go before is done: an answer of the server and a frame of the page later."""
    page.evaluate("() => fetch('/healthz').then(() => new Promise((done) => requestAnimationFrame(() => done())))")


class Stream:
    """The live stream of a page: what the server says, and whatever a test makes of it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.snapshot: dict[str, Any] = {}
        self._socket: WebSocketRoute | None = None
        page.route_web_socket(re.compile("/api/v1/live$"), self._open)

    def _open(self, socket: WebSocketRoute) -> None:
        self._socket = socket
        server = socket.connect_to_server()
        server.on_message(self._first)

    def _first(self, message: str | bytes) -> None:
        # Only the first message is the server's: afterwards the test alone speaks.
        if not self.snapshot and self._socket:
            self.snapshot = json.loads(message)
            self._socket.send(message)

    def say(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Send another snapshot: the server's, changed."""
        change(self.snapshot)
        assert self._socket is not None
        self._socket.send(json.dumps(self.snapshot))


def trouble(queue: str, count: int) -> dict[str, Any]:
    error = {"error_type": "ValueError", "message": "no good"}
    message = f"{count} jobs died in 5 minutes, most often of ValueError: no good"
    return {"kind": "failing", "status": "bad", "queue": queue, "count": count, "message": message, "error": error}


def test_forward_shows_what_the_address_says(page, site):
    open_(page, site, "/?queue=a")
    picker = page.get_by_label("Queue", exact=True)
    expect(picker).to_have_value("a")
    page.get_by_role("link", name=re.compile("^Overview")).click()
    expect(picker).to_have_value("")
    page.go_back()
    expect(picker).to_have_value("a")
    page.go_forward()
    expect(picker).to_have_value("")


@pytest.mark.parametrize("path", ["/", "/jobs", "/dead"])
def test_a_queue_in_the_address_that_has_gone_is_still_named(page, site, path):
    open_(page, site, f"{path}?queue=gone")
    expect(page.get_by_role("combobox", name="Queue", exact=True)).to_have_value("gone")
    expect(page.get_by_role("option", name="many").first).to_be_attached()
    expect(page.get_by_role("combobox", name="Queue", exact=True)).to_have_value("gone")


def test_a_question_does_not_outlive_its_page(page, site):
    open_(page, site, "/")
    page.get_by_role("link", name=re.compile("^Queues")).first.click()
    page.locator("tr[data-queue=a]").get_by_role("button", name="Purge").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_dead_letters_of_the_queue_that_was_chosen_last_are_shown(page, site):
    open_(page, site, "/dead")
    expect(page.locator("tr[data-group]")).to_have_count(2)
    held = Held(page, re.compile(r"dead/groups\?queue=a"))
    with page.expect_request(re.compile(r"dead/groups\?queue=a")):
        page.get_by_label("Queue", exact=True).select_option("a")
    page.get_by_label("Queue", exact=True).select_option("b")
    expect(page.locator("tr[data-group]")).to_have_count(1)
    held.let_go()
    settled(page)
    expect(page.locator("tr[data-group=of_b]")).to_be_visible()
    expect(page.locator("tr[data-group=of_a]")).to_have_count(0)


@pytest.mark.parametrize("verb", ["Replay", "Delete"])
def test_the_question_names_the_task_and_the_error(page, site, verb):
    open_(page, site, "/dead?queue=a")
    page.locator("tr[data-group=of_a]").get_by_role("button", name=verb).click()
    meant = "All dead jobs of of_a whose error contains “ValueError: a is no good” in queue a."
    expect(page.get_by_role("dialog")).to_contain_text(meant)


def test_who_asks_for_a_job_that_is_not_there_is_told_so(page, site):
    open_(page, site, "/jobs/a/nobody")
    expect(page.get_by_role("heading", level=1)).to_have_text("There is no such job")
    page.get_by_role("main").get_by_role("link", name="All jobs").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")


def test_long_lists_of_plain_values_are_packed(page, site):
    id = site.enqueue("nobody", list(range(100)), queue="many")
    open_(page, site, f"/jobs/many/{id}")
    lines = page.get_by_role("region", name="Arguments").inner_text().splitlines()
    assert len(lines) < 12
    assert max(map(len, lines)) <= 90
    assert json.loads("".join(lines)) == [list(range(100))]


def test_jobs_show_also_where_answers_take_longer_than_changes(page, site):
    site.enqueue("nobody", queue="before")
    site.queues += 1
    held = Held(page, re.compile(r"api/v1/jobs\?"))
    open_(page, site, "/jobs?state=ready")
    site.stir(page)
    assert len(held) == 1
    held.let_go()
    expect(page.locator("tbody")).to_contain_text("before")
    # What changed meanwhile comes afterwards.
    expect(page.locator("tbody")).to_contain_text(f"again-{site.queues}")


def test_more_jobs_come_also_while_others_arrive(page, site):
    open_(page, site, "/jobs?queue=many")
    expect(page.locator("tbody tr")).to_have_count(50)
    held = Held(page, re.compile("cursor="))
    others: list[str] = []
    page.on("request", lambda request: others.append(request.url) if "/api/v1/jobs?" in request.url else None)
    with page.expect_request(re.compile("cursor=")):
        page.get_by_role("button", name="More").click()
    for _ in range(2):
        site.enqueue("nobody", queue="many")
        site.stir(page, 2)
    assert len(others) == 1, "what was asked for by hand was called off"
    held.let_go()
    expect(page.locator("tbody tr").nth(59)).to_be_visible()


def test_rows_stay_where_they_are_while_somebody_points_at_them(page, site):
    open_(page, site, "/jobs?queue=pointed")
    expect(page.get_by_text("No job is like that.")).to_be_visible()
    site.enqueue("nobody", queue="pointed")
    site.queues += 1
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("tbody tr").hover()
    site.enqueue("nobody", queue="pointed")
    expect(page.get_by_text("The list waits while you point at it")).to_be_visible()
    site.stir(page, 3)
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("heading", level=1).hover()
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.get_by_text("The list waits while you point at it")).to_have_count(0)


def test_a_job_is_asked_for_once_at_a_time(page, site):
    id = site.enqueue("nobody", queue="many")
    address = re.compile(f"api/v1/jobs/many/{id}")
    open_(page, site, f"/jobs/many/{id}")
    held = Held(page, address)
    with page.expect_request(address):
        site.stir(page, 1)
    site.stir(page)
    assert len(held) == 1
    held.let_go()


def test_a_failure_is_gone_when_the_job_can_be_had_again(page, site):
    id = site.enqueue("nobody", queue="many")
    address = re.compile(f"api/v1/jobs/many/{id}")
    open_(page, site, f"/jobs/many/{id}")
    expect(page.locator(".facts")).to_contain_text(id)
    page.route(address, lambda route: route.abort())
    expect(page.get_by_role("alert")).to_have_text("The server cannot be reached")
    page.unroute(address)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_dead_job_that_is_put_back_elsewhere_shows_so(page, site):
    [job] = site.get("/jobs", queue="b", state="dead")["items"]
    open_(page, site, f"/jobs/b/{job['id']}")
    expect(page.locator("[data-state=dead]")).to_be_visible()
    site.stir(page)  # whatever was to come after the first answer has come
    site.post(f"/jobs/b/{job['id']}/retry")
    expect(page.locator("[data-state=ready]")).to_be_visible()


def test_it_comes_up_by_itself_when_the_server_could_not_answer_at_first(page, site):
    address = re.compile("api/v1/me")
    page.route(address, lambda route: route.fulfill(status=503, body="{}"))
    page.goto(site.url + "/queues")
    expect(page.get_by_role("alert")).to_contain_text("503")
    page.unroute(address)
    expect(page.get_by_role("heading", level=1)).to_have_text("Queues")


def test_who_is_not_logged_out_is_told_so(page, site):
    open_(page, site, "/queues")
    page.route(re.compile("/logout"), lambda route: route.fulfill(status=503, body="{}"))
    page.get_by_role("button", name="Log out").click()
    expect(page.locator("#toasts")).to_contain_text("You are still logged in")
    assert page.url == f"{site.url}/queues"


def test_a_comparison_is_of_the_files_that_are_shown(page, site, tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.json").write_text(json.dumps(RESULT))
    compared = {"changes": [], "differences": [], "confidence": 0.99}
    open_(page, site, "/benchmarks")
    held = Held(page, re.compile("benchmarks/compare"))
    files = page.get_by_label(re.compile("One result"))
    with page.expect_request(re.compile("benchmarks/compare")):
        files.set_input_files([tmp_path / "one.json", tmp_path / "two.json"])
    files.set_input_files(tmp_path / "three.json")
    expect(page.locator("main h2").first).to_contain_text("three.json")
    held[0].fulfill(json=compared)
    settled(page)
    expect(page.locator("#comparison")).to_have_count(0)


def test_what_is_shown_stays_when_a_file_cannot_be_read(page, site, tmp_path):
    series = {"done": [1, 2], "waiting": [1, 2], "running": [1, 2], "step_s": 1, "memory_s": [], "memory_mb": []}
    (tmp_path / "good.json").write_text(json.dumps(RESULT | {"series": series}))
    (tmp_path / "bad.json").write_text("[]")
    open_(page, site, "/benchmarks")
    files = page.get_by_label(re.compile("One result"))
    files.set_input_files(tmp_path / "good.json")
    expect(page.locator(".plot canvas")).to_have_count(2)
    files.set_input_files(tmp_path / "bad.json")
    expect(page.locator("#toasts")).to_contain_text("bad.json is no result of spool bench")
    expect(page.locator(".plot canvas")).to_have_count(2)
    (tmp_path / "half.json").write_text(json.dumps(RESULT | {"series": {}}))
    files.set_input_files(tmp_path / "half.json")
    expect(page.locator("#toasts")).to_contain_text("lacks something")
    expect(page.locator(".plot")).to_have_count(0)


def test_where_no_websocket_comes_through_it_is_live_all_the_same(page, site):
    page.add_init_script("""
        window.WebSocket = class {
            static OPEN = 1;
            constructor() { setTimeout(() => this.onclose({ code: 1006 })); }
            close() {}
        };
    """)
    page.goto(site.url + "/queues")
    expect(page.locator("#link")).to_have_attribute("data-link", "up", timeout=20_000)
    site.stir(page, 1)


def test_the_link_to_a_trouble_stays_while_its_numbers_change(page, site):
    stream = Stream(page)
    open_(page, site, "/")

    def dying(count: int) -> Callable[[dict[str, Any]], None]:
        return lambda told: told["state"]["summary"].update(status="bad", troubles=[trouble("a", count)])

    stream.say(dying(1))
    link = page.locator(".health a")
    link.focus()
    stream.say(dying(2))
    expect(page.locator(".health")).to_contain_text("2 jobs died")
    expect(link).to_be_focused()
    # Nor is a screen reader told again what it was told.
    sentence = page.locator(".health [role=status] bdi").element_handle()
    stream.say(dying(3))
    expect(page.locator(".health")).to_contain_text("3 jobs died")
    assert sentence is not None
    assert sentence.evaluate("(it) => it.isConnected")


def test_a_screen_reader_is_not_told_every_number_when_all_is_well(page, site):
    stream = Stream(page)
    open_(page, site, "/")

    def well(rate: float) -> Callable[[dict[str, Any]], None]:
        def change(told: dict[str, Any]) -> None:
            told["state"]["summary"].update(status="ok", troubles=[])
            told["state"]["queues"]["a"]["rates"] = {"ten_seconds": {"done": rate}}

        return change

    stream.say(well(1234))
    expect(page.locator(".health")).to_contain_text("1,234 jobs/s")
    page.evaluate("""() => {
        window.spoken = 0;
        const live = "[aria-live], [role=status], [role=alert]";
        new MutationObserver((found) => {
            const places = found.map(({ target }) => target.closest ? target : target.parentElement);
            window.spoken += places.filter((place) => place.closest(live)).length;
        }).observe(document.querySelector(".health"), { subtree: true, childList: true, characterData: true });
    }""")
    stream.say(well(2345))
    expect(page.locator(".health")).to_contain_text("2,345 jobs/s")
    assert page.evaluate("window.spoken") == 0


def test_events_of_a_server_that_counts_anew_are_shown(page, site):
    stream = Stream(page)
    open_(page, site, "/")
    now = stream.snapshot["now"]
    stream.say(lambda told: told.update(events=[{"id": 1, "at": now, "kind": "paused", "queue": "before"}]))
    expect(page.locator(".events")).to_contain_text("Queue before")
    stream.say(lambda told: told.update(events=[{"id": 1, "at": now + 1, "kind": "paused", "queue": "afterwards"}]))
    expect(page.locator(".events")).to_contain_text("Queue afterwards")
    expect(page.locator(".events")).not_to_contain_text("Queue before")


def test_the_jobs_of_a_worker_that_is_always_full_change(page, site):
    stream = Stream(page)
    row = {
        "incarnation": "w", "name": "w", "host": "h", "pid": 1, "version": "1", "python": "3", "queues": ["a"],
        "concurrency": 1, "pool_size": 0, "running": 1, "memory": 1, "started": 1,
    }  # fmt: skip
    answers = iter(["first", "second", "second", "second"])

    def answer(route: Route) -> None:
        job = {"queue": "a", "id": "1", "task": next(answers), "started": 1, "attempts": 1}
        route.fulfill(json={"jobs": [job]})

    page.route(re.compile("api/v1/workers/w"), answer)
    open_(page, site, "/workers")
    stream.say(lambda told: told["state"].update(workers={"w": {"row": row, "state": "running"}}))
    page.locator("summary").click()
    expect(page.locator("tbody")).to_contain_text("first")
    page.evaluate("() => { const now = Date.now; Date.now = () => now() + 5000; }")
    stream.say(lambda told: told.update(seq=told["seq"] + 1))
    expect(page.locator("tbody")).to_contain_text("second")


def test_a_tab_in_the_background_draws_when_it_is_looked_at(page, site):
    stream = Stream(page)
    open_(page, site, "/")

    def hide(hidden: bool) -> None:
        page.evaluate(
            "(it) => { Object.defineProperty(document, 'hidden', { value: it, configurable: true }); }", hidden
        )
        page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")

    ready = page.locator("tr[data-queue=a] td").first
    before = ready.text_content()
    hide(True)
    stream.say(lambda told: told["state"]["queues"]["a"].update(ready=[0, 0, 4321, 0, 0]))
    settled(page)
    assert ready.text_content() == before
    hide(False)
    expect(ready).to_have_text("4,321")


def test_focus_stays_where_a_list_loses_another_row(page, site):
    open_(page, site, "/")
    focused = page.evaluate("""async () => {
        const { h, keyed } = await import("/static/dom.js");
        const list = h("div");
        document.body.append(list);
        const make = (name) => ({ element: h("button", {}, name), update() {} });
        const show = (...names) => keyed(list, names, (name) => name, make);
        show("one", "two", "three");
        list.children[1].focus();
        show("two", "three");
        const after = [document.activeElement.textContent];
        show("three", "two");
        after.push(document.activeElement.textContent, list.textContent);
        list.remove();
        return after;
    }""")
    assert focused == ["two", "two", "threetwo"]


def test_no_link_leads_elsewhere_by_a_backslash(page, site):
    open_(page, site, "/")
    made = page.evaluate("""async () => {
        const { h } = await import("/static/dom.js");
        return ["/\\\\evil.example", "//evil.example", "/jobs"].map((href) => {
            try { return h("a", { href }).href; } catch (error) { return error.message; }
        });
    }""")
    assert made == [
        "not an address of ours: /\\evil.example",
        "not an address of ours: //evil.example",
        f"{site.url}/jobs",
    ]


def test_who_pressed_a_button_with_a_key_is_still_at_it(page, site):
    open_(page, site, "/queues")
    row = page.locator("tr[data-queue=a]")
    row.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Enter")
    expect(row.get_by_role("button", name="Resume")).to_be_focused()
    site.post("/queues/a/resume")
