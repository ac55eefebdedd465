"""The benchmark's report, in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Page

from spool.bench import BenchResult, Plan, run
from spool.bench.page import page
from spool.bench.plan import TaskCall
from spool.bench.scale import Law, Scaling
from tests.browser import open_page

HOSTILE = "x:</script><script>document.title='taken'</script><img src=y onerror=\"document.title='taken'\">"
PLOTS = ["throughput", "depth", "memory", "percentiles", "histogram"]


@pytest.fixture(scope="module")
def document(redis_server) -> BenchResult:
    return run(Plan(jobs=300, workers=2, producers=5), redis_server.url)


@pytest.fixture(scope="module")
def browser(document) -> Iterator[Page]:  # the run comes first: a browser keeps an event loop in this thread
    with open_page() as opened:
        yield opened


def open_file(browser: Page, tmp_path: Path, text: str) -> list[str]:
    """Open a page, and return what it asked for besides itself."""
    file = tmp_path / "report.html"
    file.write_text(text)
    asked: list[str] = []
    listener = lambda request: asked.append(request.url)  # noqa: E731 - to be taken off again
    browser.on("request", listener)
    browser.goto(file.as_uri())
    browser.wait_for_load_state("networkidle")
    browser.remove_listener("request", listener)
    return [url for url in asked if url != file.as_uri() and not url.startswith("data:")]


def points(browser: Page) -> dict[str, list[int]]:
    found = browser.evaluate("[...document.querySelectorAll('.plot')].map((each) => [each.id, each.dataset.points])")
    return {name: [int(each) for each in counts.split()] for name, counts in found}


def is_drawn(browser: Page, name: str) -> bool:
    """Tell whether there is anything but emptiness on a canvas."""
    return browser.evaluate(
        """(name) => { const canvas = document.querySelector(`#${name} canvas`);
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return pixels.some((value) => value !== 0); }""",
        name,
    )


def test_a_run_is_drawn_from_the_file_alone(browser, tmp_path, document):
    assert open_file(browser, tmp_path, page(document)) == []
    course, spread = document.series, document.spread
    steps = len(course.done) + 1
    drawn = points(browser)
    assert list(drawn) == PLOTS
    assert (drawn["throughput"], drawn["depth"]) == ([steps], [steps, steps])
    assert drawn["memory"] == [len(course.memory_s)]
    assert drawn["percentiles"] == [len(spread.start.shares), len(spread.done.shares)]
    assert all(is_drawn(browser, name) for name in PLOTS)
    text = browser.inner_text("body")
    assert f"{document.result.per_s:,.0f}/s" in text
    assert all(f"process {each.process}" in text for each in course.workers)
    assert browser.get_by_role("img").count() == len(PLOTS)
    rates = browser.eval_on_selector_all(
        "figure:has(#throughput) details tbody td:last-child", "(cells) => cells.map((cell) => cell.textContent)"
    )
    total = sum(float(each.replace(",", "")) for each in rates) * course.step_s
    assert total == pytest.approx(document.result.done, rel=1e-3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(browser, tmp_path, document, scheme):
    browser.emulate_media(color_scheme=scheme)
    browser.set_viewport_size({"width": 360, "height": 740})
    try:
        open_file(browser, tmp_path, page(document))
        assert browser.evaluate("document.documentElement.scrollWidth") == 360
        background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
        assert brightness < 60 if scheme == "dark" else brightness > 200
        assert browser.evaluate("document.querySelector('#throughput canvas').getBoundingClientRect().width") < 340
    finally:
        browser.set_viewport_size({"width": 1200, "height": 900})
        browser.emulate_media(color_scheme="light")


def test_what_a_result_says_is_data(browser, tmp_path, document):
    plan = msgspec.structs.replace(document.config, kind="task", task=TaskCall(HOSTILE, [HOSTILE]))
    broker = msgspec.structs.replace(document.broker, url=HOSTILE)
    bad = msgspec.structs.replace(
        document, config=plan, broker=broker, versions={**document.versions, HOSTILE: HOSTILE}
    )
    open_file(browser, tmp_path, page(bad))
    assert browser.title().startswith("Spool benchmark")
    assert HOSTILE in browser.inner_text("header")
    assert browser.locator("body img").count() == 0
    assert list(points(browser)) == PLOTS


def test_a_page_allows_no_script_but_its_own(browser, tmp_path, document):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', page(document))
    assert policy
    allowed = dict(each.split(" ", 1) for each in policy[1].split("; "))
    assert allowed["default-src"] == "'none'"
    assert re.fullmatch(r"('sha256-[\w+/=]+' ?){3}", allowed["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/=]+'", allowed["style-src"])


LAW = Law(100.0, 0.05, 0.01)


def scaling(document: BenchResult, axis: str = "workers", law: Law | None = LAW) -> Scaling:
    return Scaling(axis, [1, 2, 4, 8], [document] * 4, law)


def test_a_scaling_is_drawn_with_its_law(browser, tmp_path, document):
    assert open_file(browser, tmp_path, page(scaling(document))) == []
    drawn = points(browser)
    assert list(drawn) == ["rate", "speed-up", "efficiency", "latency", "memory"]
    assert drawn["rate"][0] == 4
    assert drawn["rate"][1] > 100
    assert (drawn["speed-up"], drawn["efficiency"], drawn["latency"]) == ([4, 4], [4], [4, 4])
    assert "contention 0.0500" in browser.inner_text("body")
    open_file(browser, tmp_path, page(scaling(document, "payload", None)))
    assert points(browser) == {"rate": [4], "latency": [4, 4], "memory": [4]}


def test_a_result_without_a_course_has_its_figures(browser, tmp_path, document):
    old = msgspec.structs.replace(document, series=None, spread=None)
    assert open_file(browser, tmp_path, page(old)) == []
    assert points(browser) == {}
    assert "start p99" in browser.inner_text("body")
