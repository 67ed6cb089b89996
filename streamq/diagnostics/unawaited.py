"""The warning of Python about a coroutine that nobody awaits: it says what to write.

Python warns that `coroutine 'NAME' was never awaited`, and the name is that of the function, read as the coroutine is
made. So the remedy is a part of that name. It costs nothing at a call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def name_remedies(owner: type, variable: str) -> None:
    """Name the remedy in the public coroutine functions of a class. `variable` is what users call an object of it."""
    for name, method in vars(owner).items():
        if inspect.iscoroutinefunction(method) and name[0] != "_":
            method.__qualname__ = f"{owner.__qualname__}.{name} [use: await {variable}.{name}(...)]"


def name_remedy(function: Callable[..., Any], call: str) -> None:
    """Name the remedy in one coroutine function. `call` is how users call it, such as "gather(...)"."""
    function.__qualname__ = f"{function.__qualname__} [use: await {call}]"
