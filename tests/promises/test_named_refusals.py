"""P11, P14: what the server refuses while everything else goes on is named in the log once, and in the health."""

from __future__ import annotations

import contextlib
import json

import anyio
import pytest

from streamq import RedisBroker, once, report_progress, task
from streamq.middleware import CircuitBreaker, ConcurrencyLimit, RateLimitMiddleware
from streamq.wire.acl import acl_rules
from tests.at_work import until, working

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.paired, pytest.mark.slow]


class Rights:
    """A user with the rights of a worker, which can be taken and given while it works."""

    def __init__(self, server):
        self._server = server
        words = acl_rules(RedisBroker(server.url).keys, ["worker"]).words()
        self._rules = [rule.replace("PASSWORD", "pw") for rule in words]
        self.url = server.url.replace("unix://", "unix://clerk:pw@")
        self.have(lambda _: True)

    def have(self, has, *also):
        """Have only the rules for which this is true. Commands and keys of others are taken away at once."""
        rules = [*(rule for rule in self._rules if rule[0] not in "+~%&" or has(rule)), *also]
        assert self._server.command("ACL", "SETUSER", "clerk", "reset", *rules) == b"OK"

    def lack(self, *rules):
        """Have all rules but these."""
        assert {*rules} <= {*self._rules}
        self.have(lambda rule: rule not in rules)


@pytest.fixture
def rights(real_server):
    yield Rights(real_server)
    real_server.command("ACL", "DELUSER", "clerk")


def named(worker, what):
    """Return the lines of the health that name this."""
    return [line for line in worker.health.refused if what in line]


def count(caplog, *words):
    """Return how many lines of the log have all these words."""
    return sum(all(word in message for word in words) for message in caplog.messages)


@contextlib.contextmanager
def effects_fail():
    """Let a handler go on though its effect cannot be recorded."""
    with contextlib.suppress(Exception):
        yield


LIMITS = {
    "rate": (RateLimitMiddleware(max_per_second=50.0, scope="fleet"), "the rate limit of 50/s for guarded"),
    "named rate": (RateLimitMiddleware(50.0, scope="fleet", name="api"), "the rate limit api of 50/s for api:guarded"),
    "concurrency": (ConcurrencyLimit(2), "the concurrency limit of 2 for guarded"),
}


@pytest.mark.parametrize("kind", LIMITS)
async def test_a_limit_that_may_not_ask(rights, caplog, kind):
    """Its tasks wait, everything else runs. One line says so, the health does, and both say when it is over."""
    limit, what = LIMITS[kind]
    ran = []

    @task(middleware=[limit])
    async def guarded():
        ran.append("guarded")

    @task
    async def plain():
        ran.append("plain")

    keys = ("~queue:rate:*", "~queue:permits:*", "~queue:called:*", "~queue:line:*", "~queue:limits")
    rights.have(lambda rule: rule not in keys)
    async with RedisBroker(rights.url) as broker, working(broker, guarded, plain) as worker:
        await broker.enqueue(guarded)
        await until(lambda: named(worker, what))
        await broker.enqueue(plain)
        await until(lambda: ran == ["plain"])
        await anyio.sleep(3)
        assert named(worker, what)
        assert "NOPERM" in worker.health.trouble
        assert "streamq doctor --role worker" in worker.health.trouble
        assert count(caplog, what, "is refused: NOPERM") == 1
        assert count(caplog, "limits to sweep", "is refused: NOPERM") == (1 if kind == "concurrency" else 0)
        rights.have(lambda _: True)
        await until(lambda: ran == ["plain", "guarded"])
        await until(lambda: worker.health.refused == ())
        assert worker.health.trouble is None
        assert count(caplog, what, "is refused no longer") == 1


async def test_a_permit_that_was_refused_is_not_released(rights):
    """The server has granted nothing, so nothing is to be given back later: that would grow without end."""
    limit = ConcurrencyLimit(2)

    @task(middleware=[limit])
    async def guarded():
        pass

    rights.have(lambda rule: rule != "~queue:permits:*")
    async with RedisBroker(rights.url) as broker, working(broker, guarded) as worker:
        await broker.enqueue(guarded)
        await until(lambda: named(worker, "the concurrency limit"))
        (permits,) = limit._permits.values()
        assert permits._to_release == {}


