"""Programs for type checkers to judge; see tests/test_typing.py. They are not run."""
