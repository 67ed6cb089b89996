"""What a queue costs, counted where nothing jitters.

Theory. What a program does is determined by its code but for two things: how long everything takes, and
what chance decides. Here time is virtual (`streamq.testing.clock`): it passes as the handlers say and
stands still otherwise, while the server works, too: a socket waits, inside of `send`, until the real
server has answered all of it. Chance goes by a seed. So every run of one program on one backend is the
same, call by call, on whatever machine, and what it costs are whole numbers.

They are counted from one answer of the server to another: neither the start of a worker nor its end is in them.
"""

from __future__ import annotations

import gc
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import anyio
import hiredis
import trio._core._run as scheduler

import streamq
from streamq import RedisBroker, Worker, task
from streamq.client.sockets import SocketStream
from streamq.clock import Clock, ServerClock
from streamq.consumer.loop_watchdog import Watchdog
from streamq.testing.clock import VirtualTime
from tests.servers import RealServer

_OURS = str(Path(streamq.__file__).parent)
_TIME = str(Path(streamq.__file__).parent / "testing" / "clock.py")
_ANYIO = str(Path(anyio.__file__).parent)
_DAY = 86_400.0
_STREAMS = ("queue:critical", "queue:standard", "queue:bulk")
FIRST = 6000  # the run from which on it is counted: by then everything has happened once
SPARE = 3000  # tasks that wait beyond those that are counted
EACH = 20e-6  # seconds of virtual time that a handler takes
_INLINED = ("<listcomp>", "<setcomp>", "<dictcomp>")  # calls of their own before Python 3.12


@dataclass(frozen=True)
class Cost:
    """What some tasks cost: the server, by those that were settled; the worker, by those that ran meanwhile.

    `commands`: what the server carried out, inside of scripts included (INFO commandstats). `writes`: how
    often something was sent to it. `calls`: functions of this package, written in Python, that were entered
    or gone on with. `scopes` and `spawned`: cancel scopes and tasks, through anyio.

    `blocks`: memory blocks that were allocated and still there at the next call or return of any function; only if
    the meter weighs. (What an instruction allocates and frees at once, and what comes from free lists, is not seen.)
    """

    commands: int
    writes: int
    calls: int
    scopes: int
    spawned: int
    blocks: int = 0


class Meter:
    """Counts what is done between `start` and `stop`, in this thread and on one server.

    If it `weighs` it counts memory blocks as well, which takes long.
    """

    def __init__(self, server: RealServer) -> None:
        self.server = server
        self.weighs = False
        self.tasks = self.runs = 0
        self.on_answer: Callable[[], None] = lambda: None
        self._blocks = self._allocated = 0
        self.writes = 0
        self.reads = 0
        self.calls: Counter[CodeType] = Counter()
        self.cost: Cost | None = None
        self._before = (0, 0, 0, 0)

    def start(self) -> None:
        """Count from here on."""
        self.calls.clear()
        self._before = self._read()
        self._blocks, self._allocated = 0, sys.getallocatedblocks()
        sys.setprofile(self._weighed if self.weighs else self._called)

    def stop(self) -> None:
        """Count no further.

        `cost` says what it was, `tasks` how many left the queue or came into it, `calls` which functions were
        called, and `reads` how often the server read.
        """
        sys.setprofile(None)
        commands, writes, reads, waiting = (
            after - before for after, before in zip(self._read(), self._before, strict=True)
        )
        self.tasks = abs(waiting)
        self.reads = reads - 1 - len(_STREAMS)  # our own questions
        in_anyio = Counter(
            {code.co_qualname: n for code, n in self.calls.items() if code.co_filename.startswith(_ANYIO)}
        )
        self.calls = Counter({code: n for code, n in self.calls.items() if _is_ours(code)})
        self.cost = Cost(
            commands, writes, self.calls.total(), in_anyio["CancelScope.__enter__"], in_anyio["TaskGroup.start_soon"],
            self._blocks,
        )  # fmt: skip

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            self.calls[frame.f_code] += 1

    def _weighed(self, frame: FrameType, event: str, _: Any) -> None:
        self._blocks += max(0, sys.getallocatedblocks() - self._allocated)
        if event == "call":
            self.calls[frame.f_code] += 1
        self._allocated = sys.getallocatedblocks()

    def _read(self) -> tuple[int, int, int, int]:
        answer = self.server.command("INFO", "everything").decode()
        facts = dict(line.split(":", 1) for line in answer.splitlines() if ":" in line)
        commands = sum(
            int(fact.split("calls=")[1].split(",")[0])
            for name, fact in facts.items()
            if name.startswith("cmdstat_") and name not in ("cmdstat_info", "cmdstat_xlen")
        )
        waiting = sum(self.server.command("XLEN", stream) for stream in _STREAMS)
        return commands, self.writes, int(facts["total_reads_processed"]), waiting

    def table(self, rows: int = 25) -> str:
        """Say which functions were called most, per run."""
        lines = [
            f"{count / self.runs:10.3f}  {code.co_qualname}  ({Path(code.co_filename).relative_to(_OURS)})"
            for code, count in self.calls.most_common(rows)
        ]
        return "\n".join(lines)


