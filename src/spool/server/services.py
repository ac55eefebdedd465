"""What handlers work with: one `Services` for each server process."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from spool.app import Spool
from spool.broker import Broker
from spool.server.audit import Audit
from spool.server.auth import Tokens
from spool.server.guard import Doors, Rate, Room
from spool.server.hub import Hub
from spool.server.intake import Intake
from spool.server.replays import Replays
from spool.server.session import Sessions
from spool.server.settings import ServerSettings
from spool.server.verbs import Verbs
from spool.telemetry import Counted, History


class Services:
    """The parts of a server. ``app`` is the broker with a client around it, which has no tasks."""

    def __init__(self, broker: Broker, settings: ServerSettings) -> None:
        limits = settings.limits
        self.counted = Counted(broker)
        self.settings = settings
        self.app = Spool(self.counted)
        self.broker = broker = self.app.broker
        self.tokens = Tokens(broker)
        self.sessions = Sessions(broker, self.tokens, settings)
        self.doors = Doors(settings, self.tokens, self.sessions)
        self.intake = Intake(self.app)
        self.audit = Audit(broker, settings.audit_days)
        self.replays = Replays(broker)
        self.stopping = asyncio.Event()
        """Set when the server is about to end: who waits is answered, and streams end."""
        self.room = Room(limits.bodies)
        self.under_way = 0
        """Requests that are being worked on."""
        self.verbs = Verbs(
            self.counted, self.stopping, self.resting
        )  # who asks for verbs signs and encrypts for itself
        self.rate = Rate(limits.rate)
        self.enqueue_rate = Rate(limits.enqueue_rate)
        self.failures = Rate(limits.failures / 60, float(limits.failures))
        self.history = History(broker)
        self.hub = Hub(broker, self.history)
        self.waits = 0
        """Requests that wait for a result."""

    @contextmanager
    def resting(self) -> Generator[None]:
        """Surround what only waits: it is not to keep others out, as a thousand workers would their own beats."""
        self.under_way -= 1
        try:
            yield
        finally:
            self.under_way += 1
