"""The scripts of a concurrency limit, one step at a time."""

from __future__ import annotations

import time

from streamq.scripts import step
from tests.middleware.limit_by_hand import LIMITS, PERMITS, RESERVED, WAITING, Scripted, card
from tests.servers import fresh_server


class TestScripts:
    def test_a_release_wakes_exactly_the_first_waiter(self, server):
        """The first waiter is due now and has a reserved permit; the second stays where it is."""
        limit = Scripted(server)
        assert limit.acquire(1)[0]
        for number in (2, 3):
            assert not limit.acquire(number)[0]
            limit.delay(number)
        assert limit.release("run1") == [1]
        assert limit.reserved() == ["2-0"]
        assert limit.waiting() == ["3-0"]
        assert limit.left(2) < 0.5
        assert limit.left(3) > 250
        assert not limit.acquire(4)[0]  # the permit is reserved
        assert limit.acquire(2, since="1")[0]
        assert limit.release("run1") == [0]  # a second release does nothing
        assert limit.reserved() == []

    def test_a_check_wakes_a_waiter_whose_permit_was_reserved_before_it_was_delayed(self, server):
        """The release came between the answer and the postponement."""
        limit = Scripted(server)
        limit.acquire(1)
        _, since, _ = limit.acquire(2)
        limit.release("run1")
        assert limit.reserved() == ["2-0"]
        limit.delay(2)
        assert limit.check(2, since) == 1
        assert limit.left(2) < 0.5

    def test_a_check_leaves_a_delayed_waiter_where_it_is(self, server):
        limit = Scripted(server)
        limit.acquire(1)
        _, since, _ = limit.acquire(2)
        limit.delay(2)
        assert limit.check(2, since) == 1
        assert limit.left(2) > 250
        assert limit.waiting() == ["2-0"]

    def test_a_check_of_a_waiter_that_is_not_delayed_does_nothing(self, server):
        """Its postponement was refused, or another worker has it."""
        limit = Scripted(server)
        limit.acquire(1)
        _, since, _ = limit.acquire(2)
        limit.release("run1")
        assert limit.acquire(2, since)[0]
        assert limit.check(2, since) == 0
        assert limit.waiting() == []

    def test_a_waiter_that_was_cut_off_takes_the_permit_that_is_reserved_for_it(self, server):
        """Its worker was stopped before it was delayed: it asks anew, as if for the first time."""
        limit = Scripted(server)
        limit.acquire(1)
        limit.acquire(2)
        limit.acquire(3)
        limit.release("run1")
        assert limit.reserved() == ["2-0"]
        assert limit.acquire(2)[0]
        assert limit.reserved() == []
        assert limit.waiting() == ["3-0"]

    def test_a_waiter_that_was_cut_off_keeps_its_place(self, server):
        """It learns since when it waits: what its message says is where it stands."""
        limit = Scripted(server)
        limit.acquire(1)
        _, since, _ = limit.acquire(2)
        limit.acquire(3)
        assert limit.acquire(2)[:2] == (False, since)
        assert limit.waiting() == ["2-0", "3-0"]

    def test_a_cancelled_waiter_is_passed_over(self, server):
        """It has waited for a while and is not delayed: no permit is reserved for it."""
        limit = Scripted(server)
        limit.acquire(1)
        long_ago = str(round((time.time() - 60) * 1e6))
        for number in (2, 3, 4):
            limit.acquire(number, since=long_ago)
        limit.acquire(5)
        limit.delay(5)
        limit.release("run1")
        assert limit.reserved() == ["5-0"]

    def test_an_expired_waiter_is_woken_and_gets_no_permit(self, server):
        limit = Scripted(server)
        limit.acquire(1)
        limit.acquire(2, expires=1)
        limit.delay(2)
        limit.acquire(3)
        limit.delay(3)
        limit.release("run1")
        assert limit.left(2) < 0.5
        assert limit.reserved() == ["3-0"]

    def test_a_waiter_that_was_passed_over_on_its_way_waits_again(self, server):
        limit = Scripted(server)
        limit.acquire(1)
        long_ago = str(round((time.time() - 60) * 1e6))
        limit.acquire(2, since=long_ago)
        limit.release("run1")
        limit.acquire(3)
        assert limit.waiting() == []
        limit.delay(2)
        assert limit.check(2, long_ago) == 1
        assert limit.waiting() == ["2-0"]

    def test_a_reserved_permit_that_is_not_acquired_goes_to_the_next_waiter(self, server):
        """The waiter that did not come is woken once more, in case the message was lost."""
        limit = Scripted(server, reserve=1)
        limit.acquire(1)
        for number in (2, 3):
            limit.acquire(number)
        limit.release("run1")
        limit.delay(2)
        limit.delay(3)
        time.sleep(0.005)
        limit.reserve = 2000
        limit.sweep()
        assert limit.reserved() == ["3-0"]
        assert limit.left(2) < 0.5

    def test_a_late_waiter_goes_before_those_that_have_not_come(self, server):
        """A backlog kept it until its reservation was over: it takes the permit of a waiter that has not come yet."""
        limit = Scripted(server)
        limit.acquire(1)
        _, since, _ = limit.acquire(2)
        limit.acquire(3)
        limit.reserve = 1
        limit.release("run1")
        time.sleep(0.005)
        limit.reserve = 2000
        limit.sweep()
        assert limit.reserved() == ["3-0"]
        assert limit.acquire(2, since)[0]
        assert not limit.acquire(3, since="5")[0]
        assert limit.waiting() == ["3-0"]

    def test_a_waiter_that_asks_by_itself_does_not_overtake(self, server):
        """Its due time came before its turn: it keeps its place."""
        limit = Scripted(server)
        limit.acquire(1)
        _, first, _ = limit.acquire(2)
        _, second, _ = limit.acquire(3)
        limit.release("run1")
        assert not limit.acquire(3, second)[0]
        assert limit.reserved() == ["2-0"]
        assert limit.waiting() == ["3-0"]
        assert limit.acquire(2, first)[0]

    def test_permits_of_dead_workers_go_to_waiters(self, server):
        """By the step of any worker, or by a sweep; `limits` says when a sweep is due."""
        limit = Scripted(server, maximum=2, lease=1)
        limit.acquire(1)
        limit.acquire(2)
        limit.lease = 30_000
        limit.delay(3)
        limit.delay(4)
        time.sleep(0.005)
        assert float(server.command("ZSCORE", LIMITS, "t")) / 1000 < time.time()
        assert limit.acquire(3)[0]
        assert limit.acquire(4)[0]
        assert not limit.acquire(5)[0]
        limit.lease = 1
        limit.renew("run3", "run4")
        limit.delay(5)
        time.sleep(0.005)
        limit.sweep()
        assert limit.reserved() == ["5-0"]

    def test_a_lost_permit_is_acquired_again_and_counted(self, server):
        """Even beyond the limit: then no other run starts until there is room."""
        limit = Scripted(server, lease=1)
        limit.acquire(1)
        limit.lease = 30_000
        time.sleep(0.005)
        assert limit.acquire(2)[0]
        assert limit.renew("run1", "run2") == 1
        assert card(server, PERMITS) == 2
        limit.release("run1")
        assert not limit.acquire(3)[0]

    def test_waiters_of_other_tiers_are_returned_to_the_caller(self, server):
        """A worker that does not serve their tier wakes them with a second step."""
        limit = Scripted(server)
        limit.acquire(1)
        limit.acquire(2, key="queue:bulk:delayed")
        server.command("ZADD", "queue:bulk:delayed", 1 << 50, "workers|2")
        (_, foreign) = limit.release("run1")
        assert foreign.decode() == limit.waiter(2, key="queue:bulk:delayed")
        wake = step("permit_wake").source
        assert server.command("EVAL", wake, 1, "queue:bulk:delayed", "wake", "workers|2|2-0", "workers|2") == 1
        assert float(server.command("ZSCORE", "queue:bulk:delayed", "workers|2")) <= time.time() * 1000 + 1

    def test_all_keys_have_a_ttl_and_are_gone_when_nothing_is_held(self, server):
        limit = Scripted(server)
        limit.acquire(1)
        limit.acquire(2)
        assert all(server.command("PTTL", key) > 0 for key in (PERMITS, WAITING, LIMITS))
        limit.release("run1")
        assert server.command("PTTL", RESERVED) > 0
        limit.acquire(2, since="1")
        limit.release("run2")
        assert server.keys() == []

    def test_a_full_server_keeps_the_limit(self):
        with fresh_server("valkey") as server:
            limit = Scripted(server)
            server.command("CONFIG", "SET", "maxmemory", "1")
            assert "OOM" in str(server.command("SET", "a", "b"))
            assert limit.acquire(1)[0]
            assert not limit.acquire(2)[0]
            limit.renew("run1")
            limit.release("run1")
            assert limit.reserved() == ["2-0"]
