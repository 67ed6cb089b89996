"""One connection that many callers share: who waits for which reply, and nothing else.

Theory. A caller puts a `Slot` into the `Outbox` and parks on the slot's event. The writer of
the `Link` takes everything that waits there at once (that is the automatic pipelining), notes
the slots in the order they are sent and sends one buffer. The reader gives each reply to the
oldest slot. Slots that go out together share one event: the server answers what it read
together in one piece anyway, and one event for many waiters is most of what a call costs.

A slot that is noted stays noted until it has all of its replies, even if its caller has gone:
order is the only thing that ties a reply to its caller. So whatever goes wrong while replies
are outstanding ends the link and fails every noted slot; slots that are still in the outbox
were certainly not sent and wait for the next link.

A caller who is alone need not wait for the writer: with nothing on its way, and no more than one slot in what
last came back, `submit` sends at once, from where the caller stands. Many callers at once would
pay a system call each for that, so they are gathered.

Cost per call: one slot and a share of an event; no task, no cancel scope, no timer. A watchdog
per link looks at the oldest slot alone. Where the event loop has callbacks no task reads, either.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
from redis import exceptions

from streamq.client.codec import OutcomeUnknown
from streamq.client.sockets import SocketStream

if TYPE_CHECKING:
    from streamq.client.connection import Wire

OUTBOX_LIMIT = 1 << 20  # bytes that may wait to be sent before callers have to wait themselves
_SHARE = 1 << 14  # bytes of commands that share an event: what a Redis server reads at once

EventFactory = Callable[[], anyio.Event]


class Slot:
    """A caller's place in the order of replies.

    `data` holds the packed commands until the writer takes them. `done` is shared with other
    slots, so it may be set while this one is still waiting: wait with `wait`.
    """

    __slots__ = ("_failure", "abandoned", "data", "done", "patience", "replies", "since", "wanted")

    def __init__(self, done: anyio.Event, data: bytes, wanted: int, patience: float = 0.0) -> None:
        self.done = done
        self.data = data
        self.wanted = wanted
        self.patience = patience  # seconds the server may be silent beyond the reply timeout
        self.replies: list[Any] = []
        self.since = 0.0  # queued: when it began to wait for a connection; sent: when it was sent
        self.abandoned = False
        self._failure: tuple[type[Exception], str, BaseException | None] | None = None

    @property
    def sent(self) -> bool:
        """Whether the writer has taken the bytes: from then on they may reach the server."""
        return not self.data

    @property
    def settled(self) -> bool:
        """Whether all replies are here, or never will be."""
        return len(self.replies) == self.wanted or self._failure is not None

    async def wait(self) -> None:
        """Wait until the slot is settled."""
        while not self.settled:
            await self.done.wait()

    def fail(self, kind: type[Exception], message: str, cause: BaseException | None = None) -> None:
        """End the wait with an error; its waiter gets an exception object of its own."""
        self._failure = (kind, message, cause)
        self.done.set()

    def result(self) -> list[Any]:
        """Return the replies in order; raises what `fail` said."""
        if self._failure is None:
            return self.replies
        kind, message, cause = self._failure
        raise kind(message) from cause


class Outbox:
    """What callers want sent, in order; it outlives the links that empty it."""

    def __init__(self, event: EventFactory, limit: int = OUTBOX_LIMIT) -> None:
        self._event = event
        self._limit = limit
        self._shared: anyio.Event | None = None
        self._share = 0  # bytes that may still join the shared event
        self._wake: anyio.Event | None = None
        self._drained: anyio.Event | None = None
        self.slots: deque[Slot] = deque()
        self.size = 0  # bytes
        self.full = False

    def __repr__(self) -> str:
        return f"<Outbox slots={len(self.slots)} bytes={self.size}>"

    def apart(self, wanted: int, patience: float) -> Slot:
        """Return a slot whose commands the caller sends itself, at once."""
        return Slot(self._event(), b"", wanted, patience)

    def submit(self, data: bytes, wanted: int, patience: float = 0.0) -> Slot:
        """Queue packed commands that will get `wanted` replies, and return their slot."""
        size = len(data)
        done = self._shared
        if done is None or self._share < size:
            done = self._shared = self._event()
            self._share = _SHARE
        self._share -= size
        slot = Slot(done, data, wanted, patience)
        self.slots.append(slot)
        self.size += size
        if self.size >= self._limit:
            self.full = True
        if self._wake is not None:
            self.poke()
        return slot

    def take(self, sent: deque[Slot], now: float) -> bytes:
        """Move every slot that still has a caller to `sent`; return their bytes."""
        parts = []
        for slot in self.slots:
            if not slot.abandoned:
                parts.append(slot.data)
                slot.data = b""
                slot.since = now
                sent.append(slot)
        self._cleared()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def fail_all(self, kind: type[Exception], message: str, cause: BaseException | None = None) -> None:
        """Fail every queued slot: none of them was sent."""
        for slot in self.slots:
            slot.fail(kind, message, cause)
        self._cleared()

    def expire(self, now: float, patience: float, message: str, cause: BaseException | None) -> None:
        """Fail the slots that have waited `patience` seconds for a connection."""
        waiting = [slot for slot in self.slots if not slot.abandoned]
        self._cleared()
        done = self._event()  # the old one may be shared by slots of both kinds
        for slot in waiting:
            slot.since = slot.since or now
            if slot.since + patience <= now:
                slot.fail(exceptions.ConnectionError, message, cause)
            else:
                slot.done.set()
                slot.done = done
                self.slots.append(slot)
                self.size += len(slot.data)
        self.full = self.size >= self._limit

    def _cleared(self) -> None:
        self.slots.clear()
        self.size = 0
        self.full = False
        self._shared = None
        if self._drained is not None:
            self._drained.set()
            self._drained = None

    def poke(self) -> None:
        """Wake whoever waits in `filled`."""
        if self._wake is not None:
            self._wake.set()
            self._wake = None

    async def filled(self) -> None:
        """Wait until something is queued, or until `poke`."""
        if not self.slots:
            self._wake = self._event()
            await self._wake.wait()

    async def drained(self) -> None:
        """Wait until there is room again."""
        while self.full:
            if self._drained is None:
                self._drained = self._event()
            await self._drained.wait()


class Link:
    """Carries an outbox over one wire until the wire breaks or the link is retired.

    What the link has not taken by then waits in the outbox for the next link; a link that is
    the `last` one of its outbox fails it.
    """

    def __init__(self, wire: Wire, outbox: Outbox, *, reply_timeout: float, last: bool = False) -> None:
        self.wire = wire
        self.ended = anyio.Event()
        self.completed = 0  # slots that got their replies
        self._outbox = outbox
        self._reply_timeout = reply_timeout
        self._last = last
        self._sent: deque[Slot] = deque()
        self._unsent: bytes | memoryview = b""  # the rest of what a lone caller sent: the kernel's buffer was full
        self._alone = True  # what last came back was for one caller at most
        self._heard = -math.inf  # when bytes last arrived
        self._retired = False
        self._scope = anyio.CancelScope()
        self._reason: str | None = None
        self._cause: BaseException | None = None

    def __repr__(self) -> str:
        state = "ended" if self._reason else "retired" if self._retired else "open"
        return f"<Link to {self.wire.place} {state} outstanding={len(self._sent)}>"

    @property
    def usable(self) -> bool:
        """Whether new commands may still go out over this link."""
        return self._reason is None and not self._retired

    async def run(self) -> None:
        """Carry commands and replies until the link ends; raises nothing but cancellation."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    if not self.wire.follow(self._replied, self._broken):
                        tasks.start_soon(self._guarded, self._read)
                    tasks.start_soon(self._guarded, self._watch)
                    await self._guarded(self._write)
        finally:
            self.close("the client was closed")
            await self.wire.aclose()
            self.ended.set()

    def submit(self, data: bytes, wanted: int, patience: float = 0.0) -> Slot:
        """Send packed commands that will get `wanted` replies, or queue them, and return their slot."""
        outbox, stream = self._outbox, self.wire.stream
        if not self._alone or self._sent or outbox.slots or not self.usable or not isinstance(stream, SocketStream):
            return outbox.submit(data, wanted, patience)
        try:
            done = stream.send_now(data)
        except Exception as error:  # noqa: BLE001 - nothing of it was sent: it waits for the next link, if there will be one
            slot = outbox.submit(data, wanted, patience)
            self._broken(error)
            return slot
        slot = outbox.apart(wanted, patience)
        slot.since = anyio.current_time()
        self._sent.append(slot)
        if done < len(data):
            self._unsent = memoryview(data)[done:]
            outbox.poke()
        return slot

    def retire(self) -> None:
        """Send nothing more; end as soon as no reply is outstanding."""
        self._retired = True
        self._outbox.poke()
        if self._last:
            self._outbox.fail_all(exceptions.ConnectionError, f"the connection to {self.wire.place} was given up")
        if not self._sent:
            self.close("the connection was given up")

    def close(self, reason: str, cause: BaseException | None = None) -> None:
        """End now, for the first `reason` given, and fail every slot that waits for a reply."""
        if self._reason is None:
            self._reason, self._cause = reason, cause
        message = f"the connection to {self.wire.place} was lost before the reply came: {self._reason}"
        while self._sent:
            self._sent.popleft().fail(OutcomeUnknown, message, self._cause)
        if self._last:
            message = f"the connection to {self.wire.place} was lost before the command was sent: {self._reason}"
            self._outbox.fail_all(exceptions.ConnectionError, message, self._cause)
        self._scope.cancel()

    async def _guarded(self, loop: Callable[[], Awaitable[None]]) -> None:
        try:
            await loop()
        except Exception as error:  # noqa: BLE001 - any stream may fail in its own way; callers get it as cause
            self.close(_reason_of(error), error)

    async def _write(self) -> None:
        outbox, sent, send = self._outbox, self._sent, self.wire.stream.send
        while True:
            if not self._unsent:
                await outbox.filled()
            if self._unsent:
                rest, self._unsent = self._unsent, b""
                await send(bytes(rest))
            if not self.usable:  # cancellation may be under way: what is queued belongs to the next link
                return
            data = outbox.take(sent, anyio.current_time())
            if data:
                await send(data)

    async def _read(self) -> None:
        while True:
            await self.wire.feed()
            self._replied(anyio.current_time())

    def _replied(self, now: float) -> None:
        """Give the replies that are whole to their slots."""
        if self._reason is not None:
            return
        sent, gets = self._sent, self.wire.reader.gets
        self._heard = now
        completed = 0
        reply = gets()
        while reply is not False:
            if not sent:
                self.close("the server sent a reply that nobody asked for")
                return
            slot = sent[0]
            slot.replies.append(reply)
            if len(slot.replies) == slot.wanted:
                sent.popleft()
                completed += 1
                if not sent or sent[0].done is not slot.done:
                    slot.done.set()
            reply = gets()
        self.completed += completed
        self._alone = completed <= 1
        if self.wire.distrusted and not self._retired:
            self.retire()
        if self._retired and not sent:
            self.close("the connection was given up")

    def _broken(self, error: Exception) -> None:
        self.close(_reason_of(error), error)

    async def _watch(self) -> None:
        """End the link when the server owes a reply and has been silent for too long.

        Being late ourselves (a blocked event loop, a suspended process) is not the server's
        silence: what it sent meanwhile lies unread, so it is given the time again.
        """
        patience = self._reply_timeout
        while True:
            now = anyio.current_time()
            due = now + patience
            if self._sent:
                oldest = self._sent[0]
                due = max(oldest.since, self._heard) + patience + oldest.patience
                if due <= now:
                    self.close(f"no reply within {patience + oldest.patience:g} s")
                    return
            await anyio.sleep_until(due)
            if anyio.current_time() > due + patience / 4:
                self._heard = anyio.current_time()


def _reason_of(error: Exception) -> str:
    match error:
        case anyio.EndOfStream():
            return "the server closed it"
        case anyio.BrokenResourceError() if error.__cause__ is not None:
            return str(error.__cause__) or "it broke"
        case _:
            return str(error) or type(error).__name__
