"""The route that compares two results of the benchmark, which a browser has read from files.

The comparison is that of ``spool bench compare``, run as a process of its own: it brings SciPy and the benchmark, which
a server has no other use for, and takes a second.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec

from spool.server.problems import Refused
from spool.server.routes import Ask, Operation

LARGEST: Final = 8 * 1024 * 1024
SECONDS: Final = 30.0
_busy = asyncio.Semaphore(1)


class CompareRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two results, as ``spool bench quick --json`` writes them: docs/reference/bench-result.md says what is in one."""

    before: dict[str, Any]
    after: dict[str, Any]


class ResultChange(msgspec.Struct, frozen=True):
    """How a metric changed, as in `spool.bench.compare.Change`: ratios less 1; null where nothing can be said."""

    metric: str
    unit: str
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    verdict: str


class ResultComparison(msgspec.Struct, frozen=True):
    """What became of each metric, and what else is not the same; see `spool.bench.compare.Comparison`."""

    changes: list[ResultChange]
    differences: list[str]
    drift: float | None
    confidence: float


class _Compared(msgspec.Struct, frozen=True):
    comparison: ResultComparison


async def compare(ask: Ask[None, CompareRequest]) -> ResultComparison:
    """Compare two results of the benchmark: what became faster or slower. Needs the extra ``bench`` on the server."""
    if _busy.locked():
        raise Refused(503, "another comparison is under way", ((b"retry-after", b"2"),))
    async with _busy:
        with tempfile.TemporaryDirectory(prefix="spool-compare-") as folder:
            paths = [Path(folder, "before.json"), Path(folder, "after.json")]
            for path, result in zip(paths, (ask.body.before, ask.body.after), strict=True):
                path.write_bytes(msgspec.json.encode(result))
            return await _run([sys.executable, "-m", "spool", "bench", "compare", *map(str, paths), "--json"])


async def _run(command: list[str]) -> ResultComparison:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        raise Refused(504, "the comparison took too long") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = err.decode(errors="replace").strip().splitlines() or ["it failed"]
        raise Refused(422, f"the results cannot be compared: {said[-1][:500]}")
    return msgspec.json.decode(out, type=list[_Compared])[0].comparison


ROUTES = (
    Operation(
        "POST",
        "/api/v1/benchmarks/compare",
        compare,
        "read",
        "Compare two results of the benchmark",
        request=CompareRequest,
        response=ResultComparison,
        max_body=LARGEST,
        queues=True,
        answers={504: "The comparison took too long"},
        mutates=False,
    ),
)
