import inspect
import re

import pytest

from spool import errors
from spool.errors import Cancel, Directive, EnqueueInterrupted, JobFailed, Release, ResultTimeout, Retry, SpoolError


def classes():
    return {name: each for name, each in vars(errors).items() if inspect.isclass(each)}


def drawn():
    """The tree in the docstring, as child: parent."""
    parents, path = {}, []
    for line in errors.__doc__.split("```")[1].splitlines():
        if match := re.match(r"([│├└─ ]*)(\w+)", line):
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            parents[match[2]] = path[depth - 1] if depth else "Exception"
    parents.update(re.findall(r"── ()", "") or {})
    return parents


def test_the_docstring_draws_the_tree():
    tree, directives = drawn(), {}
    for line in errors.__doc__.splitlines():
        if match := re.match(r"(├── |└── |)(Directive|Retry|Cancel|Release)\b", line):
            directives[match[2]] = "Directive" if match[1] else "Exception"
    actual = {name: each.__bases__[0].__name__ for name, each in classes().items()}
    assert tree | directives == actual


@pytest.mark.parametrize("each", classes().values())
def test_each_says_what_it_means(each):
    assert each.__doc__.strip()


def test_directives_are_no_errors():
    for directive in (Retry, Cancel, Release):
        assert issubclass(directive, Directive)
        assert not issubclass(directive, SpoolError)


def test_what_they_carry():
    assert EnqueueInterrupted("stopped", 5).acknowledged == 5
    failed = JobFailed("dead", "ValueError", "Traceback")
    assert (str(failed), failed.error_type, failed.traceback) == ("dead", "ValueError", "Traceback")
    assert isinstance(ResultTimeout("late"), TimeoutError)
    assert (Retry("busy", delay=5).reason, Retry().delay) == ("busy", None)
    assert (Release().delay, str(Cancel("why"))) == (0.1, "why")
