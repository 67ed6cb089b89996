"""Objects by key: created once, and forgotten when they are idle."""

from __future__ import annotations

from streamq.middleware.per_key import PerKey


class Thing:
    """An object that is idle when the test says so."""

    def __init__(self, key):
        self.key = key
        self.idle = True


def things():
    return PerKey(Thing, lambda thing: thing.idle)


def test_a_key_has_one_object():
    some = things()
    assert some.get("a") is some.get("a")
    assert some.get("a").key == "a"
    assert repr(some) == "<PerKey of 1>"


def test_idle_objects_are_forgotten():
    """Memory stays small however many keys there are; an object in use stays."""
    some = things()
    busy = some.get("busy")
    busy.idle = False
    for at in range(1000):
        some.get(f"k{at}")
    assert len(some) <= 64
    assert some.get("busy") is busy


def test_all_in_use_are_kept():
    some = things()
    for at in range(1000):
        some.get(f"k{at}").idle = False
    assert len(some) == 1000


def test_a_forgotten_object_can_be_restored():
    """Unless the key has a new object meanwhile."""
    some, old = things(), Thing("a")
    some.restore("a", old)
    assert some.get("a") is old
    some.restore("a", Thing("a"))
    assert dict(some.items()) == {"a": old}


def test_there_are_never_too_many():
    """Those used longest ago go, idle or not."""
    some = PerKey(Thing, lambda _: False, most=1000, used_at=lambda thing: int(thing.key))
    for at in range(5000):
        some.get(str(at))
        assert len(some) <= 1000
    assert [some.get(str(at)).key for at in range(4990, 5000)] == [str(at) for at in range(4990, 5000)]
    assert not any(int(key) < 4000 for key, _ in some.items())
