"""`gather` of `SyncBroker`. For a type checker up to six handles that are given one by one have a type each."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal, TypeVar, overload

from streamq.errors import TaskFailedError
from streamq.queue.gather import gather
from streamq.sync.drive import run_now
from streamq.sync.handle import SyncHandle
from streamq.wire.argument_types import check_type

R = TypeVar("R")
R1 = TypeVar("R1")
R2 = TypeVar("R2")
R3 = TypeVar("R3")
R4 = TypeVar("R4")
R5 = TypeVar("R5")
R6 = TypeVar("R6")


class Gathers:
    """What waits for many tasks, in a thread without an event loop."""

    def _opened(self) -> Any:
        raise NotImplementedError

    @overload
    def gather(
        self,
        one: SyncHandle[R1],
        /,
        *,
        timeout: float | timedelta | None = None,
        return_exceptions: Literal[False] = False,
    ) -> tuple[R1]: ...
    @overload
    def gather(
        self,
        one: SyncHandle[R1],
        two: SyncHandle[R2],
        /,
        *,
        timeout: float | timedelta | None = None,
        return_exceptions: Literal[False] = False,
    ) -> tuple[R1, R2]: ...
    @overload
    def gather(
        self,
        one: SyncHandle[R1],
        two: SyncHandle[R2],
        three: SyncHandle[R3],
        /,
        *,
        timeout: float | timedelta | None = None,
        return_exceptions: Literal[False] = False,
    ) -> tuple[R1, R2, R3]: ...
    @overload
    def gather(
        self,
        one: SyncHandle[R1],
        two: SyncHandle[R2],
        three: SyncHandle[R3],
        four: SyncHandle[R4],
        /,
        *,
        timeout: float | timedelta | None = None,
        return_exceptions: Literal[False] = False,
    ) -> tuple[R1, R2, R3, R4]: ...
    @overload
    def gather(
        self,
        one: SyncHandle[R1],
        two: SyncHandle[R2],
        three: SyncHandle[R3],
        four: SyncHandle[R4],
        five: SyncHandle[R5],
        /,
        *,
        timeout: float | timedelta | None = None,
        return_exceptions: Literal[False] = False,
    ) -> tuple[R1, R2, R3, R4, R5]: ...
    @overload
    def gather(
        self,
        one: SyncHandle[R1],
        two: SyncHandle[R2],
        three: SyncHandle[R3],
        four: SyncHandle[R4],
        five: SyncHandle[R5],
        six: SyncHandle[R6],
        /,
        *,
        timeout: float | timedelta | None = None,
        return_exceptions: Literal[False] = False,
    ) -> tuple[R1, R2, R3, R4, R5, R6]: ...
    @overload
    def gather(
        self,
        *handles: SyncHandle[R],
        timeout: float | timedelta | None = None,
        return_exceptions: Literal[False] = False,
    ) -> tuple[R, ...]: ...
    @overload
    def gather(
        self,
        one: SyncHandle[R1],
        /,
        *,
        timeout: float | timedelta | None = None,
        return_exceptions: bool,
    ) -> tuple[R1 | TaskFailedError]: ...
    @overload
    def gather(
        self,
        one: SyncHandle[R1],
        two: SyncHandle[R2],
        /,
        *,
        timeout: float | timedelta | None = None,
        return_exceptions: bool,
    ) -> tuple[R1 | TaskFailedError, R2 | TaskFailedError]: ...
    @overload
    def gather(
        self,
        one: SyncHandle[R1],
        two: SyncHandle[R2],
        three: SyncHandle[R3],
        /,
        *,
        timeout: float | timedelta | None = None,
        return_exceptions: bool,
    ) -> tuple[R1 | TaskFailedError, R2 | TaskFailedError, R3 | TaskFailedError]: ...
    @overload
    def gather(
        self,
        one: SyncHandle[R1],
        two: SyncHandle[R2],
        three: SyncHandle[R3],
        four: SyncHandle[R4],
        /,
        *,
        timeout: float | timedelta | None = None,
        return_exceptions: bool,
    ) -> tuple[R1 | TaskFailedError, R2 | TaskFailedError, R3 | TaskFailedError, R4 | TaskFailedError]: ...
    @overload
    def gather(
        self,
        one: SyncHandle[R1],
        two: SyncHandle[R2],
        three: SyncHandle[R3],
        four: SyncHandle[R4],
        five: SyncHandle[R5],
        /,
        *,
        timeout: float | timedelta | None = None,
        return_exceptions: bool,
    ) -> tuple[
        R1 | TaskFailedError, R2 | TaskFailedError, R3 | TaskFailedError, R4 | TaskFailedError, R5 | TaskFailedError
    ]: ...
    @overload
    def gather(
        self,
        one: SyncHandle[R1],
        two: SyncHandle[R2],
        three: SyncHandle[R3],
        four: SyncHandle[R4],
        five: SyncHandle[R5],
        six: SyncHandle[R6],
        /,
        *,
        timeout: float | timedelta | None = None,
        return_exceptions: bool,
    ) -> tuple[
        R1 | TaskFailedError,
        R2 | TaskFailedError,
        R3 | TaskFailedError,
        R4 | TaskFailedError,
        R5 | TaskFailedError,
        R6 | TaskFailedError,
    ]: ...
    @overload
    def gather(
        self,
        *handles: SyncHandle[R],
        timeout: float | timedelta | None = None,
        return_exceptions: bool,
    ) -> tuple[R | TaskFailedError, ...]: ...
    def gather(
        self, *handles: SyncHandle[Any], timeout: float | timedelta | None = None, return_exceptions: bool = False
    ) -> tuple[Any, ...]:
        """Wait for all these tasks, and return their results in the order of the handles. See `streamq.gather`."""
        self._opened()
        own = [own_handle(handle) for handle in handles]
        return run_now(gather(*own, timeout=timeout, return_exceptions=return_exceptions))


def own_handle(handle: Any) -> Any:
    return check_type("a handle", handle, SyncHandle, "what SyncBroker.enqueue returned, each by itself").handle
