"""P13: logging harms nothing: filters, handlers, formatters and values of the user may raise anything."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

import streamq
from streamq.diagnostics.safe_log import LOGGED, TEXT_LOGGED, SafeLog, faults

RAISED = [LookupError, RecursionError, SystemExit, KeyboardInterrupt, GeneratorExit]


@pytest.fixture
def logger():
    """A logger of this test's own, without what pytest adds to the others."""
    found = logging.getLogger("streamq.tests.safe_log")
    found.propagate = False
    found.setLevel(logging.INFO)
    yield found
    found.handlers.clear()
    found.filters.clear()


class Kept(logging.Handler):
    """Keeps what it would print."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.mark.parametrize("kind", RAISED)
def test_a_filter_or_a_handler_that_raises_is_reported_and_swallowed(logger, kind, capsys):
    """On stderr, and not for each line."""

    def refuse(_):
        raise kind("no request\nhere")

    log = SafeLog(logger.name)
    handler = Kept()
    handler.addFilter(refuse)
    logger.addHandler(handler)
    faults.count = 0
    for _ in range(100):
        log.info("hello %s", 1, event="test")
    assert faults.count == 100
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 7  # the 1st, 2nd, 4th, ... 64th
    assert kind.__name__ in said[0]
    assert "no request\\nhere" in said[0]


@pytest.mark.parametrize("kind", RAISED)
def test_a_value_that_cannot_be_shown_costs_its_text_and_not_the_line(logger, kind):
    """`%s` and `%r` of users' values."""

    class Value:
        def __str__(self):
            raise kind

        __repr__ = __str__

    handler = Kept()
    logger.addHandler(handler)
    SafeLog(logger.name).warning("%s is %s and %r", "it", Value(), Value(), event="test")
    assert handler.lines == [
        f"it is <no text: its __str__ raised {kind.__name__}> and <no text: its __repr__ raised {kind.__name__}>"
    ]


def test_a_value_has_a_bound(logger):
    """A text of a megabyte is no line of a log."""
    handler = Kept()
    logger.addHandler(handler)
    log = SafeLog(logger.name)
    log.info("%s", "x" * 1_000_000, event="test")
    log.info("%s", ValueError("x" * 1_000_000), event="test")
    log.info("%g %d %.1f %s", 1.5, 2, 3.0, "short", event="test")
    assert len(handler.lines[0]) <= TEXT_LOGGED
    assert len(handler.lines[1]) <= LOGGED
    assert handler.lines[2] == "1.5 2 3.0 short"


def test_a_stderr_that_is_closed_does_no_harm(logger, monkeypatch):
    """There is nowhere left to say it."""

    def refuse(_):
        raise LookupError

    logger.addFilter(refuse)
    monkeypatch.setattr("sys.stderr", None)
    faults.count = 0
    SafeLog(logger.name).error("hello", event="test")
    assert faults.count == 1


def test_a_record_names_the_place_that_logs(logger):
    """And not this wrapper."""
    found = []
    logger.addFilter(found.append)
    logger.addHandler(Kept())
    SafeLog(logger.name).info("hello", event="test")
    assert found[0].funcName == "test_a_record_names_the_place_that_logs"


@pytest.mark.slow
def test_streamq_logs_in_no_other_way():
    """A house rule: no module but `safe_log` calls a logger."""
    package = Path(streamq.__file__).parent
    allowed = {
        "diagnostics/safe_log.py",
        "diagnostics/log_fields.py",  # what a record has
        "logs.py",
        "cli/logs.py",
        "cli/banner.py",
        "cli/worker_process.py",
        *(
            f"consumer/process_{part}.py" for part in ("channel", "child", "handle", "logging", "output", "pool")
        ),  # lines of handlers
    }  # levels
    found = []
    for path in package.rglob("*.py"):
        name = str(path.relative_to(package))
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=[ast.alias(name="logging"), *_]) if name not in allowed:
                    found.append(name)
                case ast.Call(func=ast.Attribute(ast.Call(func=ast.Attribute(ast.Name("logging"), "getLogger")), what)):
                    if what != "isEnabledFor" and name != "diagnostics/safe_log.py":
                        found.append(name)
    assert found == []
