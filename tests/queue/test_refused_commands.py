"""What a refused command is about: the server, the command alone, its script's command, its key."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

import pytest

from streamq import RedisBroker, TaskRef, once, task
from streamq.cli.usage_errors import from_streamq_error
from streamq.dead_letter import DeadLetterQueue
from streamq.doctor.read_keys import TYPES
from streamq.errors import BrokerError
from streamq.monitoring import QueueMonitor
from streamq.queue.refused_command import ask_types, keys_of, said, wrong_key, wrong_keys
from streamq.queue.server_errors import UNPACKABLE, concerns_server, is_final
from streamq.scripts import step
from streamq.wire.keys import Keys
from streamq.wire.tiers import Tier
from tests.at_work import burst
from tests.servers import REAL_KINDS, RealServer


@pytest.mark.parametrize(
    ("code", "server", "final"),
    [
        *((code, True, False) for code in ("UNAVAILABLE", "UNKNOWN", "LOADING", "READONLY", "MISCONF", "BUSY")),
        *((code, False, False) for code in ("OOM", "NOGROUP")),
        *((code, False, True) for code in ("WRONGTYPE", "NOPERM", "ERR", UNPACKABLE, "SOMETHINGNEW")),
    ],
)
def test_what_passes_and_what_does_not(code, server, final):
    """Everything waits for the server; a refusal of its own is counted."""
    error = BrokerError("x", code=code)
    assert (concerns_server(error), is_final(error)) == (server, final)


async def test_a_command_that_cannot_be_packed_takes_no_other_with_it(server):
    """Lone surrogates, values of another type: their errors stand in their places."""
    async with RedisBroker(server.url) as broker:
        wrong = [("SET", "a", "\ud800"), ("SET", "b", object()), ()]
        replies = await broker.store.attempt([("SET", "before", "1"), *wrong, ("SET", "after", "1")])
        assert [getattr(reply, "code", reply) for reply in replies] == [b"OK", *[UNPACKABLE] * 3, b"OK"]
        assert isinstance((await broker.store.attempt([wrong[0]]))[0], BrokerError)


LACKING = {
    "a command": (["-xadd"], ["XADD on queue:standard"], lambda broker: broker.enqueue("send", "s3cret")),
    "a command in a script": (
        ["-set"], ["'set' on 'queue:id:mine', in a script;"],
        lambda broker: broker.enqueue(TaskRef("send").options(task_id="mine"), "s3cret"),
    ),
    "a key": (["resetkeys", "~queue:bulk"], ["queue:standard"], lambda broker: broker.enqueue("send", "s3cret")),
    "a figure": (["-xlen"], ["XLEN on queue:"], lambda broker: QueueMonitor(broker=broker).snapshot()),
    "a dead letter": (
        ["-xrevrange"], ["XREVRANGE on queue:dead"], lambda broker: DeadLetterQueue(broker=broker).peek()
    ),
    "a group": (["-xgroup"], ["XGROUP CREATE on queue:"], lambda broker: broker.store.ensure_groups()),
}  # fmt: skip


ANY_ROLE = "(ROLE is producer, worker, monitor or operator)"


@pytest.mark.parametrize("what", LACKING)
async def test_a_missing_right_names_what_was_refused_and_the_remedy(real_server, anyio_backend, what):
    """The command, its keys, and what to do; no argument, no password, no address."""
    rules, named, use = LACKING[what]
    real_server.command("ACL", "SETUSER", "bob", "reset", "on", ">pa55word", "~*", "&*", "+@all", *rules)
    try:
        async with RedisBroker(real_server.url.replace("unix://", "unix://bob:pa55word@")) as broker:
            with pytest.raises(BrokerError) as caught:
                await use(broker)
    finally:
        real_server.command("ACL", "DELUSER", "bob")
    text = str(caught.value)
    assert caught.value.code == "NOPERM"
    assert all(one in text for one in [*named, "'streamq doctor --role ROLE'", ANY_ROLE, "'streamq acl'"]), text
    assert not any(secret in text for secret in ("s3cret", "pa55word", "unix:", "user_script")), text


@pytest.mark.parametrize("kind", REAL_KINDS)
@pytest.mark.parametrize("command", ["TIME", "XADD", "ZADD", "HSET", "EVALSHA"])
async def test_a_command_that_the_server_does_not_have_is_named(kind, command):
    """Its operator renamed it. The server's own text names none of a script, and all arguments of a command."""

    async def send(broker: RedisBroker) -> None:
        await broker.enqueue(TaskRef("send").options(delay=60, task_id="mine"), "s3cret")
        await broker.enqueue(TaskRef("send"), "s3cret")

    with contextlib.closing(RealServer(kind, "--rename-command", command, "")) as server:
        async with RedisBroker(server.url) as broker:
            with pytest.raises(BrokerError, match=f"^this server has no command {command}: it was renamed or disabled"):
                await send(broker)


