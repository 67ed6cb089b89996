"""What a settlement counts is written in its step: once, whatever is sent again, and whoever was first."""

from __future__ import annotations

import orjson
import pytest

from streamq.scripts import step, with_counters
from streamq.wire.counters import pack_one, pack_shares, share_of
from tests.scripts.test_scripts import (
    CRASHES,
    DEAD,
    DELAYED,
    HOUR,
    MESSAGES,
    STREAM,
    TOTALS,
    WAKE,
    ack,
    evaluated,
    held,
    length,
    prepare,
    sent,
    taken,
)

pytestmark = pytest.mark.paired("memory")


def settled(server, name, keys, *arguments, counts, shares=b"", stats="stats"):
    """Run a step that settles and counts."""
    return evaluated(server, name, with_counters(step(name)(keys, *arguments), stats, 900, counts, shares))


def counters(server, key="stats"):
    """Return the fields of a window that are not 0."""
    flat = server.command("HGETALL", key)
    return {name.decode(): int(n) for name, n in zip(flat[::2], flat[1::2], strict=True) if int(n)}


def shares_of(number):
    """Return shares of two tasks in turn, no two the same."""
    return [share_of(at % 2, 0.1 * (at + 1), 0.05, cancelled=at == 3) for at in range(number)]


def sums(shares, superseded):
    """Return what shares count by themselves, and how many of each task are superseded."""
    counts, _ = pack_shares(shares, PREFIXES, superseded=False)
    flat = orjson.loads(counts)["add"]
    found = dict(zip(flat[::2], map(int, flat[1::2]), strict=True))
    return found | {f"{PREFIXES[at]}superseded": n for at, n in enumerate(superseded) if n}


PREFIXES = ["low|a|", "low|b|"]


@pytest.mark.parametrize("name", ["ack", "ack, each", "ack, two groups", "ack_results"])
@pytest.mark.parametrize("before", [(), (0,), (1, 3), range(5)])
@pytest.mark.parametrize("superseded", [True, False])
def test_a_batch_counts_what_it_has_settled(server, name, before, superseded):
    """Some entries had been settled before: their shares are taken out of the sums, and they count as superseded.

    Not if the batch may have been sent before, and its reply was lost: then nobody knows who was first.
    """
    prepare(server, *["g", "h"][: 1 + ("groups" in name)])
    ids = sent(server, 5)
    taken(server, "me")
    step_name = name.partition(",")[0]
    for at in before:
        ack(server, ids[at])
    shares = shares_of(5)
    counts, each = pack_shares(shares, PREFIXES, superseded=superseded)
    if name == "ack_results":
        names, arguments = [STREAM, CRASHES, *(f"r{at}" for at in range(5))], ("g", 2, 5000, 5, *ids, *["x"] * 5)
    else:
        names, arguments = [STREAM, CRASHES], ("g", "1" if "each" in name else "0", 5, *ids)
    for again in (False, True):
        reply = settled(server, step_name, names, *arguments, counts=counts, shares=each)
        late = reply if name == "ack_results" else reply[0]
        assert len(late) == (5 if again else len(before))
        late_shares = [shares[at] for at in before] + shares * again
        tasks = [sum(share[0] == task for share in late_shares) * superseded for task in (0, 1)]
        assert counters(server) == sums([share for at, share in enumerate(shares) if at not in before], tasks)
    assert 0 < server.command("TTL", "stats") <= 900 or (len(before) == 5 and not superseded)


def settle_one(server, what, entry, counts, stats="stats"):
    """Settle an entry by one of the scripts for a single one."""
    names, arguments = {
        "postpone": ([STREAM, CRASHES, DELAYED, MESSAGES], ("g", "me", entry, HOUR, "g:x", '["task","t"]', WAKE)),
        "dead_letter": ([STREAM, CRASHES, DEAD, TOTALS], ("g", "me", entry, 9, 0, 0, 60, 0, 2, "task", "t")),
        "ack_side_effects": ([STREAM, CRASHES], ("g", entry)),
        "skip": ([STREAM, CRASHES], ("g", "me", entry, "g")),
    }[what]
    return settled(server, what, names, *arguments, counts=counts, stats=stats)


SINGLE = ("postpone", "dead_letter", "ack_side_effects", "skip")


@pytest.mark.parametrize("what", SINGLE)
def test_a_settlement_counts_once(server, what):
    """Sent again it counts nothing; from somebody who was late it counts as superseded."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "me")
    first = pack_one("low|a|", ("failed", "retried"), superseded=False)
    for _ in range(2):
        settle_one(server, what, entry, first)
        assert counters(server) == {"low|a|failed": 1, "low|a|retried": 1}
    settle_one(server, what, entry, pack_one("low|a|", ("failed",), superseded=True))
    assert counters(server) == {"low|a|failed": 1, "low|a|retried": 1, "low|a|superseded": 1}


@pytest.mark.parametrize("what", SINGLE)
@pytest.mark.parametrize("foreign", ["a key of another type", "a text", "too much", "no window"])
def test_counters_that_cannot_be_written_refuse_no_settlement(server, what, foreign):
    """What is somebody else's loses that counter alone. Without a window the counters come back with the reply."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "me")
    if foreign == "a key of another type":
        server.command("LPUSH", "stats", "theirs")
    elif foreign != "no window":
        server.command("HSET", "stats", "low|a|failed", "text" if foreign == "a text" else 2**63 - 1)
    counts = pack_one("low|a|", ("failed", "dead"), superseded=False)
    reply = settle_one(server, what, entry, counts, stats=None if foreign == "no window" else "stats")
    done = [] if what == "ack_side_effects" else 1
    if foreign == "no window":
        assert reply == [b"uncounted", done, [b"low|a|failed", b"1", b"low|a|dead", b"1"]]
    else:
        assert reply == done
    if foreign in ("a text", "too much"):
        assert server.command("HGET", "stats", "low|a|dead") == b"1"
    elif foreign == "a key of another type":
        assert server.command("LRANGE", "stats", 0, -1) == [b"theirs"]
        assert server.command("TTL", "stats") == -1
    assert length(server) == 0
    assert held(server) == {}
