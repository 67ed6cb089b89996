"""StatsD: what a worker does, and the state of the queue, over UDP or a datagram socket of Unix.

Written here: the client of PyPI knows no tags, and sends at each call. This one adds up what happens within an
interval, so that ten thousand tasks a second are some packets a second. It needs no extra.
"""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio.abc import TaskStatus

from streamq.consumer.events import Event, Reclaimed, Recovered, Settled, Superseded, Trouble
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import BrokerError
from streamq.monitoring.metrics import QueueMetrics
from streamq.monitoring.monitor import QueueMonitor
from streamq.tasks.outcome import Ack, DeadLetter, Outcome, Postpone, Retry
from streamq.wire import bounds
from streamq.wire.argument_types import check_type

log = SafeLog("streamq.exporters")

PACKET: Final = 1_432  # bytes: what goes through an Ethernet in one piece
_MOST_KEYS: Final = 2_000  # counts of one interval; what more tasks do is counted under `(other)`
_MOST_SAMPLES: Final = 20  # times of one task and interval; more are sent as a sample, with its rate
_LAST: Final = 1.0  # seconds for what is left at the end
_OTHER: Final = "(other)"
_SPECIAL: Final = re.compile(r"[:|@#,\s\x00-\x1f\x7f]")
_SPECIAL_IN_PATH: Final = re.compile(r"[:|@#,\s./\x00-\x1f\x7f]")
_OUTCOMES: Final[Mapping[type[Outcome], str]] = {Retry: "retried", Postpone: "postponed", DeadLetter: "died"}

_Tags = tuple[tuple[str, str], ...]


