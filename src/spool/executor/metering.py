"""What a batch of attempts adds to the metrics: counted when it is settled, not as each attempt ends.

A loop over a hundred attempts that have ended finds what it needs at hand; counting each at its end takes longer, and
an attempt has little time. It also makes a blob agree with the settlements that it goes with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from spool.broker import Done
from spool.executor.attempt import Run
from spool.report import Meter, pack


def metrics_of(batch: Iterable[Run]) -> tuple[bytes, Collection[Meter]]:
    """Return the blob for attempts that have ended, as `spool.broker.Settle` takes it; see `spool.report`.

    And whose counts it has: they are `Meter.told` when the store has it.
    """
    meters: dict[Meter, None] = {}
    meter = Meter("")
    runs, waits, ran, waited = meter.runs, meter.waits, 0, 0
    for run in batch:
        if run.recipe.meter is not meter:
            meter.ran += ran
            meter.waited += waited
            meter = run.recipe.meter
            meters[meter] = None
            runs, waits, ran, waited = meter.runs, meter.waits, 0, 0
        began = run.began
        if began:
            took = run.ended - began
            runs[took.bit_length()] += 1
            ran += took
            if not run.tally:
                wait = (run.at or run.offset + began // 1_000_000) - run.record.created
                if wait >= 0:
                    waits[wait.bit_length()] += 1
                    waited += wait
        else:
            runs[0] += 1
        if type(run.settlement) is not Done:
            outcome = "lost" if run.settlement is None else type(run.settlement).__name__.lower()
            meter.others[outcome] = meter.others.get(outcome, 0) + 1
    meter.ran += ran
    meter.waited += waited
    return pack(meters), meters