class PromptSocket(socket.socket):
    """A connection to a server that answers while time stands still: `send` waits for it, unless it blocks.

    The last byte of what was answered stays where the kernel has it: so an event loop finds what `recv` has for it.
    """

    def __init__(self, path: str, meter: Meter) -> None:
        super().__init__(socket.AF_UNIX)
        self.connect(path)
        self.setblocking(False)
        self._meter = meter
        self._requests = hiredis.Reader()
        self._replies = hiredis.Reader()
        self._taken = b""
        self._seen = False  # is the next byte of the kernel that last one?

    def send(self, data: bytes | memoryview, flags: int = 0) -> int:
        """Send all of it and wait, without letting anybody else run, until it is answered."""
        self._meter.writes += 1
        self._requests.feed(bytes(data))
        wanted = 0
        while (request := self._requests.gets()) is not False:
            wanted += _answers(request)
        self.setblocking(True)
        try:
            self.sendall(data, flags)
            while wanted > 0:
                wanted -= self._take()
        finally:
            self.setblocking(False)
        self._meter.on_answer()
        return len(data)

    def _take(self) -> int:
        """Wait for bytes, take all but the last, and return how many replies end in them."""
        if self._seen:
            self._taken += super().recv(1)
            self._seen = False
        arrived = super().recv(1 << 20, socket.MSG_PEEK)
        if not arrived:
            raise ConnectionResetError
        if len(arrived) > 1:
            self._taken += super().recv(len(arrived) - 1)
        self._seen = True
        self._replies.feed(arrived)
        ended = 0
        while self._replies.gets() is not False:
            ended += 1
        return ended

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return what was taken before, and what has arrived."""
        data, self._taken = self._taken[:size], self._taken[size:]
        if len(data) < size and (self._seen or not data):
            data += super().recv(1 if self._seen else size, flags)
            self._seen = False
        return data


@contextmanager
def determined(meter: Meter) -> Iterator[None]:
    """Have nothing depend on real time or on chance, for a program that runs in virtual time."""

    async def dial() -> SocketStream:
        return SocketStream(PromptSocket(meter.server.socket, meter))

    scheduler._r.seed(1)
    gc.disable()
    try:
        with (
            patch("streamq.client.client.dial_to", lambda _: dial),
            patch.object(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", new=True),
            patch.object(Watchdog, "watch_forever", _nobody_watches),
            patch.object(ServerClock, "compare", _a_day_ahead),
        ):
            yield
    finally:
        sys.setprofile(None)
        gc.enable()


class Work:
    """Handlers that take `each` seconds of virtual time.

    Counting starts at the first answer of the server after `first` of their runs, and ends at that after `last`:
    what goes with one turn of a worker is there whole, or not at all.
    """

    def __init__(self, virtual: VirtualTime, meter: Meter, *, each: float, first: int, last: int) -> None:
        self.done = 0
        self.over = anyio.Event()
        self.clock = Clock(now=virtual.now, elapsed=virtual.elapsed)
        self.last = last
        self._virtual = virtual
        self._meter = meter
        self._each = each
        self._first = first
        self._begun = False
        meter.on_answer = self._answered

    def run(self) -> None:
        """Be one run."""
        self._virtual.advance(self._each)
        self.done += 1

    def _answered(self) -> None:
        if not self._begun and self.done >= self._first:
            self._begun = True
            self._meter.runs = -self.done
            self._meter.start()
        elif self._begun and self.done >= self.last and not self.over.is_set():
            self._meter.stop()
            self._meter.runs += self.done
            self.over.set()


def plain(work: Work) -> Any:
    @task
    async def noop() -> None:
        work.run()

    return noop


def as_it_is(task: Any, _: int) -> Any:
    return task


async def work_off(
    meter: Meter, work: Work, noop: Any, *, concurrency: int, sent: Any = as_it_is, arguments=()
) -> None:
    """Send what is to be counted and more, and have it counted."""
    async with RedisBroker(meter.server.url, clock=work.clock) as broker:
        for _ in range((work.last + SPARE) // 1000):
            await broker.enqueue_many([sent(noop, number).call(*arguments) for number in range(1000)])
        worker = Worker(broker, [noop], concurrency=concurrency, visibility_timeout=600, seed=1)
        async with anyio.create_task_group() as group:
            await group.start(worker.run)
            await work.over.wait()
            group.cancel_scope.cancel()


def _answers(request: list[bytes]) -> int:
    """Return how many replies a request has at once."""
    match request[0].upper():
        case b"SUBSCRIBE" | b"PSUBSCRIBE":
            return len(request) - 1
        case b"XREADGROUP" if b"BLOCK" in request:
            return 0
    return 1


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(_OURS) and code.co_filename != _TIME and code.co_name not in _INLINED


_compare = ServerClock.compare


def _a_day_ahead(clock: ServerClock, server: float, asked: float, answered: float, **options: float) -> None:
    """Compare the clocks once, and take the server's for a day later than it is.

    How long entries waited is in Redis' own, real time, and that is nothing to a day. (Latencies are counted by powers
    of two, each with a command.)
    """
    if clock._offset is None:
        _compare(clock, server + _DAY, asked, answered, **options)


async def _nobody_watches(_: Watchdog) -> None:
    """Stand in for the watchdog of the event loop: its thread lives in real time."""
    await anyio.sleep_forever()
