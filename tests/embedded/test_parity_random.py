"""Random commands on a consumer group have the same replies on `memory://` and on a real server."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.embedded.parity import Step, about, do, facts
from tests.embedded.test_parity import same
from tests.servers import InProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import Kind, RealServer

ENTRIES = st.integers(1, 12).map(lambda n: f"{n}-1")
CONSUMERS = st.sampled_from("abc")
COUNTS = st.integers(1, 4)
# Far from the duration of a test, so that the same entries are idle on both servers.
IDLES = st.sampled_from([0, 60_000])
BOUNDS = st.one_of(ENTRIES, ENTRIES.map("({}".format))


@st.composite
def steps(draw: Callable[[st.SearchStrategy[object]], object]) -> Step:
    """One command on the stream `q` and its group `g`."""
    one, many = draw(ENTRIES), " ".join(draw(st.lists(ENTRIES, min_size=1, max_size=4)))  # type: ignore[arg-type]
    who, count, idle = draw(CONSUMERS), draw(COUNTS), draw(IDLES)
    back = draw(st.sampled_from(["", "JUSTID", "IDLE 120000", "JUSTID IDLE 120000", "RETRYCOUNT 5", "FORCE"]))
    only_ids = draw(st.sampled_from(["", "JUSTID"]))
    low = draw(st.one_of(BOUNDS, st.just("-")))
    line = draw(
        st.sampled_from(
            [
                f"XADD q {one} f v",
                f"XADD q {one} f v",
                f"XADD q MAXLEN = 5 {one} f v",
                f"XREADGROUP GROUP g {who} COUNT {count} STREAMS q >",
                f"XREADGROUP GROUP g {who} COUNT {count} STREAMS q >",
                f"XREADGROUP GROUP g {who} COUNT {count} NOACK STREAMS q >",
                f"XREADGROUP GROUP g {who} COUNT {count} STREAMS q 0",
                f"XREADGROUP GROUP g {who} STREAMS q {one}",
                f"XACK q g {many}",
                f"XDEL q {many}",
                f"XCLAIM q g {who} {idle} {many} {back}",
                f"XCLAIM q g {who} {idle} {many} {back}",
                f"XAUTOCLAIM q g {who} {idle} {low} COUNT {count} {only_ids}",
                f"XAUTOCLAIM q g {who} {idle} 0 COUNT {count} {only_ids}",
                f"XGROUP SETID q g {one}",
                f"XGROUP DELCONSUMER q g {who}",
                f"XGROUP CREATECONSUMER q g {who}",
                f"XPENDING q g {low} + {count}",
                f"XPENDING q g IDLE {idle} {low} {one} {count} {who}",
                f"XTRIM q MINID = {one}",
                "XINFO GROUPS q",
            ]
        )
    )
    assert isinstance(line, str)
    if line.startswith("XINFO"):
        return facts(line)
    return about(line) if line.startswith("XPENDING") else do(line)


END = [
    do("XPENDING q g"),
    about("XPENDING q g - + 100"),
    do("XRANGE q - +"),
    do("XLEN q"),
    facts("XINFO GROUPS q"),
    facts("XINFO CONSUMERS q g"),
]


@pytest.mark.parametrize("kind", ["valkey"])
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(life=st.lists(steps(), max_size=30))
def test_random_lives_of_a_group(shared_server: Callable[[Kind], RealServer], kind: Kind, life: list[Step]) -> None:
    """Entries are delivered, claimed, acknowledged and deleted at random: every reply is the same."""
    real = shared_server(kind)
    with contextlib.closing(InProcess()) as memory:
        for step in [do("XGROUP CREATE q g 0 MKSTREAM"), *life, *END]:
            ours, theirs = memory.command(*step.command), real.command(*step.command)
            assert same(step, ours, theirs), f"{step.command}\nmemory {ours!r}\n{kind} {theirs!r}"
