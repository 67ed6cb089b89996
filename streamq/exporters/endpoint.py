"""An HTTP endpoint for probes and scrapes: `/livez`, `/readyz`, `/metrics`. On anyio, over any event loop.

HTTP is parsed by h11. Each connection has one answer, a time limit and a place among `_MOST_CONNECTIONS`: a client
that sends nothing, or opens thousands, costs the worker beside it nothing. What goes wrong here stays here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Final, NamedTuple, cast

import anyio
import anyio.abc
import anyio.to_thread
from anyio.abc import SocketListener, SocketStream, TaskStatus

from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import ConfigurationError, MissingExtraError, StreamqError
from streamq.exporters.prometheus import QueueCollector
from streamq.wire import bounds
from streamq.wire.argument_types import check_type
from streamq.worker import State, Worker

try:
    import h11
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.exposition import choose_encoder
except ImportError as error:
    raise MissingExtraError("streamq.exporters.endpoint", "metrics") from error

log = SafeLog("streamq.exporters")

_MOST_CONNECTIONS: Final = 64  # at a time; one more is closed at once
_TIME_LIMIT: Final = 10.0  # seconds for a request and its answer
_REFRESH_WAIT: Final = 4.0  # seconds that a scrape waits for the figures of the queue
_FRESH: Final = 1.0  # seconds for which scrapes share a refresh
_PAUSE: Final = 1.0  # seconds until the next try if a connection cannot be accepted
_MOST_HEADERS: Final = 16 << 10  # bytes
_TEXT: Final = "text/plain; charset=utf-8"


class _Answer(NamedTuple):
    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT


class Endpoint:
    """Serves `/livez`, `/readyz` and `/metrics` at `host` and `port`; port 0 is one that the system chooses.

    `/livez` is 200 while the event loop runs, and 503 once the worker has ended: a lost server does not fail it.
    `/readyz` is 200 while the worker reads (`Health.ready`), else 503 with the reason. Without a `worker`, both speak
    of this program: it is ready when the figures of the queue were read lately. `/metrics` is what is registered in
    `registry` (the default of `prometheus_client`, so metrics of handlers too), with the figures of the queue, for
    Prometheus. GET and HEAD only.

    Raises ConfigurationError for a host or port that cannot be used.

        endpoint = Endpoint(QueueCollector(QueueMonitor(broker=broker)), worker=worker, host="0.0.0.0", port=9464)
        await task_group.start(endpoint.serve)
    """

    def __init__(
        self, collector: QueueCollector, *, worker: Worker | None = None, host: str = "127.0.0.1", port: int,
        registry: CollectorRegistry = REGISTRY, reuse_port: bool = False,
    ) -> None:  # fmt: skip
        self.host = check_type("host", host, str, "a text: a name or an IP address")
        self.port = int(bounds.PORT.check(port))
        self.collector = collector
        self._worker = worker
        self._registry = registry
        self._reuse_port = reuse_port
        self._connections = 0
        self._refreshing = anyio.Lock()
        self._listening: anyio.CancelScope | None = None
        self._threads: anyio.CapacityLimiter | None = None  # its own: handlers may hold all of the others

    def __repr__(self) -> str:
        return f"<Endpoint {self.host}:{self.port} of {self._worker or self.collector!r}>"

    async def serve(self, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled, or until `stop_listening`. `task_group.start` returns the port.

        Raises ConfigurationError if nothing can listen there, or if `registry` has these names already.
        """
        try:
            listeners = await anyio.create_tcp_listener(
                local_host=self.host, local_port=self.port, reuse_port=self._reuse_port
            )
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigurationError(
                f"nothing can listen at {self.host}:{self.port}: {why}; give an address of this machine and a free port"
            ) from None
        async with listeners:
            self.port = listeners.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - it is not Django's
            unregister = self._register()
            try:
                async with anyio.create_task_group() as connections:
                    task_status.started(self.port)
                    with anyio.CancelScope() as self._listening:
                        async with anyio.create_task_group() as accepting:
                            for listener in cast("Sequence[SocketListener]", listeners.listeners):
                                accepting.start_soon(self._accept_forever, listener, connections)
                    await listeners.aclose()
            finally:
                unregister()

    def stop_listening(self) -> None:
        """Accept no further connection. `serve` ends when the accepted ones have their answers."""
        if self._listening is not None:
            self._listening.cancel()

    def _register(self) -> Callable[[], None]:
        try:
            self._registry.register(self.collector)
        except ValueError as error:
            raise ConfigurationError(
                f"the registry has metrics of these names already ({error}): give the Endpoint another registry, or "
                "the QueueCollector another prefix"
            ) from None
        return partial(self._registry.unregister, self.collector)

    # --- connections ---------------------------------------------------------------------------

    async def _accept_forever(self, listener: SocketListener, group: anyio.abc.TaskGroup) -> None:
        failed = False
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:  # no descriptor is left, say: that passes
                if not failed:
                    log.warning("no connection can be accepted at %s:%d: %s; trying again every %g s",
                                self.host, self.port, error, _PAUSE, event="endpoint_trouble")  # fmt: skip
                failed = error.errno != errno.ECONNABORTED
                await anyio.sleep(_PAUSE)
                continue
            failed = False
            if self._connections >= _MOST_CONNECTIONS:
                with anyio.CancelScope(shield=True), anyio.move_on_after(_PAUSE):
                    await anyio.aclose_forcefully(stream)
                continue
            self._connections += 1
            group.start_soon(self._attend, stream)

    async def _attend(self, stream: SocketStream) -> None:
        try:
            async with stream:
                with anyio.move_on_after(_TIME_LIMIT):
                    await self._answer_one(stream)
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the client has gone
        except Exception:  # a fault of ours must not end the worker
            log.exception("a request at %s:%d has no answer", self.host, self.port, event="internal_error")
        finally:
            self._connections -= 1

    async def _answer_one(self, stream: SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_HEADERS)
        try:
            request = await _request(connection, stream)
        except h11.RemoteProtocolError as error:
            answer, body_follows = _Answer(HTTPStatus(error.error_status_hint), b"not HTTP, or too long\n"), True
        else:
            if request is None:
                return
            answer, body_follows = await self._answer(request), request.method != b"HEAD"
        if connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        headers = [
            ("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"), ("Connection", "close"),
        ]  # fmt: skip
        parts = [h11.Response(status_code=answer.status, headers=headers, reason=answer.status.phrase)]
        sent = b"".join(connection.send(part) or b"" for part in parts)
        await stream.send(sent + (answer.body if body_follows else b""))
        await stream.send_eof()

    # --- answers -------------------------------------------------------------------------------

    async def _answer(self, request: h11.Request) -> _Answer:
        if request.method not in {b"GET", b"HEAD"}:
            return _Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"GET and HEAD only\n")
        match request.target.partition(b"?")[0]:
            case b"/livez":
                ended = self._worker is not None and self._worker.state is State.STOPPED
                return _unavailable("the worker has ended") if ended else _Answer(HTTPStatus.OK, b"ok\n")
            case b"/readyz":
                return self._ready() if self._worker is None else _ready_of(self._worker)
            case b"/metrics":
                accepts = b",".join(value for name, value in request.headers if name == b"accept")
                return await self._metrics(accepts.decode("latin-1"))
        return _Answer(HTTPStatus.NOT_FOUND, b"/livez, /readyz and /metrics are here\n")

    def _ready(self) -> _Answer:
        return _Answer(HTTPStatus.OK, b"ok\n") if self.collector.up else _unavailable(
            "the figures of the queue cannot be read, or nobody has asked for them yet"
        )  # fmt: skip

    async def _metrics(self, accepts: str) -> _Answer:
        await self.refresh()
        encode, content_type = choose_encoder(accepts)
        try:  # thousands of names take tens of milliseconds, and tasks run in this event loop
            body = await anyio.to_thread.run_sync(encode, self._registry, limiter=self._limiter())
        except RuntimeError:  # the system has no thread for it
            body = encode(self._registry)
        return _Answer(HTTPStatus.OK, body, content_type)

    def _limiter(self) -> anyio.CapacityLimiter:
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(1)
        return self._threads

    async def refresh(self) -> None:
        """Read the figures of the queue, unless they were read just now. A failure shows in `up`."""
        async with self._refreshing:
            if self.collector.age < _FRESH:
                return
            with anyio.move_on_after(_REFRESH_WAIT) as scope:
                try:
                    await self.collector.refresh()
                except StreamqError as error:  # the server is away, or the broker is not open yet
                    log.debug("cannot read the figures of the queue: %s", error, event="figures_missing")
            if scope.cancelled_caught:
                self.collector.note_failure()


name_remedies(Endpoint, "endpoint")


def _ready_of(worker: Worker) -> _Answer:
    health = worker.health
    if health.ready:
        return _Answer(HTTPStatus.OK, b"ok\n")
    silent = "the server has not answered lately" if health.state is State.RUNNING else None
    reason = health.trouble or silent
    return _unavailable(f"the worker is {health.state}" + (f": {reason}" if reason else ""))


def _unavailable(reason: str) -> _Answer:
    return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}\n".encode(errors="backslashreplace"))


async def _request(connection: h11.Connection, stream: SocketStream) -> h11.Request | None:
    """Return the request of a connection; None if there is none. Its body is not read."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            try:
                connection.receive_data(await stream.receive())
            except anyio.EndOfStream:
                connection.receive_data(b"")
        elif isinstance(event, h11.Request):
            return event
        else:
            return None