class StatsdExporter:
    """Sends counts and times of a worker, and, with a `monitor`, the state of the queue, to a StatsD server.

    It is a listener of a worker; `send_forever` sends every `interval` seconds what it heard, and the last of it when
    it is cancelled. `path` is that of a datagram socket of Unix, in the place of `host` and `port`. With `tags` names
    are the same for every task, and task, tier and outcome are tags, as Datadog, Telegraf and the exporter of
    Prometheus read them; without, they are parts of the name. A server that is not there costs nothing but the figures.

    Raises ConfigurationError for a value that cannot be used.

        statsd = StatsdExporter("127.0.0.1", 8125)
        await task_group.start(statsd.send_forever)
        worker = Worker(broker, tasks=[...], listeners=[statsd])
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 8125, *, path: str | None = None, prefix: str = "streamq",
        tags: bool = True, interval: float = 1.0, monitor: QueueMonitor | None = None,
    ) -> None:  # fmt: skip
        self._host = check_type("host", host, str, "a text: a name or an IP address")
        self._port = int(bounds.STATSD_PORT.check(port))
        self._path = check_type("path", path, str | None, "the path of a socket, or None")
        self._prefix = check_type("prefix", prefix, str, "a text")
        self._tags = check_type("tags", tags, bool, "True or False")
        self._interval = bounds.STATSD_INTERVAL.check(interval)
        self._monitor = monitor
        self._counts: dict[tuple[str, _Tags], int] = {}
        self._times: dict[_Tags, tuple[int, list[float]]] = {}  # how many there were, and the first of them in seconds
        self._socket: socket.socket | None = None
        self._lost = False

    def __repr__(self) -> str:
        return f"<StatsdExporter to {self._path or f'{self._host}:{self._port}'}>"

    # --- what happens --------------------------------------------------------------------------

    def __call__(self, event: Event) -> None:
        """Count an event of a worker."""
        match event:
            case Settled(delivery, outcome, duration):
                if (name := _name_of(outcome)) is None:
                    return
                place = (("task", delivery.task), ("tier", delivery.tier_name))
                if name in {"done", "retried", "died"}:
                    self._time(place, duration)
                self._count("runs", (*place, ("outcome", name)))
            case Reclaimed(delivery, died):
                why = "died" if died else "released"
                self._count("reclaimed", (("tier", delivery.tier_name), ("owner", why)))
            case Superseded(delivery):
                self._count("superseded", (("tier", delivery.tier_name),))
            case Trouble():
                self._count("server_lost", ())
            case Recovered():
                self._count("server_back", ())
            case _:
                pass

    def _count(self, name: str, tags: _Tags) -> None:
        key = (name, tags)
        if key not in self._counts and len(self._counts) >= _MOST_KEYS:
            key = (name, _without_task(tags))
        self._counts[key] = self._counts.get(key, 0) + 1

    def _time(self, tags: _Tags, duration: float) -> None:
        if tags not in self._times and len(self._times) >= _MOST_KEYS:
            tags = _without_task(tags)
        count, samples = self._times.get(tags, (0, []))
        if len(samples) < _MOST_SAMPLES:
            samples.append(duration)
        self._times[tags] = (count + 1, samples)

    # --- sending -------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self, worker: Any = None) -> AsyncIterator[None]:  # noqa: ARG002 - called as any lifespan
        """Send while a worker runs: a `lifespan` for it."""
        async with anyio.create_task_group() as group:
            await group.start(self.send_forever)
            yield
            group.cancel_scope.cancel()

    async def send_forever(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Send every `interval` seconds until cancelled. Never raises for a server that is not there."""
        task_status.started()
        try:
            while True:
                await anyio.sleep(self._interval)
                await self.send()
        finally:
            with anyio.move_on_after(_LAST, shield=True):
                await self._send_lines(self._counted())
            self.close()

    def close(self) -> None:
        """Close the socket. `send` opens another one, and looks the name up again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def send(self) -> None:
        """Send what happened since the last time, and the state of the queue if there is a monitor."""
        lines = list(self._counted())
        if self._monitor is not None:
            try:
                lines += self._state_of(await self._monitor.snapshot())
            except BrokerError as error:
                log.debug("cannot read the figures of the queue: %s", error, event="figures_missing")
                lines.append(self._line("up", 0, "g", ()))
        await self._send_lines(lines)

    async def _send_lines(self, lines: Iterable[str]) -> None:
        try:
            for packet in _packets(lines):
                if self._socket is None:
                    self._socket = await self._connected()
                self._socket.send(packet)
        except (OSError, UnicodeError) as error:
            if not self._lost:
                log.warning("%r: %s; what is lost is not sent again", self, error, event="statsd_lost")
            self._lost = True
            self.close()
        else:
            if self._lost:
                log.info("%r can be reached again", self, event="statsd_back")
            self._lost = False

    async def _connected(self) -> socket.socket:
        """Return a socket that never blocks: what does not go at once is lost, as it may be on the way."""
        if self._path is not None:
            return _connected(socket.AF_UNIX, self._path)
        found = await anyio.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
        family, _, _, _, address = found[0]
        return _connected(family, address)

    # --- lines -----------------------------------------------------------------------------------

    def _counted(self) -> Iterator[str]:
        counts, self._counts = self._counts, {}
        times, self._times = self._times, {}
        for (name, tags), count in counts.items():
            yield self._line(name, count, "c", tags)
        for tags, (count, samples) in times.items():
            kind = "ms" if count == len(samples) else f"ms|@{len(samples) / count:.6g}"
            for duration in samples:
                yield self._line("run", f"{duration * 1000:.3f}", kind, tags)

    def _state_of(self, metrics: QueueMetrics) -> Iterator[str]:
        yield self._line("up", 1, "g", ())
        for tier in metrics.tiers.values():
            for name in ("depth", "processing", "delayed", "oldest_wait_s"):
                yield self._line(name, f"{getattr(tier, name):.6g}", "g", (("tier", tier.name),))
        yield self._line("dead_letters", metrics.dead_letter_count, "g", ())
        yield self._line("consumers_alive", metrics.workers, "g", ())

    def _line(self, name: str, value: object, kind: str, tags: _Tags) -> str:
        if not self._tags:
            return ".".join((self._prefix, name, *(_SPECIAL_IN_PATH.sub("_", text) for _, text in tags))) + (
                f":{value}|{kind}"
            )
        shown = ",".join(f"{key}:{_SPECIAL.sub('_', text)}" for key, text in tags)
        return f"{self._prefix}.{name}:{value}|{kind}{'|#' if shown else ''}{shown}"


name_remedies(StatsdExporter, "statsd")


def _connected(family: int, address: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.connect(address)
    except BaseException:
        made.close()
        raise
    return made


def _name_of(outcome: Outcome) -> str | None:
    if isinstance(outcome, Ack):
        return "cancelled" if outcome.cancelled else "done"
    return _OUTCOMES.get(type(outcome))


def _without_task(tags: _Tags) -> _Tags:
    return tuple((key, _OTHER if key == "task" else text) for key, text in tags)


def _packets(lines: Iterable[str]) -> Iterator[bytes]:
    """Join lines to packets. A line that is longer than a packet, by the name of its task, is left out."""
    packet = b""
    for line in lines:
        encoded = line.encode(errors="backslashreplace")
        if len(encoded) > PACKET:
            continue
        if len(packet) + 1 + len(encoded) > PACKET:
            yield packet
            packet = b""
        packet = packet + b"\n" + encoded if packet else encoded
    if packet:
        yield packet
