"""The base class of every error of streamq, and how one is pickled."""

from __future__ import annotations

from typing import Any


class StreamqError(Exception):
    """The base class of every error of streamq. It can be pickled and copied, so it crosses processes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are made again from `args` by default, which is the message here and not what __init__ takes.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[StreamqError], args: tuple[Any, ...], state: dict[str, Any]) -> StreamqError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error
