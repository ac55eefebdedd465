"""What becomes of a dead worker's jobs on SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from spool.broker import Retire, Retired
from spool.broker.sqlite.jobs import record_of, tally_text
from spool.broker.sqlite.store import RUNNING, Queue, Row, Transaction, to_json
from spool.job import Attempt, split_tally

STEP: Final = 500
"""Jobs that one call hands back; and that a claim promotes, or takes out of parking."""
MAX_CRASHES: Final = 3
"""For a record that cannot be read."""


def retire(tx: Transaction, verb: Retire) -> Retired:
    queue = tx.queue(verb.queue)
    blamed = verb.blamed if verb.reason == "crashed" else None
    reason = verb.reason if blamed is None else "stopped"
    first = tx.run("retire", queue.id, verb.incarnation, tx.now, reason, verb.detail)
    crashed = _blame(tx, queue, verb, blamed) if first and blamed else 0
    done, remaining = retire_some(tx, queue, verb.incarnation, max(STEP - crashed, 0))
    return Retired(tx.now, crashed + done, remaining)


def _blame(tx: Transaction, queue: Queue, verb: Retire, ids: Sequence[str]) -> int:
    """Hand back as crashed those of these jobs which the incarnation holds; return how many."""
    key = tx.one("retired", queue.id, verb.incarnation)[0]
    found = tx.records("jobs_by_id", queue.id, to_json(ids))
    held = [(row, body) for row, body in found if row.state == RUNNING and row.holder == key]
    hand_back(tx, queue, held, worker=verb.incarnation, outcome="crashed", detail=verb.detail)
    return len(held)


def retire_some(tx: Transaction, queue: Queue, name: str, most: int) -> tuple[int, int]:
    """Go on handing back what a retired incarnation holds; return how many jobs were, and how many are still to be."""
    key, reason, detail = tx.one("retired", queue.id, name)
    held: Sequence[tuple[Row, bytes | None]]
    if reason == "crashed":  # only then it matters how many crashes the job may have
        held = tx.records("held_by", queue.id, key, most)
    else:
        held = [(row, None) for row in tx.jobs("held_by", queue.id, key, most)]
    hand_back(tx, queue, held, worker=name, outcome=reason, detail=detail)
    remaining = tx.value("holding", queue.id, key) if len(held) == most else 0
    if not remaining:
        tx.run("set_handed_back", key)
    return len(held), remaining


def hand_back(
    tx: Transaction,
    queue: Queue,
    held: Sequence[tuple[Row, bytes | None]],
    *,
    worker: str,
    outcome: str,
    detail: str = "",
) -> None:
    """Make running jobs ready again in their old place, or let them die of their last crash."""
    dead: list[str] = []
    for row, body in held:
        numbers, lines = split_tally(row.tally)
        numbers[1] += 1
        numbers[3] += outcome == "crashed"
        numbers[4] += outcome == "lost"
        line = Attempt(numbers[1], outcome, row.at or 0, tx.now, worker)
        record = record_of(body)
        if outcome == "crashed" and numbers[3] >= (record.max_crashes if record else MAX_CRASHES):
            line = msgspec.structs.replace(line, error_type="WorkerCrashed", message=detail)
            dead.append(row.id)
            queue.bury(row, tx.now)
        else:
            row.suspect |= outcome == "crashed" and numbers[3] >= 2
            queue.to_place(row)
        row.tally = tally_text(numbers, f"{lines}\n{to_json(line)}" if lines else to_json(line))
    if held:
        tx.move(queue, [row for row, _ in held])
        queue.count(outcome, len(held))
        tx.ended.append((queue.name, dead))
        tx.stirred.add(queue.name)
