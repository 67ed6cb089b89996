"""P14: a worker whose log cannot be written works on: a full disk, a reader that has gone, closed files."""

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
