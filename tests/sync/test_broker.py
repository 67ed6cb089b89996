"""`SyncBroker` does what `RedisBroker` does, in a thread and without an event loop."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import anyio
import pytest

from streamq import Reject, Status, SyncBroker, TaskRef, Tier, group, report_progress_sync, step, task
from streamq.errors import (
    ArgumentsError,
    BrokerUnavailableError,
    ConfigurationError,
    DeadLetterNotFoundError,
    NotOpenError,
    ResultNotKeptError,
    ResultTimeoutError,
    SyncCallError,
    TaskFailedError,
)
from tests.sync.conftest import working

pytestmark = [pytest.mark.timeout(60), pytest.mark.paired("memory")]


@task(result_ttl=60)
async def double(number: int) -> int:
    return 2 * number


@task(result_ttl=60)
def add(first: int, second: int) -> int:
    return first + second


@task(result_ttl=60, retries=0)
def refuse(why: str) -> None:
    raise Reject(why)


@task(result_ttl=60)
def steps(count: int) -> str:
    for number in range(count):
        report_progress_sync(number + 1, count)
        time.sleep(0.12)
    return "done"


@task
async def nothing(number: int = 0) -> None: ...


ALL = (double, add, refuse, steps, nothing)


@pytest.fixture
def broker(server):
    with SyncBroker(server.url, connect_timeout=2) as broker:
        yield broker


# --- sending --------------------------------------------------------------------------------------


def test_tasks_are_sent_and_their_results_come(server, broker, backend):
    """One, many, by name, as calls with options."""
    with working(server.url, *ALL, backend=backend):
        handle = broker.enqueue(double, 4)
        assert (handle.fresh, handle.task_name, handle.stream) == (True, "double", broker.keys.tiers[1].stream)
        assert handle.result(timeout=10) == 8
        assert handle.status() is Status.SUCCEEDED
        assert broker.enqueue("double", 5).result(10) == 10
        assert broker.enqueue(TaskRef("add"), 1, second=2).result(timedelta(seconds=10)) == 3
        assert broker.enqueue(double.call(6), priority=9).result(10) == 12
        many = broker.enqueue_many([double.call(number) for number in range(50)])
        assert broker.gather(*many, timeout=10) == tuple(2 * number for number in range(50))
        assert broker.handle(handle.task_id, task=double).result(timeout=0) == 8
        assert broker.handle(handle.task_id, task=double).task_name == "double"


def test_what_is_sent_is_what_the_async_broker_sends(server, broker):
    """The entries differ in their ids alone."""
    from streamq import RedisBroker

    def fields() -> list[list[bytes]]:
        streams = [name for name in list(server.keys()) if server.command("TYPE", name) == b"stream"]
        found = [flat for name in streams for _, flat in server.command("XRANGE", name, "-", "+")]
        return sorted(sorted(part for part in flat if len(part) != 16) for flat in found)

    async def send() -> None:
        async with RedisBroker(server.url) as other:
            await other.enqueue(call)
            await other.enqueue("add", 1, priority=50)

    call = add.options(retries=7, headers={"a": "b"}).call(1, second=2)
    broker.enqueue(call)
    broker.enqueue("add", 1, priority=50)
    sent = fields()
    server.flush()
    anyio.run(send)
    assert sent == fields()
    assert len(sent) == 2


def test_arguments_are_checked_before_anything_is_sent(server, broker):
    """As by the async broker, and for many at once."""
    with pytest.raises(ArgumentsError):
        broker.enqueue(double, "no number")
    with pytest.raises(ArgumentsError):
        broker.enqueue_many([double.call(1), double.call("no number")])
    with pytest.raises(ArgumentsError):
        broker.check(double.call("no number"))
    with pytest.raises(ConfigurationError):
        broker.enqueue(print)
    assert broker.check(double.call(3)).args == (3,)
    assert server.keys() == []


def test_an_id_is_accepted_once(broker):
    """The second enqueue gets the handle of the first."""
    first = broker.enqueue(nothing.options(task_id="mine"), 1)
    again = broker.enqueue(nothing.options(task_id="mine"), 1)
    assert (first.fresh, again.fresh, again.task_id) == (True, False, "mine")
    assert broker.monitor().snapshot().depth == 1


def test_delayed_tasks_are_listed_cancelled_and_have_a_status(broker):
    """Soonest first."""
    late = broker.enqueue(nothing.options(delay=60), 1)
    soon = broker.enqueue(nothing.options(delay=30), 2)
    now = broker.enqueue(nothing, 3)
    assert [one.task_id for one in broker.scheduled()] == [soon.task_id, late.task_id]
    assert [one.task_id for one in broker.scheduled(limit=1)] == [soon.task_id]
    assert (late.status(), now.status()) == (Status.DELAYED, Status.QUEUED)
    assert soon.cancel()
    assert broker.cancel(now.task_id)
    assert not broker.cancel("nobody")
    assert [one.task_id for one in broker.scheduled()] == [late.task_id]


def test_a_workflow_runs_to_its_end(server, broker, backend):
    """A chain, and a group whose results come as a list."""
    with working(server.url, *ALL, backend=backend):
        chain = broker.start(double.call(1).then(step(add, second=5)))
        assert chain.result(timeout=10) == 7
        both = broker.start(group(double.call(1), double.call(2)), workflow_id="both")
        assert both.result(timeout=10) == [2, 4]
        again = broker.start(group(double.call(1), double.call(2)), workflow_id="both")
        assert (both.fresh, again.fresh, again.workflow_id) == (True, False, "both")
        assert [handle.result(10) for handle in again.steps] == [2, 4]
    assert broker.start(double.call(1).then(step(add, second=5))).cancel()


# --- results --------------------------------------------------------------------------------------


def test_failures_and_times_that_run_out_are_those_of_the_async_broker(server, broker, backend):
    """And nothing is waited for beyond the timeout."""
    handle = broker.enqueue(double, 1)
    begun = time.monotonic()
    with pytest.raises(ResultTimeoutError):
        handle.result(timeout=0.2)
    with pytest.raises(ResultTimeoutError) as caught:
        broker.gather(handle, broker.enqueue(double, 2), timeout=0.2)
    assert len(caught.value.missing) == 2
    assert time.monotonic() - begun < 2
    with pytest.raises(ResultNotKeptError):
        broker.enqueue(nothing).result(timeout=1)
    with working(server.url, *ALL, backend=backend):
        bad = broker.enqueue(refuse, "no good")
        with pytest.raises(TaskFailedError, match="no good"):
            bad.result(timeout=10)
        with pytest.raises(TaskFailedError):
            broker.gather(handle, bad, timeout=10)
        one, failure = broker.gather(handle, bad, timeout=10, return_exceptions=True)
        assert (one, type(failure)) == (2, TaskFailedError)
        assert bad.status() is Status.FAILED


def test_tasks_are_yielded_as_they_complete(server, broker, backend):
    """The loop may be left early, and the next one works."""
    with working(server.url, *ALL, backend=backend):
        handles = [broker.enqueue(steps, 3), broker.enqueue(double, 2)]
        assert [handle.result() for handle in broker.as_completed(*handles, timeout=10)] == [4, "done"]
        for handle in broker.as_completed(*handles, timeout=10):
            assert handle.result() in (4, "done")
            break
        assert list(broker.as_completed()) == []


def test_progress_is_watched(server, broker, backend):
    """Each report, until the end."""
    with working(server.url, *ALL, backend=backend):
        handle = broker.enqueue(steps, 4)
        seen = [progress.done for progress in handle.watch(timeout=10)]
        assert seen == sorted(seen)
        assert seen[-1] == 4.0
        assert handle.progress().done == 4.0
        assert handle.result(5) == "done"
    assert broker.enqueue(nothing).progress() is None


def test_a_connection_that_waited_is_used_again(real_server, backend):
    """A wait unsubscribes: the number of connections is that of the threads."""
    with SyncBroker(real_server.url) as broker, working(real_server.url, *ALL, backend=backend):
        before = real_server.command("INFO", "stats")
        for number in range(20):
            assert broker.enqueue(double, number).result(10) == 2 * number
            assert broker.client.get("nothing") is None
        made = _accepted(real_server.command("INFO", "stats")) - _accepted(before)
    assert made < 8  # two of the broker, a few of the worker, and those of this test


def _accepted(info: bytes) -> int:
    return int(info.decode().split("total_connections_received:")[1].split()[0])


def test_a_result_that_was_not_published_is_found(server, broker, monkeypatch):
    """By a look at the key, as the async broker does."""
    monkeypatch.setattr("streamq.sync.waiters.LOOK_EVERY", 0.1)
    handle = broker.enqueue(double, 4)
    threading.Timer(0.25, server.command, ("SET", broker.keys.result(handle.task_id), '{"ok":8}')).start()
    assert handle.result(timeout=5) == 8


# --- operating ------------------------------------------------------------------------------------


def test_dead_letters_are_read_replayed_and_removed(server, broker, backend):
    """And followed as they come."""
    letters = broker.dead_letter_queue()
    tailing = letters.tail(after="0-0")
    with working(server.url, *ALL, backend=backend):
        ids = [broker.enqueue(refuse, f"no {number}").task_id for number in range(3)]
        found = {next(tailing).task_id for _ in ids}
        assert found == set(ids)
    tailing.close()
    assert letters.size() == 3
    assert {letter.error for letter in letters.peek(oldest_first=True)} == {"no 0", "no 1", "no 2"}
    assert letters.find(ids[1]).task_name == "refuse"
    with pytest.raises(DeadLetterNotFoundError):
        letters.find("nobody")
    with pytest.raises(ConfigurationError):
        letters.replay(task_id=ids[0], limit=1)
    assert broker.handle(letters.replay(task_id=ids[0])).status() is Status.QUEUED
    assert len(letters.replay(task_name="refuse", limit=1)) == 1
    assert (letters.purge(reason="expired"), letters.purge(), letters.size()) == (0, 1, 0)
    assert broker.monitor(window=30).snapshot().depth == 2


def test_schedules_are_kept(broker):
    """Stored, listed, removed."""
    broker.schedule("nightly", "0 3 * * *", nothing.call(1))
    assert [one.name for one in broker.schedules()] == ["nightly"]
    assert broker.unschedule("nightly")
    assert not broker.unschedule("nightly")
    assert (broker.is_duplicate("once"), broker.is_duplicate("once")) == (False, True)


def test_redis_py_s_commands_block(broker):
    """With its names, arguments, replies and errors; scripts, and transactions too."""
    from redis.exceptions import DataError, ResponseError

    client = broker.client
    assert client.set("greeting", "hello", ex=60) is True
    assert client.get("greeting") == b"hello"
    with pytest.raises(ResponseError):
        client.incr("greeting")
    with pytest.raises(DataError):
        client.execute_command("SUBSCRIBE", "x")
    with client.pipeline() as pipe:
        pipe.incr("n")
        pipe.incr("n")
        assert pipe.execute() == [1, 2]
    add = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert client.command(*add.command(["n"], [40])) == 42
    assert client.call([("GET", "n"), ("LPUSH", "n", "x")])[0] == b"42"


# --- threads and ends -----------------------------------------------------------------------------


def test_any_number_of_threads_send(server, broker):
    """Each task once, with the connections that were needed."""
    with ThreadPoolExecutor(8) as threads:
        handles = list(threads.map(lambda number: broker.enqueue(nothing, number), range(400)))
    assert len({handle.task_id for handle in handles}) == 400
    assert broker.monitor().snapshot().depth == 400


def test_it_opens_at_the_first_call_and_not_before():
    """A module may make it where no server is; a wrong address is an error of the first call, at once."""
    with SyncBroker("redis://127.0.0.1:1") as broker:
        assert "open" in repr(broker)
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailableError, match=r"no connection to 127\.0\.0\.1:1"):
            broker.enqueue(nothing)
        assert time.monotonic() - begun < 2
    with pytest.raises(ConfigurationError):
        SyncBroker("http://nowhere")
    assert "not used yet" in repr(SyncBroker("redis://127.0.0.1:1"))


def test_a_closed_broker_says_so(broker):
    """To every later call; to close it again is no error."""
    handle = broker.enqueue(double, 1)
    broker.close()
    broker.close()
    for call in (lambda: broker.enqueue(double, 1), lambda: broker.client, lambda: broker.handle("x")):
        with pytest.raises(NotOpenError, match="make another"):
            call()
    with pytest.raises(BrokerUnavailableError):
        handle.result(timeout=1)
    assert "closed" in repr(broker)


def test_closing_ends_the_waits_of_other_threads(server):
    """At once, with an error that says why."""
    broker = SyncBroker(server.url)
    handle = broker.enqueue(double, 1)
    with ThreadPoolExecutor(2) as threads:
        waits = [threads.submit(handle.result), threads.submit(next, broker.dead_letter_queue().tail(after="0-0"))]
        time.sleep(0.3)
        begun = time.monotonic()
        broker.close()
        assert isinstance(waits[0].exception(5), BrokerUnavailableError)
        assert waits[1].exception(5) is not None
    assert time.monotonic() - begun < 2


def test_it_is_refused_in_a_running_event_loop(server, broker, backend):
    """Every call, with the remedy; in a thread of the same program it works."""
    letters, handle = broker.dead_letter_queue(), broker.enqueue(double, 1)
    calls = [
        lambda: broker.enqueue(nothing), lambda: broker.enqueue_many([nothing.call()]), lambda: broker.handle("x"),
        lambda: broker.client, letters.size, handle.result, handle.cancel,
        lambda: next(broker.scheduled()), lambda: broker.gather(handle), broker.monitor,
    ]  # fmt: skip

    async def main() -> None:
        for call in calls:
            with pytest.raises(SyncCallError, match="RedisBroker"):
                call()
        assert (await anyio.to_thread.run_sync(broker.enqueue, nothing)).fresh

    anyio.run(main, backend=backend)
    assert broker.monitor().snapshot().depth == 2


def test_a_sync_handler_sends_through_it(server, broker, backend):
    """The loop of its worker runs in another thread."""

    @task(result_ttl=60)
    def outer(number: int) -> str:
        return broker.enqueue(double, number).task_id

    with working(server.url, double, outer, backend=backend):
        inner = broker.enqueue(outer, 21).result(timeout=10)
        assert broker.handle(inner, task=double).result(timeout=10) == 42


def test_it_has_the_settings_of_its_queue(server):
    """Namespace, group, tiers: a second one reads what it writes."""
    options = {"namespace": "shop", "group": "mailers", "tiers": [Tier("only")]}
    with SyncBroker(server.url, **options) as broker, SyncBroker(server.url, **options) as other:
        broker.enqueue(nothing)
        assert (other.monitor().snapshot().depth, [tier.name for tier in other.tiers]) == (1, ["only"])
        assert server.keys() == [broker.keys.tiers[0].stream]
