"""The context in which each run begins: the worker's own, with a decimal context of its own.

`decimal.getcontext().prec = 3` changes an object that a context variable refers to, so a copy of the variables is not
enough. Where there is no decimal context, `decimal` makes one, from its default, for the run that first asks for it. So
one that is like the default is left out: then there is nothing to copy. Only where the program that started the worker
has set another one does each run get a copy of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, TypeVar

R = TypeVar("R")
_NAME = "decimal_context"  # of the variable in which the module decimal, in C or in Python, keeps it


class RunContext:
    """The context that this is made in, for runs.

    `copy_decimal` gives the run that begins a copy of the decimal context; None if there is nothing to copy.
    """

    def __init__(self) -> None:
        self._context = copy_context()
        self.copy_decimal: Callable[[], object] | None = None
        decimal = sys.modules.get("decimal")  # it is not imported for this
        for variable, value in copy_context().items():
            if variable.name != _NAME or decimal is None or not isinstance(value, decimal.Context):
                continue
            if _settings(value) == _settings(decimal.DefaultContext):
                self._context = _without(self._context, variable)
            else:
                self.copy_decimal = lambda variable=variable, value=value: variable.set(value.copy())

    def run(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in a copy of this context."""
        self._context.copy().run(function, *args)

    def call(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Call a function of the user in a copy of this context, with a decimal context of its own."""

        def called() -> R:
            if self.copy_decimal is not None:
                self.copy_decimal()
            return function(*args, **kwargs)

        return self._context.copy().run(called)


def _settings(decimal_context: Any) -> tuple[Any, ...]:
    """Return the settings of a decimal context; its flags are no settings."""
    one = decimal_context
    return one.prec, one.rounding, one.Emin, one.Emax, one.capitals, one.clamp, dict(one.traps)


def _without(context: Context, left_out: Any) -> Context:
    """Return a context with all variables but one."""
    rest = Context()
    for variable, value in context.items():
        if variable is not left_out:
            rest.run(variable.set, value)
    return rest
