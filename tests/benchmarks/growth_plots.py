"""Draws what the growth benchmark found: a figure for each axis, as SVG that changes only if the figures do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

Rows = Sequence[Mapping[str, float]]

LABELS = {
    "waiting": "tasks that wait at the start",
    "concurrency": "tasks that one worker runs at once",
    "tiers": "tiers, all with the same backlog",
    "delayed": "tasks delayed far beyond, beside those that are run",
    "promoted": "tasks delayed far beyond, beside those that become due",
    "workers": "workers, on two cores",
}
PANELS = (  # title, unit, and what is drawn: a figure and its name
    ("CPU", "µs per task", (("worker_us", "workers"), ("redis_us", "server"))),
    ("server", "per task", (("commands", "commands"), ("reads", "socket reads"))),
    ("memory", "MiB", (("resident", "largest worker"),)),
)


def draw(found: Mapping[str, Rows], folder: Path) -> list[Path]:
    """Draw each axis into `growth-<axis>.svg` in a folder; return the files."""
    drawn = []
    with mpl.rc_context({"svg.hashsalt": "streamq", "svg.fonttype": "none", "font.size": 9}):
        for axis, rows in ((axis, rows) for axis, rows in found.items() if rows):
            path = folder / f"growth-{axis}.svg"
            _figure(axis, rows).savefig(path, metadata={"Date": None})
            drawn.append(path)
    return drawn


def _figure(axis: str, rows: Rows) -> Figure:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    figure.supxlabel(LABELS[axis])
    for panel, (title, unit, lines) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        values = [row["value"] for row in rows]
        for name, label in lines:
            panel.plot(values, [row[name] for row in rows], marker="o", markersize=4, label=label)
        _dress(panel, values, title=title, unit=unit)
    return figure


def _dress(panel: Axes, values: Sequence[float], *, title: str, unit: str) -> None:
    panel.set_title(title)
    panel.set_ylabel(unit)
    panel.set_ylim(bottom=0, top=panel.get_ylim()[1] * 1.3)
    if min(values) > 0:
        panel.set_xscale("log")
    else:  # none at all has its place left of one
        least = min(value for value in values if value)
        panel.set_xscale("symlog", linthresh=least)
        panel.set_xlim(left=-least / 5)
    panel.set_xticks(values)
    panel.xaxis.set_major_formatter(FuncFormatter(_short))
    panel.minorticks_off()
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, loc="upper left", ncols=2, fontsize=8, handlelength=1, columnspacing=1)


def _short(value: float, _: int) -> str:
    """Return 1000000 as 1M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
