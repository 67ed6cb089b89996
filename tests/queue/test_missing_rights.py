"""P11: the error of a missing right names the command, the key that was refused, and the remedy: whoever gets it."""

from __future__ import annotations

import random
import re
import shlex
from contextlib import asynccontextmanager

import pytest

from streamq import Backoff, RedisBroker, TaskRef, Tier, group, task
from streamq.cli.entry import cli
from streamq.cli.server_options import ServerOptions
from streamq.consumer import set_aside, tier_refusals
from streamq.consumer.events import Listeners
from streamq.consumer.outage import Outage
from streamq.doctor import examine
from streamq.errors import BrokerError, NotDurableError
from streamq.middleware import ConcurrencyLimit
from streamq.queue import missing_right
from streamq.queue.missing_right import remedy, with_remedy, without_remedy
from streamq.queue.server_errors import concerns_server
from streamq.scripts import step
from streamq.wire import acl
from streamq.wire.acl import key_names
from streamq.wire.keys import Keys
from streamq.wire.rights import rights_of
from streamq.wire.tiers import DEFAULT_TIERS
from tests.at_work import until, working

pytestmark = [pytest.mark.paired, pytest.mark.slow]

REMEDY = ["NOPERM", "'streamq doctor --role ROLE'", "'streamq acl'"]
PERMISSION = ("permission_missing",)
SEND = TaskRef("send").options(task_id="mine", delay=60)


@asynccontextmanager
async def broker_without(server, *rules, **options):
    """Yield a broker of a user with all rights but those that the rules take."""
    server.command("ACL", "SETUSER", "bob", "reset", "on", ">pa55word", "~*", "&*", "+@all", *rules)
    try:
        async with RedisBroker(server.url.replace("unix://", "unix://bob:pa55word@"), **options) as broker:
            yield broker
    finally:
        server.command("ACL", "DELUSER", "bob")


async def refused(use, broker):
    with pytest.raises(BrokerError) as caught:
        await use(broker)
    return str(caught.value)


# --- which key -------------------------------------------------------------------------------------

KEYS = ("queue:standard", "queue:standard:delayed", "queue:standard:messages", "queue:id:mine")


@pytest.mark.parametrize("key", KEYS)
async def test_of_many_keys_the_refused_one_is_named(real_server, anyio_backend, key):
    """The server does not say which: it is asked."""
    others = [f"~{one}" for one in KEYS if one != key]
    async with broker_without(real_server, "resetkeys", *others) as broker:
        text = await refused(lambda broker: broker.enqueue(SEND), broker)
    assert f"in a script (EVALSHA) on {key}; run" in text
    assert all(one in text for one in REMEDY)


async def test_a_server_that_may_not_be_asked_leaves_doubt(real_server, anyio_backend):
    """Without the right to EVAL all keys of the step are named, as possible ones."""
    async with RedisBroker(real_server.url) as admin:  # the server knows the script from now on
        await admin.enqueue(SEND)
    async with broker_without(real_server, "-eval", "resetkeys", *[f"~{one}" for one in KEYS[:3]]) as broker:
        text = await refused(lambda broker: broker.enqueue(SEND), broker)
    assert f"in a script (EVALSHA) on one of {', '.join(KEYS)}; run" in text


INSIDE = {  # a command that the script calls, and what of its keys that concerns
    "get": ("in a script on queue:id:mine; run", lambda broker: broker.enqueue(SEND)),
    "set": ("may not run 'set' on 'queue:id:mine', in a script; run", lambda broker: broker.enqueue(SEND)),
    "hset": ("may not run 'hset' on 'queue:standard:messages', in a script; run", lambda broker: broker.enqueue(SEND)),
    "zadd": ("in a script on queue:standard:delayed; run", lambda broker: broker.enqueue(SEND)),
}


