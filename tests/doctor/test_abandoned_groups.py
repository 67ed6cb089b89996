"""A group that nobody needs any more keeps all entries: its removal leaves nothing behind, and takes nothing along."""

from __future__ import annotations

import re
import shlex

import pytest

from streamq.doctor import read_settled
from tests.doctor.examined import GROUP, STREAM, add, examined, make_group, one, take

pytestmark = [pytest.mark.anyio, pytest.mark.paired("memory")]


def settle(server, ids, group=GROUP):
    for entry in ids:
        server.command("XACK", STREAM, group, entry)


def stream(server):
    return [row[0].decode() for row in server.command("XRANGE", STREAM, "-", "+")]


def carry_out(server, remedy):
    """Run the redis-cli commands of a remedy as they stand there; return their names."""
    commands = [shlex.split(text) for text in re.findall(r"redis-cli ([^(;,]+)", remedy)]
    for words in commands:
        server.command(*words)
    return [words[0] for words in commands]


@pytest.fixture
def abandoned(server):
    """A stream with 30 entries that our group has settled, and a group `old` that has read 3 of them."""
    make_group(server)
    make_group(server, name="old")
    ids = add(server, 30)
    settle(server, take(server, "w1", 30))
    take(server, "o1", 3, group="old")
    return ids


async def test_what_the_group_alone_keeps_goes_with_it(server, abandoned):
    """All is done: the remedy removes all of it, and the next examination finds no stranded entry."""
    finding = one(await examined(server.url), "group_abandoned")
    assert finding.evidence["settled"] == 30
    assert carry_out(server, finding.remedy) == ["XTRIM", "XGROUP"]
    assert stream(server) == []
    codes = (await examined(server.url)).codes()
    assert "stranded" not in codes
    assert "group_abandoned" not in codes


async def test_what_is_pending_or_waits_stays(server, abandoned):
    """A pending entry among settled ones, one that was released, and those that nobody has read."""
    more = add(server, 10)
    taken = take(server, "w1", 5)
    settle(server, [taken[1], taken[3]])
    server.command("XCLAIM", STREAM, GROUP, "released", "0", taken[4])
    finding = one(await examined(server.url), "group_abandoned")
    assert finding.evidence["settled"] == 32
    assert carry_out(server, finding.remedy) == ["XTRIM", "XDEL", "XGROUP"]
    assert stream(server) == [more[0], more[2], *more[4:]]
    assert "stranded" not in (await examined(server.url)).codes()
    assert take(server, "w1", 100) == more[5:]


async def test_every_other_group_must_have_settled_it(server, abandoned):
    """A third group is behind: what it has not read, or holds, stays."""
    make_group(server, name="audit")
    taken = take(server, "a1", 10, group="audit")
    settle(server, taken[:4], group="audit")
    server.command("ZADD", f"{STREAM}:alive:audit", 10**14, "a1")
    finding = one(await examined(server.url), "group_abandoned")
    assert finding.evidence["group"] == "old"
    carry_out(server, finding.remedy)
    assert stream(server) == abandoned[4:]
    assert len(take(server, "a1", 100, group="audit")) == 20


async def test_a_retry_of_the_group_stays(server, abandoned):
    """Our group has passed it without a run. It becomes a dead letter, and can be replayed."""
    retry = server.command("XADD", STREAM, "*", "task", "send", "group", "old").decode()
    own = server.command("XADD", STREAM, "*", "task", "send", "group", GROUP).decode()
    settle(server, take(server, "w1", 2))
    finding = one(await examined(server.url), "group_abandoned")
    carry_out(server, finding.remedy)
    assert stream(server) == [retry]
    assert own not in stream(server)
    assert "a second time" in one(await examined(server.url), "stranded").remedy


async def test_a_group_that_has_read_nothing_else_says_only_to_destroy(server):
    """Nothing is settled: no entry is named."""
    make_group(server)
    make_group(server, name="old")
    ids = add(server, 5)
    finding = one(await examined(server.url), "group_abandoned")
    assert carry_out(server, finding.remedy) == ["XGROUP"]
    assert stream(server) == ids


async def test_a_long_stream_is_cleared_in_steps(server, abandoned, monkeypatch):
    """The oldest are looked at; what lies behind them is the next step, before the group is destroyed."""
    monkeypatch.setattr(read_settled, "MOST", 20)
    finding = one(await examined(server.url), "group_abandoned")
    assert finding.evidence["settled"] == 20
    assert "run the doctor again for those after them, then redis-cli XGROUP DESTROY" in finding.remedy
    carry_out(server, finding.remedy.partition(", then run the doctor")[0])
    assert stream(server) == abandoned[20:]


async def test_stranded_says_that_they_may_be_done(server, abandoned):
    """Who destroys the group alone leaves done entries, and the server does not know that they are."""
    server.command("XGROUP", "DESTROY", STREAM, "old")
    finding = one(await examined(server.url), "stranded")
    assert "or they are done, and another group that had still to get them was destroyed" in finding.message
    assert f"redis-cli XRANGE {STREAM} {abandoned[0]} {abandoned[0]}" in finding.remedy
    assert f"redis-cli XGROUP SETID {STREAM} {GROUP} 0" in finding.remedy
    assert f"redis-cli XDEL {STREAM} {abandoned[0]}" in finding.remedy
