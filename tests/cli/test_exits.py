"""P13: no SystemExit or KeyboardInterrupt of a handler ends `streamq worker`, in whichever of its tasks."""

from __future__ import annotations

import pytest

from tests.servers import fresh_server

pytestmark = pytest.mark.slow

APP = """
import asyncio, contextlib, sys
import anyio
from streamq import task

ONCE = {"retries": 0}

async def leave(kind):
    await anyio.sleep(0)
    raise kind("leaving")

KINDS = {"exit": SystemExit, "interrupt": KeyboardInterrupt}

@task(**ONCE)
async def itself(kind: str):
    raise KINDS[kind]("leaving")

@task(**ONCE)
async def in_group(kind: str):
    async with anyio.create_task_group() as group:
        group.start_soon(leave, KINDS[kind])
        await anyio.sleep(60)

@task(**ONCE)
async def in_inner_group(kind: str):
    async with anyio.create_task_group():
        async with anyio.create_task_group() as group:
            group.start_soon(leave, KINDS[kind])
            await anyio.sleep(60)

@task
async def good(n: int):
    print(f"good {n}", flush=True)
"""

ASYNCIO_ONLY = """

@task(**ONCE)
async def in_asyncio_group(kind: str):
    async with asyncio.TaskGroup() as group:
        group.create_task(leave(KINDS[kind]))
        await asyncio.sleep(60)

@task(**ONCE)
async def gathered(kind: str):
    await asyncio.gather(leave(KINDS[kind]), asyncio.sleep(0.01))

@task(**ONCE)
async def beside(kind: str):
    loose = asyncio.get_running_loop().create_task(leave(KINDS[kind]))
    while not loose.done():
        await asyncio.sleep(0)
    print(f"beside {kind} went on", flush=True)

@task(**ONCE)
async def called_by_the_loop(kind: str):
    loop = asyncio.get_running_loop()
    def leave_now():
        loop.call_soon(called.set)
        raise KINDS[kind]("leaving")
    called = asyncio.Event()
    loop.call_soon(leave_now)
    await called.wait()
    print(f"called {kind} went on", flush=True)

@task(**ONCE)
async def stops_the_loop(kind: str):
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    print(f"stops {kind} went on", flush=True)
"""

IN_ITS_RUN = ["itself", "in_group", "in_inner_group"]
IN_ITS_RUN_UNDER_ASYNCIO = ["in_asyncio_group", "gathered"]
GO_ON = ["beside", "called_by_the_loop", "stops_the_loop"]
LOOPS = {"asyncio": "--no-uvloop", "uvloop": "--uvloop", "trio": "--backend=trio"}


@pytest.mark.parametrize("loop", LOOPS)
def test_an_exit_of_a_handler_fails_its_run_alone(app, streamq, loop):
    """Raised by itself, by a task of its group, by a task beside it, or by a function that the loop calls for it."""
    fail = IN_ITS_RUN + IN_ITS_RUN_UNDER_ASYNCIO * (loop != "trio")
    go_on = GO_ON * (loop != "trio")
    (app / "app.py").write_text(APP + ASYNCIO_ONLY * (loop != "trio"))
    with fresh_server("redis") as server:
        for n, name in enumerate(fail + go_on):
            for kind in ("exit", "interrupt"):
                server.command("XADD", "queue:standard", "*", "task", name, "args", f'["{kind}"]')
            server.command("XADD", "queue:standard", "*", "task", "good", "args", f"[{n}]")
        code, output = streamq("worker", "app", "--url", server.url, "--burst", "--concurrency", "4", LOOPS[loop])
        assert code == 0, output
        for n in range(len(fail + go_on)):
            assert output.count(f"good {n}\n") == 1
        for name in ("beside", "called", "stops") * (loop != "trio"):
            assert output.count(f"{name} exit went on") == output.count(f"{name} interrupt went on") == 1
        letters = [flat for _, flat in server.command("XRANGE", "queue:dead", "-", "+")]
        tasks = sorted(flat[flat.index(b"task") + 1].decode() for flat in letters)
        assert tasks == sorted(fail * 2)
        assert all(flat[flat.index(b"reason") + 1] == b"retries_exhausted" for flat in letters)
        assert ("a function called by the event loop, raised" in output) == (loop != "trio")


CANCELS_ALL = (
    APP
    + """
@task(**ONCE)
async def cancels_all():
    for one in asyncio.all_tasks():
        one.cancel()
    await asyncio.sleep(60)
"""
)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_who_cancels_all_tasks_is_a_crash_loop(app, streamq, loop):
    """The worker cannot go on: it says so, and exits with 1. P5 finds the culprit, and the others run."""
    (app / "app.py").write_text(CANCELS_ALL)
    with fresh_server("redis") as server:
        server.command("XADD", "queue:standard", "*", "task", "cancels_all")
        for n in range(3):
            server.command("XADD", "queue:standard", "*", "task", "good", "args", f"[{n}]")
        outputs = []
        for _ in range(8):
            code, output = streamq(
                "worker", "app", "--url", server.url, "--burst", "--lease", "1", "--concurrency", "4", LOOPS[loop]
            )
            outputs.append(output)
            if code == 0:
                break
            assert code == 1, output
            assert "the worker was ended by CancelledError(" in output
            assert output.count("a runner was cancelled") <= 1
        assert code == 0, outputs
        ((_, letter),) = server.command("XRANGE", "queue:dead", "-", "+")
        assert letter[letter.index(b"reason") + 1] == b"crash_loop"
        assert letter[letter.index(b"task") + 1] == b"cancels_all"
        for n in range(3):
            assert f"good {n}\n" in "\n".join(outputs)
