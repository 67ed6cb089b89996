"""Measures one kind of poison: good tasks of a clean fleet and of a poisoned one, in turn, on one server."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.poison.kinds import Kind, Site
from tests.servers import RealServer

ROOT = Path(__file__).parents[2]
POISON = 100  # messages of poison beside 3,000 good tasks
PARTS = 6  # in which both are sent
PASSWORD = "pw"
LONGEST = 60.0  # seconds that good tasks are waited for
LEASE = 2.0  # seconds of the visibility timeout
START = 5.0  # seconds for a process to start on a busy machine
ENDING = 20.0  # seconds within which a process ends after SIGTERM


@dataclass(slots=True)
class Result:
    """What one kind did: the seconds of each pair of runs, and what was wrong."""

    kind: str
    usual: list[float] = field(default_factory=list)
    poisoned: list[float] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)

    def over(self, most: float, kind: Kind, lease: float = LEASE) -> bool:
        """Did good tasks take too long? What ends workers costs the time until others take over, whatever the load."""
        if kind.deaths:
            extra = max(b - a for a, b in zip(self.usual, self.poisoned, strict=True))
            return extra > kind.deaths * (lease * 4 / 3 + START)
        return self.ratio >= most

    @property
    def ratio(self) -> float:
        """How much longer good tasks took, at the median of the runs."""
        return sorted(self.poisoned)[len(self.poisoned) // 2] / sorted(self.usual)[len(self.usual) // 2]

    def __str__(self) -> str:
        times = " ".join(f"{a:.2f}/{b:.2f}" for a, b in zip(self.usual, self.poisoned, strict=False))
        ends = ", ".join(f"{name} {number}" for name, number in sorted(self.ends.items()))
        line = f"{self.kind:16} {self.ratio:5.2f}   {times:32} {ends}"
        return "\n".join([line, *(f"    ! {one}" for one in self.findings)])


class Fleet:
    """Worker processes of one namespace. A process that ended is started again, as a supervisor does."""

    def __init__(self, server: RealServer, namespace: str, backend: str, extra: str, *, workers: int, concurrency: int,
                 lease: float) -> None:  # fmt: skip
        self.server, self.namespace, self.backend, self.extra = server, namespace, backend, extra
        self.user = f"of-{namespace}"
        server.command("ACL", "SETUSER", self.user, "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        self.folder = Path(tempfile.mkdtemp(prefix="streamq-poison-"))
        self.path = self.folder / "log"
        self.path.touch()
        self.arguments = [str(concurrency), str(lease), extra]
        self.exits: list[int] = []
        self.members = [self._start() for _ in range(workers)]
        self._offset = 0
        self.words: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.ran: Counter[str] = Counter()
        self.wait(lambda: self.words["up"] >= workers, 30)

    def _start(self) -> subprocess.Popen[bytes]:
        url = self.server.url.replace("://", f"://{self.user}:{PASSWORD}@")
        return subprocess.Popen(
            [sys.executable, "-m", "tests.poison.member", url, self.namespace, self.backend, str(self.path),
             *self.arguments], cwd=ROOT, stdin=subprocess.PIPE,
        )  # fmt: skip

    def look(self) -> None:
        """Read what was written, and start what has ended."""
        with self.path.open("rb") as lines:
            lines.seek(self._offset)
            text = lines.read()
        whole, end, _ = text.rpartition(b"\n")
        self._offset += len(whole) + len(end)
        for line in whole.decode().splitlines():
            word, _, what = line.partition(" ")
            self.words[word] += 1
            if word in {"done", "ran"}:
                getattr(self, word)[what] += 1
        for place, process in enumerate(self.members):
            if process.poll() is not None:
                self.exits.append(process.returncode)
                self.members[place] = self._start()

    def wait(self, condition: Any, seconds: float) -> float:
        """Wait until something holds, and return how long that took."""
        begin = time.monotonic()
        while not condition() and time.monotonic() < begin + seconds:
            time.sleep(0.01)
            self.look()
        return time.monotonic() - begin

    def close(self) -> None:
        """Drain the processes, and end those that do not."""
        for process in self.members:
            process.send_signal(signal.SIGTERM)
        for process in self.members:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDING)
            if process.poll() is None:
                process.kill()
                process.wait()
                self.exits.append(-99)
            if process.stdin is not None:
                process.stdin.close()


@contextlib.contextmanager
def fleets(server: RealServer, kind: Kind, backend: str, **options: Any) -> Iterator[tuple[Fleet, Fleet]]:
    """A clean fleet and one to be poisoned, for one kind."""
    clean = Fleet(server, "clean", backend, kind.usual, **options)
    try:
        poisoned = Fleet(server, "poisoned", backend, kind.extra, **options)
        try:
            yield clean, poisoned
        finally:
            poisoned.close()
    finally:
        clean.close()


def send_good(server: RealServer, namespace: str, tag: str, numbers: range) -> None:
    """Write good tasks to the middle tier."""
    script = (
        "for n = ARGV[1], ARGV[2] do redis.call('XADD', KEYS[1], '*', 'task', 'good', 'id', ARGV[3] .. n, "
        "'args', '[\"' .. ARGV[3] .. n .. '\"]') end"
    )
    reply = server.command("EVAL", script, 1, f"{namespace}:standard", numbers.start, numbers.stop - 1, tag)
    if isinstance(reply, Exception):
        raise reply


def run(fleet: Fleet, tag: str, good: int, poison: Any) -> float:
    """Send good tasks, with poison before and between them; return the seconds until all of them ran."""
    poison(2)
    time.sleep(0.2 if fleet.namespace == "poisoned" else 0.0)
    begin = time.monotonic()
    for part in range(PARTS):
        send_good(fleet.server, fleet.namespace, tag, range(good * part // PARTS, good * (part + 1) // PARTS))
        poison(1)
    names = [f"{tag}{n}" for n in range(good)]
    missing = set(names)

    def all_done() -> bool:
        missing.difference_update(fleet.done)
        return not missing

    fleet.wait(all_done, LONGEST)
    return time.monotonic() - begin


def measure(server: RealServer, kind: Kind, backend: str, *, good: int = 3000, pairs: int = 3, workers: int = 2,
            concurrency: int = 20, lease: float = LEASE) -> Result:  # fmt: skip
    """Measure `pairs` of runs, each first without poison, then with it, and account for every task."""
    server.flush()
    result, random = Result(kind.name), Random(kind.name)
    site = Site(server, "poisoned", "of-poisoned")
    sent: dict[str, bool] = {}  # id: does its task say that it ran?

    def poison(shares: int) -> None:
        for _ in range(max(1, round(POISON * kind.share * shares / (PARTS + 2) * good / 3000))):
            if kind.deaths and (shares == 1 or len(sent) >= pairs):  # one for each run: it ends several processes
                return
            fields = kind.message(random, len(sent))
            task_id = f"poison-{len(sent)}"
            sent[task_id] = not str(fields.get("task", "")).startswith(("hostile.", "deadly"))
            server.command(
                "XADD", "poisoned:standard", "*", "id", task_id, *[x for pair in fields.items() for x in pair]
            )

    with fleets(server, kind, backend, workers=workers, concurrency=concurrency, lease=lease) as (clean, poisoned):
        run(clean, "warm", good // 10, lambda _: None)
        run(poisoned, "warm", good // 10, lambda _: None)
        kind.breaks(site)
        for pair in range(pairs):
            result.usual.append(run(clean, f"u{pair}.", good, lambda _: None))
            result.poisoned.append(run(poisoned, f"p{pair}.", good, poison))
        kind.mends(site)
        time.sleep(1.0)
        poisoned.look()
    _judge(server, kind, result, poisoned, good, pairs, sent)
    return result


def _judge(
    server: RealServer, kind: Kind, result: Result, fleet: Fleet, good: int, pairs: int, sent: dict[str, bool]
) -> None:
    """No worker exits; good tasks ran once; each other one ran, is dead, or is still there."""
    found = result.findings
    wanted = [f"p{pair}.{n}" for pair in range(pairs) for n in range(good)]
    if missing := [one for one in wanted if not fleet.done[one]]:
        found.append(f"{len(missing)} good tasks did not run: {missing[:3]}")
    often = [one for one in wanted if fleet.done[one] > 1]
    if often and not kind.deaths:
        found.append(f"{len(often)} good tasks ran more than once: {often[:3]}")
    if fleet.words["leak"]:
        found.append(f"what another run left reached {fleet.words['leak']} good tasks")
    exits = [code for code in fleet.exits if not (kind.deaths and code == -signal.SIGKILL)]
    if exits:
        found.append(f"workers exited: {exits}, see {fleet.folder}")
    dead = _ids(server, "poisoned:dead", b"task_id")
    there = {one for tier in ("critical", "standard", "bulk") for one in _ids(server, f"poisoned:{tier}", b"id")}
    for tier in ("critical", "standard", "bulk"):
        members = server.command("HKEYS", f"poisoned:{tier}:messages")
        there |= {one.decode(errors="replace").rpartition("|")[2] for one in members if isinstance(members, list)}
    result.ends = {"sent": len(sent), "dead": len(dead & set(sent)), "ran": len(set(fleet.ran) & set(sent)),
                   "there": len(there & set(sent))}  # fmt: skip
    own = {task_id for task_id, says in sent.items() if says}
    if lost := own - dead - there - set(fleet.ran):
        found.append(f"{len(lost)} messages of poison are not accounted for: {sorted(lost)[:3]}")
    if good_there := there & set(wanted):
        found.append(f"{len(good_there)} good tasks are still there: {sorted(good_there)[:3]}")
    if good_dead := dead & set(wanted):
        found.append(f"{len(good_dead)} good tasks are dead: {sorted(good_dead)[:3]}")


def _ids(server: RealServer, stream: str, name: bytes) -> set[str]:
    reply = server.command("XRANGE", stream, "-", "+")
    rows = reply if isinstance(reply, list) else []
    return {dict(zip(flat[::2], flat[1::2], strict=True)).get(name, b"").decode(errors="replace") for _, flat in rows}
