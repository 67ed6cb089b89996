"""One round: a live worker, good tasks, an attack, and then the judge.

The judge asks: does the worker live; did every good task that was accepted end in exactly one way, and in time; did
anything of one run reach another; does the log become quiet; does the worker stop when it is asked to.
"""

from __future__ import annotations

import contextlib
import decimal
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import Any

import anyio

from streamq import RedisBroker, Worker, current_delivery, task
from streamq.errors import BrokerError, StreamqError
from tests.fuzz import hostile
from tests.servers import RealServer, TestServer

MARK: ContextVar[str] = ContextVar("fuzz", default="")
IN_TIME = 25.0  # seconds within which good tasks end once the attack is over
QUIET = 1.2  # seconds over which the log is watched afterwards
WINDOWS = 4  # such times, after which it must be quiet
MOST_LINES = 12  # of level WARNING or above in that time
USER, PASSWORD = "fuzz", "fuzz"


class Lines(logging.Handler):
    """Counts what streamq logs as wrong."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a line."""
        if not str(record.msg).startswith("listener "):  # ours raises as long as there are events
            self.texts.append(f"{record.levelname} {record.msg}"[:300])


@dataclass
class World:
    """What an attack can reach, and what the judge reads."""

    server: TestServer
    random: Random
    namespace: str
    producer: RedisBroker
    worker: Worker
    done: dict[str, int] = field(default_factory=dict)  # good tasks that ran, by id
    accepted: dict[str, float] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    heals: list[Callable[[], object]] = field(default_factory=list)  # what ends the attack
    over: bool = False  # the worker has ended
    lossy: bool = False  # the attack may have refused settlements: a good task may then be a dead letter

    def note(self, action: str) -> None:
        """Note what was done, for the report."""
        self.actions.append(ascii(action)[:200])

    def command(self, *arguments: Any) -> Any:
        """Send a command by hand. What the server says to rubbish is its affair."""
        with contextlib.suppress(Exception):
            return self.server.command(*arguments)
        return None

    async def calls(self, what: str, call: Callable[[], Any], *, edge: bool = False) -> Any:
        """Make a call with rubbish: it may be refused with an error of ours, a TypeError or a ValueError.

        `edge`: what is wrong with it must be seen before the server sees it.
        """
        self.note(what)
        try:
            with anyio.move_on_after(3):
                found = call()
                return await found if hasattr(found, "__await__") else found
        except (StreamqError, TypeError, ValueError) as error:
            if edge and not self.lossy and isinstance(error, BrokerError) and error.code == "ERR":
                self.findings.append(f"{what}: the server had to refuse it: {error}")
            return None
        except Exception as error:  # noqa: BLE001
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.findings.append(f"{what}: {type(error).__name__} at {where.filename}:{where.lineno}")


GOOD: dict[str, World] = {}  # the world in which good tasks note their ends


def good_tasks() -> list[Any]:
    """Return the good tasks: plain, with a result, failing once, in a thread, and the two steps of a workflow."""

    def note() -> None:
        world = GOOD["world"]
        if MARK.get() or decimal.getcontext().prec != 28:
            world.findings.append("what another run left behind reached a good task")
        task_id = current_delivery().task_id
        world.done[task_id] = world.done.get(task_id, 0) + 1

    @task(name="good.plain", retries=50, backoff=0.05)
    async def plain(n: int) -> int:
        note()
        return n

    @task(name="good.kept", retries=50, backoff=0.05, result_ttl=60)
    async def kept(n: int) -> int:
        await anyio.sleep(0.001)
        note()
        return n

    @task(name="good.fails_once", retries=50, backoff=0.02)
    async def fails_once(n: int) -> None:
        if current_delivery().attempt == 1:
            raise ValueError("once")
        note()

    @task(name="good.thread", retries=50, backoff=0.05)
    def in_thread(n: int) -> None:
        note()

    return [plain, kept, fails_once, in_thread]


