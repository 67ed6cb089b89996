"""What some scenarios ask of their log beyond what the checker asks of every log."""

from __future__ import annotations

from typing import Any

from tests.faults.harness import Scene

Records = list[dict[str, Any]]
EARLY = 0.002  # seconds: due times are whole milliseconds in Redis, and the clocks' rates differ a little


def first_starts(scene: Scene) -> dict[str, float]:
    """Return when each task was first started."""
    found: dict[str, float] = {}
    for record in scene.journal.records("start"):
        found.setdefault(record["task"], record["at"])
    return found


def expect_in_time(scene: Scene) -> None:
    """Expect that no delayed task started before it was due, nor much later."""
    starts = first_starts(scene)
    due = {record["task"]: record["due"] for record in scene.journal.records("accepted") if "due" in record}
    early = [task for task, at in due.items() if starts.get(task, at) < at - EARLY]
    late = max((starts[task] - at for task, at in due.items() if task in starts), default=0.0)
    scene.expect("P6", "delayed tasks started early", len(early), 0, *early[:5])
    scene.expect("P6", "latest start after the due time (s)", late, scene.slack + scene.lease * 4 / 3)
    scene.expect("-", "no task was delayed", int(not due), 0)


def expect_some(scene: Scene, what: str) -> None:
    """Expect that something happened at all: a scenario that provokes nothing proves nothing."""
    scene.expect("-", f"no {what} was provoked", int(scene.count(what) == 0), 0)


def expect_handed_over(scene: Scene, who: str, within: float) -> None:
    """Expect that what a worker ran when it left was started elsewhere, soon after."""
    records = scene.journal.records("start", "settled", "stopped")
    # One that did not say when it left has handed over nothing in time: then all of its waits are for ever.
    times = (record["at"] for record in records if record["what"] == "stopped" and record["who"] == who)
    left = min(times, default=float("-inf"))
    mine = {r["task"] for r in records if r["what"] == "start" and r["who"] == who}
    mine -= {r["task"] for r in records if r["what"] == "settled" and r["who"] == who}
    waits = {task: float("inf") for task in mine}
    for record in records:
        task = record.get("task", "")
        if record["what"] == "start" and record["who"] != who and task in mine:
            waits[task] = min(waits[task], record["at"] - left)
    slow = sorted(waits, key=waits.__getitem__)[-3:]
    scene.expect("P8", f"slowest start of what {who} handed back (s)", max(waits.values(), default=0.0), within, *slow)
    scene.expect("-", f"{who} had nothing to hand back", int(not mine), 0)


def expect_gone(scene: Scene, who: str) -> None:
    """Expect that a worker that left is no consumer any more, in no tier."""
    scene.expect("P8", f"{who} is still a consumer", int(who.encode() in scene.consumers()), 0)


def expect_effects(scene: Scene, name: str, count: int) -> None:
    """Expect this many effects of each task of a name, and one of each other."""
    names = {record["task"]: record["name"] for record in scene.journal.records("accepted")}
    effects = scene.journal.effects()
    wrong = [task for task, kind in names.items() if effects[task] != (count if kind == name else 1)]
    scene.expect("P2", f"tasks without {count} effects of {name}, or one of others", len(wrong), 0, *wrong[:5])


def undone(scene: Scene, name: str) -> int:
    """Return how many accepted tasks of a name have had no effect yet."""
    effects = scene.journal.effects()
    return sum(r["name"] == name and not effects[r["task"]] for r in scene.journal.records("accepted"))
