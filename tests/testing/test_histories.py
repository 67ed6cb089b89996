"""Random histories: correct ones are clean, and one record more or less is found where it matters."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streamq.testing import Question, check
from streamq.testing.task_history import Task
from tests.testing.orderly_world import World

randoms = st.builds(Random, st.integers(0, (1 << 32) - 1))  # st.randoms() is twenty times slower
STEPS = st.integers(1, 120)


def violated(log, records):
    return {row.question for row in check(records, log.final, log.limits).violations}


@pytest.mark.slow
@given(randoms, STEPS, st.sampled_from([0.0, 0.2, 0.5]))
@settings(max_examples=300)
def test_orderly_histories_are_clean(random, steps, faults):
    """The report is clean for all faults of workers and server."""
    log = World(random, faults).history(steps)
    report = check(log.records, log.final, log.limits)
    assert report.ok, report.violations
    assert report.records == len(log.records)


@pytest.mark.slow
@given(randoms, st.integers(20, 120))
@settings(max_examples=200)
def test_a_record_too_many_is_caught(random, steps):
    """Without faults: a second end, a second effect of one run, a second start of one delivery."""
    expected = {
        "settled": Question.TWICE,
        "withdrawn": Question.TWICE,
        "effect": Question.REPEATED,
        "start": Question.LIVE,
    }
    log = World(random, faults=0.0).history(steps)
    places = [at for at, record in enumerate(log.records) if record.task]
    assume(places)
    at = random.choice(places)
    record = log.records[at]
    outcome = record.details.get("outcome", "ack")
    found = violated(log, [*log.records[:at], record, *log.records[at:]])
    if record.what not in expected or outcome not in ("ack", "dead", "cancelled"):
        assert found == set()
    else:
        assert found == {expected[record.what]}


@pytest.mark.slow
@given(randoms, st.integers(20, 120))
@settings(max_examples=200)
def test_a_record_that_is_missing_is_caught(random, steps):
    """Without faults: the effect of an acknowledged task. Other records prove nothing, because replies can be lost."""
    log = World(random, faults=0.0).history(steps)
    effects = [at for at, record in enumerate(log.records) if record.what == "effect"]
    assume(effects)
    at = random.choice(effects)
    task = log.records[at].task
    of_task = [record for record in log.records if record.task == task]
    once = sum(record.what == "effect" for record in of_task) == 1
    acked = any(record.details.get("outcome") == "ack" for record in of_task)
    expected = {Question.UNDONE} if once and acked else set()
    assert violated(log, [*log.records[:at], *log.records[at + 1 :]]) - {Question.LOST} == expected


@pytest.mark.slow
@given(randoms, st.integers(20, 120))
@settings(max_examples=200)
def test_a_task_without_further_records_is_lost(random, steps):
    """Remove the later records of one task: without an effect, an end or a dead letter it is lost."""
    log = World(random, faults=0.0).history(steps)
    tasks = [record.task for record in log.records if record.task]
    assume(tasks)
    task = random.choice(tasks)
    mine = [record for record in log.records if record.task == task]
    kept = mine[: random.randint(1, len(mine))]
    gone = mine[len(kept) :]
    expected = {Question.LOST}
    for record in kept:
        if record.what in ("effect", "withdrawn") or record.details.get("outcome") in ("ack", "dead"):
            expected = set()
    if task in dict(log.final.dead) or {record.what for record in kept} == {"unknown"}:
        expected = set()
    assert violated(log, [record for record in log.records if not any(record is one for one in gone)]) == expected


@given(
    st.integers(0, 255), st.integers(0, 400), st.integers(0, 400), st.integers(0, 400), st.integers(0, 400),
    st.integers(0, 255), st.integers(0, 255), st.integers(0, 0xFFFF), st.integers(0, 1 << 50),
)  # fmt: skip
def test_a_packed_task_is_the_same(flags, ends, effects, starts, retried, budget, tier, holder, changed):
    """A task without open runs is one integer. Counters stop at 255 and do not overflow into other fields."""
    task = Task()
    task.flags, task.ends, task.effects, task.starts, task.retried = flags, ends, effects, starts, retried
    task.budget, task.tier, task.holder, task.changed = budget, tier, holder, changed
    again = Task(task.packed())
    assert (again.flags, again.budget, again.tier, again.holder, again.changed) == (
        flags,
        budget,
        tier,
        holder,
        changed,
    )
    assert [again.ends, again.effects, again.starts, again.retried] == [
        min(255, n) for n in (ends, effects, starts, retried)
    ]


@pytest.mark.parametrize("faults", [0.0, 0.5])
def test_histories_contain_faults(faults):
    """The histories are not trivial."""
    kinds = set()
    for seed in range(20):
        log = World(Random(seed), faults).history(120)
        kinds |= {(record.what, record.details.get("outcome", "")) for record in log.records}
    assert {("settled", how) for how in ("ack", "retry", "postpone", "dead", "release")} <= kinds
    wanted = {"died", "frozen", "thawed", "cut", "healed", "down", "back", "superseded"}
    assert ({what for what, _ in kinds} >= wanted) == bool(faults)