async def test_a_circuit_of_the_fleet(rights, caplog):
    """The circuits of the process decide meanwhile; the log says so once, though a call comes every two seconds."""
    ran = []
    breaker = CircuitBreaker(2, scope="fleet", name="db")

    @task(middleware=[breaker])
    async def guarded():
        ran.append(1)

    rights.have(lambda rule: "circuit" not in rule)
    async with RedisBroker(rights.url) as broker, working(broker, guarded) as worker:
        for number in range(1, 3):
            await broker.enqueue(guarded)
            await until(lambda number=number: len(ran) == number)
            await anyio.sleep(2.1)
        assert named(worker, "circuit breaker 'db'")
        assert count(caplog, "circuit breaker 'db'", "is refused: NOPERM") == 1
        rights.have(lambda _: True)
        await broker.enqueue(guarded)
        await until(lambda: worker.health.refused == ())
        assert count(caplog, "circuit breaker 'db'", "is refused no longer") == 1


async def test_an_effect_and_progress(rights, caplog):
    """Each has its line; the run of an effect fails as it did."""
    ran = []

    @task(retries=0)
    async def works(seconds):
        await report_progress(1, 2)
        with effects_fail():
            async with once("key"):
                pass
        ran.append(1)
        await anyio.sleep(seconds)

    rights.have(lambda rule: "once" not in rule and "progress" not in rule)
    async with RedisBroker(rights.url) as broker, working(broker, works) as worker:
        for _ in range(3):
            await broker.enqueue(works, 0.2)
        await until(lambda: len(ran) == 3)
        await until(lambda: named(worker, "beginning an effect") and named(worker, "writing progress"))
        assert count(caplog, "beginning an effect is refused: NOPERM") == 1
        assert count(caplog, "writing progress is refused: NOPERM") == 1
        rights.have(lambda _: True)
        await broker.enqueue(works, 3)  # a report that was refused is tried again after a second
        await until(lambda: worker.health.refused == ())


SWEEP = {
    "+xautoclaim": "sweeping queue:standard",
    "+xrange": "sweeping queue:standard",
    "+hmget": "sweeping queue:standard",
    "+xinfo|consumers": "looking for dead consumers of queue:standard",
    "+xpending": "counting the pending entries of queue:standard",
}


@pytest.mark.parametrize("right", SWEEP)
async def test_a_step_of_the_sweep_stays_refused_while_its_right_is_missing(rights, caplog, right):
    """A sweep that finds nothing to do asks for nothing, so nothing was accepted: one line, and never a clean health.

    Once the right is back, an idle worker asks again by itself.
    """
    what = SWEEP[right]

    @task
    async def nap(seconds):
        await anyio.sleep(seconds)

    rights.lack(right)
    async with RedisBroker(rights.url) as broker, working(broker, nap, visibility_timeout=1.2) as worker:
        await broker.enqueue(nap, 1.0)
        await until(lambda: named(worker, what))
        for seconds in (0.0, 0.7, 0.0, 0.7):
            await broker.enqueue(nap, seconds)
            for _ in range(10):
                await anyio.sleep(0.1)
                assert named(worker, what)
        assert count(caplog, what, "is refused: NOPERM") == 1
        assert count(caplog, what, "no longer") == 0
        rights.have(lambda _: True)
        await until(lambda: worker.health.refused == (), 12)
        assert count(caplog, what, "is refused no longer") == 1


async def test_a_renewal_of_nothing_accepts_nothing(rights, caplog):
    """Without XCLAIM a worker that holds nothing renews: the right is still missing, and the health says so."""

    @task
    async def nap(seconds):
        await anyio.sleep(seconds)

    rights.lack("+xclaim")
    async with RedisBroker(rights.url) as broker, working(broker, nap, visibility_timeout=1.2) as worker:
        await broker.enqueue(nap, 1.0)
        await until(lambda: named(worker, "renewing the leases of queue:standard"))
        for _ in range(30):
            await anyio.sleep(0.1)
            assert named(worker, "renewing the leases of queue:standard")
        assert count(caplog, "renewing the leases of queue:standard is refused: NOPERM") <= 2  # a script, a command
        rights.have(lambda _: True)
        await until(lambda: worker.health.refused == (), 12)


SCHEDULES = {
    "+hgetall": "reading the schedules",
    "~queue:schedules": "reading the schedules",
    "~queue:ticks": "storing the schedule for beat",
}


@pytest.mark.parametrize("right", SCHEDULES)
async def test_a_schedule_without_a_right_is_no_outage(rights, caplog, right):
    """It is named as refused, everything else runs, and nobody "waits for the server"."""
    ran = []

    @task(cron="* * * * * *")
    async def beat():
        ran.append("beat")

    @task
    async def plain():
        ran.append("plain")

    rights.have(lambda rule: rule != right, *(["%R~queue:ticks"] if "ticks" in right else []))
    async with RedisBroker(rights.url) as broker, working(broker, beat, plain) as worker:
        await until(lambda: named(worker, SCHEDULES[right]))
        await broker.enqueue(plain)
        await until(lambda: ran == ["plain"])
        await anyio.sleep(1.2)
        assert "NOPERM" in worker.health.trouble
        assert count(caplog, SCHEDULES[right], "is refused: NOPERM") == 1
        assert count(caplog, "waiting for the server") == 0
        rights.have(lambda _: True)
        await until(lambda: "beat" in ran, 12)
        await until(lambda: not named(worker, SCHEDULES[right]))
        assert count(caplog, SCHEDULES[right], "is refused no longer") == 1


