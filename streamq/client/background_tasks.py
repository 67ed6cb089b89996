"""Tasks that keep running while the code around them is cancelled, until their owner ends; and how an owner is left.

A connection must outlive the cancellation of the code that uses it: cancelled code still
releases, settles or cleans up under a shield, and needs the server for that.

To leave is a promise of its own: whatever is cancelled meanwhile, it ends soon, all is closed in
order, and the error of the block comes out as it is. So nothing here raises in the place of that
error, and none is raised again: `contextlib.AsyncExitStack` does that, and then puts the errors
into one chain, which has a cycle if a task group has raised one of them before. It loops for ever.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.abc

Ts = TypeVarTuple("Ts")
T = TypeVar("T")


class OwnedGroup:
    """A task group whose tasks are cancelled when its block ends.

    An error of the block leaves it as it is, not in an exception group. An error of a task cancels the other tasks and
    the block, and is raised, in an exception group, where the block has no error but that cancellation. The end cannot
    be cancelled: all tasks must end soon after they were.
    """

    def __init__(self) -> None:
        self._tasks = anyio.create_task_group()

    def __repr__(self) -> str:
        return f"<OwnedGroup {self._tasks.cancel_scope!r}>"

    async def __aenter__(self) -> anyio.abc.TaskGroup:
        return await self._tasks.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Shielded: a cancellation from outside would be raised here, in the place of the error of the block.
        self._tasks.cancel_scope.shield = True
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        except BaseException as failure:
            if outweighs(failure, error):
                raise


class BackgroundTasks:
    """A task group whose tasks are cancelled only when its `async with` block ends.

    An error of the block is raised as it is, not in an exception group. An error of a task
    ends the other tasks and cancels the block.
    """

    def __init__(self) -> None:
        self._owned = OwnedGroup()
        self._group: anyio.abc.TaskGroup | None = None
        self._scopes: dict[anyio.CancelScope, None] = {}  # a set has no order that a seed decides

    def __repr__(self) -> str:
        return f"<BackgroundTasks of {len(self._scopes)} tasks>"

    async def __aenter__(self) -> Self:
        self._group = await self._owned.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._group is None:
            return
        self._group = None
        self._cancel_all()
        await self._owned.__aexit__(kind, error, trace)

    def start_soon(self, function: Callable[[Unpack[Ts]], Awaitable[object]], *args: *Ts, name: object = None) -> None:
        """Start a task. Raises RuntimeError outside `async with`."""
        if self._group is None:
            raise RuntimeError("no background task can be started here: start tasks inside the 'async with' block")
        self._group.start_soon(self._run_shielded, function, args, name=name)

    async def _run_shielded(self, function: Callable[[Unpack[Ts]], Awaitable[object]], args: tuple[*Ts]) -> None:
        with anyio.CancelScope(shield=True) as scope:
            if self._group is None:  # the block ended before this task began
                return
            self._scopes[scope] = None
            try:
                await function(*args)
            except BaseException:
                self._cancel_all()
                raise
            finally:
                self._scopes.pop(scope, None)

    def _cancel_all(self) -> None:
        for scope in tuple(self._scopes):
            scope.cancel()


class Resources:
    """What an owner has opened, left in reverse order: all of it, whatever fails on the way."""

    def __init__(self) -> None:
        self._open: list[AbstractAsyncContextManager[Any]] = []

    def __repr__(self) -> str:
        return f"<Resources {self._open!r}>"

    async def open(self, manager: AbstractAsyncContextManager[T]) -> T:
        """Enter a context manager, and return what it yields."""
        value = await manager.__aenter__()
        self._open.append(manager)
        return value

    async def close(self, error: BaseException | None) -> None:
        """Leave all, the last one first. `error` is what ends the block of the owner, None if nothing does.

        Raises the first error of a manager, unless `error` outweighs it.
        """
        worst = error
        while self._open:
            try:
                await self._open.pop().__aexit__(None, None, None)
            except BaseException as failure:  # noqa: BLE001 - raised below: the others must be left, too
                if outweighs(failure, worst):
                    worst = failure
        if worst is not None and worst is not error:
            raise worst


def outweighs(failure: BaseException, error: BaseException | None) -> bool:
    """Return whether an error of the end must be raised in the place of the error of the block, if there is one.

    A cancellation of the block may be the consequence of that failure. KeyboardInterrupt and SystemExit are never lost.
    No other error is replaced.
    """
    if error is None:
        return True
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(failure, BaseExceptionGroup):
        _, others = failure.split(cancelled)
        if others is None:
            return False
        failure = others
    elif isinstance(failure, cancelled):
        return False
    return isinstance(error, cancelled) or not isinstance(failure, Exception)
