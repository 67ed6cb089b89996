"""Planted violations of P1 and P2: lost, left, dead, settled twice, the effects."""

from __future__ import annotations

from streamq.testing import Question
from tests.testing.planting import plant, set_final, set_limits, taken_over

# --- P1 --------------------------------------------------------------------------------------------


@plant(Question.LOST)
def never_started(log):
    log.accepted("x")


@plant(Question.LOST)
def started_and_forgotten(log):
    log.accepted("x")
    log.start("w1", "x")


@plant(Question.LOST)
def delayed_and_gone(log):
    log.accepted("x", due=log.now + 30)


@plant(Question.LOST)
def retried_and_gone(log):
    log.accepted("x", retries=3)
    log.start("w1", "x")
    log.settled("w1", "x", "retry", attempt=1)


@plant(Question.LOST)
def postponed_and_gone(log):
    log.accepted("x")
    log.settled("w1", "x", "postpone")


@plant(Question.LOST)
def reclaimed_and_never_started(log):
    log.accepted("x")
    log.reclaimed("w1", "x")


@plant(Question.LOST)
def superseded_by_nobody(log):
    log.accepted("x")
    log.start("w1", "x")
    log.superseded("w1", "x")


@plant(Question.LOST)
def unknown_send_that_started(log):
    log.add("unknown", "x", who="p1", tier="bulk", name="send")
    log.start("w1", "x")


@plant(Question.LOST)
def sent_by_hand_and_started(log):
    log.start("w1", "x")


@plant(Question.LOST)
def in_the_hands_of_the_dead(log):
    log.accepted("x")
    log.up("w9")
    log.start("w9", "x")
    log.world("died", "w9")


@plant(Question.LOST)
def lost_after_the_data_was(log):
    log.world("wiped", "server")
    log.wait(0.2)
    log.accepted("x")


@plant(Question.LEFT)
def left_in_a_stream(log):
    log.accepted("x")
    set_final(log, waiting={"standard": frozenset({"x"})})


@plant(Question.LEFT)
def left_delayed(log):
    log.accepted("x", due=log.now + 30)
    set_final(log, delayed=frozenset({"x"}))


@plant(Question.LEFT)
def settled_and_still_there(log):
    log.accepted("x")
    log.run("w1", "x")
    set_final(log, waiting={"standard": frozenset({"x"})})


@plant(Question.DEAD)
def dead_for_no_allowed_reason(log):
    log.accepted("x")
    log.start("w1", "x")
    log.settled("w1", "x", "dead", reason="expired")
    log.letter("x", "expired")


@plant(Question.DEAD)
def a_letter_of_no_allowed_reason(log):
    log.accepted("x")
    log.letter("x", "undecodable")


@plant(Question.GONE)
def a_letter_that_is_gone(log):
    log.accepted("x")
    log.start("w1", "x")
    log.settled("w1", "x", "dead", reason="rejected")


@plant(Question.REFUSED)
def refused_and_run(log):
    log.add("refused", "x", who="p1")
    log.run("w1", "x")


@plant(Question.REFUSED)
def refused_and_only_started(log):
    log.add("refused", "x", who="p1")
    log.start("w1", "x")


@plant(Question.REFUSED)
def withdrawn_and_started(log):
    log.accepted("x")
    log.add("withdrawn", "x", who="p1")
    log.start("w1", "x")


# --- settled twice ---------------------------------------------------------------------------------


@plant(Question.TWICE)
def two_acks(log):
    log.accepted("x")
    log.run("w1", "x")
    log.settled("w2", "x")


@plant(Question.TWICE)
def two_acks_after_a_takeover(log):
    taken_over(log)
    log.effect("w1", "x")
    log.settled("w1", "x")
    log.effect("w2", "x")
    log.settled("w2", "x")


