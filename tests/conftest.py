from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import redis

from tests.audit import audit
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.server.front import Front

# How long one example takes says more of the machine than of the code.
hypothesis.settings.register_profile("spool", deadline=None, print_blob=True)
hypothesis.settings.load_profile("spool")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Escape what UTF-8 cannot hold: tests log half characters, and a report has to reach the process that prints."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for the session. Without a Redis this is an error, never a skip."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[str]:
    """Give a URL on the session's server, its database empty; what a test leaves in it has to add up."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()
        yield redis_server.url
        if request.node.get_closest_marker("damages_store") is None:
            audit(client)


@pytest.fixture(scope="session")
def front() -> Iterator["Front"]:
    """Give a server that can be put in front of any broker."""
    from tests.server.front import Front

    with Front() as front:
        yield front


@pytest.fixture
def page() -> Iterator["Page"]:
    """Give a page in a real browser. Only for tests without an event loop of their own."""
    from tests.browser import open_page

    with open_page() as page:
        yield page
