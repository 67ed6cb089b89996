"""Excuses: effects, enqueues, lost server data, crash loops, the log itself."""

from __future__ import annotations

from streamq.testing import Record
from tests.testing.builder import WINDOW
from tests.testing.planting import excused, set_final, set_limits

# --- effects ---------------------------------------------------------------------------------------


@excused
def an_effect_before_every_failure(log):
    log.accepted("x", retries=2)
    for attempt in (1, 2):
        log.start("w1", "x", attempt=attempt)
        log.effect("w1", "x")
        log.settled("w1", "x", "retry", attempt=attempt)
    log.run("w2", "x", attempt=3)


@excused
def an_effect_from_a_child_process(log):
    log.accepted("x")
    log.start("w1", "x")
    log.effect("child-1", "x")
    log.settled("w1", "x")


@excused
def an_effect_after_its_run_was_lost(log):
    log.accepted("x")
    log.start("w1", "x")
    log.world("blocked", "w1")
    log.wait(4)
    log.reclaimed("w2", "x")
    log.start("w2", "x", starts=2)
    log.world("unblocked", "w1")
    log.superseded("w1", "x")
    log.effect("w1", "x")
    log.effect("w2", "x")
    log.settled("w2", "x")


@excused
def effects_of_two_runs_by_one_worker(log):
    """The one that it has lost and the retry that it was given: which effect is whose is not said."""
    log.accepted("x", retries=3)
    log.start("w1", "x")
    log.world("blocked", "w1")
    log.wait(4)
    log.reclaimed("w2", "x")
    log.start("w2", "x", starts=2)
    log.world("unblocked", "w1")
    lost = log.entry("x")
    log.settled("w2", "x", "retry", attempt=1)
    log.start("w1", "x", attempt=2)
    log.effect("w1", "x")
    log.superseded("w1", "x", entry=lost)
    log.effect("w1", "x")
    log.settled("w1", "x")


@excused
def no_effects_are_recorded(log):
    set_limits(log, effects=False)
    log.accepted("x")
    log.start("w1", "x")
    log.settled("w1", "x")


# --- sending ---------------------------------------------------------------------------------------


@excused
def unknown_and_never_seen(log):
    log.add("unknown", "x", who="p1", tier="bulk", name="send")


@excused
def unknown_and_then_accepted(log):
    log.add("unknown", "x", who="p1", tier="bulk", name="send")
    log.accepted("x")
    log.run("w1", "x")


@excused
def refused_and_then_accepted(log):
    log.add("refused", "x", who="p1")
    log.accepted("x")
    log.run("w1", "x")


@excused
def refused_and_unknown_without_an_id(log):
    log.add("refused", who="p1", error="out of memory")
    log.add("unknown", who="p1")


@excused
def withdrawn_after_a_run(log):
    log.accepted("x", retries=3)
    log.start("w1", "x")
    log.settled("w1", "x", "retry", attempt=1)
    log.add("withdrawn", "x", who="p1")


@excused
def drained_is_not_asked_for(log):
    set_limits(log, drained=False)
    log.accepted("x")
    set_final(log, waiting={"standard": frozenset({"x"})})


@excused
def something_is_pending_for_a_stranger(log):
    set_final(log, consumers=(("bulk", "somebody", 2),))


@excused
def letters_may_be_trimmed(log):
    set_limits(log, dead_kept=False)
    log.accepted("x")
    log.start("w1", "x")
    log.settled("w1", "x", "dead", reason="rejected")


# --- the server's data -----------------------------------------------------------------------------


@excused
def all_data_was_lost(log):
    """What waits, what runs, what is to be retried, what is dead: all of it is forgiven."""
    for task in ("x1", "x2", "x3", "x4", "x5"):
        log.accepted(task, retries=3)
    log.start("w1", "x2")
    log.start("w1", "x3")
    log.settled("w1", "x3", "retry", attempt=1)
    log.start("w1", "x4")
    log.settled("w1", "x4", "dead", reason="rejected")
    log.run("w1", "x5")
    log.world("wiped", "server")
    log.superseded("w1", "x2")


@excused
def accepted_just_before_and_written_just_after(log):
    log.world("wiped", "server")
    log.accepted("x")
    log.wait(2)
    log.accepted("y", sent=log.now - 2.1)


@excused
def the_last_second_was_lost(log):
    """The server is back with older data: a task is waiting again that was settled."""
    log.accepted("x", retries=3)
    log.wait(1)
    since = log.now
    log.run("w1", "x")
    log.accepted("y")
    log.world("down", "server")
    log.world("wiped", "server", since=since)
    log.world("back", "server")
    log.run("w2", "x")


@excused
def what_was_undone_is_done_again_much_later(log):
    """One was acknowledged and one was running; both are waiting again, in a long queue."""
    set_limits(log, waits={})
    log.accepted("x")
    log.accepted("y")
    log.wait(1)
    since = log.now
    log.run("w1", "x")
    log.start("w1", "y")
    log.world("wiped", "server", since=since)
    log.wait(WINDOW + 1)
    log.run("w2", "x")
    log.run("w2", "y")
    log.superseded("w1", "y")


@excused
def a_retry_of_no_number_was_undone(log):
    log.accepted("x", retries=1)
    log.start("w1", "x")
    log.settled("w1", "x", "retry")
    log.world("wiped", "server")
    log.start("w1", "x")
    log.settled("w1", "x", "retry")
    log.run("w1", "x")


@excused
def a_retry_was_undone(log):
    log.accepted("x", retries=1)
    log.wait(1)
    log.start("w1", "x")
    log.settled("w1", "x", "retry", attempt=1)
    log.world("wiped", "server")
    log.start("w1", "x")
    log.settled("w1", "x", "retry", attempt=1)
    log.run("w1", "x", attempt=2)


# --- the log itself --------------------------------------------------------------------------------


@excused
def a_record_cut_off_by_a_death(log):
    log.up("w9")
    log.records.append(Record(0.0, "", "torn", "", {"line": 7}))
    log.world("died", "w9")


@excused
def kinds_that_nobody_knows(log):
    log.add("weather", "x", who="scene", sun=True)


# --- crash loops -----------------------------------------------------------------------------------


@excused
def a_culprit_dies_after_three_crashes(log):
    log.accepted("x", name="killer")
    for _ in range(3):
        log.up("w9")
        log.reclaimed("w9", "x")
        log.start("w9", "x")
        log.world("died", "w9")
    log.wait(5)
    log.reclaimed("w2", "x")
    log.settled("w2", "x", "dead", reason="crash_loop")
    log.letter("x", "crash_loop")


@excused
def a_culprit_whose_sending_stayed_unknown(log):
    log.add("unknown", "x", who="p1", tier="bulk", name="killer")
    log.settled("w2", "x", "dead", reason="crash_loop")
    log.letter("x", "crash_loop")


@excused
def crash_loops_are_allowed_and_nobody_asks_for_culprits(log):
    set_limits(log, culprits=None, dead_reasons=frozenset({"rejected", "crash_loop"}))
    log.accepted("x")
    log.settled("w2", "x", "dead", reason="crash_loop")
    log.letter("x", "crash_loop")