@pytest.mark.parametrize("command", INSIDE)
async def test_a_command_in_a_script_is_named_with_its_key(real_server, anyio_backend, command):
    """Of the keys of a step, the one that the command is for."""
    named, use = INSIDE[command]
    async with broker_without(real_server, f"-{command}") as broker:
        text = await refused(use, broker)
    assert named in text
    assert command in text.lower()


async def test_a_step_that_swallows_the_line_still_names_its_command(real_server, anyio_backend):
    """`promote` returns the error of a pcall: Redis names neither the command nor its line."""
    real_server.command("ZADD", "queue:standard:delayed", 1, "due")
    real_server.command("HSET", "queue:standard:messages", "due", '["task","send"]')
    async with broker_without(real_server, "-xadd") as broker, working(broker, send) as worker:
        await until(lambda: any("promoting to queue:standard" in line for line in worker.health.refused))
        (text,) = [line for line in worker.health.refused if "promoting to queue:standard" in line]
    assert "XADD" in text.upper()
    assert "on queue:standard; run" in text


# --- whoever asks ----------------------------------------------------------------------------------


@task(result_ttl=60)
async def send() -> None: ...


async def sent(broker):
    return await broker.enqueue(send.options(dedup_key="k"))


async def with_handle(broker, what):
    return await getattr(broker.handle("other"), what)()


async def watched(broker):
    return [one async for one in broker.handle("other").watch(timeout=1)]


async def listed(broker):
    return [one async for one in broker.scheduled()]


