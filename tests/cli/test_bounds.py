"""Values out of bounds on the command line: one line that names the value and the bound."""

from __future__ import annotations

import pytest

from streamq.cli.entry import _run

# fmt: off
WRONG = {
    "high weight": (["worker", "app", "--tiers", "critical=10001"], ["'critical=10001' is out of", "1 to 10,000"]),
    "no memory": (["worker", "app", "--max-rss", "300"], ["'300' is out of bounds", "1,048,576 to 1,099,511,627,776"]),
    "no runs": (["worker", "app", "--max-tasks", "0"], ["0 is out of bounds", "1 to 1,000,000,000"]),
    "no weight": (["worker", "app", "--tiers", "critical=x"], ["'critical=x' is not a tier", "critical=6,standard=3"]),
    "priority of other digits": (["enqueue", "send", "--priority", "\uff15"], ["is not a priority", "whole number"]),
    "high priority": (["enqueue", "send", "--priority", "9999999999"], ["priority=9999999999", "2,147,483,648"]),
    "late time": (["enqueue", "send", "--at", "99999999999999"], ["'99999999999999' is out", "253,402,300,799"]),
    "early time": (["enqueue", "send", "--at", "-1"], ["'-1' is out of bounds", "0 to 253,402,300,799"]),
    "early date": (["enqueue", "send", "--at", "1969-01-01"], ["'1969-01-01' is out of bounds", "1970"]),
    "negative delay": (["enqueue", "send", "--delay", "-5s"], ["'-5s' is out of bounds", "0 to 10,000,000,000 s"]),
    "nan": (["enqueue", "send", "--timeout", "nan"], ["'nan' is out of bounds", "0 to 10,000,000,000 s"]),
    "inf": (["enqueue", "send", "--expires", "inf"], ["'inf' is out of bounds", "0 to 10,000,000,000 s"]),
    "retries": (["enqueue", "send", "--retries", "9999999999"], ["9999999999 is out", "0 to 1,000,000,000"]),
    "retries of other digits": (["enqueue", "send", "--retries", "\uff15"], ["whole number", "digits 0 to 9"]),
    "replay retries": (["dlq", "replay", "--all", "--retries", "9999999999"], ["9999999999 is out", "1,000,000,000"]),
    "scan": (["doctor", "--scan", "9" * 5000], ["is out of bounds", "0 to 1,000,000,000"]),
    "digits of a list": (["enqueue", "send", "[" + "9" * 30 + "]"], ["9" * 30, "more than 64 bits", "in quotes"]),
    "digits of kwargs": (["enqueue", "send", "--kwargs", '{"a": ' + "9" * 30 + "}"], ["9" * 30, "more than 64 bits"]),
    "entry id": (["dlq", "tail", "--since", "9" * 30 + "-0"], ["9" * 30, "18,446,744,073,709,551,615"]),
    "unseen user": (["acl", "--role", "worker", "--user", "x\x1b"], ["without control or invisible characters"]),
}
# fmt: on


@pytest.mark.parametrize(("arguments", "parts"), WRONG.values(), ids=WRONG.keys())
def test_value_and_bound_are_named(arguments, parts, capfd):
    """Before any server is asked."""
    assert _run(arguments) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    for part in parts:
        assert part in err
