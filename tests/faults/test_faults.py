"""P1 to P10 under faults: a short form of every scenario, and of the soak, with fixed seeds on both backends.

The runs mostly wait, so several go on at once, in the background; each test waits for its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults import registry
from tests.faults.judge import Result, Run, run
from tests.faults.soak import soak
from tests.faults.table import HEADINGS, complaints, line
from tests.fork_server import ROOT
from tests.servers import Kind, available

registry.load()

BACKENDS = ("asyncio", "trio")
SEED = 7
AT_ONCE = 3
SOAK_MINUTES = 1 / 3
SLACK = float(os.environ.get("STREAMQ_FAULTS_SLACK", "0"))  # seconds more, on a machine that is busy with other things

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def kind_of(name: str, backend: str) -> Kind:
    """Every scenario runs on both kinds of server, where there are both."""
    kinds = [kind for kind in ("valkey", "redis") if available(kind)]
    return kinds[(BACKENDS.index(backend) + len(name)) % len(kinds)]


def short(name: str, backend: str) -> Run:
    """Return the short form of a scenario, or of the soak."""
    if name == "soak":
        return Run(soak(minutes=SOAK_MINUTES), backend, kind_of(name, backend), SEED, 100_000, SLACK)
    scenario = registry.SCENARIOS[name]
    return Run(scenario, backend, kind_of(name, backend), SEED, scenario.short, SLACK)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[Callable[[str, str], Result]]:
    """The results of all runs that were asked for; they go on in the background from now on."""
    wanted = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    pairs = [(one["scenario"], one["backend"]) for one in wanted if one.keys() >= {"scenario", "backend"}]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs: dict[tuple[str, str], Future[Result]] = {pair: pool.submit(run, short(*pair)) for pair in pairs}
        try:
            yield lambda scenario, backend: runs[scenario, backend].result()
        finally:
            pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scenario", [*sorted(registry.SCENARIOS), "soak"])
def test_promises_hold(results: Callable[[str, str], Result], scenario: str, backend: str) -> None:
    """Nothing lost, nothing settled twice, nobody alive robbed, everything recovered in time, nothing left."""
    result = results(scenario, backend)
    print("\n".join(f"{heading}: {cell}" for heading, cell in zip(HEADINGS, line(result), strict=True)))
    assert result.ok, complaints(result)
    assert result.report.tasks > 0
    assert scenario in ("steady", "killed-after-effect") or sum(result.report.faults.values()) > 0


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m tests.faults`."""
    return subprocess.run(
        [sys.executable, "-m", "tests.faults", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_worker_is_found_out(backend: str, tmp_path: Path) -> None:
    """A worker that acknowledges some tasks without their effect: exit code 1, the log kept, and how to repeat it."""
    ended = command(
        "steady", "--tasks", "300", "--backend", backend, STREAMQ_FAULTS_WRONG="no-effect", TMPDIR=str(tmp_path)
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "VIOLATED" in ended.stdout
    assert "P2 acknowledged before the effect" in ended.stdout
    assert f"python -m tests.faults steady --seed 1 --tasks 300 --backend {backend}" in ended.stdout
    (kept,) = tmp_path.glob("streamq-faults-steady-*")
    assert {"log", "report.json"} <= {path.name for path in kept.iterdir()}


def test_a_right_worker_is_not() -> None:
    """The same run with a well-behaved worker: exit code 0 and a table."""
    ended = command("steady", "--tasks", "300")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "live redeliveries" in ended.stdout
    assert "holds" in ended.stdout


def test_the_list_names_everything() -> None:
    """`list` says which scenarios and which faults there are."""
    ended = command("list")
    assert ended.returncode == 0
    for name in [*registry.SCENARIOS, *registry.INJECTORS]:
        assert name in ended.stdout


def test_an_unknown_name_is_an_error_of_use() -> None:
    """It says which names there are."""
    ended = command("no-such-scenario")
    assert ended.returncode == 2
    assert "steady" in ended.stderr