ASKED = {
    "status, hmget": ("-hmget", "HMGET on queue:", lambda broker: with_handle(broker, "status")),
    "status, get": ("-get", "GET on queue:result:other", lambda broker: with_handle(broker, "status")),
    "status, xrange": ("-xrange", "XRANGE), in a script on queue:", lambda broker: with_handle(broker, "status")),
    "cancel": ("-hmget", "HMGET on queue:", lambda broker: with_handle(broker, "cancel")),
    "cancel, hscan": ("-hscan", "HSCAN on queue:", lambda broker: with_handle(broker, "cancel")),
    "broker.cancel": ("-hmget", "HMGET on queue:", lambda broker: broker.cancel("other")),
    "progress": ("-get", "GET on queue:progress:other", lambda broker: with_handle(broker, "progress")),
    "result": ("-mget", "MGET on queue:result:other", lambda broker: with_handle(broker, "result")),
    "watch": ("-mget", "MGET on queue:", watched),
    "scheduled": ("-zrangebyscore", "ZRANGEBYSCORE on queue:", listed),
    "schedules": ("-hgetall", "HGETALL on queue:schedules", lambda broker: broker.schedules()),
    "schedule": ("-hset", "HSET), in a script on queue:schedules", lambda b: b.schedule("n", "* * * * *", "send")),
    "unschedule": ("-hexists", "in a script, HEXISTS on queue:schedules", lambda broker: broker.unschedule("n")),
    "is_duplicate": ("-set", "SET on queue:seen:x", lambda broker: broker.is_duplicate("x")),
    "start": ("-xadd", "'xadd' on 'queue:standard'", lambda broker: broker.start(group(send.call()).then("send"))),
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
async def test_each_call_of_a_producer_names_what_it_lacks(real_server, anyio_backend, what):
    """Command, key and remedy, with the code of the server. No password."""
    rule, named, use = ASKED[what]
    async with broker_without(real_server, rule) as broker:
        text = await refused(use, broker)
    assert named in text
    assert all(one in text for one in REMEDY)
    assert "pa55word" not in text


@pytest.mark.parametrize("what", ["status", "cancel"])
async def test_what_cannot_be_asked_is_not_made_up(real_server, anyio_backend, what):
    """A task that may run is not said to wait: without XPENDING nobody knows."""
    async with broker_without(real_server, "-xpending") as broker:
        handle = await sent(broker)
        text = await refused(lambda _: getattr(handle, what)(), broker)
    assert "XPENDING on queue:standard" in text


async def test_an_unconfirmed_enqueue_names_the_right_to_wait(real_server, anyio_backend):
    """The task was accepted; what is missing is named all the same."""
    async with broker_without(real_server, "-wait") as broker:
        with pytest.raises(NotDurableError, match="in WAIT; run 'streamq doctor --role"):
            await broker.enqueue(send.options(durable="replica"))


async def test_a_refused_settlement_names_its_key(real_server, anyio_backend, monkeypatch):
    """In the health of the worker."""
    monkeypatch.setattr(set_aside, "_PAUSE", Backoff(base=0.02, cap=0.1))
    monkeypatch.setattr(tier_refusals, "_PAUSE", Backoff(base=0.02, cap=0.1))
    keys = ("queue:standard*", "queue:critical*", "queue:bulk*", "queue:stats:*", "queue:schedules", "queue:tick*")
    allowed = [f"~{key}" for key in keys]
    async with broker_without(real_server, "resetkeys", *allowed) as broker, working(broker, send) as worker:
        handle = await broker.enqueue(send)
        key = f"in a script (EVALSHA) on queue:result:{handle.task_id}; run"
        await until(lambda: any(key in line for line in worker.health.refused))
        real_server.command("ACL", "SETUSER", "bob", "~*")
        await handle.result(timeout=10)


# --- of which queue --------------------------------------------------------------------------------

QUEUES = {
    "--namespace {shop} --group mail": {"namespace": "{shop}", "group": "mail"},
    "--tiers now,later": {"tiers": [Tier("now", threshold=1), Tier("later")]},
    "--queue mail:out": {"queue_name": "mail:out"},
}


@pytest.mark.parametrize("options", QUEUES)
async def test_the_remedy_is_about_the_queue_that_was_refused(real_server, anyio_backend, options):
    """As it is printed, the doctor examines this queue, finds the missing right, and grants no right to another one."""
    async with broker_without(real_server, "-xadd", **QUEUES[options]) as broker:
        text = await refused(lambda broker: broker.enqueue("send", 1), broker)
        ask = re.search(r"run (['\"])streamq doctor (.*?)\1 as this user", text)
        words = shlex.split(ask[2].replace("ROLE", "producer"))
        assert words == ["--role", "producer", *options.split()]
        assert "'streamq acl' with the same options prints" in text
        with cli.commands["doctor"].make_context(
            "doctor", words, parent=cli.make_context("streamq", ["doctor"])
        ) as context:
            given = {name: context.params[name] for name in ("namespace", "group", "queue", "tiers")}
        async with ServerOptions(url=broker.url, **given).broker() as same:
            (finding,) = [one for one in (await examine(same, role="producer")).findings if one.code in PERMISSION]
        assert finding.evidence["rules"] == ["+xadd"]


async def test_tiers_that_were_forgotten(real_server, anyio_backend):
    """A key of the default tiers is refused to who forgot those of its own; no other right hints at them."""
    hint = "if this queue has tiers of its own, name them: --tiers NAME,... (STREAMQ_TIERS), in a program RedisBroker("
    own = {"tiers": [Tier("now", threshold=1), Tier("later")]}
    for rules, options, hinted in (
        (("resetkeys", "~queue:now*", "~queue:id:*"), {}, True),
        (("resetkeys", "~queue:later*"), own, False),
        (("-xadd",), {}, False),
    ):
        async with broker_without(real_server, *rules, **options) as broker:
            text = await refused(lambda broker: broker.enqueue("send", 1), broker)
            assert (hint in text) == hinted, text
            assert without_remedy(text) == text.partition("; run ")[0]
            real_server.command("ACL", "SETUSER", "bob", "+@all")
            if "-xadd" not in rules:
                text = await refused(lambda broker: broker.enqueue("send", 1, delay=60), broker)
                assert (hint in text) == hinted, text


async def test_a_worker_says_it_as_well(real_server, anyio_backend):
    """What is refused to a loop, to a settlement and to middleware, and the dead letter of a settlement."""
    limited = broker_without(real_server, namespace="shop", group="mail")
    async with limited as broker, working(broker, send) as worker:
        real_server.command("ACL", "SETUSER", "bob", "-xreadgroup")
        real_server.command("XADD", "shop:standard", "*", "task", "send")
        await until(lambda: worker.health.refused)
        assert all("--role worker --namespace shop --group mail' as" in line for line in worker.health.refused)
    outage = Outage("w", Listeners(), random.Random(7), broker.server_clock, broker.keys)
    outage.lacks("wake", BrokerError("may not", code="NOPERM"), "late")
    outage.note_refused("it", BrokerError("may not", code="NOPERM"))
    assert [line.count("--namespace shop --group mail") for line in outage.refused] == [1, 1]
    text = "why; " + remedy("worker", ("--namespace", "{a}"))
    assert without_remedy(text) == "why"
    assert with_remedy(text, "NOPERM") == text


async def test_a_user_without_the_database_of_its_url(real_server, anyio_backend):
    """It is a missing right: the doctor says so, too, with what gives it."""
    real_server.command("ACL", "SETUSER", "bob", "reset", "on", ">pa55word", "~*", "&*", "+@all", "-select")
    url = real_server.url.replace("unix://", "unix://bob:pa55word@") + "?db=3"
    try:
        async with RedisBroker(url, namespace="shop") as broker:
            text = await refused(lambda broker: broker.enqueue("send"), broker)
            (finding,) = (await examine(broker, role="producer")).findings
            with pytest.raises(BrokerError) as caught:
                await broker.enqueue("send")
            assert concerns_server(caught.value)
            real_server.command("ACL", "SETUSER", "bob", "+select")
            await broker.enqueue("send")
    finally:
        real_server.command("ACL", "DELUSER", "bob")
    assert "the user 'bob' may not choose database 3" in text
    assert "NOPERM" in text
    assert "it lacks the right +select; redis-cli ACL SETUSER bob +select, or rules by 'streamq acl'" in text
    assert "CONFIG" not in text
    assert (finding.code, finding.evidence["missing"]) == ("permission_missing", ["+select"])
    assert finding.remedy.startswith("redis-cli ACL SETUSER bob +select, and run this again")
    assert finding.remedy.endswith("streamq acl --role producer --user bob --url redis://localhost/3 --namespace shop")
    assert "pa55word" not in f"{text}{finding}"


@pytest.mark.parametrize("right", ["-publish", "-subscribe"])
async def test_a_limit_goes_on_without_the_channel(real_server, anyio_backend, right):
    """A permit is kept for a waiter for 2 s, so its worker must look for it sooner."""
    ran = []

    @task(middleware=[ConcurrencyLimit(2)])
    async def convert(number: int) -> None:
        ran.append(number)

    async with broker_without(real_server, right) as broker, working(broker, convert):
        await broker.enqueue_many([convert.call(number) for number in range(10)])
        await until(lambda: len(ran) == 10, 12.0)


def test_hundreds_of_refusals_are_explained_at_the_price_of_one(monkeypatch):
    """The table of rights is read once for a command, not once for each settlement that lacks it."""
    read = []
    monkeypatch.setattr(missing_right, "rights_of", lambda roles: read.append(roles) or rights_of(roles))
    monkeypatch.setattr(acl, "key_names", lambda *args: read.append(args) or key_names(*args))
    keys = Keys.of("priced", "workers", DEFAULT_TIERS)
    script = step("ack_side_effects")
    error = BrokerError("The user executing the script can't run this command or subcommand", code="NOPERM")
    for number in range(300):
        tier = keys.tiers[0]
        command = script([tier.stream, tier.delayed, keys.result(str(number))], number)
        assert missing_right.suspects(error, command, keys)
    assert len(read) < 150
