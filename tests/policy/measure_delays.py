"""How late delayed tasks start on an idle worker, and what they cost it while they wait.

    python -m tests.policy.measure_delays [--tasks 200] [--waiting 1000000] [--seconds 10] [--backend trio]

On servers of its own. The lateness is from the due time to the first line of the handler, server and worker on one
clock. The cost is what the server counts while one worker, a process of its own, does nothing: commands by kind,
those of scripts too, and the CPU time of both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from random import Random

import anyio
import anyio.to_thread

from streamq import RedisBroker, task
from tests.at_work import until, working
from tests.crew import Crew
from tests.servers import fresh_server

IDLE = frozenset({"info", "config|resetstat"})  # of the one who measures
_FILLED = 20_000  # tasks in one round trip


@task(validate=False, name="delayed_until")
async def delayed_until(due: float) -> None:
    LATE.append(time.time() - due)


LATE: list[float] = []
TASKS = [delayed_until]


async def lateness(url: str, tasks: int, *, within: float, seed: int = 1) -> list[float]:
    """Return how late (s) so many tasks started that were due at random times, soonest first."""
    LATE.clear()
    random = Random(seed)
    async with RedisBroker(url) as broker, working(broker, delayed_until):
        begin = time.time() + 0.5
        moments = [begin + random.uniform(0, within) for _ in range(tasks)]
        await broker.enqueue_many([delayed_until.options(at=due).call(due) for due in moments])
        await until(lambda: len(LATE) == tasks, within + 20)
    return sorted(LATE)


async def fill(url: str, waiting: int, delay: float = 24 * 3600.0) -> None:
    """Delay so many tasks until tomorrow."""
    async with RedisBroker(url) as broker:
        store = broker.store
        keys = store.keys.tiers[1]
        for at in range(0, waiting, _FILLED):
            names = [f"t{number}" for number in range(at, min(at + _FILLED, waiting))]
            due = int((time.time() + delay) * 1000) + at
            messages = {name: f'["task","delayed_until","id","{name}","args","[0]"]' for name in names}
            await store.call([
                ("ZADD", keys.delayed, *(part for name in names for part in (due, name))),
                ("HSET", keys.messages, *(part for pair in messages.items() for part in pair)),
            ])  # fmt: skip


def counted(server) -> dict[str, int]:
    """Return how often each command was carried out, those inside scripts too."""
    found = {}
    for line in server.command("INFO", "commandstats").decode().splitlines():
        name, _, figures = line.removeprefix("cmdstat_").partition(":calls=")
        if figures and name not in IDLE:
            found[name] = int(figures.partition(",")[0])
    return found


def server_cpu(server) -> float:
    """Return the seconds that a server's process has worked."""
    lines = server.command("INFO", "cpu").decode().splitlines()
    return sum(float(line.partition(":")[2]) for line in lines if line.startswith(("used_cpu_sys:", "used_cpu_user:")))


def worker_cpu(pid: int) -> float:
    """Return the seconds that a process has worked."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def idle(kind: str, waiting: int, seconds: float, backend: str) -> tuple[dict[str, int], float, float]:
    """Return the commands, and the CPU time of server and worker, of `seconds` in which nothing is due."""
    with fresh_server(kind) as server, tempfile.TemporaryDirectory() as folder:
        await fill(server.url, waiting)
        with Crew("tests.policy.measure_delays", server, folder, backend=backend, lease=30.0) as crew:
            worker = crew.start("idle")
            await until(lambda: b"name=streamq" in server.command("CLIENT", "LIST"), 30)
            await anyio.sleep(2.0)  # it has started
            before, before_server, before_worker = counted(server), server_cpu(server), worker_cpu(worker.pid)
            await anyio.sleep(seconds)
            spent = server_cpu(server) - before_server, worker_cpu(worker.pid) - before_worker
            after = counted(server)
            return {
                name: n - before.get(name, 0) for name, n in sorted(after.items()) if n > before.get(name, 0)
            }, *spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--waiting", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--backend", choices=("asyncio", "trio"), help="only this one")
    parser.add_argument("--kind", choices=("valkey", "redis"), default="valkey")
    wanted = parser.parse_args()
    for backend in [wanted.backend] if wanted.backend else ["asyncio", "trio"]:
        with fresh_server(wanted.kind) as server:

            async def late(url=server.url) -> list[float]:
                return await lateness(url, wanted.tasks, within=wanted.tasks / 20)

            found = [1000 * one for one in anyio.run(late, backend=backend)]
        p50, p99 = statistics.median(found), found[min(len(found) - 1, int(len(found) * 0.99))]
        print(f"{backend}: {len(found)} tasks, late by p50 {p50:.1f} ms, p99 {p99:.1f} ms, at most {found[-1]:.1f} ms")
        for waiting in (0, wanted.waiting):

            async def rest(waiting=waiting, backend=backend) -> tuple[dict[str, int], float, float]:
                return await idle(wanted.kind, waiting, wanted.seconds, backend)

            commands, of_server, of_worker = anyio.run(rest, backend=backend)
            shown = ", ".join(f"{name} {count}" for name, count in commands.items())
            of_server, of_worker = of_server / wanted.seconds, of_worker / wanted.seconds
            print(
                f"{backend}: idle for {wanted.seconds:g} s with {waiting:,} delayed: {sum(commands.values())} commands"
                f" ({shown}); CPU of the server {of_server:.2%}, of the worker {of_worker:.2%}"
            )


if __name__ == "__main__":
    main()
