"""Every error that streamq raises, in one tree under `StreamqError`.

Each class says when it is raised, has its data as attributes, and builds its own message. Inside `streamq.client` the
errors of the server stay `redis.exceptions`; `queue/server_errors.py` translates them into these classes.
"""

from __future__ import annotations

import signal
from typing import Any

from streamq.errors.base import StreamqError
from streamq.errors.readable import UnreadableExceptionError
from streamq.errors.requests import (
    CircuitOpenError,
    EffectInProgressError,
    EffectLostError,
    Reject,
    Retry,
    RetryLater,
    UnrecordableError,
)
from streamq.errors.results import ResultNotKeptError, ResultTimeoutError, ResultTypeError, TaskFailedError
from streamq.errors.sync_call import SyncCallError

__all__ = [
    "ArgumentsError", "BatchResultError", "BrokerError", "BrokerUnavailableError", "CircuitOpenError",
    "ConfigurationError", "DeadLetterNotFoundError", "DedupKeyHeldError", "EffectInProgressError",
    "EffectLostError", "EffectNotBegunError", "EncodingError", "LeftOpenError", "LifespanEndedError",
    "MessageError", "MissingExtraError", "NotDurableError", "NotHeldError", "NotOpenError", "OperationNotFoundError",
    "OperationTakenError", "OutcomeUnknownError", "PayloadTooLargeError", "ProcessDiedError", "ProcessHandlerError",
    "Reject", "ResultNotKeptError", "ResultTimeoutError", "ResultTypeError", "Retry", "RetryLater", "SignatureError",
    "StreamqError", "SyncCallError", "TaskFailedError", "TaskNameError", "TaskTimeoutError", "UndecodableError",
    "UnreadableExceptionError", "UnrecordableError", "WrongLoopError",
]  # fmt: skip


class ConfigurationError(StreamqError, ValueError):
    """Raised if an option has a value that cannot be used. The message names the value and the remedy."""


class MissingExtraError(StreamqError, ImportError):
    """Raised if a feature needs a package that an extra of streamq installs, and the package is missing."""

    def __init__(self, feature: str, extra: str) -> None:
        self.feature = feature
        self.extra = extra
        super().__init__(f"to use {feature}, install an extra: pip install 'streamq[{extra}]'")


class NotOpenError(StreamqError, RuntimeError):
    """Raised if a broker is used outside its `async with` block, or a SyncBroker after it was closed."""

    def __init__(self, what: str, *, remedy: str = "use it inside 'async with broker:'") -> None:
        self.what = what
        super().__init__(f"{what} is not open: {remedy}")


class WrongLoopError(StreamqError, RuntimeError):
    """Raised if a broker is used in another thread, event loop or process than it was opened in; so are its handles.

    Nothing was sent, and the broker goes on where it was opened. `opened` and `used` say where that is, `forked` is
    True in a child process. The remedy is in the message:

    - In a sync handler, or another function in a thread of anyio:
      `anyio.from_thread.run(lambda: broker.enqueue(send, "x"))`.
    - In a thread, or without an event loop: a `SyncBroker`, which any thread may use.
    - In a thread of your own: `portal.call(lambda: broker.enqueue(send, "x"))`, with an
      `anyio.from_thread.BlockingPortal` that is open beside the broker.
    - In a second event loop, and in a child process: open another broker there.
    """

    def __init__(self, what: str, *, opened: str, used: str, forked: bool = False) -> None:
        self.what = what
        self.opened = opened
        self.used = used
        self.forked = forked
        remedy = "open a new RedisBroker in the child process"
        if not forked:
            remedy = (
                "in a sync handler, call anyio.from_thread.run(lambda: broker.enqueue(...)); in a thread of your own, "
                "use a SyncBroker or a BlockingPortal; in another event loop, open another RedisBroker"
            )
        super().__init__(
            f"{what} was opened in {opened}, and is used in another {_difference(opened, used, forked)}, {used}: "
            f"{remedy} (docs/client.md, threads, event loops and forks)"
        )


def _difference(opened: str, used: str, forked: bool) -> str:
    return "process" if forked else "thread" if opened != used else "event loop"


# --- the server ----------------------------------------------------------------------------


class BrokerError(StreamqError):
    """Raised if the server refused a command. Some reasons go away by themselves, others need a person.

    `code` is the first word of the server's answer (`OOM`, `NOAUTH`, ...), `script_line` the line of a script, or 0.
    """

    def __init__(self, message: str, *, code: str = "ERR", script_line: int = 0) -> None:
        self.code = code
        self.script_line = script_line
        super().__init__(message)


