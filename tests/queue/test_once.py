"""`once`: an effect happens once per key; rivals, failures, stalled holders and crashes."""

# ruff: noqa: PT012 - what is under test is a block

from __future__ import annotations

import contextlib
from itertools import count

import anyio
import anyio.to_thread
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamq import RedisBroker, current_delivery, once, task
from streamq.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    EffectInProgressError,
    EffectLostError,
    OutcomeUnknownError,
    UnrecordableError,
)
from streamq.scripts import step
from streamq.wire.message import MAX_PAYLOAD
from tests.at_work import assert_nothing_left, dead, until, working
from tests.crew import Crew, say
from tests.servers import InProcess

pytestmark = pytest.mark.paired("memory")

KEY = "queue:once:k"
LONG = 30.0  # seconds that nobody here waits for


@pytest.fixture(name="broker")  # a worker of this module would take it for its own
async def opened(server):
    async with RedisBroker(server.url) as opened:
        yield opened


def record_of(server, key=KEY):
    flat = [part.decode() for part in server.command("HGETALL", key)]
    return dict(zip(flat[::2], flat[1::2], strict=True))


def overtaken(server, key=KEY):
    """Have the lease of whoever holds a key be over: he stalled for so long."""
    assert server.command("HSET", key, "until", "1") == 0


def begun_by_another(server, lease=60_000):
    """Begin the effect as a process would that says nothing more; return its token."""
    state, token = server.command("EVAL", step("once_begin").source, 1, KEY, lease, 60_000)
    assert state == b"begun"
    return int(token)


# --- one after the other -----------------------------------------------------------------------------


async def test_the_first_records_and_later_ones_get_it(broker, server):
    """`done` and `result`, as JSON gives it back; the record has a TTL, and is all that is left."""
    async with once("k", broker=broker, ttl=60) as effect:
        assert not effect.done
        assert effect.result is None
        effect.record({"paid": (1, 2)})
        token = effect.token
        assert repr(effect) == f"<Effect k in progress token={token}>"
    for _ in range(2):
        async with once("k", broker=broker, ttl=60) as effect:
            assert (effect.done, effect.result, effect.token) == (True, {"paid": [1, 2]}, token)
    assert record_of(server) == {"token": str(token), "result": '{"ok":{"paid":[1,2]}}'}
    assert 0 < server.command("PTTL", KEY) <= 60_000
    assert server.keys() == [KEY]


async def test_an_effect_without_a_result_is_done_too(broker):
    """Leaving the block records."""
    async with once("k", broker=broker):
        pass
    async with once("k", broker=broker) as effect:
        assert effect.done
        assert effect.result is None


async def test_a_failure_gives_the_effect_up(broker, server):
    """The exception comes out as it is, and the next run begins at once, with a greater token."""
    tokens = []
    for _ in range(3):
        with pytest.raises(KeyError, match="no"):
            async with once("k", broker=broker) as effect:
                tokens.append(effect.token)
                effect.record(1)
                raise KeyError("no")
    assert record_of(server) == {"token": str(tokens[-1])}
    assert server.command("PTTL", KEY) > 0
    async with once("k", broker=broker) as effect:
        assert not effect.done
        tokens.append(effect.token)
    assert tokens == sorted(set(tokens))


async def test_a_cancelled_run_gives_the_effect_up(broker, server):
    """A worker that drains, or a timeout of one's own: the next run begins at once."""
    with anyio.move_on_after(0.05) as scope:
        async with once("k", broker=broker):
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert set(record_of(server)) == {"token"}


class AnswerLost:
    """The store's door: the server carries out a begin, and no answer to that comes. `deaf`: nor does one to more."""

    def __init__(self, store, *, deaf=False, lost=None):
        self._one, self._deaf, self._lost = store.one, deaf, lost
        self.begun = anyio.Event()

    async def __call__(self, command):
        if self.begun.is_set() and not self._deaf:
            return await self._one(command)
        if not self.begun.is_set():
            assert (await self._one(command))[0] == b"begun"
            self.begun.set()
            if self._lost:
                raise self._lost
        await anyio.sleep_forever()
        return None


async def enter_and_be_cancelled(broker, begun):
    async with anyio.create_task_group() as group:

        async def enter():
            async with once("k", broker=broker):
                pytest.fail("it has no answer")

        group.start_soon(enter)
        await begun.wait()
        group.cancel_scope.cancel()


async def test_a_run_that_is_cancelled_while_it_begins_gives_the_effect_up(broker, server, monkeypatch):
    """The server has begun the effect, and the run never heard of it: the next run begins at once all the same."""
    door = AnswerLost(broker.store)
    monkeypatch.setattr(broker.store, "one", door)
    await enter_and_be_cancelled(broker, door.begun)
    assert set(record_of(server)) == {"token"}
    async with once("k", broker=broker) as effect:
        assert not effect.done


