"""`streamq worker`: runs tasks, prints its banner, and stops."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest


def pending(server) -> int:
    return sum(server.command("XPENDING", f"queue:{tier}", "workers")[0] for tier in ("critical", "standard", "bulk"))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition, patience: float = 20.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def valkey(shared_server):
    return shared_server("valkey")


def enqueue(server, task: str, *args) -> None:
    server.command("XADD", "queue:standard", "*", "task", task, "args", json.dumps(args))


def test_first_sigterm_drains(start, valkey, app, anyio_backend):
    """P8: running tasks finish, prefetched tasks are released, and the exit code is 0."""
    worker = start("worker", "app", "--url", valkey.url, "-c", "1", "--backend", anyio_backend)
    gate = app / "gate"
    enqueue(valkey, "held", "one", str(gate))
    enqueue(valkey, "send", "two")
    worker.expect("start one")
    worker.signal(signal.SIGTERM)
    worker.expect("draining: 1 running")
    gate.touch()
    worker.expect("end one")
    assert worker.ended() == 0
    assert "sent two" not in worker.output
    assert valkey.command("XLEN", "queue:standard") == 1
    consumers = valkey.command("XINFO", "CONSUMERS", "queue:standard", "workers")
    assert [row for row in consumers if b"released" not in row] == []


@pytest.mark.slow
def test_second_sigterm_releases_and_exits_now(start, valkey, app, anyio_backend):
    """P8: the second signal releases running tasks. No task is lost, and the process does not wait."""
    worker = start("worker", "app", "--url", valkey.url, "--backend", anyio_backend, "--grace", "60s")
    enqueue(valkey, "held", "one", str(app / "never"))
    worker.expect("start one")
    worker.signal(signal.SIGINT)
    worker.expect("draining")
    worker.signal(signal.SIGTERM)
    worker.expect("releasing 1 running")
    assert worker.ended(15) == 0
    assert valkey.command("XLEN", "queue:standard") == 1
    other = start("worker", "app", "--url", valkey.url, "--burst")
    other.expect("start one")  # at once: not after the lease of 30 s
    (app / "never").touch()
    assert other.ended() == 0


@pytest.mark.slow
def test_threads_that_never_end_do_not_hold_the_process(start, valkey, anyio_backend):
    """A sync task that hangs is released after the grace period, and the process exits."""
    worker = start("worker", "app", "--url", valkey.url, "--backend", anyio_backend, "--grace", "0s")
    enqueue(valkey, "stuck", "one")
    worker.expect("start one")
    worker.signal(signal.SIGTERM)
    assert worker.ended(15) == 0
    assert valkey.command("XLEN", "queue:standard") == 1


def test_burst_and_every_option_from_the_environment(streamq, valkey):
    """Each option is also an environment variable. The banner shows the values."""
    enqueue(valkey, "send", "a@b.c", 3)
    code, output = streamq(
        "worker", "app", env={
            "STREAMQ_URL": valkey.url, "STREAMQ_WORKER_BURST": "1", "STREAMQ_WORKER_CONCURRENCY": "7",
            "STREAMQ_WORKER_TIERS": "critical=5,standard", "STREAMQ_WORKER_GRACE": "3s",
            "STREAMQ_WORKER_LEASE": "500ms", "STREAMQ_WORKER_NAME": "w1", "STREAMQ_WORKER_BACKEND": "trio",
        },
    )  # fmt: skip
    assert code == 0
    assert "sent a@b.c 3" in output
    assert re.search(r"worker w1-[0-9a-f]{12} on trio, Python 3\.", output)
    version = dict(line.split(":", 1) for line in valkey.cli("INFO", "server").splitlines() if ":" in line)
    assert f"valkey {version['valkey_version']} at {valkey.url}" in output
    assert "queue:critical x5, queue:standard x3; not served: queue:bulk" in output
    assert "broken, held, send, stuck (4)" in output
    assert "concurrency  7" in output
    assert "0.5 s, grace period 3 s, burst" in output


@pytest.mark.slow
def test_crashes_and_unknown_tasks_have_their_bounds_on_the_command_line(streamq, valkey, tmp_path, anyio_backend):
    """--max-crashes is how many workers a task may take down, --unknown-wait how long one waits that nobody knows."""
    (tmp_path / "dies.py").write_text(
        "import os\nfrom streamq import task\n\n@task\nasync def die():\n    os._exit(9)\n"
    )
    enqueue(valkey, "die")
    enqueue(valkey, "nobody")
    command = ("worker", str(tmp_path / "dies.py"), "--url", valkey.url, "--burst", "--lease", "300ms")
    command += ("--backend", anyio_backend, "--max-crashes", "2", "--unknown-wait", "0")
    codes = []
    while len(codes) < 3 and codes[-1:] != [0]:
        codes.append(streamq(*command)[0])
        time.sleep(0.3)
    assert codes == [9, 9, 0]
    letters = [fields[fields.index(b"reason") + 1] for _, fields in valkey.command("XRANGE", "queue:dead", "-", "+")]
    assert sorted(letters) == [b"crash_loop", b"unknown_task"]


def test_json_log_and_no_password(streamq, valkey):
    """With --log-format json each line is one object. The banner is in `facts`. No password is shown."""
    valkey.command("ACL", "SETUSER", "bob", "on", ">hunter2", "~*", "&*", "+@all")
    enqueue(valkey, "broken")
    code, output = streamq(
        "worker", "app", "--burst", "--log-format", "json", "--no-uvloop", "--url",
        valkey.url.replace("unix://", "unix://bob:hunter2@"),
    )  # fmt: skip
    valkey.command("ACL", "DELUSER", "bob")
    assert code == 0
    lines = [json.loads(line) for line in output.splitlines()]
    assert all({"ts", "level", "logger", "message"} <= line.keys() for line in lines)
    facts = lines[0]["facts"]
    assert facts["url"].startswith("unix://bob:***@")
    assert facts["backend"] == "asyncio"
    assert facts["tiers"] == {"queue:critical": 6, "queue:standard": 3, "queue:bulk": 1}
    assert "hunter2" not in output


def test_a_module_may_define_broker_middleware_and_lifespan(streamq, valkey, app):
    """The worker uses these names of a module. Paths and attributes name modules as well."""
    (app / "pack").mkdir()
    (app / "pack" / "__init__.py").touch()
    (app / "pack" / "parts.py").write_text(f"""
