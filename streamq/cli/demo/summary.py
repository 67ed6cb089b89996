"""The summary of the demo: counts, shares of the tiers, times, dead letters, and the check that no task is lost."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streamq.cli.demo.corpus import TIERS, Corpus
from streamq.cli.demo.progress_view import COLOURS
from streamq.cli.demo.run_log import RunLog, percentile
from streamq.wire.printable import printable

_DEAD_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The figures of the summary.

    `missing` are the files with neither an effect nor a dead letter. `left` counts the entries still in
    streams and delayed sets, `pending` the pending ones. `held` counts the deliveries that a killed worker
    held. `private` is True if the demo started the server itself.
    """

    corpus: Corpus
    run_log: RunLog
    effects: dict[str, dict[str, int]]
    missing: list[str]
    left: int
    pending: int
    killed: int
    held: int
    product: str
    backend: str
    weights: dict[str, int]
    redis_cli: str
    kept: bool
    private: bool

    @property
    def totals(self) -> Counter[str]:
        """The sums over all files."""
        totals: Counter[str] = Counter()
        for counts in self.effects.values():
            totals.update(counts)
        return totals


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return the summary as plain values that have JSON."""
    run_log = outcome.run_log
    starts, by_tier = run_log.shares()
    whole = sum(outcome.weights.values())
    return {
        "server": outcome.product,
        "backend": outcome.backend,
        "enqueued": run_log.enqueued,
        "effects": len(outcome.effects),
        "dead": len(run_log.dead),
        "missing": outcome.missing,
        "left": outcome.left,
        "pending": outcome.pending,
        "runs": len(run_log.runs),
        "retries": run_log.retries,
        "repeated": run_log.repeated,
        "killed": bool(outcome.killed),
        "held_by_killed": outcome.held,
        "seconds": run_log.span,
        "per_second": run_log.settled / run_log.span if run_log.span else 0.0,
        "starts_while_backlogged": starts,
        "tiers": {
            tier: {
                "files": len(run_log.files[tier]),
                "indexed": len(run_log.done[tier]),
                "weight": outcome.weights[tier] / whole,
                "share": by_tier[tier] / starts if starts else 0.0,
                "p50": percentile(run_log.latencies(tier), 0.5),
                "p99": percentile(run_log.latencies(tier), 0.99),
            }
            for tier in TIERS
        },
        "found": dict(outcome.totals),
        "dead_letters": list(run_log.dead.values()),
        "redis_cli": outcome.redis_cli,
    }


def print_summary(console: Console, outcome: Outcome) -> None:
    """Print the summary as text."""
    totals, run_log = outcome.totals, outcome.run_log
    console.print()
    console.print(
        f"[bold]Indexed {len(outcome.effects):,} files[/] of {escape(str(outcome.corpus.root))}: "
        f"{totals['lines']:,} lines, {totals['functions']:,} functions, {totals['classes']:,} classes, "
        f"{totals['imports']:,} imports.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    most = ", ".join(f"{name.removesuffix('.py')} ({count})" for name, count in outcome.corpus.most_imported)
    for tier, what in (
        ("critical", f"what most other files import: {most}, ..."), ("standard", "the rest of the library"),
        ("bulk", outcome.corpus.bulk_is),
    ):  # fmt: skip
        console.print(f"  [{COLOURS[tier]}]{tier:<9}[/] {escape(what)}", highlight=False, soft_wrap=True)
    console.print(_tiers(outcome))
    runs = run_log.durations()
    per_second = run_log.settled / run_log.span if run_log.span else 0.0
    console.print(
        f"{run_log.settled:,} files in {run_log.span:.1f} s: [bold]{per_second:,.0f} files/s[/]; one run takes "
        f"{percentile(runs, 0.5) * 1000:.1f} ms (p50), {percentile(runs, 0.99) * 1000:.0f} ms (p99); "
        f"{run_log.retries} retries of failed runs.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    _print_dead(console, outcome)
    _print_proof(console, outcome)


def _tiers(outcome: Outcome) -> Table:
    run_log = outcome.run_log
    starts, by_tier = run_log.shares()
    whole = sum(outcome.weights.values())
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("tier")
    for title in ("files", "indexed", "dead", "weight", f"share of first {starts:,}", "wait p50", "wait p99"):
        table.add_column(title, justify="right")
    for tier in TIERS:
        waits = run_log.latencies(tier)
        dead = sum(dead_letter.get("tier") == tier for dead_letter in run_log.dead.values())
        table.add_row(
            f"[{COLOURS[tier]}]{tier}[/]", f"{len(run_log.files[tier]):,}", f"{len(run_log.done[tier]):,}", f"{dead}",
            f"{outcome.weights[tier] / whole:.1%}", f"{by_tier[tier] / starts if starts else 0:.1%}",
            f"{percentile(waits, 0.5):.2f} s", f"{percentile(waits, 0.99):.2f} s",
        )  # fmt: skip
    table.caption = "share: of the starts while every tier had work; wait: from enqueue to success"
    table.caption_justify = "left"
    return table


def _print_dead(console: Console, outcome: Outcome) -> None:
    dead = outcome.run_log.dead
    console.print()
    if not dead:
        console.print("No dead letters: every file that was tried parses on this Python.")
        return
    console.print(f"[bold]{len(dead)} files do not parse[/] and are dead letters:", highlight=False)
    for name, dead_letter in sorted(dead.items())[:_DEAD_SHOWN]:
        error = printable(f"{dead_letter.get('error_type')}: {dead_letter.get('error')}")
        line = f"  {escape(name)}  [dim]{dead_letter.get('reason')} after {dead_letter.get('attempts')} runs[/]"
        console.print(line, highlight=False, soft_wrap=True)
        console.print(f"    [red]{escape(error)}[/]", highlight=False, soft_wrap=True)
    if len(dead) > _DEAD_SHOWN:
        console.print(f"  and {len(dead) - _DEAD_SHOWN} more")
    if outcome.kept:
        console.print("Read them without any tool of streamq:", highlight=False, soft_wrap=True)
        console.print(f"  [bold]{escape(outcome.redis_cli)}[/]", highlight=False, soft_wrap=True)
    else:
        console.print(
            "The demo removes its keys now. To read the dead letters with redis-cli, run [bold]streamq demo --keep[/].",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _print_proof(console: Console, outcome: Outcome) -> None:
    run_log = outcome.run_log
    console.print()
    if outcome.killed:
        console.print(
            f"[bold]The worker (pid {outcome.killed}) was killed with SIGKILL[/] after {_done_before(run_log):,} runs, "
            f"while it held {outcome.held} tasks; the next one took them over when their lease ended.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    lost = len(outcome.missing)
    word = f"[bold red]{lost} files are lost[/]" if lost else "[bold green]Nothing is lost[/]"
    console.print(
        f"{word}: {run_log.enqueued:,} files enqueued = {len(outcome.effects):,} with an effect recorded + "
        f"{len(run_log.dead):,} dead letters; {outcome.pending} pending, {outcome.left} left in streams; "
        f"{run_log.repeated} ran again after they had succeeded.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for name in outcome.missing[:_DEAD_SHOWN]:
        console.print(f"  lost: {escape(shlex.quote(name))}", highlight=False)


def _done_before(run_log: RunLog) -> int:
    return sum(run_log.killed_at is not None and run.ended <= run_log.killed_at for run in run_log.runs)