async def test_a_begin_whose_answer_was_lost_gives_the_effect_up(broker, server, monkeypatch):
    """The connection broke between the begin and its answer."""
    monkeypatch.setattr(broker.store, "one", AnswerLost(broker.store, lost=OutcomeUnknownError("cut")))
    with pytest.raises(OutcomeUnknownError):
        async with once("k", broker=broker):
            pytest.fail("it has no answer")
    assert set(record_of(server)) == {"token"}


async def test_a_cancelled_begin_waits_for_no_deaf_server(broker, server, monkeypatch):
    """The cancellation goes on after a moment; the end of the lease ends what has begun."""
    monkeypatch.setattr("streamq.queue.once._RELEASE_WITHIN", 0.05)
    door = AnswerLost(broker.store, deaf=True)
    monkeypatch.setattr(broker.store, "one", door)
    await enter_and_be_cancelled(broker, door.begun)
    assert "until" in record_of(server)


async def test_a_withdrawal_ends_no_effect_of_another_run(broker, server):
    """A late one finds that the next run has begun, or recorded: nothing changes."""
    withdraw = step("once_withdraw").source
    async with once("k", broker=broker) as effect:
        run = record_of(server)["run"]
        assert server.command("EVAL", withdraw, 1, KEY, "other", 60_000) == 0
        effect.record(1)
    assert server.command("EVAL", withdraw, 1, KEY, run, 60_000) == 0
    assert record_of(server)["result"] == '{"ok":1}'


async def test_one_that_was_cancelled_after_the_block_is_recorded(broker, server):
    """The effect has happened: its record is not cut off."""
    with anyio.CancelScope() as scope:
        async with once("k", broker=broker) as effect:
            effect.record(1)
            scope.cancel()
    assert record_of(server)["result"] == '{"ok":1}'


async def test_an_abandoned_effect_keeps_its_lease(broker):
    """What cannot be ended may still be at it: others come when the lease is over."""
    with pytest.raises(ValueError, match="later"):
        async with once("k", broker=broker) as effect:
            effect.abandoned = True
            raise ValueError("later")
    with pytest.raises(EffectInProgressError):
        async with once("k", broker=broker):
            pytest.fail("it is in progress")


async def test_tokens_grow_beyond_the_end_of_the_record(broker, server):
    """A guard in a database that has seen a token takes the next one, whatever became of the record."""
    async with once("k", broker=broker) as effect:
        first = effect.token
    server.flush()
    await anyio.sleep(0.002)
    async with once("k", broker=broker) as effect:
        assert effect.token > first


@pytest.mark.parametrize("value", [object(), float("nan"), "x" * MAX_PAYLOAD], ids=["object", "nan", "too large"])
@pytest.mark.parametrize("caught", [True, False])
async def test_what_cannot_be_recorded_is_not_repeated(broker, server, value, caught):
    """The effect has happened: later runs are told why they have no result."""
    refused = pytest.raises(UnrecordableError, match="'k'") if not caught else contextlib.nullcontext()
    with refused:
        async with once("k", broker=broker) as effect:
            with contextlib.suppress(UnrecordableError if caught else ()):
                effect.record(value)
    async with once("k", broker=broker) as effect:
        assert effect.done
        with pytest.raises(UnrecordableError, match=r"not JSON|bytes and the limit is"):
            _ = effect.result
    assert len(record_of(server)["result"]) < 200


async def test_the_unrecordable_result_of_another_effect_is_a_failure(broker, server):
    """The inner one has happened, the outer one has not."""
    with pytest.raises(UnrecordableError, match="inner"):
        async with once("k", broker=broker), once("inner", broker=broker) as effect:
            effect.record(object())
    assert "result" not in record_of(server)
    assert "result" in record_of(server, "queue:once:inner")


async def test_what_is_done_cannot_be_recorded_again(broker):
    """A program that does not look at `done` is told."""
    async with once("k", broker=broker):
        pass
    with pytest.raises(ConfigurationError, match=r"effect\.done"):
        async with once("k", broker=broker) as effect:
            effect.record(2)


