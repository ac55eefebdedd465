"""What is secret in a broker's URL is in no error, and not in the URL that is shown."""

import sys
import traceback

import pytest

from spool.bench import sides
from spool.broker import Stats, connect
from spool.broker.scratch import scratch
from spool.broker.url import hidden, split
from spool.cli import main
from spool.errors import ConfigError, SpoolError

SECRETS = ("s3cr", "et@", "t0k")
LEAKY = [
    f"{scheme}://{user}s3cr{mark}et@localhost:1{rest}"
    for scheme, rest in [("redis", "/0"), ("rediss", "/0"), ("valkey", ""), ("http", ""), ("https", "/base")]
    for user in ("user:", ":", "")
    for mark in ("/", "#", "?", "[", "]", "@", "/t0k@", "?t0k=1&", "?prefix=a ", "\u2100")
] + [
    "redis://user:123/s3cret@localhost:1/0",
    "redis://:123?s3cret=1@localhost:1/0",
    "redis://user:s3cret@localhost:1/0",
    "redis://:s3cr:et@localhost:1/0",
    "redis://localhost:1/0?password=s3cret",
    "redis://localhost:1/0?password=s3cr&t0k=1",
    "redis://localhost:1/0?password=s3cr%40t0k",
    "redis://localhost:1/0?password=s3cr@t0k",
    "redis://localhost:1/0?password=s3cr#t0k",
    "redis://localhost:1/0?prefix=a@b&password=s3cret",
    "redis://localhost:1/0?passwd=s3cret",
    "rediss://localhost:1/0?ssl_password=s3cret",
    "rediss://localhost:1/0?ssl_certfile=/nowhere&ssl_password=s3cret",
    "https://localhost:1?ssl_certfile=/nowhere&ssl_password=s3cret",
    "http://localhost:1?token=s3cret",
    "http://localhost:1?s3cr?et@host",
    "unix://:s3cret@/tmp/x.sock",
    "unix://user:s3cr/et@/tmp/x.sock",
    "unix:///tmp/x.sock?password=s3cret",
    "sqlite://:s3cret@/x",
    "sqlite://s3cr/et@/x",
    "sqlite:///x.db?password=s3cret",
    "postgres://user:s3cr/et@h",
    "s3cret@localhost:6379",
    "user:s3cret@localhost",
]


def said(url: str) -> str:
    """Return all that a broker shows of its URL, errors with their causes included."""
    try:
        broker = connect(url)
    except SpoolError as error:
        return "".join(traceback.format_exception(error)) + repr(error.__context__)
    try:
        broker.call(Stats("q"))
        return broker.url
    except SpoolError as error:
        return f"{broker.url} {error!r} {broker!r}"
    finally:
        broker.close()


@pytest.mark.parametrize("url", LEAKY)
def test_nothing_secret_is_shown(url, monkeypatch):
    monkeypatch.delenv("SPOOL_TOKEN", raising=False)
    shown = said(url)
    assert shown
    assert not [each for each in SECRETS if each in shown or each in hidden(url)], shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0?prefix=shop", "redis://localhost:6379/0?prefix=shop"),
        ("redis://user:pw@localhost/0", "redis://user:***@localhost/0"),
        ("redis://:pw@localhost/0", "redis://:***@localhost/0"),
        ("rediss://h/0?ssl_keyfile=/k&ssl_password=x", "rediss://h/0?ssl_keyfile=/k&ssl_password=***"),
        ("http://user:pw@h:1", "http://***@h:1"),
        ("sqlite:////tmp/a@b.db?synchronous=full", "sqlite:////tmp/a@b.db?synchronous=full"),
        ("sqlite://:memory:", "sqlite://:memory:"),
        ("unix:///run/a@b.sock?db=1", "unix:///run/a@b.sock?db=1"),
    ],
)
def test_what_is_no_secret_is_shown(url, shown):
    assert hidden(url) == shown


def test_what_cannot_be_read_is_said_with_how_to_write_it():
    for url in ("redis://user:a[b@h", "http://:a/b@h", "redis://:a/b@h"):
        with pytest.raises(ConfigError, match=r"@h: it has no host or port .* are written %2F"):
            split(url)


def test_a_prefix_and_a_file_may_have_an_at_sign(redis_url):
    broker = connect(f"{redis_url}?prefix=a@b")
    assert broker.call(Stats("q")).running == 0
    broker.close()


@pytest.mark.parametrize(
    "url", ["redis://:s3cr[et@h", "redis://:s3cr/et@h", "sqlite://s3cret@/x", "https://s3cr?et@h:1"]
)
def test_commands_show_none_either(url, capsys):
    for command in (["queues"], ["jobs", "list"], ["bench", "quick"], ["server"]):
        with pytest.raises(SystemExit):
            main([*command, "--url", url])
        out = "".join(capsys.readouterr())
        assert "Traceback" not in out
        assert not [each for each in SECRETS if each in out]


def test_a_store_of_ones_own_is_refused_without_what_is_secret():
    for url in ("sqlite://s3cret@/x", "redis://:s3cr[et@h?prefix=a"):
        with pytest.raises(ConfigError) as caught, scratch(url, "test"):
            pass
        assert "s3cr" not in str(caught.value)


def test_a_side_that_failed_is_shown_without_it():
    side = sides.Side("base", sys.executable, None, "redis://:s3cret@h")
    error = sides._failed(side, sides._command(side, [], 1), 1, "")
    assert "redis://:***@h" in error.__notes__[0]
    assert "s3cret" not in error.__notes__[0]
