"""The benchmark: how fast, how late, at what cost, and with every job accounted for.

>>> from spool.bench import Plan, run
>>> result = run(Plan(jobs=20, workers=1)).result  # doctest: +SKIP
>>> (result.done, result.lost, result.duplicated)  # doctest: +SKIP
(20, 0, 0)
"""

from spool.bench.plan import QUICK, Plan
from spool.bench.result import SCHEMA, BenchResult
from spool.bench.runner import run

__all__ = ["QUICK", "SCHEMA", "BenchResult", "Plan", "run"]
