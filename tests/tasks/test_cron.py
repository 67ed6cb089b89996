"""When schedules tick: pure."""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import streamq.tasks.cron as cron_module
from streamq import Cron, task
from streamq.errors import ConfigurationError, MissingExtraError
from streamq.tasks.cron import MOST_MISSED, ON_TIME, _find_latest, find_due_ticks, next_tick, ticks

MINUTE, HOUR, DAY = 60, 3600, 86_400
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()

# A day and a half around each change of clocks: half an hour's in Lord Howe, at midnight in Cairo.
CHANGES = [
    ("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-03-08"), ("America/New_York", "2026-11-01"),
    ("Africa/Cairo", "2026-04-24"), ("Africa/Cairo", "2026-10-30"),
    ("Australia/Lord_Howe", "2026-04-05"), ("Australia/Lord_Howe", "2026-10-04"),
]  # fmt: skip


def finished(steps):
    """Return what is found, without a pause between the steps."""
    try:
        while True:
            next(steps)
    except StopIteration as done:
        return done.value


def due_ticks(*args):
    return finished(find_due_ticks(*args))


def latest_tick(*args):
    return finished(_find_latest(*args))


def local(expression, start, count, tz="Europe/Berlin"):
    """Return the first ticks after a UTC time as local day, time and offset."""
    after = datetime.fromisoformat(start).replace(tzinfo=UTC)
    return [f"{tick:%d %H:%M %z}" for tick in islice(Cron(expression, tz=tz).ticks(after), count)]


class TestChangesOfClocks:
    """Europe/Berlin: 02:00 to 03:00 is not there on 2026-03-29, and is there twice on 2026-10-25."""

    def test_a_fixed_time_in_the_gap_ticks_at_its_end(self):
        """30 2 * * * ticks once on that day, at three."""
        assert local("30 2 * * *", "2026-03-27T12:00", 3) == ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"]

    def test_a_fixed_time_in_the_overlap_ticks_in_its_first_hour(self):
        """30 2 * * * ticks once on that day, before the clocks go back."""
        assert local("30 2 * * *", "2026-10-23T12:00", 3) == ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"]

    @pytest.mark.parametrize("asked", ["2026-10-25T00:31", "2026-10-25T01:00", "2026-10-25T01:15", "2026-10-25T01:45"])
    def test_asked_within_the_second_hour_it_is_not_told_of_the_first(self, asked):
        """The first half past two is over; there is no other on that day."""
        assert local("30 2 * * *", asked, 1) == ["26 02:30 +0100"]

    def test_with_a_star_time_passes_evenly(self):
        """*/30 * * * *: every half hour that passes, whatever the clocks show."""
        spring = local("*/30 * * * *", "2026-03-29T00:00", 4)
        assert spring == ["29 01:30 +0100", "29 03:00 +0200", "29 03:30 +0200", "29 04:00 +0200"]
        autumn = local("*/30 * * * *", "2026-10-24T23:40", 6)
        assert autumn == [
            "25 02:00 +0200", "25 02:30 +0200", "25 02:00 +0100", "25 02:30 +0100", "25 03:00 +0100", "25 03:30 +0100",
        ]  # fmt: skip

    def test_hourly_has_23_and_25_ticks(self):
        """0 * * * *: as many ticks as the day has hours."""
        zone = ZoneInfo("Europe/Berlin")
        for day, hours in ((28, 24), (29, 23)):
            begin, end = (datetime(2026, 3, day + more, tzinfo=zone).timestamp() for more in (0, 1))
            assert len([at for at in islice(ticks("0 * * * *", zone.key, begin - 1), 30) if at < end]) == hours
        begin, end = (datetime(2026, 10, 25 + more, tzinfo=zone).timestamp() for more in (0, 1))
        assert len([at for at in islice(ticks("0 * * * *", zone.key, begin - 1), 30) if at < end]) == 25

    @pytest.mark.parametrize(("tz", "day"), CHANGES)
    @pytest.mark.parametrize("expression", ["*/30 * * * *", "0 * * * *", "15 */2 * * *", "* 2 * * *"])
    def test_with_a_star_as_the_clock_shows(self, tz, day, expression):
        """Every minute of real time is a tick if the clock on the wall fits; looked at one by one."""
        wanted, got = self.as_shown(tz, day, expression)
        if (tz, day) == ("Australia/Lord_Howe", "2026-04-05"):  # half an hour back: cronsim goes by whole ones there
            change = datetime(2026, 4, 4, 15, tzinfo=UTC).timestamp()
            assert all(abs(at - change) <= 3 * HOUR for at in {*wanted} ^ {*got})
        else:
            assert got == wanted

    def as_shown(self, tz, day, expression):
        """Return the ticks of two days as one finds them by looking at the clock each minute, and as they are told."""
        minute, hour = expression.split()[:2]
        zone, begin = ZoneInfo(tz), int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) - DAY
        fits = {
            "*/30": lambda at: at.minute % 30 == 0, "0": lambda at: at.minute == 0, "15": lambda at: at.minute == 15,
            "*": lambda _: True, "*/2": lambda at: at.hour % 2 == 0, "2": lambda at: at.hour == 2,
        }  # fmt: skip
        check_hour = fits[hour] if hour != "*" else lambda _: True
        wanted = []
        for at in range(begin, begin + 2 * DAY, MINUTE):
            shown = datetime.fromtimestamp(at, zone)
            if fits[minute](shown) and check_hour(shown):
                wanted.append(at)
        got = [at for at in islice(ticks(expression, tz, begin - 1), len(wanted) + 1) if at < begin + 2 * DAY]
        return wanted, got

    @pytest.mark.parametrize(("tz", "day"), CHANGES)
    @pytest.mark.parametrize("times", [["02:30"], ["00:15"], ["00:00", "01:45", "02:15", "03:00"]])
    def test_fixed_times_once_a_day(self, tz, day, times):
        """Each time of a day is one tick: in a gap at its end, in an overlap the first; what coincides is one."""
        zone, middle = ZoneInfo(tz), date.fromisoformat(day)
        wanted = set()
        for more in (-1, 0, 1):
            for time in times:
                at = datetime.fromisoformat(f"{middle + timedelta(days=more)}T{time}").replace(tzinfo=zone)
                while at.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != at.replace(tzinfo=None):
                    at += timedelta(minutes=1)
                wanted.add(at.timestamp())
        begin = datetime.combine(middle - timedelta(days=1), datetime.min.time(), tzinfo=zone).timestamp()
        got = set()
        for time in times:
            hour, minute = map(int, time.split(":"))
            got |= set(islice(ticks(f"{minute} {hour} * * *", tz, begin - 1), 3))
        assert got == wanted


