"""One object for each key: created when a key is first used, and forgotten when it is idle, or if there are too many.

Rate limits keep their buckets this way, and circuit breakers their circuits. This module knows neither. A key may come
from a message, so who sends messages chooses how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_FEW: Final = 64  # objects that are not worth a search for idle ones


class PerKey(Generic[T]):
    """Objects by key. `create` makes the object of a new key; `is_idle` says that a new object would do as well.

    Idle objects are dropped when the number of objects has doubled, so a new key costs amortized O(1). There are never
    more than `most`: the half that was used longest ago by `used_at` is dropped, idle or not.
    """

    def __init__(
        self, create: Callable[[str], T], is_idle: Callable[[T], bool], *, most: int | None = None,
        used_at: Callable[[T], float] | None = None,
    ) -> None:  # fmt: skip
        self._create = create
        self._is_idle = is_idle
        self._most = most
        self._used_at = used_at
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
                self._drop()
            self._objects[key] = found
        return found

    def _drop(self) -> None:
        self._objects = {name: one for name, one in self._objects.items() if not self._is_idle(one)}
        if self._most is not None and self._used_at is not None and len(self._objects) > self._most // 2:
            used_at = self._used_at
            newest = sorted(self._objects.items(), key=lambda item: used_at(item[1]))[-self._most // 2 :]
            self._objects = dict(newest)
        self._drop_idle_at = max(_FEW, 2 * len(self._objects))

    def restore(self, key: str, value: T) -> None:
        """Keep this object for a key that was forgotten while the object was in use."""
        self._objects.setdefault(key, value)
