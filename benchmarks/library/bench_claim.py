"""Claim and settle, as a worker asks for it, without a worker: what a job costs the broker and its client."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.library.measure import Measure
from benchmarks.library.tasks import on_loop
from spool import Spool
from spool.broker import Act, Beat, Broker, Claim, Delete, Done, Heartbeat, Settle
from spool.job import VERSION, Ending, encode_ending, new_id
from spool.payload import write_result

JOBS = 200


class Claimant:
    """One incarnation that claims jobs and settles them as done."""

    def __init__(self, broker: Broker, batch: int) -> None:
        self._broker, self._batch = broker, batch
        self._incarnation = new_id()
        self._seq = 0
        result = write_result("on_loop", {"processed": True}, 1024)
        self._ending = encode_ending(Ending(VERSION, "done", "on_loop", "", 1, 2, 3, 1, msgspec.Raw(result)))

    def prepare(self, ids: list[str]) -> None:
        """Forget the jobs of the round before, and renew the lease."""
        if ids:
            self._broker.call(Act("default", Delete(), ids))
        self._broker.call(Beat("default", [Heartbeat(self._incarnation, 60_000, ("on_loop",))]))

    def drain(self, count: int) -> None:
        call, incarnation, ending = self._broker.call, self._incarnation, self._ending
        for _ in range(count // self._batch):
            self._seq += 1
            seq = self._seq
            claimed = call(Claim("default", incarnation, seq, (self._batch, 0)))
            call(Settle("default", incarnation, seq, [Done(id, seq, ending) for id, _ in claimed.jobs]))


@pytest.mark.benchmark(group="claim and settle")
@pytest.mark.parametrize("batch", [1, 100])
def bench_claim_and_settle(measure: Measure, spool: Spool, data: str, batch: int) -> None:
    claimant = Claimant(spool.broker, batch)
    ids: list[str] = []

    def prepare() -> int:
        claimant.prepare(ids)
        calls = [on_loop.call(data, number) for number in range(JOBS)]
        ids[:] = [call.job.id for call in calls]
        return spool.enqueue_many(calls)

    measure.rounds(prepare, claimant.drain, operations=JOBS)
