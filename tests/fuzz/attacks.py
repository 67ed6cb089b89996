"""The attacks: each takes one kind of thing that comes from outside, and makes rubbish of it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import fields as fields_of
from importlib.resources import files
from typing import Any

import anyio
import orjson

from streamq import DeadLetterBound, Options, RedisBroker, TaskRef, Tier, Worker, batch_task, task
from streamq import middleware as middlewares
from streamq.dead_letter import DeadLetterQueue
from streamq.monitoring import QueueMonitor
from streamq.queue.delayed import promote
from streamq.queue.schedules import ScheduleDefinition, register, tick_command
from streamq.scripts import step
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys, TierKeys
from streamq.wire.message import Message
from tests.fuzz import rubbish
from tests.fuzz.world import USER, World, send_good
from tests.servers import RealServer

Attack = Callable[[World], Awaitable[None]]
ATTACKS: dict[str, Attack] = {}
# Keys that hold the tasks themselves: who replaces one destroys tasks. These get rubbish in their own type.
TASKS = ("stream", "delayed", "messages", "dead")
MESSAGE_FIELDS = (
    *(("id" if field.name == "task_id" else field.name) for field in fields_of(Message)),
    "attempt", "starts", "group", "unknown_since", "then", "sig", "rubbish", "dedup_ttl",
)  # fmt: skip


def attack(function: Attack) -> Attack:
    """Register an attack under its function's name."""
    ATTACKS[function.__name__] = function
    return function


# --- keys -----------------------------------------------------------------------------------------


def all_keys(world: World) -> dict[str, str]:
    """Return a key of each family that `wire/keys.py` can build: by the name of what builds it."""
    keys, found = world.producer.keys, {}
    for name in TierKeys.__dataclass_fields__:
        found[name] = getattr(world.random.choice(keys.tiers), name)
    for name, member in vars(Keys).items():
        if isinstance(member, property):
            found[name] = getattr(keys, name)
        elif inspect.isfunction(member) and not name.startswith("_") and name != "retry_member":
            argument = 1_800_000_000.0 if name == "stats" else world.random.choice(("good", "x", "a.1", "é"))
            found[name] = getattr(keys, name)(argument)
    found["now"] = keys.stats(anyio.current_time())
    found.pop("wake")
    return found


def foreign(world: World, key: str) -> None:
    """Write a value of a random type to a key."""
    some = [rubbish.raw(world.random) or b"x" for _ in range(world.random.randrange(1, 6))]
    world.command("DEL", key)
    match world.random.choice(("string", "list", "set", "hash", "zset", "stream")):
        case "string":
            world.command("SET", key, some[0])
        case "list":
            world.command("RPUSH", key, *some)
        case "set":
            world.command("SADD", key, *some)
        case "hash":
            world.command("HSET", key, *(part for one in some for part in (one, rubbish.raw(world.random))))
        case "zset":
            for one in some:
                world.command("ZADD", key, world.random.choice(("inf", "-inf", "1e308", "0", "-5")), one)
        case "stream":
            world.command("XADD", key, "*", *(part for one in some for part in (one, one)))


def in_its_type(world: World, key: str) -> None:
    """Add rubbish to a key that holds tasks, in the type that it has."""
    some = [rubbish.raw(world.random) or b"x" for _ in range(world.random.randrange(1, 5))]
    if key.endswith(":messages"):
        world.command("HSET", key, *(part for one in some for part in (one, rubbish.raw(world.random))))
    elif key.endswith(":delayed"):
        for one in some:
            world.command("ZADD", key, world.random.choice(("inf", "-inf", "1e308", "0", "-5", "1")), one)
    else:
        world.command("XADD", key, "*", *(part for one in some for part in (one, one)))


@attack
async def keys(world: World) -> None:
    """Each key of docs/wire-format.md gets another type, or rubbish in its own."""
    found = all_keys(world)
    for name in world.random.sample(sorted(found), k=min(8, len(found))):
        key = found[name]
        world.note(f"key {key}")
        if name in TASKS:
            in_its_type(world, key)
        else:
            world.lossy = True
            foreign(world, key)
            world.heals.append(lambda key=key: world.command("DEL", key))
        await anyio.sleep(world.random.choice((0, 0.02, 0.1)))
    await send_good(world, 5)
    await anyio.sleep(0.4)


@attack
async def missing_keys(world: World) -> None:
    """Keys that workers write are deleted while they use them; the tasks themselves stay."""
    for _ in range(10):
        name, key = world.random.choice(sorted(all_keys(world).items()))
        if name not in TASKS and name != "join":
            world.note(f"DEL {key}")
            world.command("DEL", key)
        await anyio.sleep(0.02)


# --- messages ------------------------------------------------------------------------------------