async def test_a_tick_without_a_right(rights, caplog):
    """One schedule waits, and says so once; the other ticks."""
    ran = []

    @task(cron="* * * * * *", priority=1)
    async def low():
        ran.append("low")

    @task(cron="* * * * * *", priority=100)
    async def high():
        ran.append("high")

    async with RedisBroker(rights.url) as broker, working(broker, low, high) as worker:
        await until(lambda: {*ran} == {"low", "high"})
        rights.lack("~queue:bulk")
        await until(lambda: named(worker, "the tick of the schedule for low"))
        ran.clear()
        await until(lambda: ran.count("high") > 1)
        assert count(caplog, "the tick of the schedule for low is refused") == 1
        rights.have(lambda _: True)
        await until(lambda: "low" in ran, 12)
        await until(lambda: not named(worker, "the tick of the schedule"))


async def test_a_definition_that_cannot_be_used_is_logged_once(real_server, caplog):
    """Each with its cause and the remedy; the others tick."""
    ran = []
    good = {"cron": "* * * * * *", "task": "tick", "stream": "queue:bulk", "fields": ["task", "tick"]}
    stored = {
        "good": json.dumps(good),
        "nojson": "nojson",
        "expires": json.dumps({**good, "expires": 1e300}),
        "missed": json.dumps({**good, "missed": "never"}),
        "odd": json.dumps({**good, "fields": ["task"]}),
        "cron99": json.dumps({**good, "cron": "99 * * * * *"}),
    }
    for name, packed in stored.items():
        real_server.command("HSET", "queue:schedules", name, packed)
        real_server.command("ZADD", "queue:ticks", 1767225600000, name)
    real_server.command("HSET", "queue:schedules", "no-tick", json.dumps(good))
    real_server.command("HSET", "queue:schedules", "bad-cron", json.dumps({**good, "cron": "0 3 * *"}))

    @task
    async def tick():
        ran.append(1)

    async with RedisBroker(real_server.url) as broker, working(broker, tick):
        await until(lambda: ran)
        real_server.command("PUBLISH", "queue:wake", "schedules")
        await until(lambda: len(ran) > 1)
    for name in stored.keys() - {"good"}:
        assert count(caplog, f"does not tick the schedule '{name}'") == 1
    assert count(caplog, "'expires': expires=1e+300 cannot be used: give a number", "rm expires") == 1
    assert count(caplog, "'odd': fields=['task'] cannot be used") == 1
    assert count(caplog, "'no-tick': it has no next tick in queue:ticks", "rm no-tick") == 1
    assert count(caplog, "'bad-cron': cron expression '0 3 * *' cannot be used", "rm bad-cron") == 1
    assert count(caplog, "schedule 'good'") == 0


async def test_counters_without_a_right(rights, caplog):
    """The tasks run; the log says once that the monitor lacks them, and the health until they are written."""
    ran = []

    @task
    async def plain():
        ran.append("plain")

    rights.lack("~queue:stats:workers:*")
    async with RedisBroker(rights.url) as broker, working(broker, plain) as worker:
        for number in range(1, 4):
            await broker.enqueue(plain)
            await until(lambda number=number: len(ran) == number)
            await until(lambda: named(worker, "writing the counters"))
            await anyio.sleep(0.2)
        assert count(caplog, "writing the counters of this worker is refused: NOPERM", "stats:workers") == 1
        rights.have(lambda _: True)
        await broker.enqueue(plain)
        await until(lambda: worker.health.refused == ())


async def test_a_login_that_is_refused_later_says_what_to_write(rights, real_server, caplog):
    """The worker waits, with the remedy in its log; it goes on when the login is accepted again."""
    ran = []

    @task
    async def note():
        ran.append(1)

    async with RedisBroker(rights.url) as broker, working(broker, note) as worker:
        real_server.command("ACL", "SETUSER", "clerk", "resetpass", ">other")
        real_server.command("CLIENT", "KILL", "USER", "clerk")
        await until(lambda: count(caplog, "refuses user 'clerk'", "waiting for the server") > 0)
        assert count(caplog, "; write the user and the password into the URL: unix://user:password@") > 0
        real_server.command("ACL", "SETUSER", "clerk", "resetpass", ">pw")
        await until(lambda: worker.health.trouble is None)
        await broker.enqueue(note)
        await until(lambda: ran)
