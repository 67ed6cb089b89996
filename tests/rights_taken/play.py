"""One right: a world with a user of exactly the rights of a producer and a worker, all features, and the judge.

Rounds are sent before the right is taken, while it is missing, and after it was given back. The judge then asks: is
everything drained; did each accepted task end in exactly one way (`streamq.testing.check`); did what was refused run;
are schedules, counters, results and cancellations right; did no worker end; did the health of a worker or doctor name
what was missing.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import anyio
import anyio.abc
import orjson

from streamq import Backoff, RedisBroker, Worker
from streamq.consumer import outage, promoter, set_aside, tier_refusals
from streamq.doctor.queries import Queries
from streamq.doctor.read_rights import read_rights
from streamq.errors import BrokerError
from streamq.middleware import concurrency_permits
from streamq.queue import waiters
from streamq.testing import FinalState, Limits, Record, Recorder, check, final_state
from streamq.wire.acl import acl_rules
from streamq.wire.counters import unpack
from streamq.wire.keys import Keys
from streamq.wire.rights import features_of
from tests.rights_taken.handlers import HOPELESS, all_tasks
from tests.rights_taken.sending import Sender
from tests.servers import RealServer

ROLES: Any = ("producer", "worker")
LEASE = 2.0
DRAIN = 25.0  # seconds within which everything has ended once the right is back
STOP = 20.0  # seconds within which a worker ends
ALLOWED = {"retries_exhausted", "rejected", "expired"}
CONNECTING = frozenset({"+ping", "+client|id", "+client|setname"})  # asked for by new connections alone


@contextlib.contextmanager
def quick_pauses() -> Any:
    """Have short pauses between two tries of what is refused: every state is reached within a second or two."""
    short = Backoff(base=0.02, factor=2.0, cap=0.1)
    changed: list[tuple[Any, str, Any]] = [
        (set_aside, "_PAUSE", short), (set_aside, "LEFT_PAUSE", 0.3), (tier_refusals, "_PAUSE", short),
        (outage, "_PAUSE", short), (promoter, "LOOK_EVERY", 0.5), (promoter, "_LOOKS", 2),
        (waiters, "LOOK_EVERY", 0.5), (waiters, "_ASK_AGAIN", 1.0), (concurrency_permits, "_ASK_AFTER", 3.0),
    ]  # fmt: skip
    before = [(module, name, getattr(module, name)) for module, name, _ in changed]
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def features(server: RealServer) -> list[str]:
    """Return the features that are used: all that the two roles have by themselves, and what this server can do."""
    return features_of(ROLES)


def all_rights(server: RealServer, namespace: str = "queue") -> list[str]:
    """Return every right that can be taken away, as a rule of ACL SETUSER."""
    rules = acl_rules(RedisBroker(server.url, namespace=namespace).keys, ROLES, features(server))
    return [*rules.keys, *rules.channels, *rules.commands]


def kind_of(right: str) -> str:
    """Return what kind of right this is."""
    if right[0] in "~&":
        return "key" if right[0] == "~" else "channel"
    return "connecting" if right in CONNECTING else "command"


def drawn(rights: list[str], salt: str, each: int = 1) -> list[str]:
    """Draw some rights of each kind, by the hash of their names: the same for the same salt."""
    chosen: list[str] = []
    for kind in ("command", "key", "channel", "connecting"):
        some = [one for one in rights if kind_of(one) == kind]
        chosen += sorted(some, key=lambda one: zlib.crc32(f"{salt} {one}".encode()))[:each]
    return chosen


@dataclass(slots=True)
class Result:
    """What became of one right. `named` says who named it."""

    right: str
    findings: list[str]
    named: tuple[str, ...] = ()
    accepted: int = 0
    refusals: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    drained: float = 0.0

    def __str__(self) -> str:
        ends = ", ".join(f"{name} {number}" for name, number in sorted(self.ends.items()))
        line = f"{self.right:28} {self.accepted:4} accepted, {self.refusals:3} refused; {ends}; drained in "
        line += f"{self.drained:.1f} s, named by {', '.join(self.named)}"
        return "\n".join([line, *(f"    ! {one}" for one in self.findings)])


class World:
    """A namespace and a user of its own on a server that others may use as well."""

    def __init__(self, server: RealServer, name: str, right: int) -> None:
        self.server = server
        self.name = name
        self.user = f"user-{name}"
        self.url = server.url.replace("://", f"://{self.user}:pw@")
        self.keys: Keys = RedisBroker(server.url, namespace=name).keys
        self.rights = all_rights(server, name)
        self.gone = self.rights[right]
        self.lines: list[bytes] = []
        self.records = Recorder(self.lines.append, "producer")
        self.findings: list[str] = []
        self.drained = 0.0
        self.said: set[str] = set()
        self.workers: list[Worker] = []
        self.over: dict[str, bool] = {}  # by worker: was it asked to stop?

    def allow(self, *, gone: str = "") -> None:
        """Give the user all rights but one, in one step."""
        rights = [one for one in self.rights if one != gone]
        words = ("ACL", "SETUSER", self.user, "on", "resetpass", ">pw", "resetkeys", "resetchannels", "-@all", *rights)
        reply = self.server.command(*words)
        if reply != b"OK":
            raise AssertionError(reply)

    def take(self) -> None:
        """Take the right away. What only new connections or unknown scripts need must be needed."""
        self.allow(gone=self.gone)
        if self.gone in CONNECTING:
            self.server.command("CLIENT", "KILL", "USER", self.user)
        if self.gone == "+eval":
            self.server.command("SCRIPT", "FLUSH")

    # --- workers -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def worker(self, broker: RedisBroker, name: str) -> AsyncIterator[Worker]:
        """Run a worker in the background; it is stopped at the end of the block."""
        recorder = Recorder(self.lines.append, "")
        worker = Worker(
            broker, all_tasks(), name=name, listeners=[recorder], concurrency=20, visibility_timeout=LEASE,
            grace_period=1.0, lifespan=lambda _: contextlib.nullcontext(recorder),
        )  # fmt: skip
        ended, recorder.who = anyio.Event(), worker.name
        self.over[worker.name] = False

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            try:
                await worker.run(task_status=task_status)
            except Exception as error:  # noqa: BLE001 - that is what is looked for
                self.findings.append(f"{name} ended: {type(error).__name__}: {error}")
            finally:
                if not self.over[worker.name]:
                    self.findings.append(f"{name} ended before it was asked to")
                ended.set()

        async with anyio.create_task_group() as group:
            await group.start(run)
            recorder.record("up")
            self.workers.append(worker)
            yield worker
            if not self.over[worker.name]:
                self.stop(worker)
            with anyio.move_on_after(STOP):
                await ended.wait()
                recorder.record("stopped")
            if not ended.is_set():
                self.findings.append(f"{name} did not stop within {STOP:g} s")
            self.workers.remove(worker)
            group.cancel_scope.cancel()

    def stop(self, worker: Worker) -> None:
        """Ask a worker to drain."""
        self.over[worker.name] = True
        self.records.record_of(worker.name, "stopping")
        worker.stop()

    async def watch(self) -> None:
        """Collect what the workers say of their health while the right is missing."""
        while True:
            for worker in self.workers:
                health = worker.health
                self.said.update(health.refused)
                if health.trouble:
                    self.said.add(health.trouble)
            await anyio.sleep(0.02)

    def dead_workers(self, tag: str) -> None:
        """Leave entries of workers that have died: one has crashed once before, one never had an entry."""
        for place, tier in enumerate(self.keys.tiers[:2]):
            task_id, dead = f"orphan.{tag}.{place}", f"dead-{tag}"
            entry = self.server.command("XADD", tier.stream, "*", "task", "plain", "args", "[1]", "id", task_id)
            self.server.command("XREADGROUP", "GROUP", self.keys.group, dead, "STREAMS", tier.stream, ">")
            self.server.command("HSET", tier.leases, dead, 100)
            self.server.command("ZADD", tier.alive, 1, dead, 1, f"idle-{tag}")
            self.server.command("XGROUP", "CREATECONSUMER", tier.stream, self.keys.group, f"idle-{tag}")
            if place:
                self.server.command("HSET", tier.crashes, entry, "one")
            self.records.record("accepted", task_id, tier="")

    # --- the judge -----------------------------------------------------------------------------------

    def left(self) -> dict[str, int]:
        """Return how many tasks are in each stream and each delayed set."""
        asked = [("XLEN", tier.stream) for tier in self.keys.tiers] + [("ZCARD", t.delayed) for t in self.keys.tiers]
        return {key: number for command, key in asked if (number := self.server.command(command, key))}

    async def drain(self) -> None:
        """Wait until everything has ended."""
        begin = time.monotonic()
        with anyio.move_on_after(DRAIN):
            while self.left():
                await anyio.sleep(0.03)
        self.drained = time.monotonic() - begin
        if left := self.left():
            refused = {line for worker in self.workers for line in worker.health.refused}
            delayed = [self.server.command("ZRANGE", tier.delayed, 0, 3, "WITHSCORES") for tier in self.keys.tiers]
            self.findings.append(f"not drained within {DRAIN:g} s: {left}, {delayed}, health {refused}")

    def judge(self, sender: Sender, final: FinalState, counted: Counter[str]) -> Result:
        """Compare the log of events with what is left on the server."""
        records = [_record(line) for line in self.lines]
        started = {one.task for one in records if one.what == "start"}
        reached = started | {one.task for one in records if one.what == "settled"}
        dead = dict(final.dead)
        late = records[-1].at
        accepted = {one.task for one in records if one.what == "accepted"}
        for task_id, confirmed in sender.asked.items():
            if confirmed and task_id not in reached:
                records.append(Record(late, "producer", "withdrawn", task_id))
            elif not confirmed and task_id in accepted - reached:
                self.findings.append(f"{task_id} was neither withdrawn nor started")
        for steps in sender.flows:
            whole = not any(step in dead for step in steps)
            known = steps if whole else steps[:1]
            records += (Record(late, "producer", "accepted", step, {"tier": ""}) for step in known)
        limits = Limits(
            lease=LEASE, slack=5.0, dead_reasons=frozenset({*ALLOWED, "refused"}), clean_exit=True,
        )  # fmt: skip
        if self.gone == "+hdel":  # evidence of crashes that may not be deleted stays until its TTL ends
            final = replace(final, stray=tuple(one for one in final.stray if ":crashes:" not in one))
        report = check(records, final, limits)
        self.findings += [f"{row.promise} {row.question}: {row.value} {row.examples[:4]}" for row in report.violations]
        for task_id in sender.must_end_well:
            if dead.get(task_id) == "refused" or (task_id in dead and task_id.partition(".")[0] in _MUST_SUCCEED):
                self.findings.append(f"{task_id}, sent when the right was back, died: {dead[task_id]}")
        self._judge_ticks(started)
        log = Counter(report.counts) + Counter(one.what for one in records if one.what == "effect")
        again = sum(one.what == "start" and one.task in sender.asked for one in records)
        refused = sum(reason == "refused" for reason in dead.values())
        self._judge_counters(log, counted, again + log["cancelled"], refused)
        ends = Counter(dead.values()) + Counter(
            {name: number for name, number in report.counts.items() if name in {"ack", "cancelled", "superseded"}}
        )
        return Result(
            self.gone,
            [*self.findings, *sender.findings],
            self._named(),
            len(accepted),
            sender.refusals,
            ends,
            self.drained,
        )

    def _judge_ticks(self, started: set[str]) -> None:
        """No tick of a schedule between its first and its last is missing."""
        ticks: dict[str, list[int]] = {}
        for task_id in started:
            if task_id.startswith("every-second"):
                name, _, at = task_id.rpartition("@")
                ticks.setdefault(name, []).append(round(datetime.fromisoformat(at).timestamp()))
        for name, some in ticks.items():
            if len(some) != max(some) - min(some) + 1:
                self.findings.append(f"the schedule {name!r} has missed ticks: {sorted(some)}")

    def _judge_counters(self, settled: Counter[str], counted: Counter[str], cancellable: int, refused: int) -> None:
        """Nothing is counted twice, and nothing is missing."""
        for name, what in (("done", "effect"), ("dead", "dead"), ("retried", "retry"), ("postponed", "postpone")):
            more = cancellable if name == "done" else 0  # a run that was cancelled counts as done
            least = 0 if self.gone.endswith(_COUNTS) else settled[what]  # a worker that ends then has not written them
            if name == "done":
                least -= refused  # the run succeeded, and its acknowledgement was refused: its task has died
            if self.gone in CONNECTING:  # connections were cut: what was not answered was written again
                more = settled[what]
            if not least <= counted[name] <= settled[what] + more:
                self.findings.append(f"counted {name}: {counted[name]}, {what}s in the log: {settled[what]}")

    def _named(self) -> tuple[str, ...]:
        """Say who named the missing right."""
        name = self.gone[1:].removesuffix("*").split("|")[0].lower()
        words = [line.lower() for line in self.said]
        exactly = any(name in line and ("perm" in line or "can't" in line or "acl" in line) for line in words)
        return (*(("health",) if exactly else ("health, without the name",) if words else ()),)


_COUNTS = ("+eval", "+evalsha", "+hincrby", "+expire", ":stats:workers:*")
_MUST_SUCCEED = {"kept", "threaded", "flaky", "later", "calls", "limited", "alone", "batch", "effects", "reports"}


def _record(line: bytes) -> Record:
    details = orjson.loads(line)
    return Record(details["at"], details["who"], details["what"], details.get("task", ""), details)


def _counted(server: RealServer, keys: Iterable[str], tiers: frozenset[str]) -> Counter[str]:
    """Return the sums of the counters in these keys."""
    counted: Counter[str] = Counter()
    for key in keys:
        if ":stats:" in key:
            for one in unpack(_pairs(server.command("HGETALL", key)), tiers).values():
                counted.update({what: getattr(one, what) for what in ("done", "dead", "retried", "postponed")})
    return counted


async def play(server: RealServer, name: str, right: int, *, hold: float = 1.2) -> Result:
    """Take one right away for `hold` seconds. `right` is its place in `all_rights`."""
    world = World(server, name, right)
    world.allow()
    doctor = ""
    async with (
        RedisBroker(server.url, namespace=name) as admin,
        RedisBroker(world.url, namespace=name) as producing,
        RedisBroker(world.url, namespace=name, reply_timeout=0.5) as impatient,
        RedisBroker(world.url, namespace=name) as broker,
    ):
        sender = Sender(producing, impatient, world.records, all_tasks())
        try:
            async with world.worker(broker, "a"):
                async with world.worker(broker, "b"), anyio.create_task_group() as rounds:
                    world.dead_workers("before")
                    rounds.start_soon(sender.round)
                    await anyio.sleep(0.3)
                    async with anyio.create_task_group() as watching:
                        watching.start_soon(world.watch)
                        both = [worker.name for worker in world.workers]
                        for one in both:
                            world.records.record_of(one, "cut")
                        sender.healthy = False
                        world.take()
                        world.dead_workers("during")
                        rounds.start_soon(sender.round)
                        await anyio.sleep(hold / 2)
                        doctor = await _doctor(broker, world)
                        rounds.start_soon(sender.round)
                        await anyio.sleep(hold / 2)
                        world.stop(world.workers[1])
                        await anyio.sleep(0.3)
                        world.allow()
                        for one in both:
                            world.records.record_of(one, "healed")
                        watching.cancel_scope.cancel()
                sender.healthy = True
                async with world.worker(broker, "c"):
                    await sender.again()
                    await sender.round()
                    await sender.again()
                    await sender.unschedule()
                    await world.drain()
        except* BrokerError as group:
            world.findings.append(f"the round was broken off: {group.exceptions[0]!r}")
        await anyio.sleep(0.15)
        final = await final_state(admin, shared=True)
        counted = _counted(server, final.keys, frozenset(tier.name for tier in admin.tiers))
    server.command("ACL", "DELUSER", world.user)
    result = world.judge(sender, final, counted)
    result.named = (*result.named, *((doctor,) if doctor else ()))
    if not result.named:
        result.findings.append("nobody named what was missing")
    if final.keys:
        server.command("DEL", *final.keys)
    return result


async def _doctor(broker: RedisBroker, world: World) -> str:
    """Ask doctor which rights are missing, by the eyes of the user itself."""
    missing: set[str] = set()
    for role in ROLES:
        with contextlib.suppress(BrokerError):
            rights = await read_rights(Queries(broker.store), broker.keys, role)
            missing |= {str(one) for one in _missing(rights)}
    return "doctor" if world.gone in missing else ""


def _missing(rights: Any) -> list[str]:
    from streamq.doctor import server_checks
    from streamq.doctor.observations import Observations

    found = server_checks.permissions(Observations(now=0.0, rights=rights))
    return [one for finding in found for one in finding.evidence.get("missing", ())]


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


__all__ = ["HOPELESS", "Result", "all_rights", "drawn", "play", "quick_pauses"]
