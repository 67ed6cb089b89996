"""The processes of a scenario, each watched by a thread that writes down how and when it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from streamq.testing.recorder import Recorder
from tests.fork_server import ROOT, Forked, fork_server

LOG, WHO = "STREAMQ_FAULTS_LOG", "STREAMQ_FAULTS_WHO"


class Process:
    """One process: a worker or a producer. `who` is its name in the log, `code` how it ended.

    Its standard input is a pipe of which we hold the other end: it ends itself when that is closed, however
    we end (see `vigil.leashed`).

    It is started anew, or `forked` from a process that has imported everything (see `fork_server`).
    What becomes of it is written down if there is a `recorder`: the checker asks that of workers only.
    """

    def __init__(
        self, command: Sequence[str], who: str, *, log: Path, recorder: Recorder | None = None,
        environment: dict[str, str] | None = None, forked: bool = False,
    ) -> None:  # fmt: skip
        self.who = who
        self.recorder = recorder
        self.frozen = False
        self.told = False
        self.code: int | None = None
        self.output = log.parent / f"{who}.err"
        settings = {**os.environ, **(environment or {}), LOG: str(log), WHO: who}
        self._process: Forked | subprocess.Popen[bytes]
        with self.output.open("wb") as output:
            if forked:
                self._process = fork_server().start(command, settings, output.fileno())
            else:
                self._process = subprocess.Popen(
                    [sys.executable, *command], cwd=ROOT, stdin=subprocess.PIPE, stdout=output, stderr=output,
                    env=settings,
                )  # fmt: skip
        self.pid = self._process.pid
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name=f"watch {who}", daemon=True).start()

    def __repr__(self) -> str:
        state = "runs" if self.alive else f"ended with {self.code}"
        return f"<Process {self.who} pid={self.pid} {state}{' frozen' * self.frozen}>"

    def _watch(self) -> None:
        code = self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if code:
            self._record("died")
        else:
            self._record("exit", code=code)
        self.code = code
        self._ended.set()

    def _record(self, what: str, **details: object) -> None:
        if self.recorder is not None:
            self.recorder.record_of(self.who, what, "", **details)

    @property
    def alive(self) -> bool:
        """Has it not ended?"""
        return not self._ended.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended, and that is written down; False if it has not."""
        return self._ended.wait(seconds)

    def _signal(self, number: int) -> None:
        if self.alive and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)
        self.wait(10)

    def freeze(self) -> None:
        """Stop it from running; `thaw` lets it go on."""
        self._record("frozen")
        self.frozen = True
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)
        if self.frozen:
            self.frozen = False
            self._record("thawed")

    def terminate(self) -> None:
        """Tell it to stop; said twice, it hurries."""
        if self.alive:
            self.told = True
            self._record("stop")
        self._signal(signal.SIGTERM)

    def children(self) -> list[int]:
        """Return the ids of its child processes."""
        found: list[int] = []
        for thread in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since
                found += map(int, thread.read_text().split())
        return found
