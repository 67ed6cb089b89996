"""Planted violations of P8 to P10, and of the log: stops, exits, what is left behind."""

from __future__ import annotations

from streamq.testing import Question, Record
from tests.testing.planting import plant, set_final


@plant(Question.STOPPING)
def a_stop_with_an_error(log):
    log.up("w9")
    log.world("stop", "w9")
    log.world("exit", "w9", code=1)


@plant(Question.STOPPING)
def a_stop_without_an_end(log):
    log.up("w9")
    log.world("stop", "w9")


@plant(Question.STOPPING)
def a_stop_beyond_the_grace_period(log):
    log.up("w9")
    log.world("stop", "w9")
    log.wait(6)
    log.world("exit", "w9", code=0)


@plant(Question.STOPPING)
def a_stop_with_an_error_before_it_came_up_again(log):
    log.up("w9")
    log.world("stop", "w9")
    log.world("exit", "w9", code=1)
    log.up("w9")
    log.leave("w9")


@plant(Question.PENDING)
def something_pending_for_who_has_stopped(log):
    set_final(log, consumers=(("bulk", "w1", 2),))


@plant(Question.CONSUMERS)
def a_consumer_that_stayed(log):
    set_final(log, consumers=(("bulk", "w1", 0),))


@plant(Question.EXITS)
def a_worker_that_fell(log):
    log.up("w9")
    log.world("exit", "w9", code=1)


@plant(Question.EXITS)
def a_worker_that_left_unasked(log):
    log.up("w9")
    log.world("exit", "w9", code=0)


@plant(Question.EXITS)
def a_worker_that_fell_before_it_came_up_again(log):
    log.up("w9")
    log.world("exit", "w9", code=1)
    log.up("w9")
    log.leave("w9")


@plant(Question.KEYS)
def a_key_left_behind(log):
    set_final(log, stray=("queue:result:x (no TTL)",))


@plant(Question.TORN)
def a_record_cut_off_though_nobody_died(log):
    log.records.append(Record(0.0, "", "torn", "", {"line": 7}))
