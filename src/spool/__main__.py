"""``python -m spool``: the command, where its script is not on the PATH."""

from spool.cli import main

main()
