"""The examples in docstrings run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "app",
        "broker",
        "errors",
        "grouping",
        "job",
        "payload",
        "profile.cpu",
        "profile.model",
        "profile.table",
        "retry",
        "selection",
        "server.auth",
        "server.login",
        "server.problems",
        "server.serve",
        "server.settings",
        "task",
        "testing",
    ],
)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"spool.{name}")
    assert doctest.testmod(module).failed == 0
    assert not list(tmp_path.iterdir())