async def send_good(world: World, count: int) -> None:
    """Send good tasks. Those that are refused are none of the ledger."""
    tasks = good_tasks()
    for number in range(count):
        one = world.random.choice(tasks)
        try:
            if world.random.random() < 0.15:
                started = await world.producer.start(tasks[1].call(number).then(tasks[0]).then(tasks[1]))
                ids = [handle.task_id for handle in started.steps]
            else:
                options = {"delay": 0.05} if world.random.random() < 0.2 else {}
                ids = [(await world.producer.enqueue(one.options(**options), number)).task_id]
        except StreamqError:
            continue
        world.accepted.update(dict.fromkeys(ids, time.monotonic()))


@contextlib.asynccontextmanager
async def opened(server: TestServer, random: Random, namespace: str, lines: Lines) -> AsyncIterator[World]:
    """Open a world: its broker, and a worker that runs in the background under a user of its own."""
    url = server.url
    if isinstance(server, RealServer):
        server.command("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        url = server.url.replace("://", f"://{USER}:{PASSWORD}@")
    options: dict[str, Any] = {"namespace": namespace}
    async with RedisBroker(server.url, **options) as producer, RedisBroker(url, **options) as broker:
        worker = Worker(
            broker, [*good_tasks(), *hostile.tasks(MARK)], concurrency=20, visibility_timeout=1.0, unknown_wait=0.3,
            grace_period=1.0, listeners=[hostile.listener],
        )  # fmt: skip
        world = World(server, random, namespace, producer, worker)
        GOOD["world"] = world
        ended = anyio.Event()

        async def run() -> None:
            try:
                await worker.run()
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001 - that is what is looked for
                world.findings.append(f"the worker ended: {type(error).__name__}")
            finally:
                world.over = True
                ended.set()

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            with anyio.move_on_after(10):
                while worker.health.state != "running" and not ended.is_set():
                    await anyio.sleep(0.01)
            yield world
            if ended.is_set():
                world.findings.append("the worker had ended before it was asked to")
            worker.stop()
            with anyio.move_on_after(10):
                await ended.wait()
            if not ended.is_set():
                world.findings.append("the worker did not stop within 10 s")
            group.cancel_scope.cancel()


async def judge(world: World, lines: Lines) -> None:
    """Heal what the attack broke, wait for the good tasks, and look."""
    for heal in reversed(world.heals):
        heal()
    limit = time.monotonic() + IN_TIME
    while (missing := unended(world)) and not world.over and time.monotonic() < limit:
        await anyio.sleep(0.05)
    dead = dead_letters(world)
    if isinstance(reply := world.command("XLEN", f"{world.namespace}:dead"), Exception):
        world.findings.append(f"the dead letters cannot be read: {reply}")
    if missing:
        names = ", ".join(sorted(missing)[:5])
        world.findings.append(f"{len(missing)} of {len(world.accepted)} good tasks did not end in time: {names}")
    for task_id in world.accepted.keys() & dead.keys():
        if not world.lossy:
            world.findings.append(f"a good task died: {dead[task_id]}")
        elif not dead[task_id]:
            world.findings.append("a good task died without a reason")
    for _ in range(WINDOWS):  # what the attack has enqueued may still run, and say so: that ends
        before = len(lines.texts)
        await anyio.sleep(QUIET)
        after = lines.texts[before:]
        if len(after) <= MOST_LINES:
            return
    world.findings.append(f"{len(after)} lines of the log in {QUIET} s, long after the attack: {after[0]}")


def dead_letters(world: World) -> dict[str, str]:
    """Return the dead letters: task id to reason."""
    found = {}
    reply = world.command("XRANGE", f"{world.namespace}:dead", "-", "+")
    for _, flat in () if isinstance(reply, Exception) else reply or ():
        fields = dict(zip(flat[::2], flat[1::2], strict=False))
        found[fields.get(b"task_id", b"").decode(errors="replace")] = fields.get(b"reason", b"").decode(
            errors="replace"
        )
    return found


def unended(world: World) -> set[str]:
    """Return the good tasks that have neither run nor died."""
    missing = world.accepted.keys() - world.done.keys()
    if missing:
        missing = missing - dead_letters(world).keys()
    if missing and world.lossy:  # a workflow whose step died sends no next one
        died = {task_id.rpartition(".")[0] for task_id in dead_letters(world)}
        missing = {task_id for task_id in missing if task_id.rpartition(".")[0] not in died or "." not in task_id}
    return set(missing)
