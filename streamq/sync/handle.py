"""Handles of tasks and workflows for threads: each call blocks, and is that of `Handle` or `Workflow` otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Generic, TypeVar

from streamq.handlers.progress import Progress
from streamq.queue.results import Handle, Status
from streamq.queue.workflow_handle import WorkflowHandle
from streamq.queue.workflow_start import Workflow
from streamq.sync.drive import iterate, refuse_in_event_loop, run_now
from streamq.wire.workflow_record import WorkflowStatus

R_co = TypeVar("R_co", covariant=True)


class SyncHandle(Generic[R_co]):
    """A task that was sent by a SyncBroker. Any thread may use it.

    `fresh`, `replaced`, `task_id`, `task_name`, `tier` and `stream` are those of `streamq.Handle`. Each method raises
    what the method of that name raises there, and SyncCallError in a running event loop.
    """

    __slots__ = ("_handle",)

    def __init__(self, handle: Handle[R_co]) -> None:
        self._handle = handle

    def __repr__(self) -> str:
        return f"<SyncHandle of {self._handle.task_name} {self._handle.task_id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SyncHandle) and self._handle == other.handle

    def __hash__(self) -> int:
        return hash(self._handle)

    @property
    def handle(self) -> Handle[R_co]:
        """What it wraps. Its coroutines never suspend."""
        return self._handle

    @property
    def task_id(self) -> str:
        """The id of the task."""
        return self._handle.task_id

    @property
    def task_name(self) -> str:
        """The name of the task."""
        return self._handle.task_name

    @property
    def tier(self) -> int:
        """The index of its tier."""
        return self._handle.tier

    @property
    def stream(self) -> str:
        """The name of the stream of its tier."""
        return self._handle.stream

    @property
    def fresh(self) -> bool:
        """False if another task holds its task id or its deduplication key: `task_id` is that of the other."""
        return self._handle.fresh

    @property
    def replaced(self) -> bool:
        """Whether this message has replaced that of a task that waits."""
        return self._handle.replaced

    def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait for the task to end and return what its handler returned. `timeout` is in seconds, None: for ever.

        Raises what `Handle.result` raises: ResultTimeoutError, TaskFailedError, ResultNotKeptError, ResultTypeError.
        """
        refuse_in_event_loop()
        return run_now(self._handle.result(timeout))

    def status(self) -> Status:
        """Return the status of the task now."""
        refuse_in_event_loop()
        return run_now(self._handle.status())

    def progress(self) -> Progress | None:
        """Return the last progress that the task reported, None if there is none, or none any more."""
        refuse_in_event_loop()
        return run_now(self._handle.progress())

    def watch(self, timeout: float | timedelta | None = None) -> Iterator[Progress]:
        """Yield the current progress, then each change, until the task has ended or `timeout` seconds have passed."""
        return iterate(self._handle.watch(timeout))

    def cancel(self) -> bool:
        """Withdraw the task if it was not delivered yet; tell a running one to stop. Return whether one was done."""
        refuse_in_event_loop()
        return run_now(self._handle.cancel())


class SyncWorkflowHandle:
    """A workflow, by its id. `SyncBroker.workflow` makes it; a `SyncWorkflow` is one, too."""

    __slots__ = ("_handle",)

    def __init__(self, handle: WorkflowHandle) -> None:
        self._handle = handle

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._handle.workflow_id}>"

    @property
    def workflow_id(self) -> str:
        """The id of the workflow."""
        return self._handle.workflow_id

    def status(self) -> WorkflowStatus:
        """Return how far the workflow is, and each of its steps. UNKNOWN if it is not known, or not any more."""
        refuse_in_event_loop()
        return run_now(self._handle.status())

    def progress(self) -> Progress | None:
        """Return how many of its steps are done, and how many it has; None for a workflow that is not known."""
        refuse_in_event_loop()
        return run_now(self._handle.progress())

    def cancel(self) -> bool:
        """Cancel the whole workflow. Return whether a step of it was cancelled, or told to stop.

        As `WorkflowHandle.cancel`.
        """
        refuse_in_event_loop()
        return run_now(self._handle.cancel())


class SyncWorkflow(SyncWorkflowHandle, Generic[R_co]):
    """A workflow that was started by a SyncBroker. `steps` are the handles of its steps, in the order of the flow."""

    __slots__ = ("_workflow",)

    def __init__(self, workflow: Workflow[R_co]) -> None:
        super().__init__(workflow)
        self._workflow = workflow

    @property
    def fresh(self) -> bool:
        """False if the workflow, or one of its steps, was accepted before."""
        return self._workflow.fresh

    @property
    def steps(self) -> tuple[SyncHandle[Any], ...]:
        """The handles of the steps."""
        return tuple(map(SyncHandle, self._workflow.steps))

    def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait for the last step to end and return its result, of a group a list. As `Workflow.result`."""
        refuse_in_event_loop()
        return run_now(self._workflow.result(timeout))
