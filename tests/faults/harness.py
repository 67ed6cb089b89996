"""A scene: a server of its own, a log, the fleet of workers, the producers, and what must hold at the end.

A scenario drives it: it starts workers and loads, injects faults, waits until the work is done. What it does
is written into the log by the scene, so that the checker knows whom to excuse for what. `judge.run`
puts it up, checks it and takes it down.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from streamq.consumer.consumer_name import name_given
from streamq.testing import Recorder, Row
from streamq.wire.keys import RELEASED_CONSUMER
from tests.faults import producer
from tests.faults.journal import Journal
from tests.faults.member import Setting
from tests.faults.processes import Process
from tests.faults.producer import Kind, Load
from tests.faults.registry import Scenario
from tests.servers import RealServer

TIERS = ("critical", "standard", "bulk")
START = 30.0  # seconds for a worker's process to read its first message on a loaded machine
_POLL = 0.02


class Stuck(AssertionError):  # noqa: N818 - it is what happened
    """Something that a scenario waits for did not come."""


class Scene:
    """Everything that one run of a scenario has.

    `url` is the address that workers and producers are given: a scenario may put a proxy there.
    `lease` (s) is the visibility timeout of workers unless they are started with another.
    """

    def __init__(
        self, scenario: Scenario, *, server: RealServer, folder: Path, backend: str, seed: int, tasks: int
    ) -> None:
        self.scenario = scenario
        self.server = server
        self.url = server.url
        self.folder = folder
        self.backend = backend
        self.seed = seed
        self.tasks = tasks
        self.lease = scenario.lease
        self.slack = scenario.slack
        self.random = random.Random(seed)
        self.log = folder / "log"
        self.log.touch()
        self.recorder = Recorder(self.log, "scene")
        self.journal = Journal(self.log)
        self.limits: dict[str, Any] = dict(scenario.limits)  # fields of Limits that only this run knows
        self.rows: list[Row] = []  # what the scenario found out by itself
        self.workers: list[Process] = []  # all that were ever started
        self.producers: list[Process] = []
        self._setting = Setting(url=self.url, backend=backend, lease=self.lease)

    def __repr__(self) -> str:
        return f"<Scene {self.scenario.name} seed={self.seed} {self.backend} {len(self.members)} workers>"

    # --- the log --------------------------------------------------------------------------------

    def note(self, what: str, who: str = "scene", **details: Any) -> None:
        """Write a record about somebody: `note("down", "server")`."""
        self.recorder.record_of(who, what, "", **details)

    def fault(self, name: str) -> None:
        """Count one injected fault."""
        self.note("fault", name=name)

    def expect(self, promise: str, question: str, value: float, limit: float | None, *examples: str) -> None:
        """Add a row to the report: a violation if `value` is above `limit`."""
        self.rows.append(Row(promise, question, round(value, 3), limit, "", examples))

    # --- workers --------------------------------------------------------------------------------

    @property
    def members(self) -> list[Process]:
        """The workers that live, frozen ones included, oldest first."""
        return [worker for worker in self.workers if worker.alive]

    def start(self, *, wait: bool = True, environment: dict[str, str] | None = None, **setting: Any) -> Process:
        """Start one worker, and wait until it reads unless told not to. `setting` are fields of `Setting`."""
        chosen = replace(self._setting, **{"url": self.url, "lease": self.lease, **setting})
        command = ["-m", "tests.faults.member", chosen.to_json()]
        return self._started(
            command, environment or {}, wait=wait, forked=not chosen.clock
        )  # a clock is set before imports

    def start_many(self, count: int, **setting: Any) -> list[Process]:
        """Start several workers at once, and wait until all of them read."""
        started = [self.start(wait=False, **setting) for _ in range(count)]
        for worker in started:
            self.until_up(worker)
        return started

    def start_cli(self, *arguments: str, wait: bool = True) -> Process:
        """Start one worker by `streamq worker`, and wait until it reads."""
        who = f"w{len(self.workers) + 1}"
        command = ["-m", "streamq", "worker", "tests.faults.handlers", "--url", self.url, "--backend", self.backend]
        command += ["--lease", f"{self.lease}s", "--name", who, "--log-level", "warning", *arguments]
        return self._started(command, {}, wait=wait)

    def _started(self, command: list[str], environment: dict[str, str], *, wait: bool, forked: bool = False) -> Process:
        who = f"w{len(self.workers) + 1}"
        worker = Process(command, who, log=self.log, recorder=self.recorder, environment=environment, forked=forked)
        self.workers.append(worker)
        if wait:
            self.until_up(worker)
        return worker

    def until_up(self, worker: Process) -> None:
        """Wait until a worker reads, or has ended."""
        self.until(lambda: not worker.alive or self.journal.seen("up", worker.who), START, f"{worker.who} that reads")

    def replace_dead(self, count: int, **setting: Any) -> None:
        """Start as many workers as are missing of `count`, without waiting for them: what a supervisor does."""
        for _ in range(count - len(self.members)):
            self.start(wait=False, **setting)

    def pick(self, seconds: float = START) -> Process:
        """Draw one of the workers that are well; while there is none, wait for one.

        After kills all that are left may be still starting: they read soon. Raises Stuck, which says how each worker
        is, if none is well within `seconds`, or at once if none can become so.
        """
        with contextlib.suppress(Stuck):  # below it is said better
            self.until(lambda: bool(self.well()) or not self._promising(), seconds, "worker that is well")
        if (worker := self.pick_at_once()) is None:
            raise Stuck(f"none of the workers is well: {self._states()}")
        return worker

    def pick_at_once(self) -> Process | None:
        """Draw one of the workers that are well, None if just now there is none."""
        # Asked once: between two looks the last one may have died.
        return self.random.choice(well) if (well := self.well()) else None

    def oldest(self) -> Process:
        """Return the worker that has lived longest. Raises Stuck if none lives."""
        if not (living := self.members):
            raise Stuck(f"none of the workers lives: {self._states()}")
        return living[0]

    def well(self) -> list[Process]:
        """Return the workers that read, are not frozen and were not told to stop."""
        living = [worker for worker in self.members if not worker.frozen and not worker.told]
        return [worker for worker in living if self.journal.seen("up", worker.who)]

    def _promising(self) -> bool:
        """Can a worker become well by itself? One that is frozen, or told to stop, or dead cannot."""
        return any(not worker.frozen and not worker.told for worker in self.members)

    def _states(self) -> str:
        return ", ".join(map(self._state, self.workers)) or "none was ever started"

    def _state(self, worker: Process) -> str:
        if not worker.alive:
            return f"{worker.who} ended with {worker.code}"
        if worker.frozen:
            return f"{worker.who} is frozen"
        if worker.told:
            return f"{worker.who} was told to stop"
        return f"{worker.who} {'reads' if self.journal.seen('up', worker.who) else 'does not read yet'}"

    def kill(self, worker: Process) -> None:
        """SIGKILL a worker."""
        self.fault("kill")
        worker.kill()

    def freeze(self, worker: Process) -> None:
        """SIGSTOP a worker."""
        self.fault("freeze")
        worker.freeze()

    def thaw(self, worker: Process) -> None:
        """SIGCONT a worker."""
        worker.thaw()

    def stop(self, *workers: Process, seconds: float = 30.0) -> None:
        """SIGTERM workers, all of them unless some are given, and wait until they have ended."""
        leaving = workers or tuple(self.members)
        for worker in leaving:
            worker.thaw()
            with contextlib.suppress(Stuck):
                self.until_up(worker)  # a process that has not come so far does not know what SIGTERM means
            worker.terminate()
        for worker in leaving:
            if not worker.wait(seconds):
                self.expect("P8", f"{worker.who} ended after SIGTERM", 1, 0)
                worker.kill()

    # --- tasks ----------------------------------------------------------------------------------

    def load(self, *kinds: Kind, total: int | None = None, **settings: Any) -> Load:
        """Return a load of this run's size and seed; without kinds it is no-ops."""
        settings.setdefault("seed", self.random.randrange(1 << 30))
        if kinds:
            settings["kinds"] = list(kinds)
        return Load(total=self.tasks if total is None else total, **settings)

    def pace(self, seconds: float) -> float:
        """Return the rate at which this run's tasks take so long to send."""
        return self.tasks / seconds

    def produce(self, load: Load, *, url: str | None = None) -> Process:
        """Start a process that sends a load while the scenario goes on."""
        who = f"p{len(self.producers) + 1}"
        command = ["-m", "tests.faults.producer", url or self.url, self.backend, load.to_json()]
        process = Process(command, who, log=self.log, forked=True)
        self.producers.append(process)
        return process

    def send(self, load: Load) -> None:
        """Send a load here and now, and return when all of it is accepted."""
        who = f"s{self.random.randrange(1 << 30)}"
        anyio.run(producer.send, self.url, self.log, who, load, backend=self.backend)

    # --- waiting --------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait until something holds and return how long it took. Raises Stuck after `seconds`."""
        start = time.monotonic()
        while not condition():
            if time.monotonic() > start + seconds:
                raise Stuck(f"no {what} within {seconds:g} s")
            time.sleep(_POLL)
        return time.monotonic() - start

    def count(self, what: str) -> int:
        """Return how many records of a kind there are by now: `count("effect")`."""
        return self.journal.look()[what]

    def until_count(self, what: str, count: int, seconds: float = 60.0) -> None:
        """Wait until there are this many records of a kind."""
        self.until(lambda: self.count(what) >= count, seconds, f"{count} records of {what!r}")

    def until_underway(self) -> None:
        """Wait until the producers' first tasks have run: faults before that hit nobody."""
        self.until_count("effect", min(20, self.tasks // 10))

    def command(self, *arguments: str | float) -> Any:
        """Send one command to the server by hand. Raises OSError while it cannot be used."""
        return self.server.command(*arguments)

    def left(self) -> int:
        """Return how many tasks lie in the streams and the delayed sets."""
        # In one step: between two, a task could move from where is looked later to where was looked before.
        counts = [
            part for tier in TIERS
            for part in (f"redis.call('XLEN','queue:{tier}')", f"redis.call('ZCARD','queue:{tier}:delayed')")
        ]  # fmt: skip
        return int(self.command("EVAL", f"return {'+'.join(counts)}", 0))

    def sending(self) -> bool:
        """Is a producer still at work?"""
        return any(process.alive for process in self.producers)

    def drained(self) -> bool:
        """Have all producers ended, and is nothing left in the streams and the delayed sets?"""
        if self.sending():
            return False
        try:
            return self.left() == 0
        except (OSError, TypeError):  # no server, or one that answers with an error
            return False

    def drain(self, seconds: float = 60.0, *, meanwhile: Callable[[], Any] | None = None) -> float:
        """Wait until everything is sent and worked off, doing something in between, and return how long it took."""

        def done() -> bool:
            if meanwhile is not None:
                meanwhile()
            return self.drained()

        return self.until(done, seconds, "end of the work")

    def reap(self) -> None:
        """Wait until those that live have removed the consumers of those that died, if anybody lives."""

        def reaped() -> bool:
            living = {worker.who.encode() for worker in self.members}
            return not living or self.consumers() <= living

        bound = 4 * self.lease + self.slack  # one that died before it first renewed is known by its idleness alone
        try:
            self.until(reaped, bound, "end of the consumers of dead workers")
        except Stuck:
            names = sorted(name.decode() for name in self.consumers())
            self.expect("P8", "consumers of dead workers are removed", 1, 0, *names)

    def consumers(self) -> set[bytes]:
        """Return the names that were given to all consumers, but not the one that parks what was handed back."""
        names: set[bytes] = set()
        for tier in TIERS:
            if self.command("EXISTS", f"queue:{tier}"):
                rows = self.command("XINFO", "CONSUMERS", f"queue:{tier}", "workers")
                names |= {dict(zip(flat[::2], flat[1::2], strict=True))[b"name"] for flat in rows}
        return {name_given(name.decode()).encode() for name in names - {RELEASED_CONSUMER.encode()}}

    # --- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """End every process that still runs, by its id."""
        for process in [*self.producers, *self.workers]:
            if process.alive:
                process.kill()
        self.recorder.close()


@contextlib.contextmanager
def closing(scene: Scene) -> Iterator[Scene]:
    """A scene whose processes are gone afterwards."""
    try:
        yield scene
    finally:
        scene.close()
