"""What runs are counted by: names of tasks, functions of the context, format strings."""

from __future__ import annotations

import pytest

from streamq import task
from streamq.errors import ArgumentsError, ConfigurationError
from streamq.middleware import Context
from streamq.middleware.limit_key import check_key, keyed
from streamq.wire.delivery import Delivery


@task
async def charge(customer_id, order=None, *more, currency="EUR", **rest):
    """Do nothing."""


def context(*args, **kwargs):
    return Context(charge, Delivery(0, "standard", b"1-0", []), args, kwargs, None)


def test_by_default_the_name_of_the_task():
    assert keyed(None, context(7)) == "charge"


def test_a_function_of_the_context():
    assert keyed(lambda context: context.args[0], context(7)) == "7"


@pytest.mark.parametrize(
    ("key", "made"),
    [
        ("customer:{customer_id}", "customer:7"),
        ("{customer_id}/{currency}", "7/EUR"),
        ("{order[id]}", "o1"),
        ("{more}", "(1,)"),
        ("{shop}", "north"),
        ("all", "all"),
    ],
)
def test_a_format_string_over_the_arguments(key, made):
    """Parameters by name, given by place or by name or by default."""
    assert check_key(key) == key
    assert keyed(key, context(7, {"id": "o1"}, 1, shop="north")) == made


def test_an_unknown_parameter_is_named_with_those_there_are():
    with pytest.raises(ConfigurationError, match="no parameter 'user'; there are currency, customer_id, more, order"):
        keyed("{user}", context(7))


def test_what_cannot_be_looked_into():
    with pytest.raises(ConfigurationError, match="cannot be made for 'charge'"):
        keyed("{order[id]}", context(7))


def test_wrong_arguments_are_no_fault_of_the_key():
    """The task cannot be called with them, so it is rejected like any such task."""
    with pytest.raises(ArgumentsError, match="customer_id"):
        keyed("{customer_id}", context())


@pytest.mark.parametrize("wrong", ["", 7, "{}", "{0}", "{customer_id"])
def test_what_is_no_key(wrong):
    with pytest.raises(ConfigurationError, match="key="):
        check_key(wrong)
