"""Word of running jobs that are to be cancelled: a subscription on which one thread at a time listens."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final

from spool.broker.redis.line import Address, BlockingLine
from spool.broker.redis.scripts import queue_key
from spool.broker.redis.wire import ServerError

#: Seconds of silence after which the server is asked whether it is still there.
QUIET: Final = 30.0


class Subscription:
    """The channels of some queues. Connects when it is made; what is said between two waits is heard by the second."""

    def __init__(self, address: Address, prefix: str, queues: Sequence[str]) -> None:
        self._line = BlockingLine(address, *(queue_key(prefix, queue) + "orders" for queue in queues))
        self._patience = address.timeout
        self._ask_at = time.monotonic() + QUIET
        self._answer_by = math.inf

    def wait(self, timeout: float) -> None:
        """Return when there was word, or after so many seconds. Raises what connections raise."""
        deadline = time.monotonic() + timeout
        while not self._hear(min(deadline, self._ask_at, self._answer_by) - time.monotonic()):
            now = time.monotonic()
            if now >= self._answer_by:
                raise TimeoutError(f"no answer within {self._patience:g} s")
            if now >= self._ask_at:
                self._line.tell("PING")
                self._ask_at, self._answer_by = math.inf, now + self._patience
            if now >= deadline:
                return

    def _hear(self, timeout: float) -> bool:
        """Take in all that has come, or what comes first within so many seconds; return whether it was word."""
        word = False
        reply = self._line.receive(timeout)
        while reply is not None:
            if isinstance(reply, ServerError):
                raise reply
            word |= reply[0] == b"message"
            # Any sign of life will do.
            self._ask_at, self._answer_by = time.monotonic() + QUIET, math.inf
            reply = self._line.received()
        return word

    def interrupt(self) -> None:
        """Let a wait in another thread fail, and every later one."""
        self._line.interrupt()

    def close(self) -> None:
        """Give the connection back."""
        self._line.close()
