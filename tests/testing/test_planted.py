"""A clean log with one planted violation: only the right row reports it."""

from __future__ import annotations

import pytest

from streamq.testing import Question
from tests.testing import plants_ends, plants_tasks, plants_workers
from tests.testing.builder import orderly, violated
from tests.testing.planting import PLANTS

MODULES = (plants_ends, plants_tasks, plants_workers)  # imported for what they register


@pytest.mark.parametrize(("function", "question"), PLANTS)
def test_a_planted_violation_is_caught_by_its_row_and_by_no_other(function, question):
    """The checker finds the violation in its row only."""
    assert violated(orderly(function)) == {question}


@pytest.mark.parametrize(("function", "question"), PLANTS)
def test_a_violation_says_what_it_is_about(function, question):
    """A row that is violated names the task, the worker or the key."""
    (row,) = orderly(function).check().violations
    assert row.value == 1 or row.unit == "s" or row.question == Question.CRASHES
    if row.question != Question.EFFECTS:
        assert row.examples
        assert any(name in row.examples[0] for name in ("x", "w1", "w9", "line 7"))


def test_every_question_has_a_planted_violation():
    """Each row can fail, except the one for tasks lost with the server's data."""
    covered = {param.values[1] for param in PLANTS}
    assert set(map(str, Question)) - covered == {Question.FORGIVEN}