class BrokerUnavailableError(BrokerError, ConnectionError):
    """Raised if the server could not be reached, and the command was certainly not carried out."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="UNAVAILABLE")


class OutcomeUnknownError(BrokerError, ConnectionError):
    """Raised if the connection was lost after a command was sent, and before its reply arrived.

    The command may have been carried out. An `enqueue` with a `task_id` can be repeated with the same id: it is
    accepted once. `task_id` is that id, None if the call had none.
    """

    def __init__(self, message: str, *, task_id: str | None = None) -> None:
        self.task_id = task_id
        super().__init__(message, code="UNKNOWN")


class EffectNotBegunError(BrokerError, RetryLater):
    """Raised by `once` in a run of a task if the server could not be asked whether the effect may begin: nothing began.

    `key` is that of the effect, `after` when (s) to try again. A handler that lets it pass is run again after that
    time, and spends no attempt.
    """

    def __init__(self, key: str, why: str, *, code: str, after: float) -> None:
        self.key = key
        RetryLater.__init__(self, f"the effect {key!r} cannot begin: {why}", after=after)
        self.code = code


class NotDurableError(OutcomeUnknownError):
    """Raised if the server has the task, but did not confirm that the task would survive the loss of the server.

    `wanted` is the `durable` of the enqueue, "replica" or "aof". The task runs unless the server is lost right now. An
    `enqueue` with a `task_id` can be repeated with the same id: it waits for the confirmation again.
    """

    def __init__(self, wanted: str, reason: str) -> None:
        self.wanted = wanted
        self.reason = reason
        super().__init__(f"the task was accepted, but durable={wanted!r} was not confirmed: {reason}")


# --- tasks and messages ----------------------------------------------------------------------


class MessageError(StreamqError, ValueError):
    """The base class of the errors of a message."""


class EncodingError(MessageError, TypeError):
    """Raised if an argument cannot be encoded as JSON. Nothing was sent."""

    def __init__(self, task: str, argument: str, reason: str) -> None:
        self.task = task
        self.argument = argument
        self.reason = reason
        super().__init__(
            f"task {task!r}: argument {argument} cannot be sent as JSON ({reason}); pass "
            "str, int, float, bool, None, lists, dicts with str keys, datetime, UUID or dataclasses"
        )


class PayloadTooLargeError(MessageError):
    """Raised if a message is larger than the `max_payload` of the broker (1 MiB by default). Nothing was sent."""

    def __init__(self, task: str, size: int, limit: int) -> None:
        self.task = task
        self.size = size
        self.limit = limit
        super().__init__(
            f"task {task!r}: the message takes {size} bytes and the limit is {limit}; store the "
            "data elsewhere and send a reference, or raise max_payload of the broker"
        )


class UndecodableError(MessageError):
    """Raised if an entry of a stream cannot be read as a message. A worker dead-letters such an entry."""


class SignatureError(UndecodableError):
    """Raised if a message, a dead letter or a schedule is not signed with a key that is accepted here."""


class ArgumentsError(MessageError, TypeError):
    """Raised if arguments do not fit the signature or the annotations of a task."""

    def __init__(self, task: str, reason: str) -> None:
        self.task = task
        self.reason = reason
        super().__init__(f"task {task!r}: {reason}")


class TaskNameError(StreamqError, ValueError):
    """Raised if two tasks of one worker have the same name, or if a name cannot be used."""


class TaskTimeoutError(StreamqError, TimeoutError):
    """Raised if a run takes longer than its `timeout` (s). It is retried like any other error."""

    def __init__(self, task: str, timeout: float) -> None:
        self.task = task
        self.timeout = timeout
        super().__init__(f"task {task!r} ran longer than its timeout of {timeout:g} s")


class ProcessDiedError(StreamqError, RuntimeError):
    """Raised for a run with `run_in="process"` whose process ended before it. It is retried like any other error.

    `exit_code` is that of the process, `signal` the number of the signal that ended it; each is None if it is the
    other, or is not known.
    """

    def __init__(self, task: str, return_code: int | None, reason: str = "") -> None:
        self.task = task
        ended_by_signal = return_code is not None and return_code < 0
        self.exit_code = None if ended_by_signal else return_code
        self.signal = -return_code if return_code is not None and ended_by_signal else None
        how = "ended before its run did" if return_code is None else f"ended with exit code {return_code}"
        if self.signal is not None:
            how = f"ended with signal {self.signal} ({_signal_name(self.signal)})"
        super().__init__(f"the process of task {task!r} {how}{': ' * bool(reason)}{reason}")


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return "of no name"
    return f"{name}: out of memory, or it closed its pipe to the worker?" if name == "SIGKILL" else name


class LeftOpenError(StreamqError, RuntimeError):
    """Raised for a run that ended with cancel scopes or task groups open. It is retried like any other error."""

    def __init__(self, task: str, where: str = "") -> None:
        self.task = task
        hint = where or ": leave it before the handler ends; if an async generator opens it, use contextlib.aclosing"
        super().__init__(f"task {task!r} ended and left a cancel scope or a task group open{hint}")


class LifespanEndedError(StreamqError, RuntimeError):
    """Raised if the lifespan of a worker has ended its run: by its own cancel scope, or as it swallowed an error."""

    def __init__(self) -> None:
        super().__init__(
            "lifespan has ended the run of its worker: a cancel scope around its yield was cancelled, or it has "
            "swallowed what was raised there; call worker.stop() to end the worker, and let errors out"
        )


class ProcessHandlerError(StreamqError):
    """Raised in the place of an exception of a handler with `run_in="process"` that cannot be raised in its worker.

    Its class is not to be found there, or it would end the worker (KeyboardInterrupt, a cancellation). `error_type` is
    its qualified name, `error` its text. It is retried like any other error.
    """

    def __init__(self, error_type: str, error: str) -> None:
        self.error_type = error_type
        self.error = error
        super().__init__(f"{error_type}: {error}" if error else error_type)


class BatchResultError(StreamqError, TypeError):
    """Raised if the handler of a batch task returned neither None nor a list with one entry for each item.

    Every message of the batch has failed then. `size` is the number of items.
    """

    def __init__(self, task: str, size: int, returned: Any) -> None:
        self.task = task
        self.size = size
        what = f"{len(returned)} results" if isinstance(returned, list | tuple) else f"a {type(returned).__name__}"
        super().__init__(
            f"task {task!r} returned {what} for a batch of {size}: return None, or a list with one for each item"
        )


class NotHeldError(StreamqError, LookupError):
    """Raised by `ack` and `nack` if the broker does not hold the delivery, or holds it no longer."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        super().__init__(
            f"task {task_id!r} is not held here: it was settled already, its lease was lost, "
            "or this broker never consumed it"
        )


