"""From the records of a run of all peers to its tables: what each did, and which goals are held. Pure.

A record is what the harness of `../shared/bench` says of one scenario of one peer in one round, with
`scenario` one of noop, noop-100, callers, sleep, latency, idle, limit. A figure is the median of its rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

CHOSEN = "streamq:uvloop"  # what the goals are about, unless they say otherwise
_POOL = "limit: anyio/uvloop+scope+pool"

Figures = dict[str, dict[tuple[str, str], float]]  # peer -> (scenario, field) -> median of the rounds


@dataclass(frozen=True)
class Column:
    """One column of a table: where its figure is, and how it is written."""

    title: str
    scenario: str
    field: str
    form: str = "{:,.0f}"
    factor: float = 1.0

    def of(self, figures: Figures, peer: str) -> float | None:
        """Return the figure of a peer, None if it has none. A limit has it in its one scenario."""
        found = figures.get(peer, {})
        return found.get((self.scenario, self.field), found.get(("limit", self.field)))

    def text(self, value: float | None) -> str:
        """Write a figure, a dash for none."""
        return "-" if value is None else self.form.format(self.factor * value)


WORKING = (
    Column("tasks/s, C = 32", "noop", "tasks_per_s"),
    Column("C = 100", "noop-100", "tasks_per_s"),
    Column("worker CPU, us/task", "noop", "worker_us"),
    Column("Redis CPU, us/task", "noop", "redis_us", "{:.1f}"),
    Column("commands/task", "noop", "commands", "{:.3f}"),
    Column("socket reads/task", "noop", "reads", "{:.4f}"),
    Column("sleeps, % of ideal", "sleep", "sleep_of_ideal", "{:.1f}", 100.0),
    Column("RSS, MiB", "noop", "rss_mib", "{:.1f}"),
    Column("pending, B/task", "noop", "pending_bytes"),
    Column("left, B/task", "noop", "left_bytes", "{:.1f}"),
    Column("other load, cores", "noop", "others", "{:.2f}"),
)
SENDING = (
    Column("enqueue, one caller, /s", "noop", "enqueue_loop_per_s"),
    Column("100 callers, /s", "callers", "callers_per_s"),
    Column("bulk, /s", "noop", "enqueue_bulk_per_s"),
    Column("p50, ms", "latency", "p50_ms", "{:.2f}"),
    Column("p99, ms", "latency", "p99_ms", "{:.2f}"),
    Column("longest, ms", "latency", "max_ms", "{:.1f}"),
    Column("idle CPU, s/10 s", "idle", "idle_cpu_s", "{:.2f}"),
    Column("idle commands/s", "idle", "idle_commands_s", "{:.1f}"),
)
LIMITS = (
    Column("tasks/s", "limit", "tasks_per_s"),
    Column("CPU, us/task", "limit", "worker_us", "{:.1f}"),
    Column("Redis CPU, us/task", "limit", "redis_us", "{:.1f}"),
    Column("commands/task", "limit", "commands", "{:.3f}"),
    Column("socket reads/task", "limit", "reads", "{:.4f}"),
    Column("enqueue, one caller, /s", "limit", "enqueue_loop_per_s"),
    Column("50 callers, /s", "limit", "callers_per_s"),
    Column("bulk, /s", "limit", "enqueue_bulk_per_s"),
    Column("p50, ms", "limit", "p50_ms", "{:.2f}"),
    Column("p99, ms", "limit", "p99_ms", "{:.2f}"),
)


@dataclass(frozen=True)
class Goal:
    """What `figure` of `ours` is to be: `bound`, or so many `times` that of `against`.

    Without `against` it is compared with the best of the other queues.
    """

    what: str
    figure: Column
    times: float | None = None
    bound: float | None = None
    ours: str = CHOSEN
    against: str | None = None
    more: bool = True  # is more better?

    def row(self, figures: Figures) -> list[str]:
        """Return what is wanted, what is, what is compared with, the ratio, and whether the goal is held."""
        mine = self.figure.of(figures, self.ours)
        other = self.against or self._best_other(figures)
        theirs = self.figure.of(figures, other)
        wanted = self.bound if self.times is None else None if theirs is None else self.times * theirs
        if mine is None or wanted is None:
            held = "not measured"
        else:
            held = "held" if (mine >= wanted if self.more else mine <= wanted) else "**missed**"
        aim = f"{self.times:g} times" if self.times is not None else f"{self.figure.factor * (self.bound or 0.0):g}"
        return [
            self.what, f"at {'least' if self.more else 'most'} {aim}", self.figure.text(mine),
            "-" if theirs is None else f"{self.figure.text(theirs)} ({other})",
            f"{mine / theirs:.2f}" if mine is not None and theirs else "-", held,
        ]  # fmt: skip

    def _best_other(self, figures: Figures) -> str:
        measured = {
            peer: value
            for peer in figures
            if not peer.startswith(("streamq", "limit")) and (value := self.figure.of(figures, peer)) is not None
        }
        return (max if self.more else min)(measured, key=measured.__getitem__, default="")


def _titled(title: str) -> Column:
    return next(column for column in (*WORKING, *SENDING) if column.title == title)


def goals() -> list[Goal]:
    """Return the goals of issue 5, each in the words of its table."""
    rate, wide, rss = _titled("tasks/s, C = 32"), _titled("C = 100"), _titled("RSS, MiB")
    p50, p99 = _titled("p50, ms"), _titled("p99, ms")
    return [
        Goal("no-op tasks/s, concurrency 32", rate, times=10),
        Goal("no-op tasks/s, concurrency 100", wide, times=10),
        Goal("of anyio's limit (shared runners, a scope each), concurrency 32", rate, times=0.5, against=_POOL),
        Goal("of anyio's limit, concurrency 100", wide, times=0.5, against=_POOL),
        Goal(
            "under trio, of asyncio with uvloop, concurrency 32", rate, times=0.8, ours="streamq:trio", against=CHOSEN
        ),
        Goal(
            "under trio, of asyncio with uvloop, concurrency 100", wide, times=0.8, ours="streamq:trio", against=CHOSEN
        ),
        Goal("results kept, of without", rate, times=0.7, ours="streamq:uvloop-results", against=CHOSEN),
        Goal("results kept, of without, trio", rate, times=0.7, ours="streamq:trio-results", against="streamq:trio"),
        Goal("worker CPU per task, us", _titled("worker CPU, us/task"), bound=30, more=False),
        Goal("Redis CPU per task, us", _titled("Redis CPU, us/task"), bound=6, more=False),
        Goal("commands per task", _titled("commands/task"), bound=0.15, more=False),
        Goal("socket reads per task", _titled("socket reads/task"), bound=0.03, more=False),
        Goal("enqueue, one caller awaiting each", _titled("enqueue, one caller, /s"), times=1.5),
        Goal("enqueue, 100 callers at once", _titled("100 callers, /s"), times=5),
        Goal("enqueue_many", _titled("bulk, /s"), times=3),
        Goal("latency p50, ms", p50, times=0.6, more=False),
        Goal("latency p99, ms", p99, times=1.0, more=False),
        *(
            Goal(f"sleeps, % of ideal, {loop}", _titled("sleeps, % of ideal"), bound=0.97, ours=ours)
            for loop, ours in _LOOPS.items()
        ),
        Goal("idle CPU in 10 s, s", _titled("idle CPU, s/10 s"), bound=0.02, more=False),
        Goal("idle commands per s", _titled("idle commands/s"), bound=2, more=False),
        Goal("Redis memory per waiting task, B", _titled("pending, B/task"), bound=110, more=False),
        Goal("left per finished task, B", _titled("left, B/task"), bound=3, more=False),
        *(Goal(f"worker RSS, MiB, {loop}", rss, bound=40, ours=ours, more=False) for loop, ours in _LOOPS.items()),
    ]


_LOOPS = {"asyncio": "streamq", "uvloop": CHOSEN, "trio": "streamq:trio"}


# --- tables ------------------------------------------------------------------------------------------


def medians(records: Iterable[Mapping[str, Any]]) -> Figures:
    """Return the median of each figure over the rounds."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    for record in records:
        of_peer = found.setdefault(record["peer"], {})
        for field, value in record.items():
            if isinstance(value, int | float) and field != "rep":
                of_peer.setdefault((record["scenario"], field), []).append(value)
    return {peer: {key: median(values) for key, values in at.items()} for peer, at in found.items()}


