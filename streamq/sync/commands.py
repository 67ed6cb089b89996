"""redis-py's command methods for a thread: for commands of the program's own, over the connections of its broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from redis.commands import CoreCommands

from streamq.client import Command, Pipeline, Script
from streamq.client.resp_codec import Encoder
from streamq.client.sync_client import SyncClient
from streamq.sync.drive import refuse_in_event_loop, run_now


class SyncCommands(CoreCommands):
    """redis-py's command methods, as `broker.client.set("a", "b")`: the same names, arguments, replies and errors.

    Made by `SyncBroker.client`. Any thread may use it. Replies are bytes.
    """

    _event_dispatcher: Any = None  # redis-py's own clients have one; its command methods do not use it

    def __init__(self, client: SyncClient) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"<SyncCommands of {self._client!r}>"

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command that redis-py's command methods built, and return its reply as they promise it."""
        refuse_in_event_loop()
        return run_now(self._client.execute_command(*args, **options))

    def command(self, *command: bytes | str | float) -> Any:  # type: ignore[override]
        """Send one command and return its raw reply. Raises error replies. See `Client.command`."""
        refuse_in_event_loop()
        return run_now(self._client.command(*command))

    def call(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write and return their raw replies in order, errors among them. See `Client.call`."""
        refuse_in_event_loop()
        return run_now(self._client.call(commands))

    def get_encoder(self) -> Encoder:
        """Return the encoder that redis-py's command methods use for single values."""
        return self._client.get_encoder()

    def register_script(self, script: str) -> Script:  # type: ignore[override]
        """Return a `Script`. Its source is registered for every client of the process."""
        return Script(script)

    def pipeline(self, transaction: bool = True) -> SyncPipeline:
        """Return a pipeline: redis-py's methods queue commands there, and `execute` sends them."""
        return SyncPipeline(self._client.pipeline(transaction))


class SyncPipeline(CoreCommands):
    """Commands to be sent together. Made by `SyncCommands.pipeline`, used by one thread."""

    _event_dispatcher: Any = None

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def __repr__(self) -> str:
        return repr(self._pipeline)

    def __len__(self) -> int:
        return len(self._pipeline)

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def get_encoder(self) -> Encoder:
        """Return the encoder that redis-py's command methods use for single values."""
        return self._pipeline.get_encoder()

    def execute_command(self, *args: Any, **options: Any) -> Self:
        """Queue one command. redis-py's command methods call this."""
        self._pipeline.execute_command(*args, **options)
        return self

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send all commands in one write, return the replies in order, and empty the pipeline."""
        refuse_in_event_loop()
        return run_now(self._pipeline.execute(raise_on_error))
