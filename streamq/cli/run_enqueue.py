"""Runs `streamq enqueue`: builds the call, enqueues it, and returns the result as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamq.broker import RedisBroker
from streamq.cli import output
from streamq.cli.run_command import run
from streamq.cli.server_options import ServerOptions
from streamq.cli.unserved import Unserved, unserved
from streamq.cli.usage_errors import CommandLineError, RefusedError, from_streamq_error
from streamq.diagnostics.safe_text import str_of, type_name
from streamq.errors import ArgumentsError, StreamqError
from streamq.tasks.task import Call, Task, TaskRef
from streamq.wire.tiers import Priority, pick_tier

_MOST_NAMED = 10  # tasks in an error


def send(
    server: ServerOptions, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any], *,
    force: bool,
) -> dict[str, Any]:  # fmt: skip
    """Enqueue one task and return its ids, tier and stream. Raises CommandLineError if that fails.

    `force` sends what the app does not know, and what nobody may ever read.
    """
    broker, loaded = server.lasting_broker(), server.loaded_app()
    task = _declared(server, loaded.tasks if loaded else (), name, force=force)
    if loaded is not None and not loaded.tasks and not force:
        output.note(f"streamq: warning: the app has no task, so neither {name!r} nor its arguments are checked")
    try:
        call = _call(task, args, kwargs, options)
    except StreamqError as error:
        raise from_streamq_error(error) from error
    tier, priority = _placed(call)
    if tier is None and server.names_tiers() and len(broker.tiers) > 1:
        raise CommandLineError(
            f"--tiers without --tier: give --tier, one of {', '.join(tier.name for tier in broker.tiers)}; which of "
            "them takes a priority is known to the program alone"
        )
    app = None if loaded is None else loaded.broker

    async def main() -> dict[str, Any]:
        async with broker:
            stream = _stream(broker, tier, priority)
            missed = None if stream is None or force else await unserved(broker, stream, server)
            if missed is not None and not _is_meant(app, broker, stream, missed):
                raise RefusedError(f"{missed.text}; nothing was sent: give --force to send it all the same")
            (handle,) = await broker.enqueue_many([call])
            if missed is not None:
                output.note(f"streamq: warning: {missed.text}")
            return {
                "task_id": handle.task_id,
                "task": name,
                "tier": broker.tiers[handle.tier].name,
                "stream": handle.stream,
                "entry_id": handle.entry_id or None,
                "fresh": handle.fresh,
                "replaced": handle.replaced,
            }

    return run(main)


def _declared(server: ServerOptions, tasks: Sequence[Task[Any, Any]], name: str, *, force: bool) -> Any:
    """Return the task of this name, or only its name without an app. Raises CommandLineError if the app has none."""
    named = {task.name: task for task in tasks}
    if name in named:
        return named[name]
    if not named or force:
        try:
            return TaskRef(name)
        except StreamqError as error:
            raise from_streamq_error(error) from error
    from difflib import get_close_matches  # noqa: PLC0415 - for an error alone

    near = get_close_matches(name, named, n=3)
    known = ", ".join(sorted(named)[:_MOST_NAMED]) + ", ..." * (len(named) > _MOST_NAMED)
    raise CommandLineError(
        f"no task {name!r} in {', '.join(server.app)}, which has {' or '.join(near) or known}; give --force to send a "
        "name that only workers know"
    )


def _call(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> Call[Any]:
    """Return the call of a task with arguments that are JSON, as a worker would read them.

    Raises ArgumentsError if they do not fit, ConfigurationError for an option.
    """
    if isinstance(task, Task):
        task.arguments.bind(args, kwargs)
        try:
            if task.arguments.converter is not None:
                args, kwargs = task.arguments.converter(args, kwargs)
        except StreamqError:
            raise
        except Exception as error:  # of a validator of the app
            raise ArgumentsError(task.name, f"a validator raised {type_name(error)}: {str_of(error)}") from error
    call: Call[Any] = Call(task, tuple(args), kwargs)
    return call.options(**options)


def _placed(call: Call[Any]) -> tuple[str | None, int | None]:
    """Return the name of the tier and the priority with which a call is sent."""
    task = call.task
    return task.placed if isinstance(task, Task) else (task.send_options.tier, task.send_options.priority)


def _is_meant(app: RedisBroker | None, broker: RedisBroker, stream: str | None, missed: Unserved) -> bool:
    """Does the app say that this is the right stream: is it one of its own, or of such a tier in a namespace in use?"""
    if app is None:
        return False
    if stream in app.keys.streams:
        return True
    tier = next((one.name for one, keys in zip(broker.tiers, broker.keys.tiers, strict=True) if keys.stream == stream))
    return not missed.elsewhere and tier in {one.name for one in app.tiers}


def _stream(broker: RedisBroker, tier: str | None, priority: int | None) -> str | None:
    """Return the stream that this goes to; None for an unknown tier, which is an error later."""
    names = [one.name for one in broker.tiers]
    if tier is not None:
        return broker.keys.tiers[names.index(tier)].stream if tier in names else None
    return broker.keys.tiers[pick_tier(broker.tiers, Priority.NORMAL if priority is None else priority)].stream
