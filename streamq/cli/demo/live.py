"""How the demo shows its progress: bars on a terminal, a few lines elsewhere, nothing for programs."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from streamq.cli.demo.corpus import TIERS
from streamq.cli.demo.ledger import Ledger

COLOURS = {"critical": "red", "standard": "yellow", "bulk": "blue"}


class View(Protocol):
    """What is told of the progress."""

    def begin(self, text: str) -> None:
        """Say what is about to happen."""

    def update(self, ledger: Ledger) -> None:
        """Show how far it is."""

    def note(self, text: str) -> None:
        """Say what has happened."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Silent:
    """Shows nothing."""

    def begin(self, text: str) -> None:
        """Say nothing."""

    def update(self, ledger: Ledger) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


class Plain(Silent):
    """A line for every quarter of the way."""

    def __init__(self, console: Console, ledger: Ledger) -> None:
        self._console = console
        self._next = 0.25
        self._total = ledger.enqueued

    def begin(self, text: str) -> None:
        """Print it."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print it."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def update(self, ledger: Ledger) -> None:
        """Print a line if another quarter is done."""
        share = ledger.settled / self._total if self._total else 1.0
        if share >= self._next:
            parts = ", ".join(f"{tier} {len(ledger.done[tier]):,}/{len(ledger.files[tier]):,}" for tier in TIERS)
            self.note(f"{share:4.0%}  {parts}, {ledger.retries} retries, {len(ledger.dead)} dead")
            self._next += 0.25


class _Rate(ProgressColumn):
    """Tasks per second of a tier, over its own life."""

    def render(self, task: Task) -> Text:
        """Return the rate, empty before there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="dim")


class Live(Silent):
    """Bars that move."""

    def __init__(self, console: Console, ledger: Ledger) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description:<9}"), BarColumn(bar_width=None, complete_style="cyan"),
            MofNCompleteColumn(), _Rate(), TextColumn("{task.fields[extra]}"), TimeElapsedColumn(),
            console=console, auto_refresh=False,
        )  # fmt: skip
        self._bars = {
            tier: self._progress.add_task(f"[{COLOURS[tier]}]{tier}", total=len(ledger.files[tier]), extra="")
            for tier in TIERS
        }
        self._drawn = 0.0

    def begin(self, text: str) -> None:
        """Print it above the bars."""
        self._console.print(text, highlight=False)

    def note(self, text: str) -> None:
        """Print it above the bars, to be seen."""
        self._progress.console.print(f"[bold red]{text}[/]", highlight=False)

    def update(self, ledger: Ledger) -> None:
        """Move the bars, ten times a second at most."""
        dead = dict.fromkeys(TIERS, 0)
        for letter in ledger.dead.values():
            dead[letter.get("tier", "bulk")] += 1
        for tier, bar in self._bars.items():
            extra = f"[red]{dead[tier]} dead[/]" if dead[tier] else ""
            self._progress.update(bar, completed=len(ledger.done[tier]) + dead[tier], extra=extra)
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
