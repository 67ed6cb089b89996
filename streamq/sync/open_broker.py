"""A `RedisBroker` over a client that blocks: its coroutines never suspend. What a `SyncBroker` runs them on.

It opens at the first call, in whichever thread, and again in the child of a fork. A program need not know when that is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from streamq.broker import RedisBroker
from streamq.client import refuse_in_loading_process
from streamq.client.owner import close_after_fork
from streamq.client.sync_client import SyncClient
from streamq.errors import NotOpenError
from streamq.queue.results import Handle
from streamq.queue.sending import new_task_id
from streamq.queue.workflow_start import WorkflowSteps
from streamq.sync.drive import run_now
from streamq.sync.producer import SyncProducer
from streamq.sync.waiters import SyncWaiters
from streamq.tasks.options import NO_OPTIONS
from streamq.tasks.task import Call, check_calls
from streamq.wire.workflow import Flow

R = TypeVar("R")


class BlockingBroker(RedisBroker):
    """A broker for any number of threads. Arguments as for `RedisBroker`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.was_closed = False
        self._opening = threading.RLock()
        self._sync_client: SyncClient | None = None
        self._sync_producer: SyncProducer | None = None
        self._embedded: Any = None
        self._pid = os.getpid()
        close_after_fork(self)

    def __repr__(self) -> str:
        state = "closed" if self.was_closed else "not used yet" if self._sync_client is None else "open"
        return f"<SyncBroker {self._server!r} namespace={self.keys.namespace} group={self.keys.group} {state}>"

    def open(self) -> None:
        """Open it, if it is not open yet. Connects nowhere, but starts a server of `embedded://`.

        Raises NotOpenError once it was closed.
        """
        with self._opening:
            if self.was_closed:
                raise NotOpenError(repr(self), remedy="make another SyncBroker, and close it when nothing uses it more")
            if self._producer is not None:
                return
            refuse_in_loading_process("a broker")
            self._sync_client, self._embedded = self._server.connect_sync(*self.timeouts)
            self._store = store = self._store_over(self._sync_client)
            self._waiters = waiters = SyncWaiters(store, self._sync_client.pool)
            self._producer = self._sync_producer = SyncProducer(
                self._builder, self.middleware, store, waiters, exchange=self._sync_client.pool.exchange_now
            )  # fmt: skip

    def close(self) -> None:
        """Close every connection. Threads that wait for a reply get an error. May be called again, in any thread."""
        with self._opening:
            self.was_closed = True
            client, self._sync_client = self._sync_client, None
            embedded, self._embedded = self._embedded, None
            self._producer = self._sync_producer = self._waiters = self._store = None
        if client is not None:
            client.close()
        if embedded is not None and os.getpid() == self._pid:
            embedded.stop()

    def enqueue_now(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle[Any]:
        """Send one task, as `enqueue` does, in this thread. The broker is open."""
        call = self._builder.make_call(task, args, kwargs)
        task, producer = call.task, self._sync_producer
        if producer is None or task.send_options is not NO_OPTIONS or task.middleware or self.middleware.wraps_enqueues:
            return run_now(self.enqueue(call))
        return producer.send_now(call)

    def call_of(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call[Any]:
        """Return the call that `enqueue` makes of its arguments."""
        return self._builder.make_call(task, args, kwargs)

    def check(self, call: Call[R]) -> Call[R]:
        """Return a call as it would be sent. Raises what makes it unfit to be sent."""
        check_calls([call])
        if self._store is None:
            self.open()
        return self._builder.prepare(self.store, call).call

    def check_flow(self, flow: Flow[Any], workflow_id: str | None) -> None:
        """Raise what makes a workflow unfit to be started."""
        steps = WorkflowSteps(flow, self._builder.make_call)
        if self._store is None:
            self.open()
        guarded, chosen = workflow_id is not None, new_task_id() if workflow_id is None else workflow_id
        steps.prepare(self._builder, self.store, steps.calls, chosen, guarded=guarded)

    @property
    def sync_client(self) -> SyncClient:
        """The client that blocks. Raises NotOpenError once it was closed."""
        if self._sync_client is None:
            self.open()
            return self.sync_client
        return self._sync_client

    def for_workers(self) -> RedisBroker:
        """Return a broker of the same queue for an event loop, with the same settings."""
        connect_timeout, reply_timeout = self.timeouts
        return RedisBroker(
            self.url, namespace=self.keys.namespace, group=self.keys.group, tiers=self.tiers,
            max_payload=self.max_payload, connect_timeout=connect_timeout, reply_timeout=reply_timeout,
            dead_letters=self.dead_letters, clock=self.clock, middleware=self.middleware, signing=self.signing,
        )  # fmt: skip

    def close_in_child(self) -> None:
        """Have a lock of its own, in the child of a fork: a thread of the parent may hold the other."""
        self._opening = threading.RLock()
