"""The keys that limits count by: names of tasks, functions of the context, format strings."""

from __future__ import annotations

from typing import NotRequired, TypedDict, Unpack

import pytest

from streamq import task
from streamq.errors import ArgumentsError, ConfigurationError
from streamq.middleware import Context
from streamq.middleware.limit_key import check_key, resolve_key
from streamq.wire.delivery import Delivery


@task
async def charge(customer_id, order=None, *more, currency="EUR", **rest):
    """Do nothing."""


class Keys(TypedDict):
    shop: str
    currency: NotRequired[str]


@task
async def refund(**keys: Unpack[Keys]):
    """Do nothing."""


def context(*args, **kwargs):
    return Context(charge, Delivery(0, "standard", b"1-0", []), args, kwargs, None)


def test_by_default_the_name_of_the_task():
    assert resolve_key(None, context(7)) == "charge"


def test_a_function_of_the_context():
    assert resolve_key(lambda context: context.args[0], context(7)) == "7"


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
    """Parameters by name, given by position, by name or by default."""
    assert check_key(key) == key
    assert resolve_key(key, context(7, {"id": "o1"}, 1, shop="north")) == made


def test_the_error_names_an_unknown_parameter_and_the_known_ones():
    with pytest.raises(ConfigurationError, match="no parameter 'user'; there are currency, customer_id, more, order"):
        resolve_key("{user}", context(7))


def test_the_keys_of_unpacked_options_are_parameters():
    given = Context(refund, Delivery(0, "standard", b"1-0", []), (), {"shop": "north"}, None)
    assert resolve_key("{shop}", given) == "north"
    with pytest.raises(ConfigurationError, match="no parameter 'currency'"):
        resolve_key("{currency}", given)


def test_a_value_without_that_item_is_refused():
    with pytest.raises(ConfigurationError, match="cannot be made for 'charge'"):
        resolve_key("{order[id]}", context(7))


def test_wrong_arguments_raise_arguments_error():
    """The task cannot be called with them, so it becomes a dead letter like any such task."""
    with pytest.raises(ArgumentsError, match="customer_id"):
        resolve_key("{customer_id}", context())


@pytest.mark.parametrize("wrong", ["", 7, "{}", "{0}", "{customer_id"])
def test_wrong_keys_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="key="):
        check_key(wrong)