import contextlib
from streamq import RedisBroker, task
from streamq.middleware import MiddlewareChain

class Quiet:
    async def __call__(self, context, call_next):
        return await call_next(context)

broker = RedisBroker({valkey.url!r}, namespace="mine", middleware=MiddlewareChain(Quiet()))

async def plain(context, call_next):
    return await call_next(context)

class Loud:
    async def __call__(self, context, call_next):
        print("before", context.delivery.state, flush=True)
        return await call_next(context)

middleware = MiddlewareChain(Loud(), plain)

@contextlib.asynccontextmanager
async def lifespan(worker):
    print("up", flush=True)
    yield "resource"
    print("down", flush=True)

@task
async def hello():
    handle = await broker.enqueue("send", "b")
    print("hello", flush=True)
""")
    valkey.command("XADD", "mine:standard", "*", "task", "hello")
    code, output = streamq("worker", "pack/parts.py", "app:send", "--burst", env={"STREAMQ_URL": "redis://localhost:1"})
    assert code == 0
    lines = [line for line in output.splitlines() if line in ("up", "down", "hello", "before resource", "sent b 1")]
    assert lines == ["up", "before resource", "hello", "before resource", "sent b 1", "down"]
    assert "(from pack.parts.broker)" in output
    assert "Quiet > Loud > plain" in output


LOOK = """
import gc, typing
import anyio
import redis.commands
from streamq import task

@typing.overload
def f(x: int) -> int: ...
@typing.overload
def f(x: str) -> str: ...
def f(x): return x

