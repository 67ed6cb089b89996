"""Why a stored definition of a schedule cannot be used: the error names the field, its value and the remedy."""

from __future__ import annotations

import orjson
import pytest

from streamq.queue.schedules import ScheduleDefinition

GOOD = {"cron": "0 3 * * *", "task": "t", "stream": "queue:bulk", "fields": ["task", "t"]}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"expires": 1e300}, "expires=1e+300 cannot be used: give a number of at least 0 and at most"),
        ({"expires": "soon"}, "expires='soon' cannot be used"),
        ({"missed": "never"}, "missed='never' cannot be used: give one of last, skip, all"),
        ({"missed": ["last"]}, "missed=['last'] cannot be used"),
        ({"fields": ["task"]}, "fields=['task'] cannot be used: give names and values in turn, not 1 texts"),
        ({"fields": []}, "fields=[] cannot be used: give names and values in turn"),
        ({"fields": "task"}, "fields='task' cannot be used: give an array of texts"),
        ({"fields": ["task", 1]}, "fields=['task', 1] cannot be used: give an array of texts"),
        ({"headers": []}, "headers=[] cannot be used: give an object"),
        ({"tz": None}, "tz=None cannot be used: give a text"),
        ({"task": ""}, "task='' cannot be used: give the name of a task"),
    ],
)
def test_the_field_is_named(changes, why):
    """So whoever wrote the definition finds it."""
    found = ScheduleDefinition.read("n", orjson.dumps({**GOOD, **changes}))
    assert isinstance(found, str)
    assert found.startswith(why)
    assert ScheduleDefinition.parse("n", orjson.dumps({**GOOD, **changes})) is None


@pytest.mark.parametrize(
    ("packed", "why"),
    [(b"nojson", "it is not JSON"), (b"\xff", "it is not JSON"), (b"[1]", "it is no JSON object: [1]"),
     (b"{}", "it has no field 'cron'"), (b'{"cron":"@daily","task":"t","stream":"s"}', "it has no field 'fields'")],
)  # fmt: skip
def test_what_is_no_definition(packed, why):
    """Whatever lies there."""
    assert str(ScheduleDefinition.read("n", packed)).startswith(why)


def test_the_four_fields_are_enough():
    """The others have defaults."""
    found = ScheduleDefinition.read("n", orjson.dumps(GOOD))
    assert isinstance(found, ScheduleDefinition)
    assert (found.tz, found.missed, found.overlap, found.declared, found.expires) == ("UTC", "last", True, False, None)
