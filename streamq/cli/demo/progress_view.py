"""How the demo shows its progress: bars on a terminal, a few lines elsewhere, nothing with --json."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from streamq.cli.demo.corpus import TIERS
from streamq.cli.demo.run_log import RunLog

COLOURS = {"critical": "red", "standard": "yellow", "bulk": "blue"}


class ProgressView(Protocol):
    """Shows the progress of the demo."""

    def begin(self, text: str) -> None:
        """Show a text before the first task runs."""

    def update(self, run_log: RunLog) -> None:
        """Show the current progress."""

    def note(self, text: str) -> None:
        """Show an event."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class NoProgress:
    """Shows nothing."""

    def begin(self, text: str) -> None:
        """Show nothing."""

    def update(self, run_log: RunLog) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


class ProgressLines(NoProgress):
    """Prints a line for each quarter of the tasks."""

    def __init__(self, console: Console, run_log: RunLog) -> None:
        self._console = console
        self._next = 0.25
        self._total = run_log.enqueued

    def begin(self, text: str) -> None:
        """Print the text."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print the text."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def update(self, run_log: RunLog) -> None:
        """Print a line if another quarter is done."""
        share = run_log.settled / self._total if self._total else 1.0
        if share >= self._next:
            parts = ", ".join(f"{tier} {len(run_log.done[tier]):,}/{len(run_log.files[tier]):,}" for tier in TIERS)
            self.note(f"{share:4.0%}  {parts}, {run_log.retries} retries, {len(run_log.dead)} dead")
            self._next += 0.25


class _Rate(ProgressColumn):
    """Tasks per second of a tier, from its first task to its last."""

    def render(self, task: Task) -> Text:
        """Return the rate, or an empty text if there is none yet."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="dim")


class ProgressBars(NoProgress):
    """Draws one progress bar for each tier."""

    def __init__(self, console: Console, run_log: RunLog) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description:<9}"), BarColumn(bar_width=None, complete_style="cyan"),
            MofNCompleteColumn(), _Rate(), TextColumn("{task.fields[extra]}"), TimeElapsedColumn(),
            console=console, auto_refresh=False,
        )  # fmt: skip
        self._bars = {
            tier: self._progress.add_task(f"[{COLOURS[tier]}]{tier}", total=len(run_log.files[tier]), extra="")
            for tier in TIERS
        }
        self._drawn = 0.0

    def begin(self, text: str) -> None:
        """Print the text above the bars."""
        self._console.print(text, highlight=False)

    def note(self, text: str) -> None:
        """Print the text above the bars, highlighted."""
        self._progress.console.print(f"[bold red]{text}[/]", highlight=False)

    def update(self, run_log: RunLog) -> None:
        """Update the bars, at most ten times a second."""
        dead = dict.fromkeys(TIERS, 0)
        for dead_letter in run_log.dead.values():
            dead[dead_letter.get("tier", "bulk")] += 1
        for tier, bar in self._bars.items():
            extra = f"[red]{dead[tier]} dead[/]" if dead[tier] else ""
            self._progress.update(bar, completed=len(run_log.done[tier]) + dead[tier], extra=extra)
        if time.monotonic() - self._drawn >= 0.1:
            self._drawn = time.monotonic()
            self._progress.refresh()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.refresh()
        self._progress.stop()