FIELDS = {
    "minute": ["*", "0", "30", "*/7", "5,35", "10-20/5"],
    "hour": ["*", "2", "*/2", "1,3", "0-6/3"],
    "day": ["*", "1", "L", "*/5", "28-31"],
    "month": ["*", "2", "3,10", "JAN-JUN"],
    "weekday": ["*", "0", "MON-FRI", "5L", "2#2"],
}
expressions = st.tuples(*(st.sampled_from(words) for words in FIELDS.values())).map(" ".join)
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Africa/Cairo", "Asia/Kathmandu"])
moments = st.floats(min_value=1.6e9, max_value=2.2e9)
near_changes = st.builds(
    lambda day, hours: datetime.fromisoformat(f"2026-{day}T00:00+00:00").timestamp() + hours * HOUR,
    st.sampled_from(["03-29", "10-25", "03-08", "11-01", "04-23", "10-29"]), st.floats(min_value=-30, max_value=30),
)  # fmt: skip


@given(expressions, zones, moments | near_changes)
def test_ticks_go_forward(expression, tz, after):
    """Each tick is later than the one before and than what was asked for; asking again from each gives the same."""
    found = list(islice(ticks(expression, tz, after), 20))
    assume(found)
    assert after < found[0]
    assert all(one < other for one, other in pairwise(found))
    assert all(at == int(at) for at in found)
    again = [after]
    for _ in found:
        again.append(next_tick(expression, tz, again[-1]))
    assert again[1:] == found


@given(expressions, zones, moments | near_changes, st.floats(min_value=0, max_value=1))
def test_the_next_tick_is_the_same_until_it_comes(expression, tz, after, part):
    """No time before a tick has another next tick: the next tick does not depend on the worker that asks, or when."""
    tick = next_tick(expression, tz, after)
    assume(tick is not None)
    between = after + (tick - after) * part
    assert next_tick(expression, tz, between) == (tick if between < tick else next_tick(expression, tz, tick))


@given(expressions, zones, moments | near_changes, st.integers(min_value=0, max_value=60), st.floats(0, 0.999))
def test_the_latest_tick_is_found(expression, tz, after, count, part):
    """By bisection as by counting."""
    found = list(islice(ticks(expression, tz, after), count + 2))
    assume(len(found) == count + 2)
    until = found[-2] + (found[-1] - found[-2]) * part
    assert latest_tick(expression, tz, found[0], until) == found[-2]


