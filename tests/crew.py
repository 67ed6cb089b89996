"""Workers as processes of their own, for tests that kill them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Crew:
    """Workers of one app module, started by `streamq worker`; none outlives the `with` block.

    The app finds the file to write its lines to in the environment variable CREW_LOG; `say` of this
    module appends one. A line that is read is whole: each is one write.
    """

    def __init__(self, app, server, folder, *, backend="asyncio", lease=1.0):
        self.app = app
        self.url = server.url
        self.log = Path(folder) / "crew.log"
        self.log.touch()
        self.backend = backend
        self.lease = lease
        self.members = []
        self._stack = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def start(self, name, *arguments):
        """Start one worker; `kill()` and `wait()` are its Popen's."""
        command = [sys.executable, "-m", "streamq", "worker", self.app, "--url", self.url, "--backend", self.backend]
        command += ["--lease", f"{self.lease}s", "--name", name, "--log-level", "warning", *arguments]
        member = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "CREW_LOG": str(self.log)}, stdout=subprocess.DEVNULL
        )
        self.members.append(member)
        self._stack.enter_context(_ended(member))
        return member

    def lines(self, start=""):
        """Return the lines that were said so far, those that begin with `start`."""
        return [line for line in self.log.read_text().splitlines() if line.startswith(start)]

    def until(self, start, count=1, within=30.0):
        """Wait until so many lines begin with `start`; return them. Blocks: call it in a thread."""
        end = time.monotonic() + within
        while len(found := self.lines(start)) < count:
            assert time.monotonic() < end, f"{len(found)} of {count} lines {start!r}: {self.lines()}"
            time.sleep(0.01)
        return found


@contextmanager
def _ended(member):
    try:
        yield
    finally:
        if member.poll() is None:
            member.kill()
        member.wait(10)


def say(line):
    """Append a line to the crew's log, in one write."""
    with Path(os.environ["CREW_LOG"]).open("a", buffering=1) as log:
        log.write(f"{line}\n")
