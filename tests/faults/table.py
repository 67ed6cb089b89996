"""Tables of results, in plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.faults.judge import Result

HEADINGS = (
    "scenario", "backend", "server", "tasks", "faults", "lost", "settled twice", "live redeliveries", "effects > 1",
    "worst recovery / bound", "stalls", "time", "verdict",
)  # fmt: skip


def line(result: Result) -> tuple[str, ...]:
    """Return one result as the cells of a line."""
    report, run = result.report, result.run
    bound = "-" if result.bound is None else f"{result.bound:.2f} s"
    more = sum(count for number, count in report.effects.items() if number > 1)
    return (
        run.scenario.name, run.backend, run.kind, f"{report.tasks}", f"{sum(report.faults.values())}",
        _value(result, "lost"), _value(result, "settled twice"), _value(result, "live redeliveries"), f"{more}",
        f"{_value(result, 'worst recovery')} / {bound}",
        _value(result, "stalls of workers' processes"), f"{result.seconds:.1f} s",
        "holds" if result.ok else "VIOLATED",
    )  # fmt: skip


def _value(result: Result, question: str) -> str:
    try:
        value = result.report[question].value
    except KeyError:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) and value != int(value) else f"{int(value)}"


def table(results: Iterable[Result]) -> str:
    """Return all results as one table."""
    return aligned([HEADINGS, *(line(result) for result in results)])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
                     for cells in lines)  # fmt: skip


def complaints(result: Result) -> str:
    """Return what did not hold in a run, where its log is and how to run it again."""
    lines = [f"{result.run.scenario.name} ({result.run.backend}, {result.run.kind}):"]
    for row in result.report.violations:
        lines.append(f"  {row.promise} {row.question}: {row.value:g}{row.unit}, allowed {row.limit:g}{row.unit}")
        lines += [f"      {example}" for example in row.examples[:5]]
    lines += [f"  log: {result.folder}", f"  again: {result.run.command}"]
    return "\n".join(lines)
