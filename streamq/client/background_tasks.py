"""Tasks that go on while everything around them is cancelled, until their owner is done.

A connection must outlive the cancellation of the code that uses it: what is cancelled still
hands back, settles or cleans up under a shield, and needs the server for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVarTuple, Unpack

import anyio
import anyio.abc

Ts = TypeVarTuple("Ts")


class Shelter:
    """A task group whose tasks are cancelled by its end alone.

    An error of the body goes on as itself; one of a task ends the others and the body.
    """

    def __init__(self) -> None:
        self._group: anyio.abc.TaskGroup | None = None
        self._scopes: set[anyio.CancelScope] = set()

    def __repr__(self) -> str:
        return f"<Shelter of {len(self._scopes)} tasks>"

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
        self._end()
        group.cancel_scope.cancel()  # for tasks that have not begun
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return await group.__aexit__(kind, error, trace)
        # A task group would wrap the body's error in a group.
        await group.__aexit__(None, None, None)
        return None

    def start_soon(self, function: Callable[[Unpack[Ts]], Awaitable[object]], *args: *Ts, name: object = None) -> None:
        """Start a task. Raises RuntimeError outside `async with`."""
        if self._group is None:
            raise RuntimeError("the shelter is closed: start tasks inside its 'async with'")
        self._group.start_soon(self._shelter, function, args, name=name)

    async def _shelter(self, function: Callable[[Unpack[Ts]], Awaitable[object]], args: tuple[*Ts]) -> None:
        with anyio.CancelScope(shield=True) as scope:
            if self._group is None:  # it ended before this began
                return
            self._scopes.add(scope)
            try:
                await function(*args)
            except BaseException:
                self._end()
                raise
            finally:
                self._scopes.discard(scope)

    def _end(self) -> None:
        for scope in tuple(self._scopes):
            scope.cancel()
