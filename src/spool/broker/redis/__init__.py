"""Jobs in Redis or Valkey. The verbs are `spool.broker.redis.scripts`; waiting is `spool.broker.redis.waits`.

Connections belong to one process and, for the async ones, to one loop: both are looked up at every call, so that
threads, several loops and forks each get their own. The Redis library retries nothing by itself: only a caller knows
whether a verb may be sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import warnings
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec
import redis.connection

from spool.broker import Beat, Claim, Enqueue, Get, Verb, tls
from spool.broker.redis.durable import Disk, DurableLine
from spool.broker.redis.line import Address, BlockingLine, Command, Line
from spool.broker.redis.orders import Subscription
from spool.broker.redis.scripts import SHARED, Call, form, queue_key
from spool.broker.redis.waits import Mailbox, Post
from spool.broker.redis.wire import ServerError, mapped, translate
from spool.broker.url import hidden, split, unknown
from spool.errors import BrokerRefused, BrokerUnavailable, ConfigError, SpoolError, StoreCorrupt
from spool.job import LANES, Snapshot

R = TypeVar("R")

LAYOUT: Final = 1
#: What a URL's query may hold besides the prefix.
OPTIONS: Final = tls.OPTIONS | {"db", "password", "socket_connect_timeout", "socket_timeout", "username"}
#: The verbs with which a queue begins; this process's first one adds its name to the list of queues.
_ANNOUNCING: Final = (Enqueue, Beat)
#: Seconds that `await_work` blocks at most.
MAX_BLOCK: Final = 10.0
#: Seconds; a shorter wait for work ends on time.
ROUGH: Final = 0.5
#: The list of tokens of each lane; see `lua/_keys.lua`.
WAKES: Final = ("wake", "wake:1")
_SCHEMES = {"valkey": "redis", "valkeys": "rediss"}


class RedisBroker:
    """The broker for ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` and ``unix://`` URLs.

    ``clock`` (tests only) returns the time in ms that scripts use instead of the server's.
    """

    def __init__(self, url: str, *, clock: Callable[[], int] | None = None) -> None:
        parts = split(url)
        query = dict(parse_qsl(parts.query))
        self.url = hidden(url)
        self.prefix = query.pop("prefix", "spool")
        if not self.prefix or set(self.prefix) & set("{} \n"):
            raise ConfigError(f"the prefix in {self.url} is not usable: one or more characters, no {{}} or spaces")
        if others := set(query) - OPTIONS:
            raise ConfigError(
                f"{self.url}: unknown option {unknown(others, url)}; allowed are prefix, {', '.join(sorted(OPTIONS))}"
            )
        scheme = _SCHEMES.get(parts.scheme, parts.scheme)
        if scheme != "unix" and not (parts.path.strip("/") or "0").isdigit():
            raise ConfigError(f"cannot use the broker URL {self.url}: its path is no database; allowed is a number")
        self._target = f"{scheme}://{parts.netloc}{parts.path}" + (f"?{urlencode(query)}" if query else "")
        self._clock = clock
        self._closed = False
        self._reset()
        # A child of a fork must neither use nor close its parent's connections: it just forgets them.
        os.register_at_fork(after_in_child=_Forget(self))
        self._address = _address(self._target, self.url)
        self._disk = Disk(self._address, self.url)

    def _reset(self) -> None:
        self._idle: list[BlockingLine] = []
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}
        self._mailboxes: list[Mailbox] = []
        self._subscriptions: dict[tuple[str, ...], Subscription] = {}
        self._listening: set[Subscription] = set()
        self._announced: set[str] = set()
        self._checked = False

    def _here(self) -> _Loop:
        if self._closed:
            raise BrokerUnavailable(f"the broker {self.url} was closed")
        running = asyncio.get_running_loop()
        mine = self._loops.get(running)
        if mine is None:
            self._sweep()
            line, durable = Line(self._address), DurableLine(self._address, self.url)
            post = Post(line, self._address, self.prefix, self.url)
            mine = self._loops[running] = _Loop(self._address, line, durable, post)
        return mine

    def _sweep(self) -> None:
        """Forget loops that ended without `aclose`."""
        for loop in [loop for loop in list(self._loops) if loop.is_closed()]:
            mine = self._loops.pop(loop, None)
            if mine is not None:
                mine.abandon()

    def _take(self) -> BlockingLine:
        """Return a connection that no other thread uses."""
        if self._closed:
            raise BrokerUnavailable(f"the broker {self.url} was closed")
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was quicker
                line = self._idle.pop()
                if not line.stale:
                    return line
                line.close()
        return BlockingLine(self._address)

    def _use(self, what: Callable[[BlockingLine], Any]) -> Any:
        line = self._take()
        try:
            reply = what(line)
        except ServerError:
            self._idle.append(line)
            raise
        except BaseException:  # it may still get the reply that we do not wait for
            line.close()
            raise
        self._idle.append(line)
        return reply

    def _ask(self, call: Call) -> Any:
        if call.durable:
            return self._use(lambda line: self._disk.store(line, call))
        return self._use(lambda line: line.run(call))

    def _command(self, *command: str | bytes | float) -> Any:
        return self._use(lambda line: line.send(*command))

    # The two ways to call map errors themselves: a context manager would be a tenth of their work.

    def call(self, verb: Verb[R]) -> R:
        """Carry out a verb; see `Broker.call`."""
        try:
            if not self._checked:
                self._check()
            if isinstance(verb, _ANNOUNCING) and verb.queue not in self._announced:
                names = queue_key(self.prefix, SHARED) + "queues"
                if not self._command("SISMEMBER", names, verb.queue):
                    self._command("SADD", names, verb.queue)
                self._announced.add(verb.queue)
            call = self._form(verb)
            reply = self._ask(call)
        except SpoolError:
            raise
        except (ServerError, OSError) as error:
            raise translate(self.url, error) from error
        parsed: R = call.parse(reply)
        return parsed

    async def acall(self, verb: Verb[R]) -> R:
        """Carry out a verb; see `Broker.acall`."""
        here = self._here()
        line = here.line
        try:
            if not self._checked:
                await asyncio.to_thread(self._check)
            if isinstance(verb, _ANNOUNCING) and verb.queue not in self._announced:
                names = queue_key(self.prefix, SHARED) + "queues"
                if not await line.send("SISMEMBER", names, verb.queue):
                    await line.send("SADD", names, verb.queue)
                self._announced.add(verb.queue)
            call = self._form(verb)
            if isinstance(verb, Claim) and verb.wait:
                reply = await self._run_later(here, call, verb)
            else:
                reply = await (here.durable if call.durable else line).run(call)
        except SpoolError:
            raise
        except (ServerError, OSError) as error:
            raise translate(self.url, error) from error
        parsed: R = call.parse(reply)
        return parsed

    def _form(self, verb: Verb[Any]) -> Call:
        return form(verb, self.prefix, self._clock() if self._clock else None)

    def _check(self) -> None:
        """Refuse, once per process, a server that would lose jobs or that holds a newer layout."""
        key = queue_key(self.prefix, SHARED) + "layout"
        try:
            info: bytes = self._command("INFO")
        except ServerError as error:  # a user who may not ask
            if "NOPERM" not in str(error):
                raise
            info = b""
        self._judge(dict(row.split(":", 1) for row in info.decode().splitlines() if ":" in row))
        found = self._command("GET", key)
        if found is None:  # else nothing is written, which a server without memory would refuse
            self._command("SET", key, LAYOUT, "NX")
            found = self._command("GET", key)
        self._judge_layout(found)

    def _judge(self, info: dict[str, str]) -> None:
        version = info.get("redis_version", "6.2")
        if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
            raise BrokerRefused(f"{self.url} runs Redis {version}; needed is 6.2 or newer")
        if info.get("role") == "slave":
            raise BrokerRefused(f"{self.url} is a read-only replica; give the URL of the primary")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys"):
            raise BrokerRefused(
                f"{self.url} evicts any key when memory is full (maxmemory-policy {policy}), and so would lose jobs; "
                "set it to noeviction"
            )
        if policy.startswith("volatile"):
            warnings.warn(
                f"{self.url} evicts results when memory is full (maxmemory-policy {policy}); noeviction is safe",
                RuntimeWarning,
                stacklevel=2,
            )

    def _judge_layout(self, found: bytes | None) -> None:
        if not (found or b"1").isdigit() or int(found or LAYOUT) > LAYOUT:
            raise StoreCorrupt(
                f"{self.url} holds layout {found!r} under the prefix {self.prefix!r}; this release knows up to {LAYOUT}"
            )
        self._checked = True

    def ended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        """Wait for a job's end; see `Broker.ended`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with mapped(self.url):
            mailbox = self._borrow()
            try:
                found = mailbox.wait(self._ask, queue, id, deadline)
            except BaseException:
                mailbox.close()  # word of this job may still come, and must not be taken for another's
                raise
        self._mailboxes.append(mailbox)
        if isinstance(found, Snapshot):
            return found
        return None if found == "late" else self.call(Get(queue, id))

    def _borrow(self) -> Mailbox:
        if self._closed:
            raise BrokerUnavailable(f"the broker {self.url} was closed")
        while self._mailboxes:
            with contextlib.suppress(IndexError):  # another thread was quicker
                mailbox = self._mailboxes.pop()
                if not mailbox.stale:
                    return mailbox
                mailbox.close()
        return Mailbox(self._address, self.prefix)

    async def aended(self, queue: str, id: str, timeout: float | None = None) -> Snapshot | None:
        """Wait for a job's end; see `Broker.aended`."""
        found = await self._here().post.wait(queue, id, timeout)
        if isinstance(found, Snapshot):
            return found
        return None if found == "late" else await self.acall(Get(queue, id))

    async def await_work(self, queues: Sequence[str], timeout: float, lanes: Sequence[int] = LANES) -> None:
        """Wait for a token; see `Broker.await_work`."""
        if timeout <= 0:
            return
        mine = self._here()
        keys = [f"{queue_key(self.prefix, queue)}{WAKES[lane]}" for queue in queues for lane in lanes]
        with mapped(self.url):
            async with mine.patience(timeout) as (line, seconds):
                await line.send("BLPOP", *keys, seconds)

    async def _run_later(self, mine: _Loop, call: Call, claim: Claim) -> Any:
        """Have a claim carried out as soon as there is a token.

        It is sent behind the command that blocks, on the same connection: the server turns to it at once, and word
        need not come back first.
        """
        script = call.script
        async with mine.patience(claim.wait) as (line, seconds):
            wait: Command = ("BLPOP", *[f"{call.key}{WAKES[lane]}" for lane in claim.lanes], seconds)
            try:
                return await line.send_behind(wait, ("EVALSHA", script.sha, "1", call.key, *call.args))
            except ServerError as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
        return await mine.line.run(call)

    def await_orders(self, queues: Sequence[str], timeout: float) -> None:
        """Wait for word of a cancellation; see `Broker.await_orders`."""
        try:
            with mapped(self.url):
                self._listen(tuple(queues), timeout)
        except BrokerUnavailable as error:
            if self._closed:
                raise BrokerUnavailable(f"the broker {self.url} was closed") from error
            raise

    def _listen(self, queues: tuple[str, ...], timeout: float) -> None:
        if not self._checked:
            self._check()
        subscription = self._subscription(queues)
        self._listening.add(subscription)
        if self._closed:  # before it could be found there
            subscription.interrupt()
        try:
            subscription.wait(timeout)
        except BaseException:
            subscription.close()
            raise
        finally:
            self._listening.discard(subscription)
        self._subscriptions[queues] = subscription
        if self._closed:
            self._subscriptions.clear()

    def _subscription(self, queues: tuple[str, ...]) -> Subscription:
        if self._closed:
            raise BrokerUnavailable(f"the broker {self.url} was closed")
        return self._subscriptions.pop(queues, None) or Subscription(self._address, self.prefix, queues)

    def close(self) -> None:
        """Close what belongs to threads; loops close their own (`aclose`)."""
        self._closed = True
        for subscription in [*self._listening, *self._subscriptions.values()]:
            subscription.interrupt()
        self._subscriptions.clear()
        for connections in (self._mailboxes, self._idle):
            while connections:
                with contextlib.suppress(IndexError):
                    connections.pop().close()
        self._sweep()

    async def aclose(self) -> None:
        """Close this loop's connections, and those of threads."""
        mine = self._loops.pop(asyncio.get_running_loop(), None)
        if mine is not None:
            await mine.close()
        self.close()


class _Loop:
    """What belongs to one event loop: its connections, some of them to block for work on, and who waits for results."""

    def __init__(self, address: Address, line: Line, durable: DurableLine, post: Post) -> None:
        self.line, self.durable, self.post = line, durable, post
        # One that blocks for work hears nothing meanwhile, and that is no fault.
        self._patient = msgspec.structs.replace(address, timeout=address.timeout + MAX_BLOCK)
        self._blocking: set[Line] = set()
        self._idle: list[Line] = []

    @asynccontextmanager
    async def patience(self, timeout: float) -> AsyncGenerator[tuple[Line, float]]:
        """Surround a command that blocks for ``timeout`` seconds; gives a line of its own, and what to tell the server.

        A worker waits once at a time, and has one such line. A server waits for many workers, and on a line that they
        share the wait of one would begin only when that of another is over.
        """
        line = self._idle.pop() if self._idle else Line(self._patient)
        self._blocking.add(line)
        # It looks for waits that are over when something happens, else only ten times a second. When the end is meant,
        # be it a job that is due, something happens.
        stir = asyncio.get_running_loop().call_later(timeout, self._stir) if timeout < ROUGH else None
        try:
            yield line, min(max(timeout - 0.002, 0.001), MAX_BLOCK)
        except asyncio.CancelledError:
            # The server would go on waiting for us, and give a token to nobody.
            await line.reset()
            raise
        finally:
            self._blocking.discard(line)
            self._idle.append(line)
            if stir is not None:
                stir.cancel()

    async def close(self) -> None:
        """Close all connections; what waits on them fails."""
        await self.post.close()
        await self.durable.close()
        for line in [*self._blocking, *self._idle, self.line]:
            await line.close()

    def abandon(self) -> None:
        """Let go of the connections of a loop that has ended."""
        for line in (*self._blocking, *self._idle, self.line, self.durable.line, self.post.ears):
            line.abandon()

    def _stir(self) -> None:
        """Have the server do something, whatever comes of it."""
        asyncio.ensure_future(self.line.send("PING")).add_done_callback(_forget_error)


def _forget_error(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _address(url: str, shown: str) -> Address:
    """Return what a URL of the Redis library says. Raises `ConfigError`."""
    library: Any = redis.connection
    try:
        given: dict[str, Any] = library.parse_url(url)
        secure = given.get("connection_class") is library.SSLConnection
        return Address(
            host=given.get("host", "localhost"),
            port=int(given.get("port", 6379)),
            path=given.get("path", ""),
            database=int(given.get("db", 0)),
            username=given.get("username") or "",
            password=given.get("password") or "",
            tls=tls.context_of(given) if secure else None,
            connect_timeout=float(given.get("socket_connect_timeout", 3.0)),
            timeout=float(given.get("socket_timeout", 5.0)),
        )
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"cannot use the broker URL {shown}: {error}") from error


class _Forget:
    """What a forked child does with a broker; holds it weakly, since such a hook is never taken off."""

    def __init__(self, broker: RedisBroker) -> None:
        self._broker = weakref.ref(broker)

    def __call__(self) -> None:
        broker = self._broker()
        if broker is not None:
            broker._reset()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the broker's own hook
