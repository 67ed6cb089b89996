"""P1, counted apart from the model: nothing lost, nothing twice.

For each task id and each group: what was accepted is in exactly one place of what lies in Redis, or it ended
in exactly one way. The ledger knows acceptances and ends, and counts the places itself.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.stateful.model import spelt_id

if TYPE_CHECKING:
    from streamq.wire.delivery import Delivery
    from tests.stateful.driver import Seen
    from tests.stateful.model import EntryId, Model

Place = tuple[str, str]  # task id, group


class Ledger:
    """What was accepted, and what has ended."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._groups = tuple(model.tiers[0].groups)
        self._due: Counter[Place] = Counter()  # accepted, and not ended
        self._letters: dict[EntryId, Place] = {}

    def accepted(self, task_id: str) -> None:
        """A task was sent: every group is to have it."""
        self._due.update((task_id, group) for group in self._groups)

    def acknowledged(self, delivery: Delivery, group: str) -> None:
        """Done, or a retry of another group."""
        if delivery.group in (None, group.encode()):
            self._due[delivery.task_id, group] -= 1

    def withdrawn(self, task_id: str, before: Counter[Place]) -> None:
        """Cancelled: whatever is gone by that."""
        for place, count in (before - self.places()).items():
            assert place[0] == task_id
            self._due[place] -= count

    def trimmed(self, letters: set[EntryId]) -> None:
        """Dead letters that made room for newer ones."""
        for letter in letters:
            self._due[self._letters[letter]] -= 1

    def replayed(self, letter: EntryId) -> None:
        """A dead letter has become another task."""
        self._due[self._letters[letter]] -= 1

    def check(self, seen: Seen) -> None:
        """Raise AssertionError for what is lost or twice."""
        for letter, fields in seen.facts["dead",].items():
            self._letters[letter] = (fields["task_id"], fields["group"])
        facts = seen.facts
        found = self._places(
            [facts["entries", at] for at in range(len(self._model.tiers))],
            [facts["delayed", at] for at in range(len(self._model.tiers))],
            {(at, group): (facts["groups", at, group], facts["pending", at, group])
             for at in range(len(self._model.tiers)) for group in self._groups},
            facts["dead",],
        )  # fmt: skip
        assert found == +self._due, f"lost: {+self._due - found}; too much: {found - +self._due}"

    def places(self) -> Counter[Place]:
        """Return where everything is, by the model."""
        tiers = self._model.tiers
        return self._places(
            [tier.entries for tier in tiers], [set(tier.delayed) for tier in tiers],
            {(at, name): (group.last, group.pending)
             for at, tier in enumerate(tiers) for name, group in tier.groups.items()},
            self._model.dead,
        )  # fmt: skip

    def _places(self, entries: list[Any], delayed: list[Any], groups: Any, dead: Any) -> Counter[Place]:
        found: Counter[Place] = Counter()
        for at, some in enumerate(entries):
            for entry, fields in some.items():
                for group in self._groups:
                    last, pending = groups[at, group]
                    if fields.get("group", group) == group and (entry > last or entry in pending):
                        found[fields.get("id", spelt_id(entry)), group] += 1
        for members in delayed:
            for member in members:
                group, _, rest = member.partition("|")
                if task_id := rest.partition("|")[0]:  # a second retry of one id has its entry's id behind it
                    found[task_id, group] += 1
                else:
                    found.update((member, group) for group in self._groups)
        found.update((fields["task_id"], fields["group"]) for fields in dead.values())
        return found
