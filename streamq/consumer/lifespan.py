"""What the argument `lifespan` of a worker may be. Knows no worker."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from streamq.errors import ConfigurationError
from streamq.wire.argument_types import check_callable

_WANTED: Final = "a function of the worker that returns an async context manager"
_REMEDY: Final = "decorate it with @contextlib.asynccontextmanager"


def check_lifespan(value: Any) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """Return the value. Raises ConfigurationError if it cannot return an async context manager."""
    if inspect.isasyncgenfunction(value):
        raise ConfigurationError(f"lifespan is an async generator: {_REMEDY}")
    for is_it, kind in ((inspect.isgeneratorfunction, "generator"), (inspect.iscoroutinefunction, "coroutine")):
        if is_it(value):
            raise ConfigurationError(
                f"lifespan is a {kind} function: write 'async def' with one 'yield', and {_REMEDY}"
            )
    return check_callable("lifespan", value, _WANTED)  # type: ignore[no-any-return]


def check_manager(manager: Any) -> AbstractAsyncContextManager[Any]:
    """Return what a lifespan has returned. Raises ConfigurationError if it is no async context manager."""
    if isinstance(manager, AbstractAsyncContextManager):
        return manager
    if inspect.iscoroutine(manager):
        manager.close()  # or Python warns that nobody has awaited it
    raise ConfigurationError(
        f"lifespan has returned an object of type {type(manager).__name__}, not an async context manager: write "
        f"'async def' with one 'yield', and {_REMEDY}"
    )
