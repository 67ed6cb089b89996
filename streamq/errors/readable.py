"""Exceptions that can be looked at. Pure.

`isinstance` asks an exception for its `__class__`, and a group for its members: code of the user, which may raise
anything, that same exception too. It would come out of whatever looks at it, of event loops and of `logging` as well.
So where an exception leaves code of the user, one that answers for itself is replaced. Its class is found without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from streamq.diagnostics.safe_text import frames_of, str_of, type_name
from streamq.errors.base import StreamqError

_DEEPEST: Final = 50  # groups in each other: deeper ones are made flat, as Python itself goes down by recursion
_MOST_LOOKED_AT: Final = 10_000  # members of one depth: of more the group is made flat, with each exception once
_MOST_KNOWN: Final = 1_000  # classes
_bases_of: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_names_in: Callable[[type], Any] = type.__dict__["__dict__"].__get__
_members_of: Callable[[Any], tuple[BaseException, ...]] = BaseExceptionGroup.__dict__["exceptions"].__get__
_message_of: Callable[[Any], str] = BaseExceptionGroup.__dict__["message"].__get__
_OF_GROUPS: Final = ("exceptions", "message")
_plain: set[type] = set()  # classes whose exceptions can be looked at


class UnreadableExceptionError(StreamqError):
    """Raised in the place of an exception of a handler that cannot be looked at: its class answers for what it is.

    That is one with a `__class__` or a `__getattribute__` of its own. `error_type` is its qualified name, `error` its
    text. It is retried like any other error.
    """

    def __init__(self, error_type: str, error: str) -> None:
        self.error_type = error_type
        self.error = error
        super().__init__(f"{error_type}: {error}" if error else error_type)


def readable(error: BaseException) -> BaseException:
    """Return an exception that can be looked at: this one, or one in its place, with its traceback. Never raises.

    A group is replaced by a flat one if any member cannot be looked at, or if groups are nested very deep or wide.
    """
    kind = type(error)
    if kind in _plain:
        return error
    if _hides(kind):
        return _flat(error) if issubclass(kind, BaseExceptionGroup) else _replacement(error)
    if issubclass(kind, BaseExceptionGroup):
        return _flat(error) if _any_hides(error) else error
    if len(_plain) < _MOST_KNOWN:
        _plain.add(kind)
    return error


def _hides(kind: type[BaseException]) -> bool:
    """Do exceptions of this class answer for themselves what they are?"""
    is_group = issubclass(kind, BaseExceptionGroup)
    for base in _bases_of(kind):
        if base in (BaseExceptionGroup, BaseException):
            return False
        names = _names_in(base)
        if "__class__" in names or "__getattribute__" in names:
            return True
        if is_group and base is not ExceptionGroup and not names.keys().isdisjoint(_OF_GROUPS):
            return True
    return False


def _any_hides(group: BaseException) -> bool:
    """Does any exception in a group, at whatever depth, hide what it is, or is it nested too deep?"""
    level = list(_members_of(group))
    for _ in range(_DEEPEST):
        if not level:
            return False
        if len(level) > _MOST_LOOKED_AT:
            return True
        if any(_hides(type(one)) for one in level):
            return True
        level = [deeper for one in level if issubclass(type(one), BaseExceptionGroup) for deeper in _members_of(one)]
    return True


def _flat(group: BaseException) -> BaseException:
    """Return a group of all exceptions in a group and in those inside of it, each one readable."""
    found, waiting, seen = [], [group], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:  # groups that share their members have more paths than a program has time
            continue
        seen.add(id(one))
        if issubclass(type(one), BaseExceptionGroup):
            waiting += reversed(_members_of(one))
        else:
            found.append(_replacement(one) if _hides(type(one)) else one)
    flat = BaseExceptionGroup(str_of(_message_of(group)), found)
    flat.__traceback__ = frames_of(group)
    return flat


def _replacement(error: BaseException) -> UnreadableExceptionError:
    """Return an exception in the place of one. It has no reference to that, except for the frames that it came from."""
    replacement = UnreadableExceptionError(type_name(error), str_of(error))
    replacement.__traceback__ = frames_of(error)
    return replacement