@pytest.mark.parametrize("options", [{"ttl": 0}, {"lease": 0.01}, {"wait": -1}, {"ttl": float("inf")}, {"lease": "1"}])
async def test_values_that_cannot_be_used(broker, server, options):
    """Each is named, before anything is said to the server."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        async with once("k", broker=broker, **options):
            pass
    for key in ("", None):
        with pytest.raises(ConfigurationError, match="key="):
            async with once(key, broker=broker):
                pass
    assert server.keys() == []


async def test_outside_a_worker_it_needs_a_broker(anyio_backend):
    """There is no queue to ask."""
    with pytest.raises(LookupError, match="give a broker"):
        async with once("k"):
            pass


# --- rivals ------------------------------------------------------------------------------------------


async def test_a_rival_is_refused_for_the_rest_of_the_lease(broker, server):
    """It is a RetryLater: the task comes back then. The holder knows nothing of it."""
    async with once("k", broker=broker, lease=LONG) as effect:
        with pytest.raises(EffectInProgressError, match="'k' is in progress") as raised:
            async with once("k", broker=broker):
                pytest.fail("it is in progress")
        assert 0 < raised.value.after <= LONG
        effect.record(1)
    assert record_of(server)["result"] == '{"ok":1}'


@pytest.mark.parametrize("fails", [False, True])
async def test_a_rival_that_waits_is_woken(broker, server, fails):
    """It gets the result as soon as it is recorded, or the effect when it is given up, long before the lease ends."""
    told = []

    async def rival():
        async with once("k", broker=broker, wait=LONG) as effect:
            told.append((effect.done, effect.result, effect.token))

    with anyio.fail_after(LONG / 2):
        async with anyio.create_task_group() as group:
            with contextlib.suppress(ValueError):
                async with once("k", broker=broker, lease=LONG) as effect:
                    group.start_soon(rival)
                    while server.command("PUBSUB", "NUMSUB", KEY)[1] == 0:
                        await anyio.sleep(0.005)
                    first = effect.token
                    effect.record("first")
                    if fails:
                        raise ValueError
    ((done, result, token),) = told
    assert (done, result) == (not fails, None if fails else "first")
    assert token > first if fails else token == first


async def test_a_rival_waits_no_longer_than_it_wants(broker):
    """Then it is refused as if it had not waited."""
    async with once("k", broker=broker, lease=LONG):
        with pytest.raises(EffectInProgressError):
            async with once("k", broker=broker, wait=0.1):
                pytest.fail("it is in progress")


@pytest.mark.slow
async def test_a_rival_takes_over_from_one_that_died(broker, server):
    """Nobody says anything; the end of the lease ends the wait."""
    token = begun_by_another(server, 300)
    with anyio.fail_after(10):
        async with once("k", broker=broker, wait=8.0) as effect:
            assert not effect.done
            assert effect.token > token


async def test_a_stalled_holder_cannot_record(broker, server):
    """Its lease was over and another took over: the other's result stands, whoever ends first."""
    with pytest.raises(EffectLostError) as raised:
        async with once("k", broker=broker, lease=LONG) as stalled:
            overtaken(server)
            async with once("k", broker=broker) as effect:
                assert effect.token > stalled.token
                effect.record("new")
            stalled.record("old")
    assert raised.value.token == stalled.token
    assert record_of(server)["result"] == '{"ok":"new"}'


async def test_a_stalled_holder_cannot_give_up_what_another_has(broker, server):
    """Its failure says nothing of the run that took over."""
    with pytest.raises(ValueError, match="old"):
        async with once("k", broker=broker, lease=LONG):
            overtaken(server)
            begun_by_another(server)
            raise ValueError("old")
    with pytest.raises(EffectInProgressError):
        async with once("k", broker=broker):
            pytest.fail("it is in progress")


async def test_a_holder_that_was_overtaken_is_cancelled(broker, server):
    """It learns it at its next renewal, and nothing is recorded."""
    with anyio.fail_after(10), pytest.raises(EffectLostError) as raised:
        async with once("k", broker=broker, lease=0.3) as effect:
            overtaken(server)
            async with once("k", broker=broker):
                pass
            other = record_of(server)
            await anyio.sleep_forever()
    assert raised.value.after == 0.3
    assert raised.value.token == effect.token
    assert record_of(server) == other


async def test_a_server_that_lost_its_data_is_told_again(broker, server):
    """Nobody else has begun: the effect is recorded, and not repeated."""
    async with once("k", broker=broker) as effect:
        server.flush()
        effect.record(1)
    async with once("k", broker=broker) as effect:
        assert effect.result == 1


class Unreachable:
    """The store's door, shut for so many commands of one kind."""

    def __init__(self, store, times):
        self._one, self.left = store.one, times

    async def __call__(self, command):
        if command[1] == step("once_end")(["k"])[1] and self.left:
            self.left -= 1
            raise BrokerUnavailableError("shut")
        return await self._one(command)


@pytest.mark.slow
async def test_what_happened_is_said_again_until_the_server_hears_it(broker, server, monkeypatch):
    """A cut connection at the end of the block does not cost the record."""
    door = Unreachable(broker.store, 3)
    monkeypatch.setattr(broker.store, "one", door)
    async with once("k", broker=broker) as effect:
        effect.record(1)
    assert door.left == 0
    assert record_of(server)["result"] == '{"ok":1}'