class DeadLetterNotFoundError(StreamqError, LookupError):
    """Raised if the dead letter stream has no dead letter with this task id. `listing` is what lists them."""

    def __init__(self, task_id: str, listing: str = "'streamq dlq ls'") -> None:
        self.task_id = task_id
        super().__init__(f"no dead letter has the task id {task_id!r}; list them with {listing}")


class OperationNotFoundError(StreamqError, LookupError):
    """Raised if there is no operation over dead letters with this id: it is kept for 7 days after its last step."""

    def __init__(self, id_: str) -> None:
        self.id = id_
        super().__init__(f"no operation has the id {id_!r}; list them with 'streamq dlq operations'")


class OperationTakenError(StreamqError):
    """Raised by the run of an operation over dead letters if another process goes on with it. Nothing is done twice."""

    def __init__(self, id_: str) -> None:
        self.id = id_
        super().__init__(f"another process goes on with the operation {id_!r}: leave it to that, or stop it first")


# --- results ---------------------------------------------------------------------------------


class DedupKeyHeldError(StreamqError):
    """Raised by a replay if another task holds the deduplication key of the dead task. The dead letter stays."""

    def __init__(self, task_id: str, key: str, holder: str) -> None:
        self.task_id = task_id
        self.key = key
        self.holder = holder
        super().__init__(
            f"dead task {task_id!r} is not replayed: task {holder!r} holds its deduplication key {key!r}; replay it "
            "when that task is done, or cancel that task"
        )


for _one in (
    StreamqError,
    Retry,
    RetryLater,
    Reject,
    EffectInProgressError,
    EffectLostError,
    UnrecordableError,
    CircuitOpenError,
    SyncCallError,
    UnreadableExceptionError,
    ResultTimeoutError,
    ResultNotKeptError,
    ResultTypeError,
    TaskFailedError,
):
    _one.__module__ = __name__  # a dead letter names the class by it
del _one
