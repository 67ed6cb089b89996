"""Plays rounds: chooses the attacks of a round by its seed, and returns what was found."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import anyio

from streamq.errors import BrokerError
from tests.fuzz import letters  # noqa: F401 - registers its attack
from tests.fuzz.attacks import ATTACKS
from tests.fuzz.world import Lines, judge, opened, send_good
from tests.servers import TestServer


@dataclass(frozen=True, slots=True)
class Result:
    """What one round found, and how to play it again."""

    seed: int
    round: int
    attacks: tuple[str, ...]
    findings: tuple[str, ...]
    actions: tuple[str, ...]
    good: int

    def __str__(self) -> str:
        shown = "\n".join(f"    {finding}" for finding in self.findings)
        done = "\n".join(f"      {action}" for action in self.actions[-25:])
        return f"seed {self.seed} round {self.round} ({', '.join(self.attacks)}):\n{shown}\n    after:\n{done}"


async def play(server: TestServer, seed: int, number: int, only: Sequence[str] = ()) -> Result:
    """Play one round. `only` are the attacks to choose from, all of them if it is empty."""
    random = Random(f"{seed}:{number}")
    chosen = random.sample(sorted(only or ATTACKS), k=min(len(only or ATTACKS), random.choice((1, 1, 2, 3))))
    lines, logger = Lines(), logging.getLogger("streamq")
    server.flush()
    logger.addHandler(lines)
    logger.propagate = False
    filters = warnings.filters[:]
    warnings.simplefilter("ignore")
    try:
        async with opened(server, random, f"fuzz{number}", lines) as world:
            await send_good(world, 10)
            for name in chosen:
                world.note(f"-- {name}")
                with anyio.move_on_after(10), suppress(BrokerError):  # the attack was refused on its way
                    await ATTACKS[name](world)
                await send_good(world, 6)
            await judge(world, lines)
    finally:
        logger.removeHandler(lines)
        logger.propagate = True
        warnings.filters[:] = filters  # type: ignore[index]
    return Result(seed, number, tuple(chosen), tuple(world.findings), tuple(world.actions), len(world.accepted))
