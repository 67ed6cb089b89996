"""Reports the circuits of one process to Redis, where the monitor finds them.

A circuit of the fleet is in Redis anyway. One of a process is not, so each change of its state is written there.
It costs one command per change, and none per call.
"""

from __future__ import annotations

import os
import socket
from typing import Final

import anyio

from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError
from streamq.middleware.circuit_state_machine import State
from streamq.middleware.circuit_view import (
    MAX_INDEXED,
    CircuitView,
    circuit_name,
    failure_fields,
    process_circuit_name,
    shown_name,
)
from streamq.queue.store import Store
from streamq.scripts import step

log = SafeLog("streamq")

_REPORTING: Final = "reporting circuits to the monitor"
_REMOVE_WITHIN: Final = 2.0  # seconds that a worker that ends may take to remove its circuits


class CircuitReporter:
    """What the monitor knows of the circuits of one breaker.

    `instance` tells breakers of one process apart. A report expires 2 * `reset_timeout` + 60 seconds after the change.
    """

    def __init__(self, breaker: str, reset_timeout: float, instance: str) -> None:
        self._breaker = breaker
        self._instance = instance
        self._ttl_ms = round((2 * reset_timeout + 60) * 1000)
        self._reported: dict[str, Store] = {}  # by the name in Redis

    def __repr__(self) -> str:
        return f"<CircuitReporter {self._breaker or 'breaker'} reported={len(self._reported)}>"

    async def report(self, key: str, view: CircuitView, store: Store) -> None:
        """Write the new state of a circuit, or remove the circuit if it is closed. Logs if the server is away."""
        circuit = circuit_name(self._breaker, key)
        worker = f"{socket.gethostname()}-{os.getpid()}"
        name = process_circuit_name(circuit, f"{worker}-{self._instance}")
        if view.state is State.CLOSED:
            await self._write(name, store, {})
            return
        error_type, error = ("", "") if view.last_failure is None else failure_fields(view.last_failure)
        await self._write(name, store, {
            "name": shown_name(circuit), "worker": worker, "state": view.state, "failures": view.failures,
            "error_type": error_type, "error": error,
        })  # fmt: skip

    async def remove_when_cancelled(self, store: Store) -> None:
        """Wait until the worker ends and cancels this, then remove the circuits that were reported to its server."""
        try:
            await anyio.sleep_forever()
        finally:
            names = [name for name, reported_to in self._reported.items() if reported_to is store]
            with anyio.CancelScope(shield=True), anyio.move_on_after(_REMOVE_WITHIN):
                for name in names:
                    await self._write(name, store, {})

    async def _write(self, name: str, store: Store, fields: dict[str, str | int]) -> None:
        """Write the fields of a circuit; no fields remove it."""
        if fields:
            self._reported[name] = store
            if (
                len(self._reported) > MAX_INDEXED
            ):  # keys may come from messages; the oldest reports expire by themselves
                del self._reported[next(iter(self._reported))]
        else:
            self._reported.pop(name, None)
        keys = [store.keys.circuit(name), store.keys.circuits]
        flat = [part for pair in fields.items() for part in pair]
        try:
            await store.one(step("circuit_report")(keys, name, self._ttl_ms, MAX_INDEXED, *flat))
        except BrokerError as error:
            if not store.refusals.note_failed(_REPORTING, error, part=name):
                log.info("circuit %s cannot be reported to the monitor: %s", name, error, event="circuit_alone")
        else:
            store.refusals.note_accepted(_REPORTING, name)
