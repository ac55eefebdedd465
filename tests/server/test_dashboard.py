"""The dashboard, in a real browser, on a real server with a real worker."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from spool.bench import Plan, run
from spool.broker import Enqueue, NewJob
from spool.job import VERSION, Record, encode_record, new_id
from tests.browser import open_page
from tests.eventually import eventually
from tests.hostile import CORPUS, MARKUP
from tests.server.served import Served, serving

ROOT = Path(__file__).parents[2]
PAGES = {
    "/": "Overview",
    "/queues": "Queues",
    "/jobs": "Jobs",
    "/dead": "Dead letters",
    "/workers": "Workers",
    "/benchmarks": "Benchmarks",
}
OURS = {"SCRIPT": 4, "IMG": 1, "IFRAME": 0, "STYLE": 0, "BASE": 0, "FORM": 1, "svg": 0, "OBJECT": 0}


class Site:
    """A server, a worker of `tests.hostile_shop`, and a token that may do all; made before there is a browser."""

    def __init__(self, served: Served, worker: subprocess.Popen[bytes]) -> None:
        self.url = served.url
        self.served = served
        self.worker = worker
        self.token = served.token("admin")
        self.reader = served.token("read")
        self.client = served.anonymous(headers={"Authorization": f"Bearer {self.token}"})

    def post(self, path: str, body: Any = None) -> Any:
        answer = self.client.post(f"/api/v1{path}", json=body or {})
        assert answer.is_success, answer.text
        return answer.json()

    def get(self, path: str, **query: Any) -> Any:
        answer = self.client.get(f"/api/v1{path}", params=query)
        assert answer.is_success, answer.text
        return answer.json()

    def enqueue(self, task: str, *args: Any, queue: str, **more: Any) -> str:
        return self.post("/jobs", {"task": task, "args": args, "queue": queue, **more})["id"]

    def queue(self, name: str) -> dict[str, Any]:
        return self.get(f"/queues/{name}")

    def state(self, queue: str, id: str) -> str:
        answer = self.client.get(f"/api/v1/jobs/{queue}/{id}")
        return answer.json()["state"] if answer.is_success else "forgotten"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/spool.db"
        env = os.environ | {"SPOOL_URL": url}
        command = [sys.executable, "-m", "spool", "worker", "tests.hostile_shop:app", "--processes", "1"]
        with serving(url) as served, subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as worker:
            try:
                yield Site(served, worker)
            finally:
                worker.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def results(redis_server) -> list[bytes]:
    """Two results of the benchmark, before there is a browser, whose event loop would be in its way."""
    first = msgspec.to_builtins(run(Plan(jobs=200, workers=1, producers=2), redis_server.url))
    second = msgspec.json.decode(msgspec.json.encode(first))
    second["config"]["jobs"] = 201
    return [msgspec.json.encode(first), msgspec.json.encode(second)]


@pytest.fixture(scope="module")
def hostile(site) -> list[str]:
    """Jobs whose arguments, results, log lines and errors are the corpus; and tasks so named, past all checks."""
    for queue in ("strange", "__proto__"):
        records = [Record(VERSION, name, 2, 0, 3, "", 0, msgspec.Raw(b"\x92\x90\x80")) for name in MARKUP]
        site.served.broker.call(Enqueue(queue, [NewJob(new_id(), encode_record(record)) for record in records]))
    ids = [site.enqueue("echo", text, queue="hostile") for text in CORPUS]
    ids += [site.enqueue("fail", index, queue="hostile") for index in range(len(CORPUS))]
    eventually(lambda: all(site.state("hostile", id) in {"done", "dead"} for id in ids), 30)
    return ids


@pytest.fixture(scope="module")
def browser(site, results, hostile) -> Iterator[Page]:
    with open_page("401 (Unauthorized)", "404 (Not Found)") as page:
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation', (e) => console.error('CSP', e.blockedURI))"
        )
        outside: list[str] = []
        page.on(
            "request", lambda request: outside.append(request.url) if not request.url.startswith(site.url) else None
        )
        page.on("websocket", lambda it: outside.append(it.url) if not it.url[2:].startswith(site.url[4:]) else None)
        log_in(page, site, site.token)
        yield page
        assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []


def log_in(page: Page, site: Site, token: str, path: str = "/") -> None:
    page.goto(site.url + path)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#link")).to_have_attribute("data-link", "up")


def open_(page: Page, site: Site, path: str) -> None:
    page.goto(site.url + path)
    expect(page.locator("#link")).to_have_attribute("data-link", "up")
    expect(page.get_by_role("heading", level=1)).to_be_visible()


def act(page: Page, button: Any, said: str, **fields: str) -> None:
    """Press a button, answer its question, and wait for what it says that it did."""
    button.click()
    dialog = page.get_by_role("dialog")
    for name, value in fields.items():
        control = dialog.locator(f"[name={name}]")
        control.check() if value == "on" else control.fill(value)
    dialog.locator("button[value=yes]").click()
    expect(page.locator("#toasts")).to_contain_text(re.compile(said))
    page.locator("#toasts button").last.click()


def test_login_wants_a_token_and_leads_to_the_page_that_was_asked_for(browser, site):
    browser.context.clear_cookies()
    browser.goto(site.url + "/queues")
    browser.get_by_label("Token").fill("spool_no_good")
    browser.get_by_role("button", name="Log in").click()
    expect(browser.get_by_role("alert")).to_have_text("This token is not valid.")
    log_in(browser, site, site.token, "/queues?x=1")
    assert browser.url == f"{site.url}/queues?x=1"
    expect(browser.get_by_role("heading", level=1)).to_have_text("Queues")


def test_a_token_for_one_queue_is_not_told_how_busy_a_worker_is(browser, site):
    browser.context.clear_cookies()
    log_in(browser, site, site.served.token("read", queues=["hostile"]), "/workers")
    card = browser.locator("[data-worker]")
    expect(card).to_contain_text("– of ")
    expect(card.locator("progress")).to_be_hidden()
    expect(card.locator("summary")).to_have_text("Jobs")
    for each in ("done", "failed"):
        expect(card.locator(f"[data-rate={each}]")).to_have_text("– · –")
    browser.context.clear_cookies()
    log_in(browser, site, site.token, "/workers")
    expect(card.locator("progress")).to_be_visible()
    expect(card).not_to_contain_text("– of ")


@pytest.mark.parametrize("path", PAGES)
def test_each_page_opens_by_address_and_by_navigation(browser, site, path):
    open_(browser, site, path)
    expect(browser.get_by_role("heading", level=1)).to_have_text(PAGES[path])
    for name in PAGES.values():
        browser.get_by_role("link", name=re.compile(f"^{name}")).first.click()
        expect(browser.get_by_role("heading", level=1)).to_have_text(name)
    browser.go_back()
    expect(browser.get_by_role("heading", level=1)).to_have_text("Workers")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, site, hostile, scheme):
    browser.emulate_media(color_scheme=scheme)
    # In the dark nothing else is different but colours.
    rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
    paths = ["/", "/dead"] if scheme == "dark" else [*PAGES, f"/jobs/hostile/{hostile[0]}"]
    found: list[str] = []
    for path in [*paths, f"/jobs/hostile/{hostile[-1]}"]:
        open_(browser, site, path)
        expect(browser.locator("main .card:visible").first).to_be_visible()
        for each in Axe().run(browser, options=rules).response["violations"]:
            if each["impact"] in {"serious", "critical"}:
                found += [f"{path}: {each['id']} {node['html'][:200]} {node['any'][:1]}" for node in each["nodes"]]
    assert found == []


def test_hostile_text_runs_no_script_and_breaks_no_page(browser, site, hostile):
    for path in [
        "/",
        "/queues",
        "/jobs",
        "/jobs?state=parked",
        "/jobs?queue=strange",
        "/jobs?queue=__proto__",
        "/dead",
        "/workers",
    ]:
        open_(browser, site, path)
        expect(browser.get_by_role("heading", level=1)).to_have_text(PAGES[path.partition("?")[0]])
        if path.startswith(("/jobs?q", "/dead")):
            expect(browser.locator("tbody tr").first).to_be_visible()
        unharmed(browser)
    for id in hostile:
        browser.evaluate(
            "(path) => { history.pushState(null, '', path); dispatchEvent(new PopStateEvent('popstate')); }",
            f"/jobs/hostile/{id}",
        )
        expect(browser.locator(".facts")).to_contain_text(id)
        unharmed(browser)


def unharmed(page: Page) -> None:
    assert page.evaluate("window.taken") is None
    counted = page.evaluate(
        "(names) => Object.fromEntries(names.map((name) => [name, document.querySelectorAll(name).length]))", list(OURS)
    )
    assert all(counted[name] <= most for name, most in OURS.items()), counted
    links = page.eval_on_selector_all("a", "(links) => links.map((link) => link.href)")
    assert all(link.startswith("http://127.0.0.1") for link in links)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_cannot_be_seen_is_named_and_what_is_long_is_cut(browser, site, hostile):
    reversed_ = hostile[CORPUS.index("\u202egnp.exe")]
    open_(browser, site, f"/jobs/hostile/{reversed_}")
    expect(browser.get_by_role("region", name="Result")).to_contain_text("U+202Egnp.exe")
    long = next(index for index, text in enumerate(CORPUS) if len(text) == 1_000_000)
    open_(browser, site, f"/jobs/hostile/{hostile[long]}")
    expect(browser.get_by_role("region", name="Result")).to_be_visible()
    assert len(browser.get_by_role("region", name="Result").inner_text()) < 30_000
    with browser.expect_download() as download:
        browser.get_by_role("button", name="Download all of it").last.click()
    assert Path(download.value.path()).read_text() == f'"{CORPUS[long]}"'


def test_a_job_shows_its_timeline_progress_and_log(browser, site, hostile):
    open_(browser, site, f"/jobs/hostile/{hostile[0]}")
    expect(browser.locator(".timeline li")).to_have_count(2)
    expect(browser.locator(".log")).to_contain_text(CORPUS[0])
    expect(browser.locator("progress")).to_have_attribute("max", "2")
    open_(browser, site, f"/jobs/hostile/{hostile[len(CORPUS)]}")
    expect(browser.get_by_role("region", name="Traceback")).to_contain_text("ValueError")


def test_the_overview_says_what_is_wrong_and_where(browser, site, hostile):
    open_(browser, site, "/")
    health = browser.locator(".health")
    expect(health).to_have_attribute("data-status", "bad")
    expect(health).to_contain_text("hostile")
    expect(health).to_contain_text("ValueError")
    expect(browser.locator(".plot").first).to_have_attribute("data-points", re.compile(r"\d+"))
    for name in ("15 min", "24 h"):
        with browser.expect_response(re.compile("metrics/history")) as answer:
            browser.get_by_role("button", name=name).click()
        assert answer.value.ok


def test_what_happens_shows_by_itself(browser, site):
    open_(browser, site, "/")
    expect(browser.locator("[data-queue=news]")).to_have_count(0)
    for _ in range(3):
        site.enqueue("echo", "x", queue="news")
    row = browser.locator("tr[data-queue=news] td").first
    expect(row).to_have_text("3")
    site.post("/queues/news/pause")
    expect(browser.locator(".events")).to_contain_text("Queue news")
    expect(browser.locator("tr[data-queue=news] .badge")).to_have_text("paused")


def test_queues_are_paused_resumed_and_purged(browser, site):
    for _ in range(4):
        site.enqueue("echo", "x", queue="held")
    open_(browser, site, "/queues")
    row = browser.locator("tr[data-queue=held]")
    act(browser, row.get_by_role("button", name="Pause"), "Queue held is paused")
    assert site.queue("held")["paused"]
    act(browser, row.get_by_role("button", name="Resume"), "Queue held hands out jobs again")
    assert not site.queue("held")["paused"]
    row.get_by_role("button", name="Purge").click()
    browser.get_by_role("button", name="Cancel").click()
    expect(browser.get_by_role("dialog")).to_have_count(0)
    assert sum(site.queue("held")["ready"].values()) == 4
    act(browser, row.get_by_role("button", name="Purge"), "4 jobs of held were deleted", dead="on")
    assert sum(site.queue("held")["ready"].values()) == 0
    expect(row.locator("td[data-label=normal]")).to_have_text("0")


def test_queues_and_workers_show_rates(browser, site):
    site.post("/jobs/batch", {"jobs": [{"task": "echo", "args": ["x"], "queue": "hostile"} for _ in range(60)]})
    open_(browser, site, "/queues")
    row = browser.locator("tr[data-queue=hostile]")
    browser.get_by_role("group", name="Rates over").get_by_role("button", name="1 min").click()
    expect(row.locator("td[data-label='in/s']")).to_have_text(re.compile(r"^[1-9]"))
    expect(row.locator("td[data-label='done/s']")).to_have_text(re.compile(r"^[1-9]"))
    expect(row.locator("td[data-label='failed/s']")).to_have_text(re.compile(r"^\d"))
    overflow = "document.querySelector('.scroll').scrollWidth - document.querySelector('.scroll').clientWidth"
    assert browser.evaluate(overflow) <= 0, "the buttons are cut off"
    open_(browser, site, "/workers")
    done = browser.locator("[data-worker] [data-rate=done]").first
    expect(done).to_have_text(re.compile(r"^[\d.]+ · [1-9][\d.]*$"), timeout=20_000)


def test_the_oldest_ready_job_of_a_queue_is_shown(browser, site):
    site.enqueue("echo", "x", queue="waiting", priority="background")
    open_(browser, site, "/queues")
    cell = browser.locator("tr[data-queue=waiting] td[data-label=oldest] time")
    expect(cell).to_have_text(re.compile(r"\d s ago"))
    since = site.queue("waiting")["oldest"]
    site.enqueue("echo", "x", queue="waiting", priority="critical")
    expect(browser.locator("tr[data-queue=waiting] td[data-label=critical]")).to_have_text("1")
    expect(cell).to_have_attribute("data-at", str(since))


def test_jobs_are_found_cancelled_retried_and_deleted(browser, site):
    waiting = site.enqueue("echo", "x", queue="slow", delay=1000)
    running = site.enqueue("sleep", 1000, queue="slow")
    dead = site.enqueue("fail", 0, queue="hostile")
    eventually(lambda: site.state("slow", running) == "running" and site.state("hostile", dead) == "dead")
    open_(browser, site, "/jobs")
    browser.get_by_label("Search").fill(f"slow/{waiting}")
    browser.get_by_role("button", name="Search").click()
    expect(browser.locator("tbody tr")).to_have_count(1)
    browser.locator("tbody a").click()
    act(browser, browser.get_by_role("button", name="Cancel job"), "The job is cancelled")
    expect(browser.locator("[data-state=cancelled]")).to_be_visible()
    act(browser, browser.get_by_role("button", name="Delete"), "The job is forgotten")
    assert site.state("slow", waiting) == "forgotten"

    open_(browser, site, f"/jobs/slow/{running}")
    act(browser, browser.get_by_role("button", name="Cancel job"), "The job was asked to stop")
    expect(browser.locator("[data-state=cancelled]")).to_be_visible()

    open_(browser, site, f"/jobs/hostile/{dead}")
    act(browser, browser.get_by_role("button", name="Retry"), "The job is ready again")
    expect(browser.locator(".timeline li.died")).to_have_count(2)
    assert site.get(f"/jobs/hostile/{dead}")["generation"] == 1


def test_the_search_finds_by_id_task_and_key(browser, site):
    named = site.enqueue("echo", "x", queue="found", id="order-17")
    keyed = site.enqueue("echo", "x", queue="found", key="order-17")
    other = site.enqueue("other", queue="found")
    open_(browser, site, "/jobs")
    for text, expected in (
        ("order-17", [named, keyed]),
        (f"found/{named}", [named]),
        (keyed, [keyed]),
        ("other", [other]),
    ):
        browser.get_by_label("Search").fill(text)
        browser.get_by_label("Search").press("Enter")
        expect(browser.locator("tbody tr")).to_have_count(len(expected))
        for id in expected:
            expect(browser.locator(f"tbody tr[data-job='{id}']")).to_be_visible()
    browser.get_by_label("Search").fill("order-17")
    browser.get_by_label("Search").press("Enter")
    row = browser.locator(f"tbody tr[data-job='{keyed}']")
    expect(row).to_contain_text("key order-17")
    row.locator("a").click()
    browser.locator(".facts").get_by_role("link", name="order-17").click()
    expect(browser.locator("tbody tr")).to_have_count(2)


def test_jobs_are_filtered_by_state_queue_and_error(browser, site, hostile):
    open_(browser, site, "/jobs")
    browser.get_by_label("State").select_option("dead")
    browser.get_by_label("Error").fill("onerror")
    browser.get_by_label("Error").press("Enter")
    expect(browser.locator("tbody tr .badge").first).to_have_text("dead")
    expect(browser.locator("tbody tr").first).to_contain_text("onerror")
    assert "state=dead" in browser.url
    browser.get_by_label("Search").fill("no_such_task")
    browser.get_by_label("Search").press("Enter")
    expect(browser.get_by_text("No job is like that.")).to_be_visible()


def test_dead_letters_are_replayed_at_a_rate_and_deleted(browser, site):
    for name in ("one", "two"):
        dead = [site.enqueue("fail", 3, queue="hostile", id=f"{name}-{number}") for number in range(2)]
        eventually(lambda dead=dead: all(site.state("hostile", id) == "dead" for id in dead))
    open_(browser, site, "/dead?queue=hostile")
    row = browser.locator("tr", has_text="</textarea>")
    act(browser, row.get_by_role("button", name="Replay"), r"\d+ jobs were put back|Replaying", rate="1000")
    expect(browser.locator("tr[data-replay]").first).to_contain_text("done")
    eventually(lambda: site.state("hostile", "one-0") == "dead" and site.get("/jobs/hostile/one-0")["generation"] == 1)
    before = site.queue("hostile")["dead"]
    act(browser, row.get_by_role("button", name="Delete"), r"\d+ dead jobs were deleted")
    expect(row).to_have_count(0)
    assert 0 < site.queue("hostile")["dead"] < before


def test_who_may_only_read_can_press_nothing(browser, site):
    browser.context.clear_cookies()
    log_in(browser, site, site.reader, "/queues")
    pause = browser.get_by_role("button", name="Pause").first
    expect(pause).to_be_disabled()
    expect(pause).to_have_attribute("title", re.compile("operate"))
    browser.get_by_role("button", name="Log out").click()
    expect(browser.get_by_label("Token")).to_be_visible()
    log_in(browser, site, site.token)


def test_the_theme_stays_chosen(browser, site):
    browser.emulate_media(color_scheme="light")
    open_(browser, site, "/")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(colour)
    browser.get_by_role("button", name="Dark").click()
    dark = browser.evaluate(colour)
    assert dark != light
    browser.reload()
    assert browser.evaluate(colour) == dark
    browser.get_by_role("button", name="Auto").click()
    assert browser.evaluate(colour) == light


def test_it_can_be_used_with_a_keyboard(browser, site):
    site.enqueue("echo", "x", queue="keys")
    open_(browser, site, "/queues")
    browser.locator("tr[data-queue=keys]").get_by_role("button", name="Pause").focus()
    browser.keyboard.press("Enter")
    expect(browser.get_by_role("dialog")).to_be_visible()
    browser.keyboard.press("Escape")
    expect(browser.get_by_role("dialog")).to_have_count(0)
    assert browser.evaluate("document.activeElement.textContent") == "Pause"
    browser.keyboard.press("Enter")
    browser.keyboard.press("Enter")
    expect(browser.locator("#toasts")).to_contain_text("Queue keys is paused")
    browser.goto(site.url)
    browser.keyboard.press("Tab")
    assert browser.evaluate("document.activeElement.textContent") == "Skip to the content"


def test_no_page_is_wider_than_a_phone(browser, site, hostile):
    browser.set_viewport_size({"width": 360, "height": 740})
    try:
        for path in [*PAGES, f"/jobs/hostile/{hostile[0]}"]:
            open_(browser, site, path)
            assert browser.evaluate("document.documentElement.scrollWidth") <= 360, path
    finally:
        browser.set_viewport_size({"width": 1280, "height": 720})


def test_results_of_the_benchmark_are_drawn_and_compared(browser, site, results, tmp_path):
    for name, content in zip(("before.json", "after.json"), results, strict=True):
        (tmp_path / name).write_bytes(content)
    open_(browser, site, "/benchmarks")
    browser.get_by_label(re.compile("One result")).set_input_files(tmp_path / "before.json")
    expect(browser.locator(".plot canvas").nth(1)).to_be_visible()
    expect(browser.locator("main")).to_contain_text("Throughput")
    browser.get_by_label(re.compile("One result")).set_input_files([tmp_path / "before.json", tmp_path / "after.json"])
    expect(browser.locator("#comparison")).to_contain_text("cannot tell", timeout=30_000)
    expect(browser.locator("#comparison")).to_contain_text("jobs: 200, then 201")
    (tmp_path / "bad.json").write_text("<script>")
    browser.get_by_label(re.compile("One result")).set_input_files(tmp_path / "bad.json")
    expect(browser.locator("#toasts")).to_contain_text("bad.json is not JSON")


def test_workers_are_shown_quieted_and_stopped(browser, site):
    running = site.enqueue("sleep", 1000, queue="slow")
    eventually(lambda: site.state("slow", running) == "running")
    open_(browser, site, "/workers")
    card = browser.locator("[data-worker]").first
    expect(card).to_contain_text("MB")
    card.get_by_text(re.compile("^Jobs")).click()
    expect(card.locator("tbody")).to_contain_text(running)
    within = """(card) => {
        const right = card.getBoundingClientRect().right;
        return [...card.children].every((each) => each.getBoundingClientRect().right <= right);
    }"""
    for width in (1440, 390):
        browser.set_viewport_size({"width": width, "height": 900})
        assert card.evaluate(within), f"the jobs are wider than their worker on {width} px"
    browser.set_viewport_size({"width": 1280, "height": 720})
    act(browser, card.get_by_role("button", name="Quiet"), "will claim no more jobs")
    expect(card.locator(".badge").first).to_contain_text("quiet")
    act(browser, card.get_by_role("button", name="Stop"), "was told to stop")
    expect(card.locator(".badge").first).to_contain_text("stop")
    site.post(f"/jobs/slow/{running}/cancel", {"reason": "the end"})
    eventually(lambda: site.state("slow", running) == "cancelled")
