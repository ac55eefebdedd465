import json
import subprocess
import sys

import pytest

from spool.broker import connect
from spool.cli import main
from spool.server.auth import first_token


@pytest.fixture
def store_url(tmp_path) -> str:
    url = f"sqlite:///{tmp_path}/spool.db"
    connect(url).close()
    return url


@pytest.fixture
def run(capsys, store_url):
    """Give what runs a command on the store: its exit code, and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([*arguments, "--url", store_url])
        said = capsys.readouterr()
        return exit_.value.code, said.out, said.err

    return run


def test_tokens_are_made_listed_and_revoked(run, tmp_path):
    (tmp_path / "spool.db").touch()
    code, token, _ = run("token", "create", "ci", "--scope", "enqueue", "--queue", "mail", "--expires", "30d")
    assert code == 0
    id = token.split("_")[1]

    code, table, _ = run("token", "list")
    assert code == 0
    assert id in table
    assert token.strip().split("_", 2)[2] not in table
    (row,) = json.loads(run("token", "list", "--json")[1])
    assert (row["name"], row["scopes"], row["queues"]) == ("ci", ["enqueue"], ["mail"])
    assert row["expires"] - row["created"] == 30 * 86_400_000

    assert run("token", "revoke", id)[:2] == (0, f"{id} (ci) revoked\n")
    assert json.loads(run("token", "list", "--json")[1]) == []
    assert run("token", "revoke", id)[0] == 2


def test_what_makes_no_token_is_refused(run, tmp_path):
    (tmp_path / "spool.db").touch()
    for given in (
        ["x"],
        ["x", "--scope", "root"],
        ["x", "--scope", "read", "--expires", "soon"],
        ["x", "--scope", "read", "--queue", "a b"],
        ["", "--scope", "read"],
    ):
        assert run("token", "create", *given)[0] == 2, given


def test_without_the_extra_the_command_names_it():
    code = (
        "import sys, importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'uvicorn' else found(name, *more)\n"
        "from spool.cli import main; main(['server'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 2
    assert "spool-queue[server]" in done.stderr


def test_the_command_line_imports_no_server_unless_it_serves():
    code = "import sys, spool.cli, spool; print([name for name in ('starlette', 'uvicorn') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)

    assert done.stdout == "[]\n"


async def test_the_first_token_is_made_once_by_many(store_url):
    broker = connect(store_url)
    try:
        made = [await first_token(broker) for _ in range(3)]
    finally:
        await broker.aclose()

    assert [token is not None for token in made] == [True, False, False]
