"""Tasks that keep running while the code around them is cancelled, until their owner ends.

A connection must outlive the cancellation of the code that uses it: cancelled code still
releases, settles or cleans up under a shield, and needs the server for that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVarTuple, Unpack

import anyio
import anyio.abc

Ts = TypeVarTuple("Ts")


class BackgroundTasks:
    """A task group whose tasks are cancelled only when its `async with` block ends.

    An error of the block is raised as it is, not in an exception group. An error of a task
    ends the other tasks and cancels the block.
    """

    def __init__(self) -> None:
        self._group: anyio.abc.TaskGroup | None = None
        self._scopes: set[anyio.CancelScope] = set()

    def __repr__(self) -> str:
        return f"<BackgroundTasks of {len(self._scopes)} tasks>"

    async def __aenter__(self) -> Self:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        group, self._group = self._group, None
        if group is None:
            return None
        self._cancel_all()
        group.cancel_scope.cancel()  # for tasks that have not begun
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return await group.__aexit__(kind, error, trace)
        # A task group would wrap the error of the block in a group.
        await group.__aexit__(None, None, None)
        return None

    def start_soon(self, function: Callable[[Unpack[Ts]], Awaitable[object]], *args: *Ts, name: object = None) -> None:
        """Start a task. Raises RuntimeError outside `async with`."""
        if self._group is None:
            raise RuntimeError("no background task can be started here: start tasks inside the 'async with' block")
        self._group.start_soon(self._run_shielded, function, args, name=name)

    async def _run_shielded(self, function: Callable[[Unpack[Ts]], Awaitable[object]], args: tuple[*Ts]) -> None:
        with anyio.CancelScope(shield=True) as scope:
            if self._group is None:  # the block ended before this task began
                return
            self._scopes.add(scope)
            try:
                await function(*args)
            except BaseException:
                self._cancel_all()
                raise
            finally:
                self._scopes.discard(scope)

    def _cancel_all(self) -> None:
        for scope in tuple(self._scopes):
            scope.cancel()
