"""One run of a scenario from beginning to end: a server, a scene, the scenario, the checker's verdict."""

from __future__ import annotations

import shlex
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import anyio
import orjson

from streamq import RedisBroker
from streamq.testing import FinalState, Limits, Record, Report, Row, read
from streamq.testing.checker import check
from streamq.testing.read_state import final_state
from tests.faults.harness import Scene, closing
from tests.faults.registry import Scenario
from tests.servers import Kind, fresh_server

_ENDING = 3  # lines of a process's output that a failed run shows


@dataclass(frozen=True, slots=True)
class Run:
    """What to run: a scenario on a backend and a kind of server, with a seed and a number of tasks.

    `slack` (s) is added to that of the scenario, for a machine that is busy with other things.
    """

    scenario: Scenario
    backend: str
    kind: Kind
    seed: int
    tasks: int
    slack: float = 0.0

    @property
    def command(self) -> str:
        """The line that repeats it."""
        slack = ["--slack", f"{self.slack:g}"] if self.slack else []
        return shlex.join([
            "python", "-m", "tests.faults", self.scenario.name, "--seed", str(self.seed), "--tasks", str(self.tasks),
            "--backend", self.backend, "--server", self.kind, *slack, *self.scenario.arguments,
        ])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run. `folder` holds its log if it was kept."""

    run: Run
    report: Report
    bound: float | None
    seconds: float
    folder: Path | None = None

    @property
    def ok(self) -> bool:
        """Did every promise hold?"""
        return self.report.ok


def run(what: Run, *, keep: bool = False) -> Result:
    """Run a scenario and judge it. Its log is kept if a promise did not hold, or if `keep` says so."""
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"streamq-faults-{what.scenario.name}-"))
    with fresh_server(what.kind, *what.scenario.server) as server:
        scene = Scene(
            replace(what.scenario, slack=what.scenario.slack + what.slack),
            server=server,
            folder=folder,
            backend=what.backend,
            seed=what.seed,
            tasks=what.tasks,
        )
        with closing(scene):
            _play(scene)
            final = _final(scene)
    limits = limits_of(scene)
    report = check(_records(scene), final, limits)
    stalls = Row(
        "-", "stalls of workers' processes", scene.count("starved")
    )  # SIGSTOP or a starved machine: both excuse
    report = replace(report, rows=(*report.rows, *scene.rows, stalls))
    kept = keep or not report.ok
    if kept:
        found = {"report": report.to_dict(), "state": asdict(final), "command": what.command}
        (folder / "report.json").write_bytes(orjson.dumps(found, default=sorted, option=orjson.OPT_INDENT_2))
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - started
    return Result(what, report, limits.recovery, seconds, folder if kept else None)


def _play(scene: Scene) -> None:
    """Let the scenario run, and end what it left running; what went wrong becomes a row."""
    try:
        scene.scenario.body(scene)
        scene.reap()
    except Exception as error:  # noqa: BLE001 - the checker is to see what there is all the same
        scene.expect("-", "the scenario went to its end", 1, 0, f"{type(error).__name__}: {error}")
        (scene.folder / "error").write_text(traceback.format_exc())
    scene.stop()
    for process in scene.producers:
        process.terminate()
        process.wait(10)
        if process.code not in (0, -signal.SIGTERM):  # told to stop twice, it may be gone by the second
            scene.expect("-", f"producer {process.who} ended well", 1, 0, _ending(process.output))
    for worker in scene.workers:
        if worker.code is not None and worker.code > 0:
            scene.expect("P9", f"worker {worker.who} did not fail", worker.code, 0, _ending(worker.output))


def _records(scene: Scene) -> Iterator[Record]:
    """Yield the log; what was withdrawn without an answer, and never started, has been withdrawn."""
    doubtful = {record["task"] for record in scene.journal.records("doubtful")}
    at = 0.0
    for record in read(scene.log):
        if record.what == "start":
            doubtful.discard(record.task)
        at = max(at, record.at)
        yield record
    for task in sorted(doubtful):
        yield Record(at, "judge", "withdrawn", task)


def _ending(output: Path) -> str:
    return " | ".join(output.read_text(errors="replace").strip().splitlines()[-_ENDING:])[-500:]


def _final(scene: Scene) -> FinalState:
    async def look() -> FinalState:
        async with RedisBroker(scene.server.url) as broker:
            return await final_state(broker)

    return anyio.run(look, backend=scene.backend)


def limits_of(scene: Scene) -> Limits:
    """Return what a run is held to: lease + one sweep + slack, and what its scenario excuses."""
    scenario = scene.scenario
    culprits = scenario.culprits
    given = {
        "lease": scene.lease, "slack": scene.slack, "dead_reasons": scenario.dead,
        "recovery": scenario.bound or scene.lease * 4 / 3 + scene.slack,  # None in `limits`: not judged
        "grace": 3.0 + scene.slack,
        "culprits": lambda _task, name: name in culprits,
        "clean_exit": True,
    }  # fmt: skip
    return Limits(**(given | scene.limits))
