"""One object for each key: created when a key is first used, and forgotten when it is idle.

Rate limits keep their buckets this way, and circuit breakers their circuits. This module knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_FEW: Final = 64  # objects that are not worth a search for idle ones


class PerKey(Generic[T]):
    """Objects by key. `create` makes the object of a new key; `is_idle` says that a new object would do as well.

    Idle objects are dropped when the number of objects has doubled, so a new key costs amortized O(1).
    """

    def __init__(self, create: Callable[[str], T], is_idle: Callable[[T], bool]) -> None:
        self._create = create
        self._is_idle = is_idle
        self._objects: dict[str, T] = {}
        self._drop_idle_at = _FEW

    def __repr__(self) -> str:
        return f"<PerKey of {len(self._objects)}>"

    def __len__(self) -> int:
        return len(self._objects)

    def items(self) -> ItemsView[str, T]:
        """Return the keys and their objects."""
        return self._objects.items()

    def get(self, key: str) -> T:
        """Return the object of a key; create it if there is none. Raises what `create` raises."""
        found = self._objects.get(key)
        if found is None:
            found = self._create(key)
            if len(self._objects) >= self._drop_idle_at:
                self._objects = {name: one for name, one in self._objects.items() if not self._is_idle(one)}
                self._drop_idle_at = max(_FEW, 2 * len(self._objects))
            self._objects[key] = found
        return found

    def restore(self, key: str, value: T) -> None:
        """Keep this object for a key that was forgotten while the object was in use."""
        self._objects.setdefault(key, value)
