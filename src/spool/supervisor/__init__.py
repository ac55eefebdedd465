"""Worker processes under a supervisor.

`run_workers` is what ``spool worker`` runs; `Fleet` does the same from within another program.

A single process is a child under a supervisor, too. Running it in the supervisor's own process would save some 30 MB,
but nobody would be there to hand its jobs back and to start it again when a job takes it down: that would cost a
lease's time, and the deployment a restart. The supervisor itself runs no code of the tasks.
"""

from __future__ import annotations

import signal

from spool.log import configure
from spool.supervisor.fleet import Fleet
from spool.supervisor.options import WorkerOptions
from spool.supervisor.profiling import Profiler

__all__ = ["Fleet", "WorkerOptions", "run_workers"]


def run_workers(options: WorkerOptions) -> int:
    """Run worker processes until they are told to stop, and return the exit code: 0 after an orderly stop.

    Blocks; from the main thread only. SIGTERM, SIGINT or SIGHUP stops gracefully (no more claims, running jobs get
    ``grace`` seconds, what is left is handed back), a second one at once. A process that dies is started again, with a
    backoff. SIGUSR2 records profiles, if the options say where to. Raises `ConfigError` for an app that cannot be
    loaded or options that cannot be used.
    """
    configure(options.log_level, options.log_format)
    fleet = Fleet(options)
    profiler = Profiler(fleet)

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {signum: signal.signal(signum, lambda _signum, _frame: fleet.ask_to_stop()) for signum in signals}
    # Always, for the default is to end the process.
    before[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, lambda _signum, _frame: profiler.ask())
    try:
        fleet.start()
        while not fleet.join(0.5):  # a signal that another thread took does not wake this one
            profiler.poll()
    finally:
        profiler.close()
        fleet.kill()
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return 0
