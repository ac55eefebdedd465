"""Enqueue: one by one, each awaited, and in bulk."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from benchmarks.library.measure import Measure
from benchmarks.library.tasks import on_loop
from spool import Spool
from spool.broker import Act, Delete

ONE_BY_ONE = 100
MANY = 1_000


class Stored:
    """The jobs that a round has stored. The next one forgets them first, so that the store does not grow."""

    def __init__(self, spool: Spool) -> None:
        self._broker = spool.broker
        self.ids: list[str] = []

    def forget(self) -> Sequence[str]:
        if self.ids:
            self._broker.call(Act("default", Delete(), self.ids))
        self.ids.clear()
        return self.ids


@pytest.mark.benchmark(group="enqueue")
def bench_enqueue(measure: Measure, spool: Spool, data: str) -> None:
    stored = Stored(spool)

    def run(ids: list[str]) -> None:
        ids += [on_loop.enqueue(data, number).id for number in range(ONE_BY_ONE)]

    measure.rounds(stored.forget, run, operations=ONE_BY_ONE)


@pytest.mark.benchmark(group="enqueue")
def bench_aenqueue(measure: Measure, spool: Spool, data: str, loop: asyncio.Runner) -> None:
    stored = Stored(spool)

    async def one_by_one(ids: list[str]) -> None:
        ids += [(await on_loop.aenqueue(data, number)).id for number in range(ONE_BY_ONE)]

    measure.rounds(stored.forget, lambda ids: loop.run(one_by_one(ids)), operations=ONE_BY_ONE)
    loop.run(spool.broker.aclose())


@pytest.mark.benchmark(group="enqueue")
def bench_enqueue_many(measure: Measure, spool: Spool, data: str) -> None:
    stored = Stored(spool)

    def run(ids: list[str]) -> None:
        calls = [on_loop.call(data, number) for number in range(MANY)]
        spool.enqueue_many(calls)
        ids.extend(call.job.id for call in calls)

    measure.rounds(stored.forget, run, operations=MANY)
