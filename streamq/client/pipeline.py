"""Explicit pipelines: commands that are queued first and sent together, by default as a transaction.

A pipeline has redis-py's command methods. Each of them queues its command and returns the
pipeline. `execute` sends all commands in one write; nothing is sent before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from redis import exceptions
from redis.commands import AsyncCoreCommands

from streamq.client.resp_codec import Command, Encoder, ResponseCallback, apply_callback, build_command
from streamq.client.scripts import with_source

if TYPE_CHECKING:
    from types import TracebackType

_SHOWN = 100  # characters of a command in an error message

Call = Callable[[Sequence[Command]], Awaitable[list[Any]]]


class Pipeline(AsyncCoreCommands):
    """Commands to be sent together. Made by `Client.pipeline`, used by one task."""

    _is_async_client: Literal[True] = True  # redis-py's annotations depend on it
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
        """Allow `await pipe.set(...)`. The await does nothing: the call has queued the command."""
        return self
        yield  # makes this a generator: the await takes no turn of the loop

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.clear()

    def get_encoder(self) -> Encoder:
        """Return the encoder that redis-py's command methods use for single values."""
        return Encoder(decode_responses=self._decode)

    def execute_command(self, *args: Any, **options: Any) -> Self:
        """Queue one command. redis-py's command methods call this."""
        command, callback = build_command(args)
        self._queue.append((command, callback, options))
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send all commands in one write, return the replies in order, and empty the pipeline.

        With `raise_on_error` the first error reply is raised, and its message names the command.
        Without it the errors are in the list of replies. A transaction that the server discarded
        always raises; none of its commands ran. Raises as `Client.call` otherwise.
        """
        queue, self._queue = self._queue, []
        if not queue:
            return []
        commands = [command for command, _, _ in queue]
        raw = await (self._exec(commands) if self._transaction else self._call(commands))
        replies: list[Any] = []
        for position, (reply, (command, callback, options)) in enumerate(zip(raw, queue, strict=True)):
            try:
                replies.append(apply_callback(reply, callback, options, decode=self._decode))
            except exceptions.RedisError as error:
                if raise_on_error:
                    raise _named(error, position, command) from None
                replies.append(error)
        return replies

    async def _exec(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        # A script that the server does not know would fail inside EXEC, where no command can be
        # repeated. So scripts are sent with their source.
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
            raise exceptions.ResponseError("the reply to EXEC does not have one part for each command")
        return outcome


def _named(error: Exception, position: int, command: tuple[Any, ...]) -> Exception:
    """Add to the message of `error` which command of the pipeline failed, and return it."""
    text = " ".join(word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in command)
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    error.args = (f"command {position + 1} ({shown}) of the pipeline: {error}", *error.args[1:])
    return error
