"""Errors: one tree, and each crosses a process as it is."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from streamq import errors
from streamq.errors import CircuitOpenError, RetryLater, StreamqError

KINDS = sorted((kind for kind in vars(errors).values() if inspect.isclass(kind)), key=lambda kind: kind.__name__)
GIVEN = {"errors": [ValueError("x")], "missing": ["a"], "of": 2, "after": 1.5, "timeout": 1.0, "size": 2, "limit": 1}


def made(kind: type[StreamqError]) -> StreamqError:
    """Return an error of a class, with a value for each parameter that has no default."""
    if not inspect.isfunction(kind.__init__):
        return kind("why")
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    positional, named = [], {}
    for one in parameters:
        value = GIVEN.get(one.name, one.name)
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) and one.default is one.empty:
            positional.append(1 if "int" in str(one.annotation) else 1.5 if "float" in str(one.annotation) else value)
        elif one.kind is one.KEYWORD_ONLY and one.default is one.empty:
            named[one.name] = value
    return kind(*positional, **named)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if issubclass(kind, StreamqError)], ids=lambda kind: kind.__name__
)
def test_an_error_can_be_pickled_and_copied(kind) -> None:
    """Its class, its message and its attributes arrive."""
    error = made(kind)
    error.add_note("a note")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert repr(again.args) == repr(error.args)
        assert {name: repr(value) for name, value in vars(again).items()} == {
            name: repr(value) for name, value in vars(error).items()
        }


def test_every_error_is_in_the_tree() -> None:
    """`except StreamqError` catches them all."""
    assert [kind for kind in KINDS if issubclass(kind, Exception) and not issubclass(kind, StreamqError)] == []


def test_attributes_of_subclasses_arrive_too() -> None:
    """Those of a user's subclass, and an error within an error."""
    error = CircuitOpenError("c", after=2.0, last_failure=RetryLater("busy", after=3.0, headers={"a": 1}))
    again = pickle.loads(pickle.dumps(error))
    assert (again.circuit, again.after, again.last_failure.after, again.last_failure.headers) == (
        "c",
        2.0,
        3.0,
        {"a": 1},
    )
