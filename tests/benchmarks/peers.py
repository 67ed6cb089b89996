"""streamq beside its peers, and what the machine allows: every figure, and the goals, from one run.

    python -m tests.benchmarks.peers --out FILE [--rounds 3] [--peers streamq:uvloop faststream ...]
    python -m tests.benchmarks.peers --show FILE [--into docs/performance.md]

The harness is that of `../shared/bench` (its README says what is measured, and how); `--bench` or
$STREAMQ_BENCH name another place. $BENCH_VENVS names its environments, ~/.cache/streamq-bench by default.
It is read and copied, never changed. What is added to it: results kept by streamq, concurrency 100,
and enqueueing by 100 callers at once. Rounds are interleaved: each runs everything once. Three
rounds of all take about 25 minutes; a run that was broken off can be shown, and goes on with
the same `--out`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.goals import report

ROOT = Path(__file__).parents[2]
ADDED = Path(__file__).with_name("harness")
BENCH = Path(os.environ.get("STREAMQ_BENCH", ROOT.parent / "shared" / "bench"))
VENVS = Path(os.environ.get("BENCH_VENVS", Path.home() / ".cache" / "streamq-bench"))

OURS = ("streamq", "streamq:uvloop", "streamq:trio")
RESULTS = tuple(f"streamq:{variant}" for variant in ("results", "uvloop-results", "trio-results"))
# Not at concurrency 100: one or a few at a time whatever it is; so slow that it says what 32 said; and docket
# runs out of connections there and loses tasks.
NARROW = ("celery", "celery:solo", "rq", "rq:simple", "arq", "docket", "docket:fast")
CALLING = (*OURS, "faststream", "taskiq", "streaq", "streaq:uvloop", "streaq:trio", "saq", "arq", "docket")
TASKS = 5_000  # of the harness's no-op run; fast peers multiply it, slow ones cap it
CALLS = 5_000  # of 100 callers together, ten times as many for those who are fast
DEADLINE = 45.0  # seconds that one step of one peer may take: half of the harness's own
BEGIN, END = "<!-- peers -->", "<!-- end of peers -->"
FIRST_PORT = 7401  # the harness's


class Harness:
    """A copy of the harness with what is added to it, and its functions."""

    def __init__(self, bench: Path, folder: Path) -> None:
        self.folder = folder / "bench"
        shutil.copytree(bench, self.folder)
        self.folder.chmod(0o755)
        (self.folder / "peers").chmod(0o755)
        for file, place in (("streamq_peer.py", "peers"), ("callers.py", ".")):
            (self.folder / place / file).unlink(missing_ok=True)
            shutil.copy(ADDED / file, self.folder / place / file)
        sys.path.insert(0, str(self.folder))
        self.run: Any = importlib.import_module("run")
        self.run.DEADLINE = DEADLINE
        self.awake: Any = importlib.import_module("awake")

    def facts(self, peer: str) -> dict[str, Any]:
        """Return what a peer says of itself; {"error": why} if it cannot be imported."""
        try:
            return dict(self.run.facts(peer))
        except (IndexError, ValueError):  # it printed nothing
            name, _, variant = peer.partition(":")
            command = [VENVS / name / "bin" / "python", "-c", f"import peers.{name}_peer"]
            environment = os.environ | {"BENCH_VARIANT": variant, "PYTHONPATH": str(self.folder)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            return {"error": (done.stderr.strip().splitlines() or ["it says nothing of itself"])[-1]}

    def scenario(self, name: str, peer: str, about: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
        """Run one scenario of one peer. Its failure is a result."""
        scenario: Callable[..., dict[str, Any]] = self._callers if name == "callers" else getattr(self.run, name)
        before = self.run.quiet()
        try:
            found = scenario(peer, about, options)
        except Exception as error:  # noqa: BLE001
            return {"error": f"{type(error).__name__}: {error}"}
        return {**found, "load_before": before} if found else {}

    def _callers(self, peer: str, about: dict[str, Any], _: argparse.Namespace) -> dict[str, Any]:
        """Enqueue by 100 callers, each of whom awaits every one of his own."""
        calls = CALLS * (10 if about["scale"] > 1 else 1)
        name, _, variant = peer.partition(":")
        with self.run.fresh_redis() as redis:
            done = subprocess.run(
                [VENVS / name / "bin" / "python", self.folder / "callers.py", name, str(calls), "100"],
                env=os.environ | {"BENCH_URL": redis.url, "BENCH_VARIANT": variant, "PYTHONPATH": str(self.folder)},
                cwd=self.folder, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"callers exited {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        return {"n": calls, "callers_per_s": calls / float(done.stdout.split()[-1])}

    def limits(self, *, awake: bool) -> Iterator[dict[str, Any]]:
        """Measure what the machine allows: the harness's limits, and Redis' own client with 50 connections."""
        out = self.folder / "limits.jsonl"
        out.unlink(missing_ok=True)
        command = [VENVS / "limit" / "bin" / "python", self.folder / "limit.py", "--reps", "1", "--n", "50000"]
        command += ["--out", out, *(["--awake"] if awake else [])]
        subprocess.run(command, cwd=self.folder, check=True, timeout=300, stdout=subprocess.DEVNULL)
        yield from map(json.loads, out.read_text().splitlines())
        with self.run.fresh_redis() as redis:
            command = ["redis-benchmark", "-p", str(redis.port), "-c", "50", "--csv", "-n", "200000"]
            command += ["XADD", "s", "*", "task", "noop", "id", "0123456789abcdef"]
            text = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout
        rate = float(text.splitlines()[-1].split(",")[-7].strip('"'))
        yield {"peer": "limit: redis-benchmark", "scenario": "limit", "callers_per_s": rate}


def main() -> None:
    """Run, or show what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, default=BENCH, help="the folder of the harness (%(default)s)")
    parser.add_argument("--out", type=Path, help="where records are appended, one JSON object a line")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of a run, in Markdown")
    parser.add_argument("--into", type=Path, metavar="PAGE", help=f"put them into a page, between {BEGIN} and {END}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--peers", nargs="+", help="NAME or NAME:VARIANT; all, if none is given")
    parser.add_argument(
        "--only", nargs="+", default=["limit", "noop", "noop-100", "callers", "sleep", "latency", "idle"]
    )
    parser.add_argument(
        "--awake", action=argparse.BooleanOptionalAction, default=True, help="keep the cores from halting"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers and workers end with us
    if given.show:
        tables = report([json.loads(line) for line in given.show.read_text().splitlines()])
        print(tables, end="")
        if given.into:
            head, rest = given.into.read_text().split(BEGIN)
            given.into.write_text(f"{head}{BEGIN}\n\n{tables}\n{END}{rest.split(END)[1]}")
        return
    if given.out is None:
        parser.error("give --out FILE, or --show FILE")
    peers = given.peers or _all_peers(given.bench)
    if missing := _missing(given.bench, peers, given.only):
        parser.error(missing)
    with tempfile.TemporaryDirectory(prefix="streamq-bench-") as folder:
        _measure(Harness(given.bench, Path(folder)), peers, given)


def _all_peers(bench: Path) -> list[str]:
    """Return the peers of the harness, ours and those that keep results first."""
    listed = bench / "peers.txt"
    others = [peer for peer in listed.read_text().split() if peer not in OURS] if listed.exists() else []
    return [*OURS, *RESULTS, *others]


def _missing(bench: Path, peers: Sequence[str], only: Sequence[str]) -> str:
    """Say what this machine lacks, and how to get it."""
    if not (bench / "run.py").is_file():
        return f"there is no harness in {bench}: give --bench, or set STREAMQ_BENCH"
    if shutil.which("redis-server") is None:
        return "there is no redis-server on PATH, and every peer is measured against that"
    names = {peer.partition(":")[0] for peer in peers} | ({"limit"} if "limit" in only else set())
    lacking = sorted(name for name in names if not (VENVS / name / "bin" / "python").exists())
    if lacking:
        return f"{VENVS} has no environment for {', '.join(lacking)}: STREAMQ={ROOT} bash {bench}/venvs.sh makes them"
    return ""


def _measure(harness: Harness, peers: Sequence[str], given: argparse.Namespace) -> None:
    """Run all rounds."""
    began = time.monotonic()

    def keep(peer: str, scenario: str, found: dict[str, Any]) -> None:
        with given.out.open("a") as file:
            file.write(json.dumps({"peer": peer, "rep": rep, "scenario": scenario, **found}) + "\n")
        brief = {name: float(f"{value:.4g}") for name, value in found.items() if isinstance(value, int | float)}
        print(f"{time.monotonic() - began:6.0f} s  {peer} {scenario} {rep}: {brief or found}", file=sys.stderr)

    with _awake(harness, wanted=given.awake):
        for rep in range(given.rounds):
            _check_ports(len(peers))
            keep("", "run", _conditions())
            if "limit" in given.only:
                for found in harness.limits(awake=given.awake):
                    keep(found["peer"], "limit", found | {"rep": rep})
            for peer, scenario, found in _round(harness, peers, given):
                keep(peer, scenario, found)


def _round(
    harness: Harness, peers: Sequence[str], given: argparse.Namespace
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Run each scenario of each peer in turn; those who idle do so side by side."""
    usual, wide = argparse.Namespace(n=given.tasks, c=32), argparse.Namespace(n=given.tasks // 2, c=100)
    waiting = []
    for peer in peers:
        about = harness.facts(peer)
        if "error" in about:
            yield peer, "import", about
            continue
        for scenario in _scenarios_of(peer, given.only):
            found = harness.scenario(
                scenario.removesuffix("-100"), peer, about, wide if scenario == "noop-100" else usual
            )
            if found:  # some scenarios make no sense for some peers
                yield peer, scenario, found
        if peer not in RESULTS:
            waiting.append(peer)
    if "idle" in given.only:
        for peer, found in harness.run.idle(waiting, usual).items():
            yield peer, "idle", found


def _scenarios_of(peer: str, only: Sequence[str]) -> list[str]:
    """Return what is run of a peer, the worker that idles apart."""
    scenarios = ["noop"]
    if peer not in RESULTS:
        scenarios += ["sleep", "latency"]
        scenarios += ["noop-100"] * (peer not in NARROW) + ["callers"] * (peer in CALLING)
    return [scenario for scenario in scenarios if scenario in only]


def _check_ports(count: int) -> None:
    """Raise SystemExit if a server that is not the harness's would be measured, and emptied."""
    for port in range(FIRST_PORT, FIRST_PORT + count):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise SystemExit(f"something listens on port {port}, which the harness uses: is another run under way?")


@contextmanager
def _awake(harness: Harness, *, wanted: bool) -> Iterator[None]:
    """Keep the cores from halting, at the lowest priority (the harness's awake.py says why)."""
    spinners = harness.awake.start() if wanted else []
    harness.run.SPINNERS.extend(spinners)
    try:
        yield
    finally:
        for spinner in spinners:
            os.kill(spinner, 15)
            os.waitpid(spinner, 0)


def _conditions() -> dict[str, Any]:
    """Return where and with what a round was run."""
    said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit.strip(), "cores": os.cpu_count(),
        "python": platform.python_version(), "redis": said.split("v=")[1].split()[0], "command": " ".join(sys.argv[1:]),
    }  # fmt: skip


if __name__ == "__main__":
    main()
