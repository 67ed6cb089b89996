"""Counters: the buckets of times, and what a settlement counts."""

from __future__ import annotations

import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.wire.counters import (
    Counters,
    bucket_of,
    is_counter,
    pack_one,
    pack_shares,
    percentile,
    prefix_of,
    seconds_of,
    share_of,
    sum_shares,
    unpack,
)

WITHIN = 0.0693  # (2 ** (1 / 5) - 1) / (2 ** (1 / 5) + 1)


@given(st.integers(1, 2**62))
def test_the_value_of_a_bucket_is_near_each_time_in_it(us):
    assert seconds_of(bucket_of(us)) * 1e6 == pytest.approx(us, rel=WITHIN)


def test_buckets_are_in_order():
    found = [bucket_of(us) for us in range(100_000)]
    assert found == sorted(found)
    assert (found[0], seconds_of(0)) == (0, 0.0)


@given(st.lists(st.floats(1e-5, 1e6), min_size=1, max_size=60), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_that_of_the_times_within_its_bound(times, share):
    """Whatever the distribution: the worst case too, where all times are at one edge of a bucket."""
    counters = sum_shares(share_of(0, seconds, 0.0) for seconds in times)[0]
    true = sorted(times)[max(1, math.ceil(share * len(times) - 1e-9)) - 1]
    found = percentile(counters.latencies, share)
    assert found == pytest.approx(true, rel=WITHIN + 2e-6 / true)
    assert percentile(counters.waits, share) == found  # none of it was spent running


def test_nothing_has_no_percentile():
    assert percentile({}, 0.99) == 0.0


def test_wait_is_what_is_not_the_run():
    assert share_of(3, 1.5, 0.5)[2:] == (1_500_000, 500_000, bucket_of(1_500_000), bucket_of(1_000_000))
    assert share_of(3, -1.0, 0.5)[2:] == (0, 500_000, 0, 0)  # two clocks


def test_fields_are_read_as_they_were_written():
    """The sums of a batch, by task and tier; nobody else's field counts."""
    shares = [share_of(0, 0.1, 0.02), share_of(1, 0.2, 0.02, cancelled=True), share_of(0, 0.3, 0.02)]
    prefixes = [prefix_of("low", b"a"), prefix_of("low", b"b|\xff")]
    counts, each = pack_shares(shares, prefixes, superseded=True)
    flat = orjson.loads(counts)["add"]
    fields = [(name.encode(), amount.encode()) for name, amount in zip(flat[::2], flat[1::2], strict=True)]
    assert all(is_counter(name.decode()) for name, _ in fields)
    wanted = sum_shares([shares[0], shares[2]])[0]
    foreign = [(b"low|a|x3", b"1"), (b"low|a|l999", b"1"), (b"low|a|done2", b"x"), (b"high|a|done", b"1")]
    found = unpack([*fields, *foreign], {"low"})
    assert found == {("low", "a"): wanted, ("low", "b|\ufffd"): Counters(cancelled=1)}
    assert [tuple(one) for one in orjson.loads(each)] == shares


def test_one_settlement():
    assert orjson.loads(pack_one("low|a|", ("failed", "dead"), superseded=False)) == {
        "add": ["low|a|failed", "1", "low|a|dead", "1"]
    }
    assert orjson.loads(pack_one("low|a|", (), superseded=True))["late"] == ["low|a|superseded", "1"]
