"""The producer of one world. It uses every feature in each round, and notes what was accepted, and what was refused.

What the server refused for certain must never run, unless it is sent again: every second one is, with the same id, once
the right is back.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.abc

from streamq import RedisBroker, gather, group
from streamq.errors import (
    BrokerError,
    NotDurableError,
    OutcomeUnknownError,
    ResultNotKeptError,
    ResultTimeoutError,
    StreamqError,
)  # fmt: skip
from streamq.testing import Recorder

PRIORITIES = (100, 10, 1)
FAR = 60.0  # seconds that a task is delayed that is to be withdrawn
WAIT = 6.0  # seconds that a result is waited for
Send = Callable[[], Awaitable[Any]]


class Sender:
    """Sends rounds through a broker, and through an impatient one what no replica confirms.

    `healthy` says whether all rights are there.
    """

    def __init__(self, broker: RedisBroker, impatient: RedisBroker, recorder: Recorder, tasks: list[Any]) -> None:
        self.broker = broker
        self.impatient = impatient
        self.recorder = recorder
        self.task = {one.name: one for one in tasks}
        self.healthy = True
        self.findings: list[str] = []
        self.flows: list[list[str]] = []  # the ids of the steps of each workflow that was accepted
        self.asked: dict[str, bool] = {}  # tasks whose cancellation was asked for: was it confirmed?
        self.must_end_well: list[str] = []  # sent when all rights were there again
        self.refusals = 0
        self._again: list[tuple[list[str], Send, bool]] = []
        self._cancels: list[str] = []
        self._far: list[str] = []  # what is delayed until it is withdrawn
        self._numbers = itertools.count(1)
        self._round = 0

    def __repr__(self) -> str:
        return f"<Sender round={self._round} refusals={self.refusals}>"

    # --- one step --------------------------------------------------------------------------------

    async def send(self, ids: list[str], send: Send, *, many: bool = False) -> list[Any]:
        """Send something with these ids, and note what became of it. Return the handles, none if it was refused.

        `many`: if an error is raised, some may have been accepted.
        """
        try:
            sent = await send()
        except NotDurableError:
            handles, accepted = [], ids
        except BrokerError as error:
            unknown = many or isinstance(error, OutcomeUnknownError)
            for one in ids:
                self.recorder.record("unknown" if unknown else "refused", one)
            self.refusals += 1
            if self.healthy and not isinstance(error, ConnectionError):
                self.findings.append(f"refused although all rights are there: {error}")
            if unknown or self.refusals % 2:
                self._again.append((ids, send, many))
            return []
        else:
            handles = sent if isinstance(sent, list) else list(sent.steps) if hasattr(sent, "steps") else [sent]
            accepted = [handle.task_id for handle in handles]
            if hasattr(sent, "steps"):
                self.flows.append(accepted)
                return [sent]
        for one in accepted:
            self.recorder.record("accepted", one, tier="")
        if self.healthy and self._round > 1:
            self.must_end_well += [handle.task_id for handle in handles if handle.fresh]
        return handles

    async def one(self, name: str, *args: Any, **options: Any) -> Any:
        """Enqueue one task with an id of its own. Return its handle, None if it was refused."""
        task_id = f"{name}.{next(self._numbers)}"
        call = self.task[name].options(task_id=task_id, **options)
        if options.get("delay") == FAR:
            self._far.append(task_id)
        found = await self.send([task_id], lambda: self.broker.enqueue(call, *args))
        return found[0] if found else None

    async def ask(self, what: str, ask: Send) -> Any:
        """Ask for something that changes nothing, or nothing that the ledger counts."""
        try:
            with anyio.fail_after(WAIT + 2):
                return await ask()
        except (StreamqError, TimeoutError) as error:
            if self.healthy and self._round > 1:
                self.findings.append(f"{what}, although all rights are there: {type(error).__name__}: {error}")
            return None

    async def result(self, what: str, ask: Send, expected: Any) -> None:
        """Wait for a result. Once all rights are there it must come."""
        healthy = self.healthy and self._round > 1
        try:
            with anyio.fail_after(WAIT + 2):
                found = await ask()
        except (StreamqError, TimeoutError) as error:
            late = isinstance(error, TimeoutError) and not isinstance(error, ResultTimeoutError)
            if healthy or (late and not isinstance(error, BrokerError)):
                self.findings.append(f"the result of {what}: {type(error).__name__}: {error}")
        else:
            if found != expected:
                self.findings.append(f"the result of {what} is {found!r}, not {expected!r}")

    # --- a round ---------------------------------------------------------------------------------

    async def round(self) -> None:
        """Use every feature once or a few times, side by side."""
        self._round += 1
        async with anyio.create_task_group() as parts:
            for part in (self._plain, self._kept, self._dedup, self._workflows, self._withdrawn, self._limits,
                         self._schedules, self._durable):  # fmt: skip
                parts.start_soon(part)

    async def _plain(self) -> None:
        for number, name in enumerate(("plain", "threaded", "flaky", "later", "hopeless", "rejects", "slow") * 2):
            await self.one(name, number, priority=PRIORITIES[number % 3])
        await self.one("plain", 1, delay=0.15)
        await self.one("plain", 1, expires=0.001, priority=1, delay=0.05)
        for size in (4, 3):
            ids = [f"batch.{next(self._numbers)}" for _ in range(size)]
            calls = [self.task["batch"].options(task_id=one).call(1) for one in ids]
            await self.send(ids, lambda calls=calls: self.broker.enqueue_many(calls), many=True)
        with suppress(BrokerError):  # without ids, nobody knows what was refused
            for handle in await self.broker.enqueue_many([self.task["plain"].call(n) for n in range(10)]):
                self.recorder.record("accepted", handle.task_id, tier="")

    async def _kept(self) -> None:
        handles = [await self.one("kept", number) for number in range(3)]
        if all(handles):
            await self.result("three", lambda: gather(*handles, timeout=WAIT), (0, 1, 2))
            await self.ask("a status", handles[0].status)
        if (reports := await self.one("reports", 7)) is not None:
            await self.ask("progress", lambda: self._watch(reports))
            await self.ask("the latest progress", reports.progress)
        if (effects := await self.one("effects", f"key {self._round}")) is not None:
            await self.result("an effect", lambda: effects.result(timeout=WAIT), 1)
        await self.ask("a mark", lambda: self.broker.is_duplicate(f"mark {self._round}"))

    @staticmethod
    async def _watch(handle: Any) -> None:
        async for _ in handle.watch(timeout=WAIT):
            pass

    async def _dedup(self) -> None:
        for window in ("until_started", "until_done", 0.2):
            for _ in range(2):
                await self.one("plain", 1, dedup_key=f"{window}", dedup_window=window)
        for _ in range(2):
            await self.one("plain", 1, dedup_key="calm", dedup_mode="debounce", delay=0.05)
        for _ in range(3):
            await self.one("waits", 1, dedup_key="newest", dedup_mode="keep_last", dedup_ttl=2)
            await anyio.sleep(0.05)

    async def _workflows(self) -> None:
        kept, total, doomed = self.task["kept"], self.task["total"], self.task["doomed"]
        flows = [
            group(kept.call(1), kept.call(2)).then(total).then(kept),
            kept.call(1).then(kept.options(delay=0.05)).then(kept.options(priority=100)),
            kept.call(1).then(doomed).then(kept, 1),
        ]
        for place, flow in enumerate(flows):
            number = next(self._numbers)
            ids = [f"flow-{number}.{step + 1}" for step in range(4 if place == 0 else 3)]
            firsts = ids[: 2 if place == 0 else 1]
            sent = await self.send(
                firsts, lambda flow=flow, number=number: self.broker.start(flow, workflow_id=f"flow-{number}")
            )
            if sent and place == 0:
                await self.result("a workflow", lambda sent=sent: sent[0].result(timeout=WAIT), 3)

    async def _withdrawn(self) -> None:
        for options in ({"delay": FAR}, {"delay": FAR, "dedup_key": "gone", "dedup_window": "until_done"}, {}):
            handle = await self.one("waits" if not options else "plain", 1, **options)
            if handle is not None and handle.fresh:
                await anyio.sleep(0.1 if not options else 0)
                await self.cancel(handle.task_id)
        await self.ask("what is delayed", self._listed)

    async def _listed(self) -> None:
        async for _ in self.broker.scheduled(limit=5):
            pass

    async def cancel(self, task_id: str) -> None:
        """Withdraw a task, or stop it. If that is refused it is tried again once the right is back."""
        try:
            confirmed = await self.broker.cancel(task_id)
        except BrokerError as error:
            self._cancels.append(task_id)  # if the outcome is unknown it may be gone: the judge sees that
            self.asked[task_id] = self.asked.get(task_id, False) or isinstance(error, OutcomeUnknownError)
        else:
            self.asked[task_id] = self.asked.get(task_id, False) or confirmed

    async def _limits(self) -> None:
        for number in range(4):
            for name in ("calls", "limited", "alone"):
                await self.one(name, number)

    async def _schedules(self) -> None:
        name = f"every-second-{self._round}"
        for _ in range(2):
            await self.ask("a schedule", lambda: self.broker.schedule(name, "* * * * * *", self.task["ticks"].call()))
        await self.ask("schedules", self.broker.schedules)

    async def _durable(self) -> None:
        task_id = f"plain.{next(self._numbers)}"
        call = self.task["plain"].options(task_id=task_id, durable="replica")
        await self.send([task_id], lambda: self.impatient.enqueue(call, 1))

    # --- the end ---------------------------------------------------------------------------------

    async def again(self) -> None:
        """Send again what is to be sent again, cancel what was not cancelled, and remove the schedules."""
        again, self._again = self._again, []
        for ids, send, many in again:
            await self.send(ids, send, many=many)
        cancels, self._cancels, self._far = [*self._cancels, *self._far], [], []
        for one in dict.fromkeys(cancels):
            await self.cancel(one)

    async def unschedule(self) -> None:
        """Remove the schedules."""
        for one in await self.broker.schedules():
            await self.broker.unschedule(one.name)


__all__ = ["WAIT", "ResultNotKeptError", "Sender"]
