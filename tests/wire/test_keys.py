"""Every key of the queue."""

from __future__ import annotations

import pytest

from streamq import Tier
from streamq.errors import ConfigurationError
from streamq.wire.keys import Keys
from streamq.wire.tiers import DEFAULT_TIERS


def test_the_streams_are_those_of_the_contract():
    """SPEC 3: queue:critical, queue:standard, queue:bulk and queue:dead."""
    keys = Keys.of("queue", "workers", DEFAULT_TIERS)
    assert [tier.stream for tier in keys.tiers] == ["queue:critical", "queue:standard", "queue:bulk"]
    assert keys.dead == "queue:dead"


def test_no_two_keys_are_the_same():
    """No task id, dedup key or tier makes a key that is another one's."""
    keys = Keys.of("queue", "workers", DEFAULT_TIERS)
    names = [keys.dead, keys.wake, keys.stats(0), keys.result("x"), keys.accepted("x")]
    names += [keys.dedup("x"), keys.seen("x")]
    for tier in keys.tiers:
        names += [tier.stream, tier.delayed, tier.messages, tier.alive, tier.crashes]
    assert len(set(names)) == len(names)


def test_a_hash_tag_puts_every_key_in_one_slot():
    """namespace="{queue}" is one Redis Cluster slot for all."""
    from redis.crc import key_slot

    keys = Keys.of("{queue}", "workers", DEFAULT_TIERS)
    names = [keys.dead, keys.stats(0), keys.result("x"), keys.accepted("a b"), keys.dedup("{y}")]
    names += [part for tier in keys.tiers for part in (tier.stream, tier.delayed, tier.messages, tier.alive)]
    assert len({key_slot(name.encode()) for name in names}) == 1


def test_a_stream_of_ones_own_keeps_its_name():
    """A tier may name its stream."""
    keys = Keys.of("queue", "workers", [Tier("x", stream="elsewhere:x")])
    assert keys.tiers[0].stream == "elsewhere:x"
    assert keys.tiers[0].delayed == "elsewhere:x:delayed"


@pytest.mark.parametrize("name", ["", "a b", "a*", "a?", "[a]", "a\n"])
def test_names_that_keys_cannot_have_are_refused(name):
    """White space and patterns would make keys that nobody can handle."""
    with pytest.raises(ConfigurationError, match="namespace"):
        Keys.of(name, "workers", DEFAULT_TIERS)
    with pytest.raises(ConfigurationError, match="group"):
        Keys.of("queue", name, DEFAULT_TIERS)
