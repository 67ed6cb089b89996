"""Tiers, thresholds, and the fair choice between them (P7)."""

from __future__ import annotations

from itertools import accumulate
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamq import Priority, Tier
from streamq.errors import ConfigurationError
from streamq.wire.tiers import DEFAULT_TIERS, FairChooser, check_tiers, pick_tier

weights_of_tiers = st.lists(st.integers(1, 50), min_size=1, max_size=6)
step = st.tuples(st.sampled_from(["choose", "ready", "dry"]), st.integers(0, 5))


def all_ready(weights: list[int], **options: int) -> FairChooser:
    chooser = FairChooser(weights, **options)
    for tier in range(len(weights)):
        chooser.ready(tier)
    return chooser


def come_in(chooser: FairChooser, tier: int) -> None:
    """Make a tier ready that had nothing anywhere: every read before this said so."""
    if not chooser._ready[tier]:
        chooser.idle(tier)
    chooser.ready(tier)


def go_through(chooser: FairChooser, history: list[tuple[str, int]]) -> None:
    """Live through a history in which tiers come and go."""
    for what, number in history:
        tier = number % len(chooser.weights)
        if what == "choose":
            chooser.choose()
        elif what == "ready":
            come_in(chooser, tier)
        else:
            chooser.not_ready(tier)


def windows(starts: list[int], tier: int, size: int) -> list[int]:
    """Return how many starts of a tier each window of this size holds."""
    total = [0, *accumulate(int(start == tier) for start in starts)]
    return [after - before for before, after in zip(total, total[size:], strict=False)]


@given(weights_of_tiers)
@settings(deadline=None, max_examples=60)
def test_any_window_of_the_sum_of_weights_holds_each_weight_give_or_take_one(weights):
    """The bound that the docstring of the module gives, for every weight and every window."""
    whole = sum(weights)
    chooser = all_ready(weights)
    starts = [chooser.choose() for _ in range(4 * whole)]
    for tier, weight in enumerate(weights):
        assert all(abs(count - weight) <= 1 for count in windows(starts, tier, whole))


def test_default_shares_stay_within_five_per_cent_in_every_window_of_a_thousand():
    """P7 with the default tiers, in any 1,000 starts of 20,000."""
    weights = [tier.weight for tier in DEFAULT_TIERS]
    chooser = all_ready(weights)
    starts = [chooser.choose() for _ in range(20_000)]
    for tier, weight in enumerate(weights):
        share = 1000 * weight / sum(weights)
        counts = windows(starts, tier, 1000)
        assert share * 0.95 <= min(counts) <= max(counts) <= share * 1.05


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.lists(step, max_size=60))
@settings(deadline=None, max_examples=50)
def test_shares_hold_after_tiers_came_and_went(weights, history):
    """Whatever happened before, once every tier is backlogged the next 1,000 starts follow the weights."""
    chooser = FairChooser(weights)
    go_through(chooser, history)
    for tier in range(len(weights)):
        come_in(chooser, tier)
    starts = [chooser.choose() for _ in range(1000)]
    for tier, weight in enumerate(weights):
        assert abs(starts.count(tier) - 1000 * weight / sum(weights)) <= 0.05 * 1000 * weight / sum(weights) + 2


@given(weights_of_tiers, st.lists(step, max_size=60), st.data())
@settings(deadline=None)
def test_a_tier_alone_gets_everything_and_owes_nothing(weights, history, data):
    """While nothing else is ready a tier gets every start, and the shares afterwards are as if it had not."""
    chooser = FairChooser(weights)
    go_through(chooser, history)
    alone = data.draw(st.integers(0, len(weights) - 1))
    for tier in range(len(weights)):
        chooser.not_ready(tier)
    come_in(chooser, alone)
    assert {chooser.choose() for _ in range(500)} == {alone}
    for tier in range(len(weights)):
        come_in(chooser, tier)
    starts = [chooser.choose() for _ in range(sum(weights))]
    assert abs(starts.count(alone) - weights[alone]) <= 1


@given(weights_of_tiers, st.lists(step, max_size=60), st.integers(1, 40), st.data())
@settings(deadline=None)
def test_the_wait_of_the_k_th_task_is_bounded(weights, history, k, data):
    """With k - 1 of its own tier before it, it starts within ceil(k / w) * sum(weights) plus one per other tier."""
    chooser = FairChooser(weights)
    go_through(chooser, history)
    tier = data.draw(st.integers(0, len(weights) - 1))
    for other in range(len(weights)):
        come_in(chooser, other)
    bound = ceil(k / weights[tier]) * sum(weights) + len(weights) - 1
    starts = [chooser.choose() for _ in range(bound)]
    assert starts.count(tier) >= k


@given(weights_of_tiers, st.lists(step, max_size=80))
def test_only_ready_tiers_are_chosen_and_none_only_if_there_is_none(weights, history):
    """`choose` gives a tier that is ready, whatever came before, and None if there is none."""
    chooser = FairChooser(weights)
    ready: set[int] = set()
    for what, number in history:
        tier = number % len(weights)
        if what == "ready":
            chooser.ready(tier)
            ready.add(tier)
        elif what == "dry":
            chooser.not_ready(tier)
            ready.discard(tier)
        elif ready:
            assert chooser.choose() in ready
        else:
            assert chooser.choose() is None


