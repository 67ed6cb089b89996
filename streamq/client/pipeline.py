"""Commands collected first and sent at once, as a transaction unless asked otherwise.

A pipeline has redis-py's command methods; each queues its command and returns the pipeline.
Nothing is sent before `execute`, and everything goes out in one write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from redis import exceptions
from redis.commands import AsyncCoreCommands

from streamq.client.codec import Command, Encoder, ResponseCallback, shape, words
from streamq.client.scripts import with_source

if TYPE_CHECKING:
    from types import TracebackType

_SHOWN = 100  # characters of a command in an error message

Call = Callable[[Sequence[Command]], Awaitable[list[Any]]]


class Pipeline(AsyncCoreCommands):
    """Made by `Client.pipeline`; used by one task."""

    _is_async_client: Literal[True] = True  # what redis-py's annotations go by
    _event_dispatcher: Any = None  # redis-py's own clients have one; its command methods do not use it

    def __init__(self, call: Call, *, transaction: bool, decode_responses: bool) -> None:
        self._call = call
        self._transaction = transaction
        self._decode = decode_responses
        self._queue: list[tuple[tuple[Any, ...], ResponseCallback | None, dict[str, Any]]] = []

    def __repr__(self) -> str:
        kind = "transaction" if self._transaction else "pipeline"
        return f"<{kind} of {len(self._queue)} commands>"

    def __len__(self) -> int:
        return len(self._queue)

    def __bool__(self) -> bool:
        return True

    def __await__(self) -> Generator[Any, None, Self]:
        """Allow `await pipe.set(...)`, which only queues."""
        return self
        yield  # makes this a generator: awaiting takes no turn of the loop

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.clear()

    def get_encoder(self) -> Encoder:
        """Return what redis-py's command methods encode single values with."""
        return Encoder(decode_responses=self._decode)

    def execute_command(self, *args: Any, **options: Any) -> Self:
        """Queue one command; the door of redis-py's command methods."""
        command, callback = words(args)
        self._queue.append((command, callback, options))
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send everything in one write and return the replies in order; empties the pipeline.

        With `raise_on_error` the first error reply is raised, naming its command; without
        it errors stand among the replies. A transaction that the server discarded always
        raises, and then none of its commands ran. Raises as `Client.call` for the connection.
        """
        queue, self._queue = self._queue, []
        if not queue:
            return []
        commands = [command for command, _, _ in queue]
        raw = await (self._exec(commands) if self._transaction else self._call(commands))
        replies: list[Any] = []
        for position, (reply, (command, callback, options)) in enumerate(zip(raw, queue, strict=True)):
            try:
                replies.append(shape(reply, callback, options, decode=self._decode))
            except exceptions.RedisError as error:
                if raise_on_error:
                    raise _named(error, position, command) from None
                replies.append(error)
        return replies

    async def _exec(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        # A script that the server does not know would fail inside EXEC, where nothing can be
        # repeated any more: scripts go with their source.
        sent: list[Command] = [("MULTI",), *(with_source(command) or command for command in commands), ("EXEC",)]
        first, *queued, outcome = await self._call(sent)
        if isinstance(first, Exception):
            raise first
        if isinstance(outcome, Exception):
            for position, (reply, command) in enumerate(zip(queued, commands, strict=True)):
                if isinstance(reply, Exception):
                    raise _named(reply, position, command) from outcome
            raise outcome
        if not isinstance(outcome, list) or len(outcome) != len(commands):
            raise exceptions.ResponseError("the reply to EXEC does not fit its commands")
        return outcome


def _named(error: Exception, position: int, command: tuple[Any, ...]) -> Exception:
    """Return `error` with its message saying which command of the pipeline it answers."""
    text = " ".join(word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in command)
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    error.args = (f"command {position + 1} ({shown}) of the pipeline: {error}", *error.args[1:])
    return error