class TestWhatIsMissed:
    """`due_ticks`: which of the ticks that were not sent are sent now."""

    def test_in_time_is_sent_whatever_the_policy(self):
        """Late by ten seconds is not missed."""
        for missed in ("last", "skip", "all"):
            found = due_ticks("* * * * *", "UTC", missed, NOON, NOON + ON_TIME)
            assert found == ([NOON], NOON + 60)

    def test_each_second_of_a_short_stall_is_sent(self):
        """A worker that stood still for three seconds leaves out nothing."""
        wanted = [NOON, NOON + 1, NOON + 2, NOON + 3]
        assert due_ticks("* * * * * *", "UTC", "skip", NOON, NOON + 3.4) == (wanted, NOON + 4)

    def test_last_is_one_for_many(self):
        """Five hours without workers: the latest, once."""
        assert due_ticks("0 * * * *", "UTC", "last", NOON, NOON + 5.5 * HOUR) == ([NOON + 5 * HOUR], NOON + 6 * HOUR)

    def test_last_is_not_sent_beside_one_in_time(self):
        """The one that is due now is the last."""
        now = NOON + 5 * HOUR + 1
        assert due_ticks("0 * * * *", "UTC", "last", NOON, now) == ([NOON + 5 * HOUR], NOON + 6 * HOUR)

    def test_skip_waits_for_the_next(self):
        """No missed tick."""
        assert due_ticks("0 * * * *", "UTC", "skip", NOON, NOON + 5.5 * HOUR) == ([], NOON + 6 * HOUR)

    def test_all_is_each(self):
        """Each of them, in their order."""
        wanted = [NOON + hour * HOUR for hour in range(6)]
        assert due_ticks("0 * * * *", "UTC", "all", NOON, NOON + 5.5 * HOUR) == (wanted, NOON + 6 * HOUR)

    @pytest.mark.parametrize(("expression", "step"), [("* * * * *", MINUTE), ("* * * * * *", 1)])
    def test_all_has_a_bound(self, expression, step):
        """A year of them is not: the latest thousand, and those in time."""
        now = NOON + 365 * DAY + 0.5
        found, following = due_ticks(expression, "UTC", "all", NOON, now)
        late = [at for at in found if at < now - ON_TIME]
        assert len(late) == MOST_MISSED
        assert found == [found[0] + number * step for number in range(len(found))]
        assert now - step < found[-1] <= now < following == found[-1] + step

    @pytest.mark.parametrize("expression", ["* * * * * *", "* * * * *", "0 3 * * *", "* * * 1 1 *", "0 0 29 2 *"])
    def test_half_a_century_is_found_in_small_steps(self, monkeypatch, expression):
        """An event loop lets others run between two steps; to find a thousand is to look at a few thousand."""
        looked: list[int] = [0]

        def counted(*arguments):
            for tick in ticks(*arguments):
                looked[-1] += 1
                yield tick

        monkeypatch.setattr(cron_module, "ticks", counted)
        looked.extend(0 for _ in find_due_ticks(expression, "UTC", "all", next_tick(expression, "UTC", 0.0), NOON))
        assert max(looked) <= 50
        assert sum(looked) <= 12 * MOST_MISSED

    @given(st.integers(0, 3 * DAY), expressions, zones)
    def test_the_latest_of_all_are_those_of_counting(self, later, expression, tz):
        """However ticks are spread."""
        first = next_tick(expression, tz, NOON)
        assume(first is not None)
        now = first + later
        wanted = list(takewhile(lambda tick: tick <= now, islice(ticks(expression, tz, first - 1), 20_000)))
        assume(len(wanted) < 20_000)
        late = sum(tick < now - ON_TIME for tick in wanted)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cron_module, "MOST_MISSED", 30)
            found, _ = due_ticks(expression, tz, "all", first, now)
        assert found == wanted[max(0, late - 30) :]

    @pytest.mark.parametrize("missed", ["last", "all"])
    def test_a_time_by_hand_that_is_of_no_tick_is_sent_itself(self, missed):
        """With "all" it ended the worker, if there was no tick since."""
        by_hand = NOON + 100.5
        assert due_ticks("0 0 1 1 *", "UTC", missed, by_hand, by_hand + HOUR)[0] == [by_hand]
        assert due_ticks("0 0 1 1 *", "UTC", "skip", by_hand, by_hand + HOUR)[0] == []

    @pytest.mark.slow
    @given(st.sampled_from(["last", "skip", "all"]), st.integers(0, 30 * DAY), expressions, zones)
    def test_nothing_twice_and_nothing_early(self, missed, later, expression, tz):
        """The ticks that are sent lie between the expected tick and now; the next tick is later than now."""
        first = next_tick(expression, tz, NOON)
        assume(first is not None)
        now = first + later
        found, following = due_ticks(expression, tz, missed, first, now)
        assert found == sorted(set(found))
        assert all(first <= at <= now for at in found)
        assert following == next_tick(expression, tz, now)


