"""Cases that look like violations and are none: the log has an excuse, and the report is clean."""

from __future__ import annotations

import pytest

from streamq.testing import Question, Record
from tests.testing import excuses_late
from tests.testing.builder import WINDOW, orderly
from tests.testing.excuses_tasks import all_data_was_lost
from tests.testing.excuses_workers import the_worker_died
from tests.testing.planting import EXCUSED, lost_to_w2

MODULES = (excuses_late,)  # imported for what it registers


@pytest.mark.parametrize(
    ("begin", "end"), [("frozen", "thawed"), ("cut", "healed"), ("blocked", "unblocked"), ("down", "back")]
)
@pytest.mark.parametrize("when", ["during", "soon after"])
def test_a_disturbance_excuses_a_redelivery(begin, end, when):
    """While it lasts, and for lease * 4/3 + slack after it."""

    def plant(log):
        who = "server" if begin == "down" else "w1"
        log.accepted("x")
        log.start("w1", "x")
        log.world(begin, who)
        log.wait(4)
        if when == "during" and begin != "down":
            lost_to_w2(log)
        log.world(end, who)
        if when != "during" or begin == "down":
            log.wait(WINDOW - 0.1)
            lost_to_w2(log)

    report = orderly(plant).check()
    assert report.ok, report.violations
    assert report.counts["redeliveries excused"] == 1


def test_an_orderly_log_is_clean():
    """Without a violation the report is clean, and all records are counted."""
    report = orderly().check()
    assert report.ok, report.violations
    assert report.tasks == 18
    assert report.effects == {0: 3, 1: 15}
    assert report.counts == {"ack": 15, "retry": 1, "postpone": 1, "dead": 1, "cancelled": 1}
    assert report["worst wait, bulk"].value < 1


@pytest.mark.parametrize("plant", EXCUSED)
def test_an_excused_case_is_no_violation(plant):
    """The checker gives no false alarm."""
    report = orderly(plant).check()
    assert report.ok, report.violations


def test_a_record_cut_off_at_the_very_end_is_no_violation():
    """A process was killed at the end of the run."""
    log = orderly()
    log.records.append(Record(0.0, "", "torn", "", {"line": 70}))
    assert log.check().ok


def test_what_was_lost_with_the_servers_data_is_counted_apart():
    """It is no violation, and the report shows it."""
    report = orderly(all_data_was_lost).check()
    assert report[Question.LOST].value == 0
    assert report[Question.FORGIVEN].value == 3  # x4 was confirmed dead, x5 acknowledged


def test_recovery_is_measured_from_the_death():
    """The limit applies to the time since the worker died."""
    assert orderly(the_worker_died).check()[Question.RECOVERY].value == pytest.approx(4, abs=0.01)


def test_faults_are_counted_by_name():
    """For the table of scenarios."""
    log = orderly()
    for name in ("kill", "kill", "cut"):
        log.add("fault", name=name)
    assert log.check().faults == {"kill": 2, "cut": 1}


def test_an_unwell_worker_is_well_again_after_the_window():
    """The same takeover, just inside the window and just outside it."""

    def plant(pause):
        def planted(log):
            log.accepted("x")
            log.start("w1", "x")
            log.world("frozen", "w1")
            log.wait(1)
            log.world("thawed", "w1")
            log.wait(pause)
            lost_to_w2(log)

        return planted

    assert orderly(plant(WINDOW - 0.05)).check().ok
    assert not orderly(plant(WINDOW + 0.05)).check().ok
