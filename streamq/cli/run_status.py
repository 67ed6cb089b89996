"""Runs `streamq status`: one snapshot as a screen, or as one line of JSON, and what is wrong in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from streamq.cli import output
from streamq.cli.run_command import run
from streamq.cli.server_options import ServerOptions
from streamq.cli.usage_errors import CommandLineError
from streamq.errors import ConfigurationError
from streamq.monitoring import Figures, QueueMetrics, QueueMonitor, TierMetrics
from streamq.wire.command_line import streamq_command
from streamq.wire.keys import Keys
from streamq.wire.message import iso

_SILENT: Final = 60.0  # seconds after the end of its heartbeat in which others take over what a worker held
_MOST_NAMED: Final = 5  # circuits and workers
_HEADER: Final = ("TIER", "WAITING", "HELD", "DELAYED", "OLDEST", "DONE/S", "FAILED", "DIED", "P95 WAIT", "P95 LATENCY")
_LEFT: Final = 1  # columns of text; the others are of numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the user calls wrong. None: no limit. `wait` is in seconds."""

    wait: float | None = None
    waiting: int | None = None
    dead: int | None = None
    workers: int | None = None


def status(server: ServerOptions, *, window: float, limits: Limits, as_json: bool) -> int:
    """Print how a queue is. Return the exit code: 1 if something is wrong. Raises CommandLineError."""
    broker = server.lasting_broker()
    try:
        monitor = QueueMonitor(broker=broker, window=window)
    except ConfigurationError as error:
        raise CommandLineError(f"--window: {error}") from None

    async def main() -> QueueMetrics:
        async with broker:
            return await monitor.snapshot()

    metrics = run(main)
    wrong, notes = [*problems(metrics, limits)], [*remarks(metrics)]
    if as_json:
        found = {"namespace": broker.keys.namespace, "group": broker.keys.group, "ok": not wrong}
        output.result_json({**found, "problems": wrong, "notes": notes, **metrics.as_dict()})
    else:
        _print(metrics, broker.keys, wrong, notes)
    return int(bool(wrong))


def problems(metrics: QueueMetrics, limits: Limits) -> Iterator[str]:
    """Yield what is wrong, a sentence each."""
    there = [
        f"{count:,} {'task' if count == 1 else 'tasks'} {word}"
        for word, count in (("waiting", metrics.depth), ("held", metrics.processing), ("delayed", metrics.delayed))
        if count
    ]
    if there and not metrics.workers:
        yield f"no worker is alive: {', '.join(there)}"
    silent = [one for one in metrics.consumers if one.pending and one.alive_s < -_SILENT]
    if silent and metrics.workers:
        names = _some([f"{one.name} ({one.pending:,}, for {_time(-one.alive_s)})" for one in silent])
        yield f"{_count(len(silent), 'silent worker')} still held tasks that nobody has taken over: {names}"
    if limits.wait is not None and metrics.oldest_wait_s > limits.wait:
        late = max(metrics.tiers.values(), key=lambda tier: tier.oldest_wait_s)
        yield f"a task of tier {late.name!r} has waited {_time(late.oldest_wait_s)}: more than {_time(limits.wait)}"
    if limits.waiting is not None and metrics.depth > limits.waiting:
        yield f"{metrics.depth:,} tasks wait: more than {limits.waiting:,}"
    if limits.dead is not None and metrics.dead_letter_count > limits.dead:
        yield f"{_count(metrics.dead_letter_count, 'dead letter')}: more than {limits.dead:,}"
    if limits.workers is not None and metrics.workers < limits.workers:
        yield f"{_count(metrics.workers, 'worker')} alive: fewer than {limits.workers:,}"


def remarks(metrics: QueueMetrics) -> Iterator[str]:
    """Yield what may be wrong, a sentence each."""
    if metrics.circuits:
        named = [
            f"{one.name!r} is {one.state.replace('_', ' ')}" + (f" in {one.worker}" if one.worker else "")
            for one in metrics.circuits
        ]
        yield f"{_count(len(named), 'circuit')} not closed: {_some(named)}"
    silent = [one for one in metrics.consumers if not one.alive and one.pending and one.alive_s >= -_SILENT]
    if silent:
        yield f"{_count(len(silent), 'worker')} just fell silent: {_some([one.name for one in silent])}"
    if metrics.dead_letters_dropped:
        yield f"{_count(metrics.dead_letters_dropped, 'dead letter')} fell off the bound of their stream"
    if metrics.depth and metrics.workers and not metrics.processing and not metrics.done:
        yield "tasks wait, workers are alive, and nothing runs: limits, circuits, or tasks that no worker knows"


# --- the screen ------------------------------------------------------------------------------------


def _print(metrics: QueueMetrics, keys: Keys, wrong: Sequence[str], notes: Sequence[str]) -> None:
    state = "something is wrong" if wrong else "ok"
    at = iso(metrics.taken_at.timestamp())
    output.result(f"queue {keys.namespace!r}, group {keys.group!r}, {at}: {state}")
    for words, texts in (("wrong", wrong), ("note", notes)):
        for text in texts:
            output.result(f"{words + ':':<6} {text}")
    output.result("")
    rows = [_row(name, tier) for name, tier in metrics.tiers.items()]
    if len(rows) > 1:
        rows.append(_row("all", metrics))
    for line in _table([_HEADER, *rows]):
        output.result(line, cut=True)
    silent = sum(not one.alive for one in metrics.consumers)
    dead = f"{_count(metrics.dead_letter_count, 'dead letter')}"
    output.result("")
    output.result(f"{_count(metrics.workers, 'worker')} alive{f', {silent} silent' if silent else ''}; {dead}")
    more = streamq_command(keys, "dlq", "stats") if metrics.dead_letter_count else streamq_command(keys, "doctor")
    output.note(f"runs of the last {_time(metrics.covered_s)}; more: {more}")


def _row(name: str, figures: QueueMetrics | TierMetrics) -> tuple[str, ...]:
    return (
        name, f"{figures.depth:,}", f"{figures.processing:,}", f"{figures.delayed:,}",
        _time(figures.oldest_wait_s) if figures.depth else "-",
        f"{figures.throughput_per_sec:,.1f}", f"{figures.failed:,}", f"{figures.died:,}",
        *(_time(ms / 1000) if figures.done else "-" for ms in _percentiles(figures)),
    )  # fmt: skip


def _percentiles(figures: Figures) -> tuple[float, float]:
    return figures.p95_wait_ms, figures.p95_latency_ms


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(
            f"{cell:<{width}}" if at < _LEFT else f"{cell:>{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _time(seconds: float) -> str:
    """Return a time with the unit in which it can be read."""
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("m", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.1f}s" if seconds >= 1 else f"{seconds * 1000:.1f}ms"