class TestInput:
    @pytest.mark.parametrize(
        "expression",
        [
            "",
            " ",
            "* * * *",
            "* * * * * * *",
            "60 * * * *",
            "a b c d e",
            "*/0 * * * *",
            "@reboot",
            5,
            None,
            "9" * 5000 + " * * * *",
        ],
    )
    def test_expressions_that_are_none(self, expression):
        """Named at once, where it is written."""
        with pytest.raises(ConfigurationError, match="cron expression"):
            Cron(expression)

    @pytest.mark.slow
    @given(st.text("0123456789*/,-#LW MONJAN@", max_size=30) | st.text(max_size=20))
    def test_any_text(self, text):
        """A cron expression, or an error that says so."""
        with contextlib.suppress(ConfigurationError):
            assert Cron(text).expression == text

    @pytest.mark.parametrize("expression", ["0 0 31 4,6 *", "0 0 */31 * MON#3"])
    def test_a_day_that_never_comes(self, expression):
        """The 31st of June; a first that is a third Monday."""
        with pytest.raises(ConfigurationError, match=r"cannot be used|never ticks"):
            Cron(expression)

    @pytest.mark.parametrize("tz", ["Mars/Olympus", "", "../etc/passwd", 7, None, ["UTC"]])
    def test_time_zones_that_are_none(self, tz):
        with pytest.raises(ConfigurationError, match="time zone"):
            Cron("@daily", tz=tz)

    @pytest.mark.parametrize(
        "options", [{"missed": "never"}, {"overlap": "no"}, {"args": "ab"}, {"kwargs": [1]}, {"missed": ["all"]}]
    )
    def test_other_options(self, options):
        """Each error names what was given."""
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            Cron("@daily", **options)

    def test_names_for_common_ones(self):
        """@hourly and its like."""
        assert next_tick("@hourly", "UTC", NOON) == NOON + HOUR
        assert next_tick("@Daily", "UTC", NOON) == NOON + DAY / 2

    def test_a_moment_without_a_time_zone_is_refused(self):
        with pytest.raises(ConfigurationError, match="time zone"):
            next(Cron("@daily").ticks(datetime(2026, 1, 1)))  # noqa: DTZ001

    def test_a_task_takes_one_or_several(self):
        """A text, a Cron, or a list of both."""

        def report(): ...

        assert task(cron="@daily")(report).cron == (Cron("@daily"),)
        assert task(cron=["@daily", Cron("@hourly", tz="Europe/Berlin")])(report).cron == (
            Cron("@daily"),
            Cron("@hourly", tz="Europe/Berlin"),
        )
        assert task(report).cron == ()
        with pytest.raises(ConfigurationError, match="cron=5"):
            task(cron=[5])(report)

    def test_a_producer_needs_no_parser(self, monkeypatch):
        """A module of tasks can be imported without the extra; only what ticks names it."""
        monkeypatch.setitem(sys.modules, "cronsim", None)
        declared = Cron("*/5 * * * *")
        with pytest.raises(MissingExtraError, match=r"streamq\[cron\]"):
            next(declared.ticks(datetime.now(UTC)))


LONG = ",".join(["1"] * 400_000) + " * * * *"


@pytest.mark.parametrize("installed", [True, False])
def test_an_expression_has_a_bound(monkeypatch, installed):
    """The parser reads it at once: a long one blocked the event loop. With and without the parser."""
    if not installed:
        monkeypatch.setitem(sys.modules, "cronsim", None)
    for making in (lambda: Cron(LONG), lambda: task(name="long", cron=LONG)(lambda: None)):
        with pytest.raises(ConfigurationError, match=r"of 800,007 characters cannot be used: give at most 1,000"):
            making()
    every = [",".join(map(str, range(low, high))) for low, high in ((0, 60), (0, 24), (1, 32), (1, 13), (0, 7))]
    assert Cron(" ".join(every)).expression == " ".join(every)


def test_so_has_one_that_was_stored_by_hand():
    """It never comes to the parser."""
    with pytest.raises(ConfigurationError, match="give at most 1,000"):
        next_tick(LONG, "UTC", 0.0)
    with pytest.raises(ConfigurationError, match="give at most 1,000"):
        next(find_due_ticks(LONG, "UTC", "last", 0.0, 1e9))
