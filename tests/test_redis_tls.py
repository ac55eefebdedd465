"""``rediss://``: what both clients, the blocking one and the loop's, make of certificates."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import trustme

from spool import errors
from spool.broker import Stats, connect
from tests.eventually import aeventually
from tests.redis_server import RedisServer


class TlsProxy:
    """Speaks TLS on a port of its own and plain Redis behind it: not every server binary is built with TLS."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        authority = trustme.CA()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self._context)
        self.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._listening = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "localhost", 0, ssl=self._context)
        )
        self.port = self._listening.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_unix_connection(self._server.socket_path)
        try:
            await asyncio.gather(_copy(reader, ahead), _copy(behind, writer))
        finally:  # also when the test ends before its connections do
            for end in (ahead, writer):
                end.transport.abort()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted is closed in the next turn


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
def proxy(redis_server, redis_url, tmp_path) -> Iterator[TlsProxy]:
    proxy = TlsProxy(redis_server, tmp_path)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
@pytest.mark.parametrize("options", ["ssl_ca_certs={authority}", "ssl_cert_reqs=none&ssl_check_hostname=false"])
async def test_a_certificate_that_is_trusted(proxy, scheme, options):
    broker = connect(f"{scheme}://localhost:{proxy.port}/0?{options.format(authority=proxy.authority)}")
    assert (await asyncio.to_thread(broker.call, Stats("q"))).running == 0
    assert (await broker.acall(Stats("q"))).running == 0
    await broker.aclose()


async def test_who_waits_for_orders_is_told_that_the_broker_is_closed(proxy, redis_server):
    broker = connect(f"rediss://localhost:{proxy.port}/0?ssl_ca_certs={proxy.authority}")
    waiting = asyncio.create_task(asyncio.to_thread(broker.await_orders, ["tls", "q"], 30))
    with redis.Redis.from_url(redis_server.url) as client:
        await aeventually(lambda: client.pubsub_numsub("spool:{q}:orders")[0][1])
        await asyncio.sleep(0.05)
        broker.close()
        with pytest.raises(errors.BrokerUnavailable, match="closed"):
            await asyncio.wait_for(waiting, 5)
        await aeventually(lambda: not client.pubsub_numsub("spool:{q}:orders")[0][1])


async def test_one_that_is_not(proxy):
    broker = connect(f"rediss://localhost:{proxy.port}/0")
    with pytest.raises(errors.BrokerUnavailable, match="certificate"):
        await asyncio.to_thread(broker.call, Stats("q"))
    broker._checked = True  # so that the loop's connection has to find out for itself
    with pytest.raises(errors.BrokerUnavailable, match="certificate"):
        await broker.acall(Stats("q"))
    await broker.aclose()


async def test_one_for_another_host(proxy):
    broker = connect(f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={proxy.authority}")
    with pytest.raises(errors.BrokerUnavailable):
        await asyncio.to_thread(broker.call, Stats("q"))
    await broker.aclose()


def test_a_certificate_file_that_is_not_there(tmp_path):
    with pytest.raises(errors.ConfigError, match="No such file"):
        connect(f"rediss://localhost/0?ssl_ca_certs={tmp_path}/none.pem")
