"""`memory://` replies as real servers do: called directly, from scripts and in transactions."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import hiredis
import pytest

from tests.embedded.parity import SCENARIOS, SCRIPTS, Step
from tests.servers import InProcess

if TYPE_CHECKING:
    from tests.servers import RealServer

VIA = {
    "direct": (),
    "script": ("EVAL", "return redis.pcall(unpack(ARGV))", "0"),
}


@pytest.fixture
def memory() -> Any:
    server = InProcess()
    yield server
    server.close()


@pytest.mark.parametrize("via", VIA)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_replies_are_those_of_a_real_server(
    memory: InProcess, real_server: RealServer, scenario: str, via: str
) -> None:
    """Every step of the table gets the same reply."""
    wrong = []
    for number, step in enumerate(SCENARIOS[scenario]):
        arguments = (*VIA[via], *step.command)
        ours, theirs = memory.command(*arguments), real_server.command(*arguments)
        if not same(step, ours, theirs):
            wrong.append(f"{number}: {' '.join(step.command)}\n    memory {ours!r}\n    {real_server.kind} {theirs!r}")
    assert not wrong, "\n" + "\n".join(wrong)


def same(step: Step, ours: Any, theirs: Any) -> bool:
    """Whether two replies are equal in the way that the step asks for."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, list):
        return same_arrays(step, ours, theirs)
    if isinstance(ours, hiredis.ReplyError):
        return bool(str(ours).split()[0] == str(theirs).split()[0])
    if step.about and isinstance(ours, int):
        return bool(abs(ours - theirs) < 2000)
    return step.shape or bool(ours == theirs)


def same_arrays(step: Step, ours: list[Any], theirs: list[Any]) -> bool:
    if step.facts and ours and isinstance(ours[0], bytes):
        our_facts, their_facts = dict(batched(ours)), dict(batched(theirs))
        return all(same(step, our_facts[name], their_facts[name]) for name in our_facts.keys() & their_facts.keys())
    if step.unordered:
        ours, theirs = sorted(ours), sorted(theirs)
    return len(ours) == len(theirs) and all(map(same, itertools.repeat(step), ours, theirs))


def batched(flat: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_return_what_they_do_on_a_real_server(memory: InProcess, real_server: RealServer, script: str) -> None:
    """Conversions between Lua and the protocol, cjson, and errors of scripts are as in Redis."""
    command = ("EVAL", SCRIPTS[script], "0")
    ours, theirs = memory.command(*command), real_server.command(*command)
    assert same(Step(command), ours, theirs), f"memory {ours!r}, {real_server.kind} {theirs!r}"
    assert memory.command("PING") == b"PONG"
