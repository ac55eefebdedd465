"""The ``spool`` command. Each command imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from spool import __version__
from spool.cli import (
    ab,
    bench,
    chaos,
    comparison,
    dead,
    jobs,
    measure,
    profile,
    profiled,
    queues,
    run,
    scaling,
    serve,
    stored,
)
from spool.cli.output import printable
from spool.errors import ConfigError, PayloadError, SpoolError, TaskError

_BAD_USAGE = (ConfigError, TaskError, PayloadError)
_INTERRUPTED = 130
_UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# New in click 8.2; before, it printed by itself.
_NO_ARGUMENTS: type[click.UsageError] | tuple[()] = getattr(click.exceptions, "NoArgsIsHelpError", ())


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="spool")
def spool() -> None:
    """Run, watch and measure Spool, a distributed task queue."""


for _command in (
    run.worker,
    run.enqueue,
    run.workers,
    jobs.jobs,
    queues.queues,
    dead.dead,
    serve.server,
    serve.token,
    bench.bench,
    profile.profile,
    measure.demo,
    chaos.chaos,
):
    spool.add_command(_command)
for _command in (scaling.scalability, profiled.profiled, comparison.compare, ab.ab, stored.report):
    bench.bench.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit.

    0 is done, 1 the broker or the job said no, or stdout cannot be written, 2 wrong usage, 3 a comparison cannot tell,
    130 interrupted.
    """
    if sys.stdout is None:  # closed: as good as thrown away, and what is opened next must not take its number
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - until the end
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _unwritten(error)
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code: object = spool.main(arguments, prog_name="spool", standalone_mode=False)
    except click.Abort:
        return _INTERRUPTED
    except click.ClickException as error:
        if isinstance(error, _NO_ARGUMENTS):
            click.echo(error.format_message(), err=True)  # the help text, as it is
            return error.exit_code
        context = getattr(error, "ctx", None)
        _complain(error.format_message(), context.command_path if context else "spool")
        return error.exit_code
    except SpoolError as error:
        _complain(str(error) or type(error).__name__, "spool")
        return 2 if isinstance(error, _BAD_USAGE) else 1
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        return _unwritten(error)
    return code if isinstance(code, int) else 0


def _unwritten(error: OSError) -> int:
    """Say that stdout cannot be written, unless whoever read it has left; return the exit code."""
    if error.errno != errno.EPIPE:
        with contextlib.suppress(OSError):  # that may be on the same disk
            _complain(f"cannot write to stdout: {error.strerror}", "spool")
    # What is left there would fail again at the interpreter's end, which says so by itself.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _complain(message: str, command: str) -> None:
    click.echo(f"{command}: {printable(' '.join(message.split()))}", err=True)
