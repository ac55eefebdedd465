"""How much a Redis server has done so far, by its own account."""

from __future__ import annotations

from typing import Any

from spool.broker.scratch import client_of
from spool.errors import BrokerUnavailable

_SCRIPTS = ("cmdstat_evalsha", "cmdstat_eval")


def load_of(url: str) -> dict[str, float]:
    """Return the seconds that the server spent in scripts, and on a processor; nothing if it does not tell.

    It counts all of its clients. What scripts call is counted within the scripts.
    """
    if url.startswith("sqlite:"):
        return {}
    try:
        with client_of(url) as client:
            stats: dict[str, Any] = client.info("commandstats")
            cpu: dict[str, Any] = client.info("cpu")
    except BrokerUnavailable:  # a managed server may refuse it
        return {}
    return {
        "scripts": sum(float(stats[name]["usec"]) for name in _SCRIPTS if name in stats) / 1e6,
        "processor": float(cpu["used_cpu_sys"]) + float(cpu["used_cpu_user"]),
    }
