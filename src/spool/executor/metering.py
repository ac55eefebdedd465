"""What a batch of attempts adds to the metrics: counted when it is settled, not as each attempt ends.

A loop over a hundred attempts that have ended finds what it needs at hand; counting each at its end takes longer, and
an attempt has little time. It also makes a blob agree with the settlements that it goes with.
"""

from __future__ import annotations

from collections.abc import Iterable

from spool.broker import Done
from spool.executor.attempt import Run
from spool.report import Meter, pack


def metrics_of(batch: Iterable[Run]) -> bytes:
    """Return the blob for attempts that have ended, as `spool.broker.Settle` takes it; see `spool.report`."""
    meters: set[Meter] = set()
    meter = Meter("")
    for run in batch:
        if run.recipe.meter is not meter:
            meter = run.recipe.meter
            meters.add(meter)
        began = run.began
        if began:
            ran = run.ended - began
            meter.runs[ran.bit_length()] += 1
            meter.ran += ran
            if not run.tally and (waited := run.offset + began // 1_000_000 - run.record.created) >= 0:
                meter.waits[waited.bit_length()] += 1
                meter.waited += waited
        else:
            meter.runs[0] += 1
        if type(run.settlement) is not Done:
            outcome = "lost" if run.settlement is None else type(run.settlement).__name__.lower()
            meter.others[outcome] = meter.others.get(outcome, 0) + 1
    return pack(meters)
