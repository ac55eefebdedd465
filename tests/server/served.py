"""A real server for tests: real HTTP on a free loopback port, in a thread of the test's process, on a real store.

```python
def test_something(served):                      # once on SQLite, once on Redis
    client = served.client("operate")            # httpx, with a new token of that scope
    assert client.get("/api/v1/queues").json()["items"] == []
    served.broker.call(...)                      # the store itself, past the server
    served.app.task(...)                         # a Spool on the same store; served.declare(app) stores its catalogue
```

`serving(url, **settings)` starts one with settings of its own.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from spool import Spool, testing
from spool.broker import Broker, Load, connect
from spool.catalogue import publish
from spool.server import ServerSettings
from spool.server.auth import new_token, storing
from spool.server.serve import Serving


class Served:
    """A running server, and its store."""

    def __init__(self, store_url: str, serving: Serving, broker: Broker) -> None:
        self.store_url = store_url
        self.serving = serving
        self.url = serving.url
        self.broker = broker
        self.app = Spool(broker)
        self._clients: list[httpx.Client] = []

    def token(self, *scopes: str, queues: list[str] | None = None, expires_in: float | None = None) -> str:
        """Make a token."""
        now = self.broker.call(Load("server")).now
        id, token, row = new_token("test", scopes or ("admin",), now, queues=queues, expires_in=expires_in)
        self.broker.call(storing(id, row))
        return token

    def client(self, *scopes: str, queues: list[str] | None = None) -> httpx.Client:
        """Return a client with a token of these scopes (default admin)."""
        return self.client_of(self.token(*scopes, queues=queues))

    def client_of(self, token: str | None) -> httpx.Client:
        """Return a client with this token."""
        return self.anonymous(headers={"Authorization": f"Bearer {token}"})

    def anonymous(self, **given) -> httpx.Client:
        """Return a client without a token."""
        client = httpx.Client(base_url=self.url, timeout=30, **given)
        self._clients.append(client)
        return client

    def session(self, *scopes: str) -> httpx.Client:
        """Return a client that has logged in as a browser does."""
        client = self.anonymous(headers={"Origin": self.url, "Sec-Fetch-Site": "same-origin"})
        answer = client.post("/login", json={"token": self.token(*scopes)})
        assert answer.status_code == 200, answer.text
        return client

    def declare(self, app: Spool | None = None) -> None:
        """Store the catalogue of an app's tasks, as a worker does when it starts."""
        asyncio.run(self._declare(app or self.app))

    async def _declare(self, app: Spool) -> None:
        broker = connect(self.store_url)  # of this loop alone
        await publish(app.tasks.values(), broker)
        await broker.aclose()

    def run_all(self, app: Spool) -> None:
        """Run the jobs of an app's tasks until nothing is ready."""
        asyncio.run(self._run_all(app))

    async def _run_all(self, app: Spool) -> None:
        broker = connect(self.store_url)
        with app.using(broker):
            await testing.arun_until_idle(app)
        await broker.aclose()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.broker.close()


@contextmanager
def serving(store_url: str, **settings) -> Iterator[Served]:
    """Start a server on a store, and stop it."""
    with Serving(store_url, ServerSettings(**({"port": 0} | settings))) as running:
        served = Served(store_url, running, connect(store_url))
        try:
            yield served
        finally:
            served.close()
