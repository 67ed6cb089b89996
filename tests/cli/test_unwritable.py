"""P14: a log, or a result, that cannot be written: a full disk, a reader that has gone, closed files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import PATIENCE, ROOT

pytestmark = pytest.mark.slow

APP = """
import pathlib
from streamq import task

@task(retries=0)
async def mark(name: str):
    pathlib.Path(name).write_text("here")

@task(retries=0)
async def broken():
    raise ValueError("logged")
"""


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def gone() -> int:
    """The end of a pipe whose reader has gone, as after `| head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.fixture
def run(tmp_path):
    """Start `streamq` with stderr, or both outputs, to a file that takes nothing."""
    (tmp_path / "marks.py").write_text(APP)
    programs = []

    def start(*arguments, to, both=True):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMQ_")}
        descriptor = to()
        programs.append(subprocess.Popen(
            [sys.executable, "-m", "streamq", *arguments], cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL, stdout=descriptor if both else subprocess.DEVNULL, stderr=descriptor,
        ))  # fmt: skip
        os.close(descriptor)
        return programs[-1]

    yield start
    for program in programs:
        if program.poll() is None:
            program.kill()
        program.wait(PATIENCE)


def appears(path, program) -> bool:
    """Wait until the file exists; False if the program ends before."""
    end = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < end:
        if program.poll() is not None:
            return path.exists()
        time.sleep(0.01)
    return path.exists()


@pytest.mark.parametrize(
    ("to", "options"),
    [
        (full, ["--backend", "asyncio"]),
        (full, ["--backend", "trio"]),
        (gone, ["--backend", "asyncio", "--log-format", "json"]),
        (gone, ["--backend", "trio", "--processes", "2"]),
    ],
)
def test_a_worker_works_on(url, run, streamq, tmp_path, to, options):
    """It starts without its banner, runs tasks that are logged, drains at SIGTERM, and exits with 0."""
    assert streamq("enqueue", "broken", "--url", url)[0] == 0
    assert streamq("enqueue", "mark", '"one"', "--url", url)[0] == 0
    program = run("worker", "marks", "--url", url, *options, to=to)
    assert appears(tmp_path / "one", program)
    assert streamq("enqueue", "mark", '"two"', "--url", url)[0] == 0
    assert appears(tmp_path / "two", program)
    program.send_signal(signal.SIGTERM)
    assert program.wait(PATIENCE) == 0


@pytest.mark.parametrize("to", [full, gone])
def test_a_burst_ends_with_0(url, run, streamq, tmp_path, to):
    """What it did counts, not what it could not say."""
    assert streamq("enqueue", "mark", '"one"', "--url", url)[0] == 0
    program = run("worker", "marks", "--url", url, "--burst", to=to)
    assert program.wait(PATIENCE) == 0
    assert (tmp_path / "one").exists()


@pytest.mark.parametrize("to", [full, gone])
def test_an_error_keeps_its_exit_code(run, to):
    """A usage error is 2, whether or not somebody can read why."""
    assert run("worker", "missing_module", to=to).wait(PATIENCE) == 2
    assert run("worker", "marks", "--url", "redis://127.0.0.1:1", to=to).wait(PATIENCE) == 2


@pytest.mark.parametrize("closed", [">&-", ">/dev/full"])
@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_an_enqueue_without_stdout_is_no_failure(start, shared_server, closed, as_json):
    """The task is accepted: whoever sees a failure sends it again. The id is on stderr."""
    server = shared_server("valkey")
    program = start("enqueue", "mark", '"one"', "--task-id", "my-own", "--url", server.url, *as_json, shell=closed)
    assert program.ended() == 0, program.output
    assert "the task id is my-own" in program.output
    assert "Traceback" not in program.output
    assert server.command("XLEN", "queue:standard") == 1


COMMANDS = [
    ["dlq", "ls"], ["doctor", "-q"], ["schedules", "ls"], ["cancel", "first", "second"], ["acl", "--role", "worker"],
    ["--version"], ["dlq", "ls", "--json"], ["cancel", "--help"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", ">/dev/full"])
def test_no_command_has_a_traceback_for_what_it_cannot_write(url, start, command, closed):
    """A closed file is /dev/null; a full one is one line, and 1."""
    server = [] if command[0] in ("acl", "--version") or "--help" in command else ["--url", url]
    wanted = int(command[:2] == ["cancel", "first"])
    program = start(*command, *server, shell=closed, env={"PYTHONUNBUFFERED": ""})
    code = program.ended()
    assert "Traceback" not in program.output
    if command[0] != "doctor":
        assert (code, "standard output cannot be written" in program.output) in (
            [(1, True)] if "full" in closed and command[:2] not in (["dlq", "ls"], ["schedules", "ls"]) else
            [(wanted, False)]
        )  # fmt: skip


def test_a_cancel_goes_on_although_it_cannot_say_so(start, streamq, shared_server):
    """The second id is cancelled, too."""
    server = shared_server("valkey")
    for name in ("first", "second"):
        assert streamq("enqueue", "mark", '"x"', "--task-id", name, "--url", server.url)[0] == 0
    program = start("cancel", "first", "second", "--url", server.url, shell=">/dev/full")
    assert program.ended() == 1
    assert "No space left on device" in program.output
    assert server.command("XLEN", "queue:standard") == 0
