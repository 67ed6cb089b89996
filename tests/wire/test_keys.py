"""Every key of the queue: no two names make one (P13)."""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamq import Tier
from streamq.errors import ConfigurationError
from streamq.wire.keys import RESERVED, Keys
from streamq.wire.names import is_name
from streamq.wire.tiers import DEFAULT_TIERS, check_tiers
from tests.docs.pages import ROOT


def test_the_streams_are_those_of_the_contract():
    """SPEC 3: queue:critical, queue:standard, queue:bulk and queue:dead."""
    keys = Keys.of("queue", "workers", DEFAULT_TIERS)
    assert [tier.stream for tier in keys.tiers] == ["queue:critical", "queue:standard", "queue:bulk"]
    assert keys.dead == "queue:dead"


parts = st.sampled_from(["a", "b", "dead", "result", "delayed", "alive", "stats", "7"])
paths = st.lists(parts, min_size=1, max_size=3).map(":".join)
ids = st.sampled_from(["a", "a:b", "dead", "result:a", "b:7", "a b", "a|b"])
groups = st.sampled_from(["a", "b", "dead", "7"])


def _made(namespace, group, tier, stream, name):
    """Return what each builder makes of these names: {key: what it is}. Nothing if they are refused."""
    try:
        keys = Keys.of(namespace, group, check_tiers([Tier(tier, stream=stream)]))
    except ConfigurationError:
        return {}
    own = f"{namespace}:{tier}" if stream is None else stream
    made = {
        key: ("tier", own, kind, group if kind in ("alive", "leases", "crashes") else "")
        for kind, key in asdict(keys.tiers[0]).items()
    }
    for kind, member in vars(Keys).items():
        if isinstance(member, property):
            made[getattr(keys, kind)] = (namespace, kind)
        elif kind == "stats":
            made[keys.stats(70)] = (namespace, kind, group)
        elif kind == "join" and is_name("task_id", name):
            made[keys.join(name)] = (namespace, kind, group, name)
        elif kind.startswith("accepted") and not is_name("task_id", name):
            continue  # no id is of that name
        elif inspect.isfunction(member) and not kind.startswith(("_", "retry", "join")):
            made[member(keys, name)] = (namespace, kind, name)
    return made


chosen = st.tuples(paths, groups, parts, st.none() | paths, ids)


@given(chosen, chosen)
@settings(deadline=None, max_examples=1000)
def test_no_two_names_make_one_key(these, others):
    """Whatever namespaces, groups, tiers, streams and names there are: one key is one thing."""
    one, other = _made(*these), _made(*others)
    for key in one.keys() & other.keys():
        assert one[key] == other[key], key


def test_a_namespace_and_a_tier_cannot_make_the_key_of_something_else():
    """The examples that were found: a namespace inside another, groups with a colon, tiers named like keys."""
    for namespace in ("q:result", "q:dead", "q:a:stats", "q:", "q::r"):
        with pytest.raises(ConfigurationError, match="namespace="):
            Keys.of(namespace, "workers", DEFAULT_TIERS)
    for group in ("a:b", "a|b", "a b"):
        with pytest.raises(ConfigurationError, match="group="):
            Keys.of("q", group, DEFAULT_TIERS)
    for stream in ("queue:dead", "queue:result:x", "queue:standard:delayed"):
        with pytest.raises(ConfigurationError, match="is a name of streamq's own keys"):
            Keys.of("queue", "workers", [Tier("x", stream=stream)])
    with pytest.raises(ConfigurationError, match="two tiers have the stream 'q:a'"):
        Keys.of("q", "workers", [Tier("a", threshold=1), Tier("b", stream="q:a")])


def test_each_family_of_the_wire_format_is_reserved():
    """As a tier, by construction: every row of the table of keys, and every attribute that makes a key."""
    page = (ROOT / "docs" / "wire-format.md").read_text()
    families = set(re.findall(r"^\\| `<(?:ns|stream)>:([a-z]+)", page, re.MULTILINE))
    assert len(families) > 20
    assert families == RESERVED
    for name in RESERVED:
        with pytest.raises(ConfigurationError, match=f"'{name}' is a name of streamq's own keys"):
            Keys.of("queue", "workers", [Tier(name)])


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
