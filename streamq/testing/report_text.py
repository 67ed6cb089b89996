"""Reports as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from streamq.testing.findings import Question
from streamq.testing.report import Report, Row

_EXAMPLES = 3  # shown for each violation


def table(report: Report, *, examples: int = _EXAMPLES) -> str:
    """Return a report as a table, with a few examples below each violation."""
    lines = [("promise", "question", "value", "limit", "")]
    lines += [
        (row.promise, row.question, *_value_and_limit(row), "ok" if row.ok else "VIOLATED") for row in report.rows
    ]
    text = columns(lines, right=(2, 3)).splitlines()
    shown = text[:2]
    for row, line in zip(report.rows, text[2:], strict=True):
        shown.append(line)
        if not row.ok:
            shown += [f"         {example}" for example in row.examples[:examples]]
    return "\n".join([*shown, "", *_counts(report), summary(report)])


def summary(report: Report) -> str:
    """Return one line: whether all promises held, and which were broken."""
    what = f"{report.tasks} tasks, {report.records} records, {sum(report.faults.values())} faults"
    if report.ok:
        return f"OK: {what}"
    broken = "; ".join(f"{row.promise} {row.question}: {_value_and_limit(row)[0]}" for row in report.violations)
    return f"VIOLATED: {what}; {broken}"


def scenarios(runs: Iterable[tuple[Sequence[str], Report]], heads: Sequence[str]) -> str:
    """Return the table of several runs. `heads` are the titles of the cells given with each run."""
    titles = ("tasks", "faults", "lost", "settled twice", "live", "effects > 1", "recovery", "verdict")
    lines: list[Sequence[str]] = [(*heads, *titles)]
    lines += [(*own, *_scenario_cells(report)) for own, report in runs]
    first = len(heads)
    return columns(lines, right=tuple(range(first, first + len(titles) - 1)))


def _scenario_cells(report: Report) -> tuple[str, ...]:
    recovery = report[Question.RECOVERY]
    bound = "" if recovery.limit is None else f" / {recovery.limit:g}"
    counted = [f"{report[name].value:g}" for name in (Question.LOST, Question.TWICE, Question.LIVE, Question.EFFECTS)]
    verdict = "ok" if report.ok else ", ".join(row.question for row in report.violations)
    faults = sum(report.faults.values())
    return (str(report.tasks), str(faults), *counted, f"{recovery.value:.2f}{bound} s", verdict)


def columns(lines: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Return lines of cells as a table, the first as header. `right` are the right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rendered = [
        "  ".join(cell.rjust(width) if at in right else cell.ljust(width)
                  for at, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    ]  # fmt: skip
    return "\n".join([rendered[0], "  ".join("-" * width for width in widths), *rendered[1:]])


def _value_and_limit(row: Row) -> tuple[str, str]:
    unit = f" {row.unit}" if row.unit else ""
    return f"{row.value:g}{unit}", "" if row.limit is None else f"{row.limit:g}{unit}"


def _counts(report: Report) -> list[str]:
    effects = ", ".join(f"{tasks} with {number}" for number, tasks in report.effects.items())
    counts = ", ".join(f"{what} {number}" for what, number in sorted(report.counts.items()))
    faults = ", ".join(f"{name} {number}" for name, number in sorted(report.faults.items()))
    rate = f" over {report.seconds:.1f} s" if report.seconds else ""
    lines = [f"tasks {report.tasks}, records {report.records}{rate}", f"effects per task: {effects or 'none'}"]
    return [*lines, *([f"seen: {counts}"] if counts else []), *([f"faults: {faults}"] if faults else [])]