@plant(Question.TWICE)
def two_acks_of_two_entries(log):
    log.accepted("x")
    log.run("w1", "x")
    log.world("frozen", "w1")  # so that the second delivery is excused, and only the second end is not
    log.run("w2", "x", entry=log.entry("x", new=True))
    log.world("thawed", "w1")


@plant(Question.TWICE)
def dead_and_acked(log):
    taken_over(log)
    log.settled("w2", "x", "dead", reason="rejected")
    log.letter("x", "rejected")
    log.effect("w1", "x")
    log.settled("w1", "x")


@plant(Question.TWICE)
def acked_and_withdrawn(log):
    log.accepted("x")
    log.run("w1", "x")
    log.add("withdrawn", "x", who="p1")


@plant(Question.TWICE)
def withdrawn_twice(log):
    log.accepted("x", due=log.now + 9)
    log.add("withdrawn", "x", who="p1")
    log.add("withdrawn", "x", who="p2")


@plant(Question.TWICE)
def cancelled_and_acked(log):
    log.accepted("x")
    log.start("w1", "x")
    log.effect("w1", "x")
    log.settled("w1", "x", "cancelled")
    log.settled("w1", "x")


@plant(Question.TWICE)
def two_letters(log):
    log.accepted("x")
    log.start("w1", "x")
    log.settled("w1", "x", "dead", reason="rejected")
    log.letter("x", "rejected")
    log.letter("x", "rejected")


@plant(Question.TWICE)
def two_unconfirmed_letters(log):
    log.accepted("x")
    log.letter("x", "rejected")
    log.letter("x", "rejected")


@plant(Question.TWICE)
def acked_and_a_letter(log):
    log.accepted("x")
    log.run("w1", "x")
    log.letter("x", "rejected")


@plant(Question.TWICE)
def dead_twice(log):
    log.accepted("x")
    log.start("w1", "x")
    log.settled("w1", "x", "dead", reason="rejected")
    log.settled("w1", "x", "dead", reason="rejected")
    log.letter("x", "rejected")


@plant(Question.TWICE)
def two_acks_after_the_data_was_lost(log):
    log.accepted("x")
    log.run("w1", "x")
    log.world("wiped", "server")
    log.run("w1", "x")
    log.settled("w1", "x")


# --- P2 --------------------------------------------------------------------------------------------


@plant(Question.UNDONE)
def acked_without_an_effect(log):
    log.accepted("x")
    log.start("w1", "x")
    log.settled("w1", "x")


@plant(Question.UNDONE)
def acked_before_the_effect(log):
    log.accepted("x")
    log.start("w1", "x")
    log.settled("w1", "x")
    log.effect("w1", "x")


@plant(Question.UNDONE)
def acked_before_it_started(log):
    log.accepted("x")
    log.settled("w1", "x")


@plant(Question.REPEATED)
def two_effects_of_one_run(log):
    log.accepted("x")
    log.start("w1", "x")
    log.effect("w1", "x")
    log.effect("w1", "x")
    log.settled("w1", "x")


@plant(Question.REPEATED)
def two_effects_of_the_second_run(log):
    log.accepted("x", retries=3)
    log.start("w1", "x")
    log.settled("w1", "x", "retry", attempt=1)
    log.start("w2", "x", attempt=2)
    log.effect("w2", "x")
    log.effect("w2", "x")
    log.settled("w2", "x")


@plant(Question.REPEATED)
def an_effect_of_nobodys_run(log):
    log.accepted("x")
    log.run("w1", "x")
    log.effect("w2", "x")


@plant(Question.REPEATED)
def two_effects_and_no_start_known(log):
    log.accepted("x")
    log.effect("w1", "x")
    log.effect("w1", "x")
    log.settled("w1", "x")


@plant(Question.EFFECTS)
def a_second_effect_where_nothing_excuses_one(log):
    set_limits(log, effects_once=True)
    log.accepted("x", retries=3)
    log.start("w1", "x")
    log.effect("w1", "x")
    log.settled("w1", "x", "retry", attempt=1)
    log.run("w2", "x", attempt=2)