async def test_a_server_that_stays_away_is_an_error(broker, server, monkeypatch):
    """The lease is over, and the record was never written: that the effect is done is not known."""
    monkeypatch.setattr(broker.store, "one", Unreachable(broker.store, 1_000_000))
    with pytest.raises(BrokerUnavailableError):
        async with once("k", broker=broker, lease=0.2):
            pass
    assert "result" not in record_of(server)


# --- the scripts, by any history ------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "record", "give up", "renew", "stall"]), st.integers(0, 2)), max_size=25
)
_numbers = count(1)


@pytest.fixture(scope="module")
def scripted():
    with contextlib.closing(InProcess()) as server:
        yield server


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_history_has_one_record_and_growing_tokens(scripted, steps):  # noqa: C901 - a model
    """Whoever begins gets a greater token than all before; only its last holder records, and that stands."""
    key = f"once-{next(_numbers)}"
    tokens, last, recorded, held = {}, 0, None, False

    def run(name, *arguments):
        reply = scripted.command("EVAL", step(name).source, 1, key, *arguments)
        assert not isinstance(reply, Exception), reply
        return reply

    for what, who in steps:
        mine = who in tokens and tokens[who] == last
        if what == "begin":
            state, token, *rest = run("once_begin", 60_000, 60_000)
            if recorded is not None:
                assert (state, int(token), rest) == (b"done", last, [recorded])
            elif held:
                assert state == b"taken"
                assert int(token) == last
                assert 0 < rest[0] <= 60_000
            else:
                assert state == b"begun"
                assert int(token) > last
                tokens[who], last, held = int(token), int(token), True
        elif what == "stall":
            if held:
                scripted.command("HSET", key, "until", "1")
                held = False
        elif who in tokens:
            current = mine and recorded is None
            if what == "renew":
                in_progress = current and scripted.command("HEXISTS", key, "until") == 1
                assert run("once_renew", tokens[who], 60_000, 60_000) == int(in_progress)
                held = held or in_progress
            elif what == "record" and ((mine and scripted.command("HEXISTS", key, "until") == 1) or not mine):
                payload = b'{"ok":%d}' % who
                assert run("once_end", tokens[who], 60_000, payload) == int(current)
                if current:
                    recorded, held = payload, False
            elif what == "give up":
                assert run("once_end", tokens[who], 60_000) == int(current)
                held = held and not current
        assert not scripted.command("EXISTS", key) or scripted.command("PTTL", key) > 0


# --- in a fleet ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.0, 10.0], ids=["delayed", "waiting"])
async def test_rival_runs_have_one_effect_and_one_result(server, anyio_backend, wait):
    """Thirty tasks of one key, three workers: one effect, one result for all, and no attempt is spent."""
    effects, attempts = [], set()

    @task(validate=False, retries=0, result_ttl=60)
    async def pay(number: int) -> int:
        attempts.add(current_delivery().attempt)
        async with once("k", lease=0.5, wait=wait) as effect:
            if not effect.done:
                effects.append(number)
                await anyio.sleep(0.1)
                effect.record(number)
            return effect.result

    async with contextlib.AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(RedisBroker(server.url)) for _ in range(3)]
        handles = await brokers[0].enqueue_many([pay.call(number) for number in range(30)])
        for broker in brokers:
            await stack.enter_async_context(working(broker, pay, concurrency=5))
        results = [await handle.result(30) for handle in handles]
    assert len(effects) == 1
    assert set(results) == set(effects)
    assert attempts == {1}
    assert dead(server) == []
    assert server.command("DEL", KEY) == 1
    assert_nothing_left(server)


# --- under faults ------------------------------------------------------------------------------------------


@task(validate=False, name="crew_pay", retries=0, result_ttl=60)
async def crew_pay() -> int:
    async with once("k", lease=1.0) as effect:
        if effect.done:
            return effect.result
        say(f"token {effect.token}")
        if not current_delivery().crashed_workers:
            await anyio.sleep_forever()
        effect.record(effect.token)
        return effect.token


TASKS = [crew_pay]


@pytest.mark.slow
async def test_a_worker_killed_inside_the_block(anyio_backend, shared_server, tmp_path):
    """SIGKILL: another run takes over when the lease is over, with a greater token, and records."""
    server = shared_server("valkey" if anyio_backend == "asyncio" else "redis")
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(crew_pay)
        with Crew("tests.queue.test_once", server, tmp_path, backend=anyio_backend) as crew:
            victim = crew.start("victim")
            await anyio.to_thread.run_sync(crew.until, "token")
            victim.kill()
            victim.wait()
            assert "until" in record_of(server)
            crew.start("heir")
            recorded = await handle.result(30)
            first, *_, last = (int(line.split()[1]) for line in crew.lines("token"))
        assert first < last == recorded
        assert orjson.loads(record_of(server)["result"]) == {"ok": recorded}
        await until(lambda: server.command("XLEN", "queue:standard") == 0)
