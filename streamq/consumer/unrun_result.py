"""A handler that returned something which has not run: a coroutine that nobody awaited, a generator that nobody asked.

Its task would be acknowledged although nothing of it ran. A sync decorator around an async function returns its
coroutine, and so do a lambda and a callable object: a thread has run them, and the event loop runs what they returned.
An async function that forgets to await, and whatever returns a generator, has failed.

Only the type of what was returned is looked at: `isinstance` asks the object, and a lazy proxy may raise then.
"""

from __future__ import annotations

from contextlib import suppress
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final

# What most handlers return; their classes need no look.
PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes, list, tuple, dict))


async def awaited(returned: Any) -> Any:
    """Await what a function in a thread returned, if it is a coroutine or another awaitable."""
    return await returned if hasattr(type(returned), "__await__") else returned


def refuse_unrun(task: str, returned: Any) -> None:
    """Raise TypeError if what a handler returned is a coroutine, another awaitable, or a generator.

    A coroutine or a generator is closed.
    """
    kind = type(returned)
    if issubclass(kind, CoroutineType | GeneratorType):
        with suppress(BaseException):  # what has begun runs code of the user
            returned.close()
    elif not (issubclass(kind, AsyncGeneratorType) or hasattr(kind, "__await__")):
        return
    whose = f"task {task!r}" if task else "a task"
    raise TypeError(
        f"{whose} returned a {kind.__name__}, which is not run: if a decorator wraps an async function, make its "
        "wrapper async, and await the call; a generator has to be a list"
    )
