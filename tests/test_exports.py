import importlib
import subprocess
import sys

import pytest

import spool


def test_the_list_is_sorted_and_complete():
    assert spool.__all__ == sorted(spool.__all__, key=str)
    public = {name for name in vars(spool) if not name.startswith("_") and not inspect_module(name)}
    assert public | {"__version__", "current_job"} == set(spool.__all__)


def inspect_module(name):
    return type(getattr(spool, name)) is type(spool) or name in {"annotations", "TYPE_CHECKING", "Any"}


@pytest.mark.parametrize("name", spool.__all__)
def test_each_name_is_there(name):
    assert getattr(spool, name) is not None


def test_every_error_is_public():
    errors = importlib.import_module("spool.errors")
    assert {name for name in vars(errors) if name[0].isupper()} <= set(spool.__all__)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'spool' has no attribute 'nothing'"):
        spool.nothing  # noqa: B018


def test_the_import_is_light():
    heavy = {"asyncio", "click", "hiredis", "pydantic", "redis", "rich", "sqlite3", "uvloop"}
    script = (
        "import sys, spool\n"
        "app = spool.Spool()\n"
        "@app.task\n"
        "async def send(to: str) -> int: ...\n"
        f"print(sorted(sys.modules.keys() & {heavy}))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"