@task
async def look():
    while not gc.get_freeze_count():
        await anyio.sleep(0.01)
    kept = len(typing.get_overloads(f))
    dropped = len(typing.get_overloads(redis.commands.AsyncCoreCommands.ping))
    print(f"frozen: {gc.get_freeze_count() > 10_000}, overloads: {kept} {dropped}", flush=True)
"""


@pytest.mark.slow
def test_the_garbage_collector_skips_long_lived_objects(start, valkey, app, anyio_backend):
    """They are frozen. Overloads are freed, except those of the tasks' modules."""
    (app / "looking.py").write_text(LOOK)
    enqueue(valkey, "look")
    worker = start("worker", "looking", "--url", valkey.url, "--burst", "--backend", anyio_backend)
    worker.expect("frozen: True, overloads: 2 0")
    assert worker.ended() == 0


# --- several processes -------------------------------------------------------------------------


def pids(worker, valkey, app, count: int) -> list[int]:
    """Return the pids of the children, each with a running task."""
    for number in range(count):
        enqueue(valkey, "held", f"t{number}", str(app / "gate"))
    return [int(worker.expect("start t").split()[2]) for _ in range(count)]


@pytest.mark.slow
def test_a_child_that_dies_is_replaced_and_none_is_orphaned(start, valkey, app):
    """--processes: a killed child is replaced and no task is lost. SIGTERM ends all children."""
    worker = start("worker", "app", "--url", valkey.url, "-p", "2", "-c", "1", "--lease", "1s", "--grace", "5s")
    worker.expect("started")
    children = pids(worker, valkey, app, 2)
    assert len(set(children)) == 2
    os.kill(children[0], signal.SIGKILL)
    worker.expect(f"(pid {children[0]}) was ended by SIGKILL; restart in 0.5 s")
    worker.expect("started")
    children.append(int(worker.expect("start t").split()[2]))  # the lost task, taken over
    (app / "gate").touch()
    until(lambda: valkey.command("XLEN", "queue:standard") == 0)
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0
    assert not any(alive(pid) for pid in children)


@pytest.mark.slow
def test_children_drain_when_their_supervisor_is_killed(start, valkey, app):
    """Children finish their running tasks and exit if the supervisor is killed."""
    worker = start("worker", "app", "--url", valkey.url, "-p", "2", "-c", "1")
    worker.expect("started")
    children = pids(worker, valkey, app, 2)
    worker.signal(signal.SIGKILL)
    worker.process.wait(10)
    (app / "gate").touch()
    until(lambda: not any(alive(pid) for pid in children))
    assert valkey.command("XLEN", "queue:standard") == 0
    assert pending(valkey) == 0


@pytest.mark.slow
def test_ctrl_c_reaches_all_and_counts_once(start, valkey, app):
    """A signal to the process group, as from a terminal or systemd, drains. It does not count twice."""
    worker = start("worker", "app", "--url", valkey.url, "-p", "2", "-c", "1")
    worker.expect("started")
    children = pids(worker, valkey, app, 2)
    for pid in [worker.process.pid, *children]:
        os.kill(pid, signal.SIGINT)
    for _ in range(3):
        worker.expect("draining")
    (app / "gate").touch()
    assert worker.ended() == 0
    assert sum(line.startswith("end t") for line in worker.seen) == 2


@pytest.mark.slow
def test_reload_restarts_on_a_changed_source(start, valkey, app):
    """--reload: a changed file restarts the worker. After a broken change it waits for the next one."""
    (app / "reloaded.py").write_text("from streamq import task\n@task\nasync def hi(): print('old', flush=True)\n")
    worker = start("worker", "reloaded", "--url", valkey.url, "--reload")
    enqueue(valkey, "hi")
    worker.expect("old")
    (app / "reloaded.py").write_text("this is no Python\n")
    worker.expect("reloaded.py changed: restarting")
    worker.expect("reloaded.py:1")
    worker.expect("waiting for changed source files")
    (app / "reloaded.py").write_text("from streamq import task\n@task\nasync def hi(): print('new one', flush=True)\n")
    enqueue(valkey, "hi")
    worker.expect("new one")
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0
