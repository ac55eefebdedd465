"""Tallies as tests want them: written whole. Spool itself only ever extends one."""

import msgspec

from spool.job import Attempt, Tally


def write_tally(tally: Tally, attempts: list[Attempt]) -> str:
    return b"\n".join(map(msgspec.json.encode, [tally, *attempts])).decode()
