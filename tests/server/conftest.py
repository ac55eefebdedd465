from collections.abc import Iterator

import pytest

from tests.server.served import Served, serving


@pytest.fixture(params=["sqlite", "redis"])
def store_url(request, tmp_path) -> str:
    """Give the URL of an empty store, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/spool.db"
    return request.getfixturevalue("redis_url")


@pytest.fixture
def served(store_url) -> Iterator[Served]:
    """Give a server on each kind of store; see `tests.server.served`."""
    with serving(store_url) as served:
        yield served


@pytest.fixture
def sqlite_served(tmp_path) -> Iterator[Served]:
    """Give a server on SQLite, for what has nothing to do with the store."""
    with serving(f"sqlite:///{tmp_path}/spool.db") as served:
        yield served
