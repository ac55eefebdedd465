"""What is written and read on a job's way: its arguments, its record, its result."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.library.measure import Measure
from benchmarks.library.tasks import on_loop
from spool.job import encode_record, read_record
from spool.payload import Signature, write_result

LIMIT = 1024 * 1024


async def echo(data: str, number: int) -> dict[str, str]:
    return {"echo": data}


SIGNATURE = Signature("echo", echo)


@pytest.mark.benchmark(group="arguments")
def bench_encode_arguments(measure: Measure, data: str) -> None:
    measure.each(lambda: SIGNATURE.write((data, 17), {}, LIMIT))


@pytest.mark.benchmark(group="arguments")
def bench_decode_arguments(measure: Measure, data: str) -> None:
    payload = SIGNATURE.write((data, 17), {}, LIMIT)
    assert list(SIGNATURE.read(payload)[0]) == [data, 17]
    measure.each(lambda: SIGNATURE.read(payload))


@pytest.mark.benchmark(group="record")
def bench_encode_record(measure: Measure, data: str) -> None:
    record = read_record(on_loop.call(data, 17).job.record)
    measure.each(lambda: encode_record(record))


@pytest.mark.benchmark(group="record")
def bench_decode_record(measure: Measure, data: str) -> None:
    body = on_loop.call(data, 17).job.record
    measure.each(lambda: read_record(body))


@pytest.mark.benchmark(group="record")
def bench_make_call(measure: Measure, data: str) -> None:
    """All that an enqueue does before it asks the broker: arguments, id, record."""
    measure.each(lambda: on_loop.call(data, 17))


@pytest.mark.benchmark(group="result")
def bench_encode_result(measure: Measure, data: str) -> None:
    result = {"echo": data}
    measure.each(lambda: write_result("echo", result, LIMIT))


@pytest.mark.benchmark(group="result")
def bench_decode_result(measure: Measure, data: str) -> None:
    raw = msgspec.Raw(write_result("echo", {"echo": data}, LIMIT))
    assert SIGNATURE.read_result(raw) == {"echo": data}
    measure.each(lambda: SIGNATURE.read_result(raw))
