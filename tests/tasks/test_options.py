"""The options of one enqueue: `task.options(...)`, and the check of each value."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

import pytest

from streamq import Options, Priority, task
from streamq.errors import ConfigurationError
from streamq.tasks.options import OPTION_NAMES, merge


@task
async def plain(to: str, n: int = 1) -> dict: ...


def test_options_make_another_task_and_leave_the_first():
    """`task.options(...)` is a value; options add up, the later wins."""
    low = plain.options(priority=Priority.LOW, delay=30)
    again = low.options(delay=5, retries=1)
    assert plain.send_options == Options()
    assert low.send_options == Options(priority=Priority.LOW, delay=30)
    assert again.send_options == Options(priority=Priority.LOW, delay=5, retries=1)
    assert type(low) is type(plain)
    assert low.function is plain.function


def test_every_option_of_the_contract_is_there():
    """SPEC 2 names these, and more may come."""
    wanted = {"priority", "delay", "at", "expires", "retries", "dedup_key", "dedup_ttl", "task_id"}
    assert wanted <= OPTION_NAMES
    assert merge(Options(), {"delay": 1}) == Options(delay=1)
    with pytest.raises(ConfigurationError, match=r"no such option: dealy; there are .*delay"):
        plain.options(dealy=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"delay": 1, "at": 5.0}, "give one of them"),
        ({"dedup_ttl": 5}, "without dedup_key"),
        ({"delay": -1}, "delay=-1"),
        ({"delay": float("nan")}, "delay=nan"),
        ({"delay": timedelta(seconds=-1)}, "delay="),
        ({"delay": "5"}, "delay='5'"),
        ({"at": datetime(2024, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"at": float("nan")}, "at=nan"),
        ({"at": float("inf")}, "at=inf"),
        ({"at": "tomorrow"}, "at='tomorrow'"),
        ({"expires": datetime(2024, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"expires": -5}, "expires=-5"),
        ({"retries": -1}, "retries=-1"),
        ({"retries": 1.5}, "retries=1.5"),
        ({"retries": True}, "retries=True"),
        ({"timeout": float("inf")}, "timeout=inf"),
        ({"result_ttl": "1"}, "result_ttl='1'"),
        ({"dedup_key": 5}, "dedup_key=5"),
        ({"dedup_key": "k", "dedup_ttl": -1}, "dedup_ttl=-1"),
        ({"task_id": ""}, "task_id=''"),
        ({"task_id": "a b"}, "task_id='a b'"),
        ({"task_id": 7}, "task_id=7"),
        ({"headers": [1]}, "headers="),
        ({"priority": "high"}, "priority='high'"),
        ({"tier": 1}, "tier=1"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, says):
    """Where they are written, not by the worker that cannot read them."""
    with pytest.raises(ConfigurationError, match=says):
        plain.options(**options)


def test_moments_may_be_numbers_or_aware_datetimes():
    """And spans seconds or timedeltas."""
    now = datetime.now(UTC)
    assert Options(at=now, expires=timedelta(hours=1)).at == now
    assert Options(at=now.timestamp(), expires=now).expires == now
    assert Options(delay=timedelta(seconds=3)).delay == timedelta(seconds=3)


class Nowhere(tzinfo):
    """A time zone that does not know its offset: to `datetime` such a time is a naive one."""

    def utcoffset(self, _):
        return None

    dst = utcoffset


@pytest.mark.parametrize("name", ["at", "expires"])
@pytest.mark.parametrize(
    ("moment", "says"),
    [
        (datetime(2027, 1, 1, tzinfo=Nowhere()), "has no time zone"),
        (datetime(2027, 1, 1), "has no time zone"),  # noqa: DTZ001
        (datetime(1, 1, 1, tzinfo=UTC), "of 0001-01-01 00:00:00.*: Unix seconds=-62135596800.0 cannot be used"),
    ],
)
def test_a_time_that_cannot_be_used_is_refused_by_name(name, moment, says):
    with pytest.raises(ConfigurationError, match=f"{name}.*{says}"):
        Options(**{name: moment})