def later_steps(world: World) -> bytes:
    """Return a field `then`, more or less."""
    random, names = world.random, [world.producer.keys.dead, f"{world.namespace}:standard", "other:stream", ""]
    fields = ["task", random.choice(("good.plain", "x")), "id", random.choice(("", "w.1"))]
    one: dict[str, Any] = {"send": random.choice(names), "fields": fields, "fed": rubbish.value(random, 3)}
    for name in ("delay", "at", "expires", "keep"):
        if random.random() < 0.4:
            one[name] = rubbish.number(random) if random.random() < 0.7 else rubbish.text(random)
    whole = random.choice(([one], [one, one], [{"group": [[one]], "keep": 1}, one], [{"member": 1, "of": 2}, one], one))
    try:
        return orjson.dumps(whole, default=lambda _: None)
    except TypeError:
        return b"[7]"


@attack
async def messages(world: World) -> None:
    """Entries and delayed messages with every field, in every shape."""
    random = world.random
    tasks = ["good.plain", "good.kept", "hostile.batch", "nobody.knows", "hostile.20"]
    for _ in range(15):
        chosen = {b"task": random.choice(tasks).encode() if random.random() < 0.8 else rubbish.raw(random)}
        if random.random() < 0.8:
            chosen[b"args"] = b"[1]"
        for name in random.sample(MESSAGE_FIELDS, k=random.randrange(1, 5)):
            if name != "task" or random.random() < 0.2:
                chosen[name.encode()] = later_steps(world) if name == "then" else rubbish.raw(random)
        flat = [part for pair in chosen.items() for part in pair]
        world.note(f"message {flat!r}")
        keys = random.choice(world.producer.keys.tiers)
        if random.random() < 0.7:
            world.command("XADD", keys.stream, "*", *flat)
        else:
            member = rubbish.raw(random) or b"m"
            packed = orjson.dumps([part.decode(errors="replace") for part in flat])
            world.command("HSET", keys.messages, member, packed if random.random() < 0.7 else rubbish.raw(random))
            world.command("ZADD", keys.delayed, random.choice((0, 1, -1, "-inf")), member)


# --- what callers give --------------------------------------------------------------------------------


NUMERIC = ("delay", "at", "expires", "retries", "timeout", "result_ttl", "dedup_ttl", "priority", "dedup_window")


@attack
async def options(world: World) -> None:
    """Every public option with any value: refused with an error of ours, or it works."""
    random = world.random
    names = [name for name in Options.__dataclass_fields__ if name != "durable"]
    for _ in range(12):
        given = {name: rubbish.value(random) for name in random.sample(names, k=random.randrange(1, 3))}
        if random.random() < 0.5:
            given = {random.choice(NUMERIC): rubbish.number(random), "dedup_key": "k"}
        args = [rubbish.value(random) for _ in range(random.randrange(2))]
        shown = ", ".join(given)
        made = await world.calls(f"options({shown})", lambda g=given: TaskRef("nobody.knows").options(**g))
        if made is not None:
            await world.calls(f"enqueue({shown})", lambda m=made, a=args: world.producer.enqueue(m, *a), edge=True)


def public_callables() -> dict[str, Any]:
    """Return what users make with arguments."""
    found: dict[str, Any] = {
        "RedisBroker": RedisBroker, "Tier": Tier, "DeadLetterBound": DeadLetterBound, "task": task,
        "batch_task": batch_task,
    }  # fmt: skip
    for name in ("CircuitBreaker", "ConcurrencyLimit", "Idempotency", "RateLimitMiddleware", "MiddlewareChain"):
        found[name] = getattr(middlewares, name)
    return found


@attack
async def constructors(world: World) -> None:
    """Brokers, workers, tasks, middleware, queues of dead letters and monitors, made with any value."""
    random, found = world.random, public_callables()

    async def nothing() -> None: ...

    for _ in range(12):
        name, made = random.choice(sorted(found.items()))
        parameters = [one for one in inspect.signature(made).parameters.values() if one.kind is one.KEYWORD_ONLY]
        names = [one.name for one in parameters if one.name not in ("clock", "uniform")]
        given = {one: rubbish.value(random) for one in random.sample(names, k=min(len(names), random.randrange(1, 3)))}
        needed = [rubbish.value(random) for one in inspect.signature(made).parameters.values()
                  if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]  # fmt: skip
        call: Any = await world.calls(f"{name}({', '.join(given)})", lambda m=made, n=needed, g=given: m(*n, **g))
        if name in ("task", "batch_task") and callable(call):
            await world.calls(f"{name}({', '.join(given)})(f)", lambda c=call: c(nothing))
    names = [one.name for one in inspect.signature(Worker).parameters.values() if one.kind is one.KEYWORD_ONLY]
    given = {one: rubbish.value(random) for one in random.sample(names, k=2) if one != "lifespan"}
    await world.calls(f"Worker({', '.join(given)})", lambda: Worker(world.producer, [], **given))


