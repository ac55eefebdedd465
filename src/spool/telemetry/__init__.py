"""Metrics in band: what workers report with their settles, rolled up in the broker, and read again.

`Roller` counts and samples, in any number of servers at once; `History` reads the course of things over a time,
`recent` the rates of the last minute, and `survey` finds what is wrong now. `Counted` is a broker that counts its
errors. `spool.telemetry.prometheus` says all of it to Prometheus.
"""

from spool.telemetry.counted import Counted
from spool.telemetry.history import Course, History, Latency
from spool.telemetry.recent import Recent, recent
from spool.telemetry.roller import Roller
from spool.telemetry.survey import Summary, Trouble, survey

__all__ = ["Counted", "Course", "History", "Latency", "Recent", "Roller", "Summary", "Trouble", "recent", "survey"]