def report(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables of a run in Markdown: the goals, then every figure of everybody."""
    figures = medians(record for record in records if record["scenario"] != "run")
    queues = [peer for peer in figures if not peer.startswith("limit")]
    queues.sort(key=lambda peer: -(WORKING[0].of(figures, peer) or 0.0))
    limits = [peer for peer in figures if peer.startswith("limit")]
    parts = [
        _table(["goal", "wanted", "streamq", "compared with", "ratio", ""], [goal.row(figures) for goal in goals()]),
        _figures("queue", WORKING, queues, figures),
        _figures("queue", SENDING, queues, figures),
        _figures("limit", LIMITS, limits, figures),
    ]
    failed = [
        f"- {record['peer']}, {record['scenario']}, round {record['rep'] + 1}: {record['error']}"
        for record in records
        if "error" in record
    ]
    if runs := [record for record in records if record["scenario"] == "run"]:
        parts.insert(0, _conditions(runs))
    return "\n\n".join([*parts, *(["What failed:\n\n" + "\n".join(failed)] if failed else [])]) + "\n"


def _conditions(runs: Sequence[Mapping[str, Any]]) -> str:
    """Say how the figures came to be. A run that went on later has conditions of its own."""
    said = {
        f"`python -m tests.benchmarks.peers {run['command']}`, {run['cores']} cores, Python {run['python']}, "
        f"Redis {run['redis']}, commit {run['commit']}": None
        for run in runs
    }
    return f"{'; '.join(said)}; {len(runs)} rounds from {runs[0]['at']}. Medians of the rounds."


def _figures(name: str, columns: Sequence[Column], peers: Sequence[str], figures: Figures) -> str:
    """Return the table of some peers; who has no figure in it has no row."""
    rows = [[peer, *(column.text(column.of(figures, peer)) for column in columns)] for peer in peers]
    return _table(
        [name, *(column.title for column in columns)],
        [[row[0].removeprefix("limit: "), *row[1:]] for row in rows if set(row[1:]) != {"-"}],
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])