@attack
async def calls(world: World) -> None:
    """What a broker, a handle, dead letters and a monitor can be asked, with any value."""
    random, broker = world.random, world.producer
    letters, monitor = DeadLetterQueue(broker=broker), QueueMonitor(broker=broker)
    any_value = lambda: rubbish.value(random)  # noqa: E731
    asked: dict[str, Callable[[], Any]] = {
        "handle.status": lambda: broker.handle(any_value()).status(),
        "cancel": lambda: broker.cancel(any_value()),
        "result": lambda: broker.handle(rubbish.text(random)).result(timeout=any_value()),
        "is_duplicate": lambda: broker.is_duplicate(any_value(), any_value()),
        "schedule": lambda: broker.schedule(any_value(), any_value(), TaskRef("nobody.knows")),
        "unschedule": lambda: broker.unschedule(any_value()),
        "schedules": broker.schedules,
        "peek": lambda: letters.peek(count=random.choice((5, any_value()))),
        "find": lambda: letters.find(any_value()),
        "replay": lambda: letters.replay(task_id=any_value(), retries=any_value()),
        "replay all": lambda: letters.replay(task_name=rubbish.text(random), limit=any_value()),
        "purge": lambda: letters.purge(older_than=any_value(), task_name="nobody"),
        "metrics": monitor.snapshot,
    }
    for _ in range(10):
        name, call = random.choice(sorted(asked.items()))
        await world.calls(name, call)


# --- scripts ---------------------------------------------------------------------------------------

SCRIPTS = sorted(
    file.name.removesuffix(".lua")
    for file in files("streamq.scripts").iterdir()
    if file.name.endswith(".lua") and not file.name.startswith("_")
)


@attack
async def scripts(world: World) -> None:
    """Every atomic step, with rubbish: through its callers, and sent as it is."""
    random, store = world.random, world.producer.store
    held = Delivery(0, store.tiers[0].name, b"5-5", [b"task", b"x"])
    number = lambda: random.choice((0.0, 1.0, 1e9))  # noqa: E731
    now = round(time.time() * 1000)
    definition = ScheduleDefinition.parse("fuzz", orjson.dumps(
        {"cron": "* * * * *", "task": "nobody.knows", "stream": store.keys.tiers[0].stream,
         "fields": ["task", "nobody.knows"]}
    ))  # fmt: skip
    commands = store.settle_commands
    callers: list[Callable[[], Any]] = [
        lambda: store.attempt([commands.ack([(0, [b"5-5", b"6-6"])])]),
        lambda: store.attempt([commands.skip("nobody", held)]),
        lambda: store.attempt([commands.postpone("nobody", held, number(), rubbish.raw(random))]),
        lambda: store.attempt([commands.dead_letter("nobody", held, ["a", rubbish.raw(random)])]),
        lambda: store.attempt(commands.release("nobody", 0, [b"5-5"], number())),
        lambda: promote(store, 7),
        lambda: register(store, definition, now) if definition else None,
        lambda: store.attempt([tick_command(store, definition, now, [number()], now)]) if definition else None,
    ]
    for call in random.sample(callers, k=4):
        await world.calls("a step through its caller", call)
    for name in random.sample(SCRIPTS, k=8):
        keys = [f"{world.namespace}:free:{n}" for n in range(len(step(name).keys.split()))]
        arguments = [rubbish.raw(random) for _ in range(random.randrange(9))]
        world.note(f"script {name} {arguments!r}")
        await world.calls(name, lambda n=name, k=keys, a=arguments: store.attempt([step(n)(k, *a)]))


# --- handlers and rights ----------------------------------------------------------------------------


@attack
async def handlers(world: World) -> None:
    """Handlers that raise, return and leave what they must not."""
    names = [name for name in world.worker.tasks if name.startswith("hostile.")]
    for name in world.random.choices(names, k=20):
        given = [world.random.randrange(4)] if name == "hostile.batch" else []
        world.note(f"enqueue {name}")
        await world.calls(name, lambda n=name, g=given: world.producer.enqueue(n, *g))
        if world.random.random() < 0.3:
            await send_good(world, 1)
    await anyio.sleep(0.3)


COMMANDS = (
    "xadd", "xack", "xdel", "zadd", "hset", "hdel", "set", "publish", "xreadgroup", "xclaim", "xautoclaim", "evalsha",
    "xpending", "zrange", "hget", "pexpire", "time", "xinfo", "zrem", "expire", "hincrby", "xgroup",
)  # fmt: skip


@attack
async def rights(world: World) -> None:
    """Rights of the worker's user are taken away for a while: commands, keys, channels."""
    if not isinstance(world.server, RealServer):
        return
    world.lossy = True
    taken = world.random.choice((
        *([f"-{name}"] for name in COMMANDS), ["resetchannels"], ["resetkeys", f"~{world.namespace}:standard*"],
        ["-@write"], [f"-{world.random.choice(COMMANDS)}", f"-{world.random.choice(COMMANDS)}"],
    ))  # fmt: skip
    world.note(f"ACL SETUSER {taken}")
    world.heals.append(lambda: world.command("ACL", "SETUSER", USER, "~*", "&*", "+@all"))
    world.command("ACL", "SETUSER", USER, *taken)
    await send_good(world, 8)
    await anyio.sleep(world.random.choice((0.2, 1.0)))