@given(weights_of_tiers, st.lists(step, max_size=60), st.integers(0, 300))
@settings(deadline=None)
def test_the_forecast_is_what_choose_then_does(weights, history, starts):
    """A forecast over all ready tiers differs from what is then chosen by one start per tier at most."""
    chooser = FairChooser(weights)
    go_through(chooser, history)
    for tier in range(len(weights)):
        come_in(chooser, tier)
    expected = chooser.forecast(starts, range(len(weights)))
    chosen = [chooser.choose() for _ in range(starts)]
    assert sum(expected.values()) == starts
    for tier in range(len(weights)):
        assert abs(expected[tier] - chosen.count(tier)) <= 1


def test_a_forecast_changes_nothing_and_of_nothing_is_nothing():
    """A forecast is a question: it leaves the order as it was."""
    one, other = all_ready([6, 3, 1]), all_ready([6, 3, 1])
    one.forecast(57, [0, 2])
    assert one.forecast(10, []) == {}
    assert one.forecast(0, [0, 1]) == {0: 0, 1: 0}
    assert [one.choose() for _ in range(50)] == [other.choose() for _ in range(50)]


def test_a_tier_that_waits_for_its_next_read_catches_up_but_not_beyond_its_credit():
    """Dry is not idle: what it missed is made up for, by at most `credit` starts of its own."""
    chooser = all_ready([1, 1], credit=10)
    chooser.not_ready(0)
    assert {chooser.choose() for _ in range(1000)} == {1}
    chooser.ready(0)
    starts = [chooser.choose() for _ in range(20)]
    assert starts[:9] == [0] * 9
    assert starts.count(0) in (14, 15, 16)


def test_an_idle_tier_comes_back_without_credit():
    """A tier that had nothing to run is owed nothing when it has again."""
    chooser = all_ready([1, 1])
    chooser.not_ready(0)
    for _ in range(1000):
        chooser.choose()
    chooser.idle(0)
    chooser.ready(0)
    assert [chooser.choose() for _ in range(6)].count(0) == 3


def test_ready_twice_counts_once():
    """Being told again that a tier is ready changes nothing."""
    chooser = all_ready([1, 1])
    chooser.ready(0)
    chooser.ready(0)
    assert sorted(chooser.choose() for _ in range(10)) == [0] * 5 + [1] * 5
    assert repr(chooser) == "<FairChooser weights=(1, 1) ready=[0, 1]>"


@pytest.mark.parametrize(
    ("priority", "name"),
    [(100, "critical"), (50, "critical"), (49, "standard"), (10, "standard"), (9, "bulk"), (1, "bulk"), (-5, "bulk")],
)
def test_a_priority_picks_its_tier_by_threshold(priority, name):
    """Critical from 50, standard from 10, bulk all the rest."""
    tiers = check_tiers(DEFAULT_TIERS)
    assert tiers[pick_tier(tiers, priority)].name == name


def test_the_names_of_priorities_are_those_of_the_contract():
    """SPEC 2: CRITICAL = 100, HIGH = 50, NORMAL = 10, LOW = 1."""
    assert {p.name: int(p) for p in Priority} == {"CRITICAL": 100, "HIGH": 50, "NORMAL": 10, "LOW": 1}


def test_tiers_are_sorted_by_threshold_whatever_order_they_were_given_in():
    """The tier that takes the rest is the last."""
    tiers = check_tiers([Tier("rest"), Tier("low", threshold=5), Tier("high", threshold=90)])
    assert [tier.name for tier in tiers] == ["high", "low", "rest"]


def test_the_last_tier_takes_what_no_threshold_admits():
    """Without a tier for the rest, what is below every threshold goes to the lowest."""
    tiers = check_tiers([Tier("a", threshold=50), Tier("b", threshold=10)])
    assert pick_tier(tiers, 3) == 1


@pytest.mark.parametrize(
    ("tiers", "says"),
    [
        ([], "at least one"),
        ([Tier("a"), Tier("a", threshold=1)], "the same name"),
        ([Tier("a", threshold=1), Tier("b", threshold=1)], "the same threshold"),
        ([Tier("a"), Tier("b")], "the same threshold"),
    ],
)
def test_tiers_that_cannot_be_used_are_refused_by_name(tiers, says):
    """Each mistake is a ConfigurationError that names it."""
    with pytest.raises(ConfigurationError, match=says):
        check_tiers(tiers)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"weight": 0}, "weight 0"),
        ({"weight": 10_001}, "10,000"),
        ({"weight": 1.5}, "weight 1.5"),
        ({"weight": True}, "weight True"),
        ({"threshold": 1 << 80}, "threshold"),
        ({"name": "a b"}, "'a b'"),
        ({"name": ""}, "''"),
        ({"name": "a|b"}, r"'a\|b'"),
        ({"name": "a:b", "stream": "mine"}, "'a:b'"),
        ({"stream": "mi ne"}, "stream='mi ne'"),
    ],
)
def test_a_tier_is_checked_where_it_is_made(given, says):
    """bounds.md: a value is checked where it enters."""
    with pytest.raises(ConfigurationError, match=says):
        Tier(**{"name": "a", **given})