async def test_the_command_and_the_key_are_named(server):
    """The line of the script says which command was refused; the types of its keys, which key is to blame."""
    server.command("SET", "queue:standard:messages", "of somebody else")
    command = step("promote")(("queue:standard", "queue:standard:delayed", "queue:standard:messages"), 100)
    server.command("ZADD", "queue:standard:delayed", 1, "due")
    async with RedisBroker(server.url) as broker:
        (error,) = await broker.store.attempt([command])
        text = said(error, command)
        assert text.startswith("WRONGTYPE")
        assert "user_script" not in text
        names = keys_of(command)
        found = wrong_keys(names, await broker.store.attempt(ask_types(names)), "queue")
    assert found == "the key 'queue:standard:messages' is a string, no hash"


def test_every_key_has_its_type(anyio_backend):
    """As the doctor knows them: the name of a key tells its type."""
    keys = Keys.of("n", "g", [Tier("t")])
    names = asdict(keys.tiers[0])
    for kind, member in vars(Keys).items():
        if kind in TYPES:
            name_of = getattr(keys, kind)
            names[kind] = name_of if isinstance(member, property) else name_of(0)
    assert names.keys() == TYPES.keys()
    words = {"zset": "sorted set"}
    for kind, name in names.items():
        assert wrong_key(name, "n") == f"the key {name!r} is no {words.get(TYPES[kind], TYPES[kind])}"


@task
async def charge() -> None:
    async with once("order-1"):
        pass


OF_OTHERS = {
    "a stream": ("queue:standard", lambda broker: broker.enqueue("send"), "the key 'queue:standard' is no stream"),
    "a script": (
        "queue:standard:messages", lambda broker: broker.enqueue(TaskRef("send").options(delay=60)),
        "the key 'queue:standard:messages' is a string, no hash",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OF_OTHERS)
async def test_a_key_of_another_type_is_named(server, anyio_backend, what):
    """With the remedy, and without what only the server's author understands."""
    name, use, words = OF_OTHERS[what]
    server.command("SET", name, "of somebody else")
    async with RedisBroker(server.url) as broker:
        with pytest.raises(BrokerError) as caught:
            await use(broker)
    server.command("DEL", name)
    text = str(caught.value)
    assert caught.value.code == "WRONGTYPE"
    assert f": {words}; another program uses that name: rename its key, or choose another namespace" in text
    assert "script" not in text
    assert ".;" not in text


async def test_the_dead_letter_of_an_effect_names_its_key(server, anyio_backend):
    """`once` in a handler: the error of the run says which key another program uses."""
    server.command("SET", "queue:once:order-1", "of somebody else")
    async with RedisBroker(server.url) as broker:
        await broker.enqueue(charge.options(retries=0))
        await burst(broker, charge)
        (letter,) = await DeadLetterQueue(broker=broker).peek()
    server.command("DEL", "queue:once:order-1")
    assert "the key 'queue:once:order-1' is no hash; another program uses that name" in letter.error
    assert "script:" not in letter.error


@pytest.mark.parametrize("task_id", [None, "mine"])
async def test_a_full_server_says_what_to_do(real_server, anyio_backend, task_id):
    """In Python as on the command line, for a plain command and for a script."""
    real_server.command("CONFIG", "SET", "maxmemory", "1")
    try:
        async with RedisBroker(real_server.url) as broker:
            with pytest.raises(BrokerError) as caught:
                await broker.enqueue(TaskRef("send").options(task_id=task_id))
    finally:
        real_server.command("CONFIG", "SET", "maxmemory", "0")
    assert caught.value.code == "OOM"
    assert str(caught.value).count("run more workers (streamq worker), or raise the limit") == 1
    assert ".;" not in str(caught.value)
    assert "user_script" not in str(caught.value)
    assert from_streamq_error(caught.value).format_message() == str(caught.value)
