"""The main job, on real input: index a directory tree with the queue, and tell what is in it."""

from spool.demo.files import Totals, plain_loop
from spool.demo.indexer import Progress, Report, run

__all__ = ["Progress", "Report", "Totals", "plain_loop", "run"]
