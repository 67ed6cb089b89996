"""The atomic steps of the queue, one transition at a time, on every server."""

from __future__ import annotations

import contextlib
import re
import time
from importlib.resources import files
from itertools import count

import hiredis
import orjson
import pytest

from streamq import scripts
from streamq.scripts import Step, step
from streamq.wire.keys import RELEASED_CONSUMER
from tests.servers import fresh_server

pytestmark = pytest.mark.paired("memory")

NAMES = sorted(
    entry.name.removesuffix(".lua")
    for entry in files("streamq.scripts").iterdir()
    if entry.name.endswith(".lua") and not entry.name.startswith("_")
)
STREAM, CRASHES, ALIVE, LEASES = "s", "s:crashes", "s:alive", "s:leases"
DELAYED, MESSAGES, DEAD, TOTALS, WAKE = "s:delayed", "s:messages", "dead", "totals", "wake"
HOUR = 3_600_000

_numbers = count(1)


def run(server, name, keys, *arguments):
    """Run a step by hand, as EVAL."""
    return evaluated(server, name, step(name)(keys, *arguments))


def evaluated(server, name, command):
    reply = server.command("EVAL", step(name).source, *command[2:])
    if isinstance(reply, Exception):
        raise reply
    return reply


def prepare(server, *groups):
    for group in groups or ("g",):
        server.command("XGROUP", "CREATE", STREAM, group, "0", "MKSTREAM")


def sent(server, number=1, **fields):
    """Append entries by hand and return their ids."""
    flat = [part for pair in ({"task": "t"} | fields).items() for part in pair]
    return [server.command("XADD", STREAM, "*", *flat) for _ in range(number)]


def taken(server, consumer="me", group="g", number=100):
    reply = server.command("XREADGROUP", "GROUP", group, consumer, "COUNT", number, "STREAMS", STREAM, ">")
    return [entry[0] for entry in reply[0][1]] if reply else []


def held(server, group="g"):
    """Return who holds what."""
    rows = server.command("XPENDING", STREAM, group, "-", "+", 100)
    return {row[0]: row[1].decode() for row in rows}


def length(server, key=STREAM):
    return server.command("XLEN", key)


def ack(server, *ids, group="g"):
    """Acknowledge, and return how many counted."""
    (late,) = run(server, "ack", [STREAM, CRASHES], group, "0", len(ids), *ids)
    return len(ids) - len(late)


def postpone(server, entry, consumer="me", group="g", delay=HOUR, member="g:x", message='["task","t"]'):
    return run(
        server, "postpone", [STREAM, CRASHES, DELAYED, MESSAGES], group, consumer, entry, delay, member, message, WAKE
    )


def bury(
    server, entry, consumer="me", group="g", most=100, age=0, size=0, result="", fields=("task", "t"), cancellable=0
):
    names = [STREAM, CRASHES, DEAD, TOTALS, *["r"] * bool(result)]
    told = ("keep_result", 1, 2, 5000, result) if result else ()
    numbers = (most, age, size, 60, cancellable, len(fields))
    return run(server, "dead_letter", names, group, consumer, entry, *numbers, *fields, *told)


def release(server, *ids, consumer="me", group="g", idle=30_000):
    return run(server, "release", [STREAM], group, consumer, RELEASED_CONSUMER, idle, WAKE, *ids)


def reclaim(
    server,
    consumer="me",
    group="g",
    idle=30_000,
    cursor="0-0",
    number=100,
    margin=10_000,
    suspect_after=2,
    deadline=1 << 50,
):
    names = [STREAM, ALIVE, LEASES, CRASHES]
    wanted = (RELEASED_CONSUMER, idle, margin, cursor, number, HOUR, 3, suspect_after, deadline)
    cursor, rows, *_ = run(server, "reclaim", names, group, consumer, *wanted)
    return cursor, [(row[0], row[2].decode(), row[3]) for row in rows]


def renew(server, *ids, consumer="me", group="g", alive=30_000, in_full=False):
    return run(server, "renew", [STREAM, ALIVE, LEASES, CRASHES], group, consumer, alive, int(in_full), len(ids), *ids)


def alone(server, entry, consumer="me", group="g"):
    return run(server, "mark_isolated", [STREAM, CRASHES], group, consumer, entry, HOUR)


def depart(server, consumer="", group="g", limit=10, forgotten=90_000):
    return run(
        server, "remove_consumers", [STREAM, ALIVE, LEASES], group, RELEASED_CONSUMER, limit, consumer, forgotten
    )


def consumers(server, group="g"):
    return {flat[1].decode() for flat in server.command("XINFO", "CONSUMERS", STREAM, group)}


def make_idle(server, entry, consumer, ms=100_000, group="g"):
    """Let a pending entry look as if nobody had touched it for long."""
    server.command("XCLAIM", STREAM, group, consumer, 0, entry, "IDLE", ms, "JUSTID")


def lapse(server, consumer):
    """Say that a consumer's time is up."""
    server.command("ZADD", ALIVE, 1, consumer)


# --- the files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_script_has_a_header_that_is_checked(name):
    """It says its name and what it is for, its KEYS and its ARGV, and it is short."""
    source = (files("streamq.scripts") / f"{name}.lua").read_text()
    assert re.match(rf"-- {name}: .{{10,}}", source)
    assert "\n-- KEYS: " in source
    assert "\n-- ARGV: " in source
    assert "redis.call(" not in source
    assert len(source.splitlines()) <= 40
    assert repr(step(name)).startswith(f"<Step {name} KEYS: ")


@pytest.mark.parametrize("name", NAMES)
def test_no_script_builds_a_key(name):
    """Every key comes through KEYS, or a cluster could not route it."""
    source = (files("streamq.scripts") / f"{name}.lua").read_text()
    calls = re.findall(r"call\('([A-Z]+)'(?:, '([A-Z]+)')?, ([^,)]+)", source)
    for command, sub, key in calls:
        if command in ("TIME", "PUBLISH"):
            continue
        assert key.startswith(("KEYS[", "stream", "delayed", "messages")) or sub, (command, key)


def test_a_wrong_number_of_keys_is_refused():
    """Before anything is sent."""
    with pytest.raises(ValueError, match="was given 2 keys"):
        step("postpone")(["a", "b"])


def test_a_script_without_a_header_is_refused(monkeypatch):
    """A mistake in a header is found when the script is first asked for."""
    monkeypatch.setitem(scripts._TEXTS, "odd.lua", "return 1")
    with pytest.raises(ValueError, match=r"odd.lua: the header"):
        Step("odd")


# --- ack --------------------------------------------------------------------------------------


def test_an_acknowledged_entry_leaves_the_stream(server):
    """XACK and XDEL in one step, and what is not acknowledged stays."""
    prepare(server)
    one, two = sent(server, 2)
    taken(server)
    assert ack(server, one) == 1
    assert held(server) == {two: "me"}
    assert length(server) == 1


def test_an_acknowledgement_counts_once_whoever_it_comes_from(server):
    """P4: a stale worker's success still counts if nobody has settled the message; a second does not."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "first")
    server.command("XCLAIM", STREAM, "g", "second", 0, entry)
    assert ack(server, entry) == 1
    assert ack(server, entry) == 0
    assert length(server) == 0


def test_an_acknowledgement_says_which_came_late_if_it_is_asked(server):
    """Listeners are told of each task what became of it."""
    prepare(server)
    one, two, three = sent(server, 3)
    taken(server)
    ack(server, two)
    assert run(server, "ack", [STREAM, CRASHES], "g", "1", 3, one, two, three) == [[two]]
    assert run(server, "ack", [STREAM, CRASHES], "g", "0", 2, one, two) == [[b"", b""]]
    assert length(server) == 0


def test_an_acknowledgement_takes_the_evidence_of_crashes_with_it(server):
    """No key may stay behind a task that ended."""
    prepare(server)
    (entry,) = sent(server)
    taken(server)
    server.command("HSET", CRASHES, entry, "a b", entry + b":alone", "a")
    assert ack(server, entry) == 1
    assert server.command("EXISTS", CRASHES) == 0


def test_an_entry_leaves_only_after_every_group_has_acknowledged_it(server):
    """SPEC 3, with a group that has not even read it, and one that holds it."""
    prepare(server, "g", "h", "i")
    (entry,) = sent(server)
    taken(server, group="g")
    assert ack(server, entry, group="g") == 1
    assert length(server) == 1
    taken(server, group="h")
    taken(server, group="i")
    assert ack(server, entry, group="h") == 1
    assert length(server) == 1
    assert ack(server, entry, group="i") == 1
    assert length(server) == 0


def test_results_are_kept_and_told_with_the_acknowledgement(server):
    """One step; each result has its TTL; a second settle overwrites nothing."""
    prepare(server)
    one, two = sent(server, 2)
    taken(server)
    names = [STREAM, CRASHES, "r1", "r2"]
    assert run(server, "ack_results", names, "g", 4, 5000, 1, 9000, 1, one, two, "first", "other") == []
    assert server.command("GET", "r1") == b"first"
    assert 0 < server.command("PTTL", "r1") <= 5000
    assert server.command("GET", "r2") == b"other"
    assert run(server, "ack_results", names[:3], "g", 2, 5000, 1, one, "late") == [one]
    assert server.command("GET", "r1") == b"first"
    assert length(server) == 0


def test_what_follows_from_a_success_happens_with_it_and_once(server):
    """Results told, a key freed if it is still the task's, tasks sent now and later; nothing if it came late."""
    prepare(server)
    (entry,) = sent(server)
    taken(server)
    server.command("SET", "d1", "x")
    server.command("SET", "d2", "another")
    names = [STREAM, CRASHES, "r", "d1", "d2", "next", DELAYED, MESSAGES]
    also = ["keep_result", 1, 2, 5000, "done", "free_key", 1, 1, "x", "free_key", 1, 1, "x"]
    also += ["send_task", 1, 4, "task", "n", "args", "[1]"]
    also += ["delay_task", 2, 4, "y", HOUR, WAKE, '["task","l"]']
    assert run(server, "ack_side_effects", names, "g", entry, *also) == []
    assert (server.command("GET", "r"), length(server)) == (b"done", 0)
    assert (server.command("EXISTS", "d1"), server.command("GET", "d2")) == (0, b"another")
    assert [fields for _, fields in server.command("XRANGE", "next", "-", "+")] == [[b"task", b"n", b"args", b"[1]"]]
    assert server.command("HGET", MESSAGES, "y") == b'["task","l"]'
    assert run(server, "ack_side_effects", names, "g", entry, *also) == [entry]
    assert length(server, "next") == 1


def test_what_follows_from_a_death_happens_with_it(server):
    """A dead-lettered task frees its deduplication key; one that is not held any more does not."""
    prepare(server)
    (entry,) = sent(server)
    taken(server)
    server.command("SET", "d1", "x")
    arguments = ("g", "me", entry, 100, 0, 0, 60, 0, 2, "task", "t", "free_key", 1, 1, "x")
    assert run(server, "dead_letter", [STREAM, CRASHES, DEAD, TOTALS, "d1"], *arguments) == 1
    assert server.command("EXISTS", "d1") == 0
    server.command("SET", "d1", "x")
    assert run(server, "dead_letter", [STREAM, CRASHES, DEAD, TOTALS, "d1"], *arguments) == 0
    assert server.command("EXISTS", "d1") == 1


def test_what_is_to_be_cancelled_is_not_run_again(server):
    """Neither a retry nor a dead letter is written; the delivery stays held, so that its worker can cancel it."""
    prepare(server)
    (entry,) = sent(server)
    taken(server)
    mark = entry + b":cancel"
    server.command("HSET", CRASHES, mark, "1")
    assert [postpone(server, entry), bury(server, entry, cancellable=1)] == [2, 2]
    assert [length(server), length(server, DEAD), server.command("EXISTS", DELAYED, MESSAGES)] == [1, 0, 0]
    assert server.command("HGET", CRASHES, mark) == b"1"
    assert bury(server, entry) == 1
    assert [length(server), length(server, DEAD), server.command("EXISTS", CRASHES)] == [0, 1, 0]


# --- postpone, dead, release: only by who holds it ---------------------------------------------


@pytest.mark.parametrize("what", ["postpone", "dead_letter", "release"])
def test_who_does_not_hold_a_delivery_cannot_settle_it(server, what):
    """P4: retry, dead-letter and release by a worker that lost its lease are void."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "me")
    server.command("XCLAIM", STREAM, "g", "other", 0, entry)
    settle = {"postpone": postpone, "dead_letter": bury, "release": release}[what]
    assert settle(server, entry) == 0
    assert held(server) == {entry: "other"}
    assert length(server) == 1
    assert server.command("EXISTS", DELAYED, MESSAGES, DEAD) == 0


@pytest.mark.parametrize("what", ["postpone", "dead_letter", "release"])
def test_what_is_settled_cannot_be_settled_again(server, what):
    """First settle wins."""
    prepare(server)
    (entry,) = sent(server)
    taken(server)
    ack(server, entry)
    assert {"postpone": postpone, "dead_letter": bury, "release": release}[what](server, entry) == 0
    assert server.command("EXISTS", DELAYED, MESSAGES, DEAD) == 0


def test_a_postponed_delivery_waits_in_the_delayed_set(server):
    """Out of the stream, out of the pending list, scored by the time it is due."""
    prepare(server)
    (entry,) = sent(server)
    taken(server)
    assert postpone(server, entry, member="g:abc", message='["task","t","attempt","2"]') == 1
    assert held(server) == {}
    assert length(server) == 0
    seconds, _ = server.command("TIME")
    score = float(server.command("ZSCORE", DELAYED, "g:abc"))
    assert abs(score - (int(seconds) * 1000 + HOUR)) < 3000
    assert server.command("HGET", MESSAGES, "g:abc") == b'["task","t","attempt","2"]'


def test_two_deliveries_of_one_task_id_are_both_retried(server):
    """P1: an id sent again after its hour, or twice by hand, is two tasks."""
    prepare(server)
    one, two = sent(server, 2, id="x")
    taken(server)
    assert postpone(server, one) == postpone(server, two) == 1
    assert server.command("ZRANGE", DELAYED, 0, -1) == [b"g:x", b"g:x|" + two]
    assert server.command("HLEN", MESSAGES) == 2


def test_a_retry_belongs_to_its_group(server):
    """The group that failed delays it for itself; the entry stays for the others."""
    prepare(server, "g", "h")
    (entry,) = sent(server)
    taken(server, group="g")
    taken(server, group="h")
    assert postpone(server, entry, group="g", member="g:x") == 1
    assert length(server) == 1
    assert postpone(server, entry, group="h", member="h:x") == 1
    assert length(server) == 0
    assert server.command("ZCARD", DELAYED) == 2


def test_a_dead_delivery_moves_to_the_dead_letters(server):
    """In one step, its evidence of crashes removed."""
    prepare(server)
    (entry,) = sent(server)
    taken(server)
    server.command("HSET", CRASHES, entry, "a", entry + b":alone", "a")
    assert bury(server, entry, fields=("task_id", "x", "reason", "rejected")) == 1
    (letter,) = server.command("XRANGE", DEAD, "-", "+")
    assert letter[1] == [b"task_id", b"x", b"reason", b"rejected"]
    assert (held(server), length(server), server.command("EXISTS", CRASHES)) == ({}, 0, 0)


def test_the_dead_letters_are_trimmed_exactly(server):
    """P10: bounded by size and by age; MAXLEN and MINID without the tilde."""
    prepare(server)
    for entry in sent(server, 7):
        taken(server)
        assert bury(server, entry, most=5) == 1
    assert length(server, DEAD) == 5
    assert server.command("HGETALL", TOTALS) == [b"dead_dropped", b"2"]
    assert 0 < server.command("TTL", TOTALS) <= 60
    server.command("DEL", DEAD)
    server.command("XADD", DEAD, "1-1", "task", "old")
    (entry,) = sent(server)
    taken(server)
    bury(server, entry, age=HOUR)
    assert length(server, DEAD) == 1
    assert server.command("HGETALL", TOTALS) == [b"dead_dropped", b"3"]


@pytest.mark.parametrize("value", ["abc", "-5", "1.5", "", 10**15, 2**63 - 1])
def test_a_foreign_count_of_dropped_dead_letters_counts_as_missing(server, value):
    """P13: it neither stops the count nor falsifies it, for a worker and for an operator."""
    prepare(server)
    server.command("HSET", TOTALS, "dead_dropped", value)
    for entry in sent(server, 3):
        taken(server)
        assert bury(server, entry, most=1) == 1
    assert server.command("HGET", TOTALS, "dead_dropped") == b"2"
    server.command("HSET", TOTALS, "dead_dropped", value)
    run(server, "count_dropped", [TOTALS], 4, 60)
    run(server, "count_dropped", [TOTALS], 3, 60)
    assert server.command("HGETALL", TOTALS) == [b"dead_dropped", b"7"]
    assert 0 < server.command("TTL", TOTALS) <= 60


def test_the_dead_letters_are_bounded_by_bytes(real_server):
    """P10: the oldest are dropped, at most 100 in one step, and counted; never the one that is written."""
    server = real_server
    prepare(server)
    for number in range(300):
        server.command("XADD", DEAD, f"1-{number + 1}", "args", "x" * 10_000)
    for left in (201, 102, 101):
        (entry,) = sent(server)
        taken(server)
        bury(server, entry, size=1_000_000, fields=("args", "x" * 10_000))
        assert length(server, DEAD) <= left
    assert server.command("MEMORY", "USAGE", DEAD) < 1_100_000
    assert length(server, DEAD) > 85
    dropped = int(server.command("HGET", TOTALS, "dead_dropped"))
    assert dropped == 303 - length(server, DEAD)
    (entry,) = sent(server)
    taken(server)
    bury(server, entry, size=1_000, fields=("task", "last"))
    for _ in range(2):
        (entry,) = sent(server)
        taken(server)
        bury(server, entry, size=1, fields=("task", "last"))
    assert [flat for _, flat in server.command("XRANGE", DEAD, "-", "+")] == [[b"task", b"last"]]


def test_a_count_that_cannot_be_written_refuses_no_dead_letter(server):
    """Somebody else's key in its place."""
    prepare(server)
    server.command("LPUSH", TOTALS, "theirs")
    for entry in sent(server, 3):
        taken(server)
        assert bury(server, entry, most=1) == 1
    assert length(server, DEAD) == 1


def test_a_dead_delivery_tells_who_waits_for_its_result(server):
    """The failure is the result, with a TTL."""
    prepare(server)
    (entry,) = sent(server)
    taken(server)
    assert bury(server, entry, result="failed") == 1
    assert server.command("GET", "r") == b"failed"
    assert 0 < server.command("PTTL", "r") <= 5000


def test_a_dead_letter_of_one_group_leaves_the_entry_to_the_others(server):
    """What one group cannot run another may."""
    prepare(server, "g", "h")
    (entry,) = sent(server)
    taken(server, group="g")
    assert bury(server, entry) == 1
    assert length(server) == 1
    assert taken(server, group="h") == [entry]


def test_released_deliveries_are_anybodys_at_once(server):
    """They are parked, and the next sweep of anyone takes them without waiting for a lease, and blames nobody."""
    prepare(server)
    one, two, three = sent(server, 3)
    taken(server)
    assert release(server, one, two) == 2
    assert held(server) == {one: RELEASED_CONSUMER, two: RELEASED_CONSUMER, three: "me"}
    assert reclaim(server, "other")[1] == [(one, "", 0), (two, "", 0)]
    assert held(server) == {one: "other", two: "other", three: "me"}


# --- renew ------------------------------------------------------------------------------------


def test_renewal_keeps_what_is_held_and_names_what_is_lost(server):
    """P3: idle starts anew, the delivery count stays, and nothing is stolen back."""
    prepare(server)
    mine, stolen, settled = sent(server, 3)
    taken(server)
    make_idle(server, mine, "me")
    server.command("XCLAIM", STREAM, "g", "other", 0, stolen)
    ack(server, settled)
    before = server.command("XPENDING", STREAM, "g", mine, mine, 1)[0][3]
    now, lost, _ = renew(server, mine, stolen, settled)
    assert lost == [stolen, settled]
    assert held(server) == {mine: "me", stolen: "other"}
    row = server.command("XPENDING", STREAM, "g", mine, mine, 1)[0]
    assert row[2] < 50_000
    assert row[3] == before
    assert abs(int(now) - int(server.command("TIME")[0]) * 1000) < 5000


def test_a_renewal_takes_back_what_delconsumer_dropped(server):
    """It was cancelled and lay in the stream for ever. Where another group reads, it may have been settled."""
    prepare(server)
    dropped, settled = sent(server, 2)
    taken(server)
    ack(server, settled)
    server.command("XGROUP", "DELCONSUMER", STREAM, "g", "me")
    assert renew(server, dropped, settled)[1] == [settled]
    assert held(server) == {dropped: "me"}
    server.command("XGROUP", "CREATE", STREAM, "others", "0")
    server.command("XGROUP", "DELCONSUMER", STREAM, "g", "me")
    assert renew(server, dropped)[1] == [dropped]


@pytest.mark.timeout(20)
def test_a_renewal_that_counts_more_than_it_names_ends(server):
    """Found by the fuzzer: the server went through 2^63 ids that were not there, and nobody else was heard."""
    prepare(server)
    (mine,) = sent(server, 1)
    taken(server)
    _, lost, _ = run(server, "renew", [STREAM, ALIVE, LEASES, CRASHES], "g", "me", 30_000, 0, 2**63, mine)
    assert lost == []


@pytest.mark.timeout(20)
@pytest.mark.parametrize("count", ["9223372036854775807", "1e300", "inf"])
def test_a_script_that_counts_more_old_keys_than_it_names_ends(server, count):
    """Found by the fuzzer: as the one above."""
    accepted, *_ = run(server, "start_workflow", [], "flow", 0, 1000, count, "old")
    assert accepted == 1
    prepare(server)
    with contextlib.suppress(Exception):
        run(server, "replay", [STREAM, STREAM], sent(server, 1)[0], "new", "dead", 0, "mark", "", count, "old")
    assert server.command("PING")


def test_a_renewal_says_which_runs_are_to_be_cancelled(server):
    """Those that this consumer holds, until they are settled; also what another consumer has taken over since."""
    prepare(server)
    mine, other = sent(server, 2)
    taken(server)
    assert renew(server, mine, other)[2] == []
    assert cancel(server, "x", mine.decode()) == b"running"
    assert renew(server, mine, other)[2] == renew(server, other, mine)[2] == [mine]
    assert renew(server, other)[2] == []
    server.command("XCLAIM", STREAM, "g", "heir", 0, mine)
    assert renew(server, mine)[1:] == [[mine], []]
    assert renew(server, mine, consumer="heir")[2] == [mine]
    assert 0 < server.command("PTTL", CRASHES) <= HOUR
    ack(server, mine)
    assert server.command("EXISTS", CRASHES) == 0


def test_renewal_says_for_how_long_the_consumer_lives(server):
    """Liveness is a score of its own: consumer idle does not move during a blocked read."""
    prepare(server)
    now, lost, _ = renew(server, alive=5000)
    assert lost == []
    assert float(server.command("ZSCORE", ALIVE, "me")) == int(now) + 5000


def test_a_renewal_tells_in_full_what_the_server_does_not_know(server):
    """The lease, and the keys' time to live: with the first one and when it is asked for."""
    prepare(server)
    renew(server, alive=5000)
    for key in (ALIVE, LEASES):
        assert server.command("TTL", key) == 86_400
        server.command("EXPIRE", key, 100)
    renew(server, alive=7000)
    assert server.command("HGET", LEASES, "me") == b"5000"
    assert max(server.command("TTL", key) for key in (ALIVE, LEASES)) <= 100
    renew(server, alive=7000, in_full=True)
    assert server.command("HGET", LEASES, "me") == b"7000"
    assert [server.command("TTL", key) for key in (ALIVE, LEASES)] == [86_400] * 2


def test_no_key_of_the_living_is_without_a_time_to_live(server):
    """P10: not when the last of those who were known has gone, nor when the server forgot everything."""
    prepare(server)
    renew(server)
    for forget in (lambda: depart(server, "me"), lambda: server.command("DEL", ALIVE, LEASES)):
        forget()
        assert server.command("EXISTS", ALIVE, LEASES) == 0
        renew(server)
        assert [server.command("TTL", key) for key in (ALIVE, LEASES)] == [86_400] * 2


def test_a_lease_of_days_is_kept_for_as_long(server):
    """P3: a renewal comes every third of it, and finds its keys."""
    prepare(server)
    renew(server, alive=30 * 86_400_000)
    assert [server.command("TTL", key) for key in (ALIVE, LEASES)] == [30 * 86_400] * 2


def test_a_server_that_takes_no_writes_has_renewed_nothing(anyio_backend):
    """P3: else a worker would not know that it was away, and would take what others hold once the server is well."""
    with fresh_server("valkey") as server:
        prepare(server)
        renew(server)
        server.command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(hiredis.ReplyError, match="READONLY"):
            renew(server)


def test_a_server_out_of_memory_renews_what_is_held(anyio_backend):
    """P9: leases go on, though nothing can be written about who lives."""
    with fresh_server("valkey") as server:
        prepare(server)
        (entry,) = sent(server)
        taken(server)
        server.command("CONFIG", "SET", "maxmemory", "1mb")
        make_idle(server, entry, "me")
        assert renew(server, entry)[1] == []
        assert server.command("XPENDING", STREAM, "g", "-", "+", 1)[0][2] < 50_000


def test_who_could_not_be_noted_is_noted_once_there_is_room(anyio_backend):
    """P9: with the next renewal, of whatever kind."""
    with fresh_server("valkey") as server:
        prepare(server)
        server.command("CONFIG", "SET", "maxmemory", "1mb")
        renew(server, in_full=True)
        assert server.command("EXISTS", ALIVE, LEASES) == 0
        server.command("CONFIG", "SET", "maxmemory", "0")
        renew(server)
        assert server.command("HGET", LEASES, "me") == b"30000"
        assert [server.command("TTL", key) for key in (ALIVE, LEASES)] == [86_400] * 2


def test_many_leases_are_renewed_at_once(real_server):
    """More than Lua's unpack takes."""
    prepare(real_server)
    ids = many(real_server, 9000)
    taken(real_server, number=9000)
    assert renew(real_server, *ids)[1] == []


def many(server, number):
    """Append many entries in one script."""
    lua = "local t = {} for i = 1, ARGV[1] do t[i] = redis.call('XADD', KEYS[1], '*', 'task', 't') end return t"
    return server.command("EVAL", lua, 1, STREAM, number)


# --- reclaim ----------------------------------------------------------------------------------


def test_what_a_dead_consumer_held_is_taken_and_counted_as_a_crash(server):
    """P5: the workers that went down with it are remembered by name."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "a")
    make_idle(server, entry, "a")
    lapse(server, "a")
    assert reclaim(server, "b")[1] == [(entry, "a", 0)]
    make_idle(server, entry, "b")
    lapse(server, "b")
    assert reclaim(server, "c")[1] == [(entry, "a b", 0)]
    assert 0 < server.command("PTTL", CRASHES) <= HOUR


def test_a_living_consumer_keeps_what_it_holds(server):
    """Nothing fresh is taken from anybody, dead by its score or not."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "a")
    renew(server, entry, consumer="a")
    assert reclaim(server, "b")[1] == []
    lapse(server, "a")
    assert reclaim(server, "b")[1] == []  # its time is up, the entry's is not
    assert held(server) == {entry: "a"}


def test_what_is_merely_stale_is_taken_without_blame(server):
    """A consumer that lives and does not renew loses its delivery, and is not said to have crashed."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "a")
    renew(server, consumer="a")
    make_idle(server, entry, "a", 40_000 - 2000)
    assert reclaim(server, "b")[1] == []  # it might be renewed yet, or its owner be found dead
    make_idle(server, entry, "a", 40_000)
    assert reclaim(server, "b")[1] == [(entry, "", 0)]
    assert held(server) == {entry: "b"}


def test_a_living_consumer_with_a_longer_lease_keeps_what_it_holds(server):
    """P3: workers of one group may have different visibility timeouts."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "long")
    renew(server, entry, consumer="long", alive=600_000)
    make_idle(server, entry, "long", 200_000)  # it renews every third
    renew(server, consumer="short", alive=3000)
    assert reclaim(server, "short", idle=3000, margin=1000)[1] == []
    assert held(server) == {entry: "long"}
    lapse(server, "long")
    assert reclaim(server, "short", idle=3000, margin=1000)[1] == [(entry, "long", 0)]


def test_a_crash_is_blamed_though_the_consumer_said_later_that_it_lived(server):
    """P5: a renewal sent before the reply of a read arrived covers the consumer, and not what it read."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "a")
    renew(server, consumer="a")
    make_idle(server, entry, "a", 30_010)
    assert reclaim(server, "b")[1] == []  # `a` may live: whose death it was shows within a sweep
    lapse(server, "a")
    assert reclaim(server, "b")[1] == [(entry, "a", 0)]


def test_only_who_ran_it_alone_convicts_it(server):
    """A crash counts as proof only if nothing ran beside it, in the worker that crashed."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "a")
    assert alone(server, entry, "other") == 0
    assert alone(server, entry, "a") == 1
    make_idle(server, entry, "a")
    lapse(server, "a")
    assert reclaim(server, "b")[1] == [(entry, "a", 1)]
    make_idle(server, entry, "b")
    lapse(server, "b")
    assert reclaim(server, "c")[1] == [(entry, "a b", 0)]


def test_a_reclaim_takes_no_more_than_it_was_told(server):
    """Bounded per step, whatever kind of entry is found, and it goes on where it stopped."""
    prepare(server)
    parked, lapsed, stale = sent(server, 30)[:10], None, None
    ids = taken(server, "a")
    release(server, *parked, consumer="a")
    lapsed, stale = ids[10:20], ids[20:]
    for entry in lapsed:
        make_idle(server, entry, "b")
    for entry in stale:
        make_idle(server, entry, "c")
    lapse(server, "b")
    renew(server, consumer="c")
    found, cursor = [], b"0-0"
    for _ in range(20):
        cursor, rows = reclaim(server, "me", cursor=cursor, number=4)
        assert len(rows) <= 4
        found += [row[0] for row in rows]
    assert sorted(found) == sorted(ids)
    assert set(held(server).values()) == {"me"}


def test_a_sweep_that_comes_late_takes_nothing(server):
    """P3: it lay in the socket of a server that stood still; all leases have ended meanwhile, and nobody is dead."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "a")
    make_idle(server, entry, "a")
    lapse(server, "a")
    now = int(server.command("TIME")[0]) * 1000
    assert reclaim(server, "b", cursor="5-5", deadline=now - 2000) == (b"5-5", [])
    assert held(server) == {entry: "a"}
    assert reclaim(server, "b", deadline=now + 60_000)[1] == [(entry, "a", 0)]


def test_of_suspects_a_sweep_takes_one_and_the_others_are_for_others(server):
    """P5: they run one at a time in each worker, so that the fleet shares them; innocents are not held up."""
    prepare(server)
    ids = sent(server, 6)
    taken(server, "a")
    for consumer, heir in (("a", "b"), ("b", "c")):
        for entry in ids[:4] if consumer == "b" else ids:
            make_idle(server, entry, consumer)
        lapse(server, consumer)
        if heir == "b":
            assert len(reclaim(server, heir)[1]) == 6
    for entry in ids[4:]:
        server.command("XCLAIM", STREAM, "g", "d", 0, entry, "IDLE", 100_000, "JUSTID")
        server.command("HDEL", CRASHES, entry)
    lapse(server, "d")
    first = [row[0] for row in reclaim(server, "c")[1]]
    assert first == [ids[0], *ids[4:]]
    assert [row[0] for row in reclaim(server, "e")[1]] == [ids[1]]
    assert [held(server)[entry] for entry in ids] == ["c", "e", "b", "b", "c", "c"]
    for _ in range(3):
        reclaim(server, "f")
    assert set(held(server).values()) == {"c", "e", "f"}
    assert all(len(server.command("HGET", CRASHES, entry).split()) == 2 for entry in ids[:4])


def test_a_pending_entry_that_was_deleted_by_hand_is_forgotten(server):
    """XDEL by an operator must not leave a lease that nobody can end."""
    prepare(server)
    one, two, three = sent(server, 3)
    taken(server, "a")
    release(server, one, consumer="a")
    make_idle(server, two, "a")
    make_idle(server, three, "b")
    lapse(server, "a")
    server.command("XDEL", STREAM, one, two, three)
    for _ in range(2):
        assert reclaim(server, "me")[1] == []
    assert held(server) == {}


def test_groups_do_not_take_each_others_deliveries(server):
    """A pending list belongs to its group."""
    prepare(server, "g", "h")
    (entry,) = sent(server)
    taken(server, "a", group="g")
    taken(server, "a", group="h")
    make_idle(server, entry, "a", group="g")
    assert reclaim(server, "b", group="h")[1] == []
    assert [row[0] for row in reclaim(server, "b", group="g")[1]] == [entry]


# --- depart -----------------------------------------------------------------------------------


def test_a_consumer_that_holds_something_stays(server):
    """P8: DELCONSUMER drops a pending list for good, so only an empty one is removed."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "a")
    renew(server, consumer="a")
    depart(server, "a")
    assert consumers(server) == {"a"}
    assert server.command("ZSCORE", ALIVE, "a") is not None
    ack(server, entry)
    depart(server, "a")
    assert consumers(server) == set()
    assert server.command("EXISTS", ALIVE, LEASES) == 0


def test_dead_consumers_are_reaped_and_living_ones_are_not(server):
    """Whose time is up and who holds nothing is removed, a few at a time."""
    prepare(server)
    for number in range(5):
        server.command("XGROUP", "CREATECONSUMER", STREAM, "g", f"old-{number}")
        lapse(server, f"old-{number}")
    renew(server, consumer="me")
    server.command("XGROUP", "CREATECONSUMER", STREAM, "g", "me")
    depart(server, limit=2)
    assert len(consumers(server)) == 4
    depart(server)
    assert consumers(server) == {"me"}
    assert server.command("ZRANGE", ALIVE, 0, -1) == server.command("HKEYS", LEASES) == [b"me"]


def test_a_consumer_of_whom_nothing_is_known_is_reaped_once_it_did_nothing_for_long(real_server):
    """P8: one that read and died before it could say that it lived."""
    prepare(real_server)
    for name in ("stranger", "holder"):
        real_server.command("XGROUP", "CREATECONSUMER", STREAM, "g", name)
    sent(real_server)
    taken(real_server, "holder")
    time.sleep(0.02)
    depart(real_server)
    assert consumers(real_server) == {"stranger", "holder"}
    depart(real_server, forgotten=10)
    assert consumers(real_server) == {"holder"}


# --- enqueue, promote, cancel ---------------------------------------------------------------------


def accept(server, task_id="x", delay=0, due=-1, guards=(), fields=("task", "t"), old=("", "")):
    names = [STREAM, DELAYED, MESSAGES, *(key for key, _ in guards)]
    packed = orjson.dumps(list(fields))
    return run(server, "enqueue", names, task_id, delay, due, WAKE, packed, *old, *(ttl for _, ttl in guards), *fields)


def promote(server, limit=100):
    return run(server, "promote", [STREAM, DELAYED, MESSAGES], limit)


def test_the_same_task_id_is_accepted_once(server):
    """P9: a retry of an enqueue with the same task id is safe."""
    accepted, task_id, entry = accept(server, guards=[("id:x", 5000)])
    assert (accepted, task_id) == (1, b"x")
    assert server.command("XRANGE", STREAM, entry, entry)
    assert accept(server, guards=[("id:x", 5000)]) == [0, b"x", b""]
    assert length(server) == 1
    assert 0 < server.command("PTTL", "id:x") <= 5000


def test_of_a_dedup_key_the_first_wins(server):
    """And the others are told which task it was; they leave no guard of their own."""
    assert accept(server, "one", guards=[("dedup:k", 5000)])[:2] == [1, b"one"]
    assert accept(server, "two", guards=[("id:two", 5000), ("dedup:k", 5000)]) == [0, b"one", b""]
    assert server.command("EXISTS", "id:two") == 0
    assert length(server) == 1


def test_a_delayed_task_is_scored_by_its_time_and_not_in_the_stream(server):
    """By a delay from the server's clock, or at a time."""
    now = int(server.command("TIME")[0]) * 1000
    *accepted, since = accept(server, "later", delay=HOUR, due=0)
    assert accepted == [1, b"later", b""]
    assert accept(server, "at", due=now + 5)[:3] == [1, b"at", b""]
    assert abs(float(server.command("ZSCORE", DELAYED, "later")) - now - HOUR) < 3000
    assert float(server.command("ZSCORE", DELAYED, "later")) == float(since) + HOUR
    assert float(server.command("ZSCORE", DELAYED, "at")) == now + 5
    assert server.command("EXISTS", STREAM) == 0
    assert accept(server, "later", delay=0, due=-1) == [0, b"later", b""]


def test_due_messages_are_promoted_in_order_and_with_their_fields(server):
    """Oldest due first; the bytes of every field as they were."""
    prepare(server)
    for task_id, due in (("c", 3000), ("a", 1000), ("b", 2000)):
        accept(server, task_id, due=due, fields=("task", "t", "id", task_id, "odd", 'ü "\\\x00\x1f\u2028 🎈'))
    accept(server, "later", delay=HOUR, due=0)
    moved, left, more = promote(server)
    assert (moved, more) == (3, 0)
    assert HOUR - 5000 < left <= HOUR
    rows = server.command("XRANGE", STREAM, "-", "+")
    assert [row[1][3] for row in rows] == [b"a", b"b", b"c"]
    assert rows[0][1][5].decode() == 'ü "\\\x00\x1f\u2028 🎈'
    assert server.command("HKEYS", MESSAGES) == [b"later"]


def test_a_promotion_is_bounded_and_says_if_there_is_more(server):
    """So one step never holds the server for long."""
    prepare(server)
    for number in range(5):
        accept(server, str(number), due=1000 + number)
    assert promote(server, 2)[::2] == [2, 1]
    assert promote(server, 2)[::2] == [2, 1]
    assert promote(server, 2) == [1, -1, 0]
    assert promote(server, 2) == [0, -1, 0]
    assert length(server) == 5
    assert server.command("EXISTS", DELAYED, MESSAGES) == 0


@pytest.mark.parametrize(
    "broken", [None, "", "{", "[]", "{}", "[1,2]", '["task"]', '["a",["b"]]', "null", "5", '"x"', '["a",null]']
)
def test_a_broken_delayed_message_is_promoted_to_be_dead_lettered(server, broken):
    """It must neither stop the others nor disappear."""
    prepare(server)
    server.command("ZADD", DELAYED, 1, "bad")
    if broken is not None:
        server.command("HSET", MESSAGES, "bad", broken)
    accept(server, "good", due=2)
    assert promote(server)[0] == 2
    rows = server.command("XRANGE", STREAM, "-", "+")
    assert rows[0][1] == [b"id", b"bad", b"broken", (broken or "").encode()]
    assert rows[1][1] == [b"task", b"t"]
    assert server.command("EXISTS", DELAYED, MESSAGES) == 0


def test_a_delayed_message_of_too_many_fields_is_not_lost(server):
    """Beyond what Lua can pass on: it must not vanish between the set and the stream."""
    prepare(server)
    server.command("ZADD", DELAYED, 1, "big")
    server.command("HSET", MESSAGES, "big", orjson.dumps(["f", "v"] * 10_000))
    promote(server)
    assert length(server) == 1


def test_nothing_is_taken_from_the_delayed_if_the_stream_cannot_have_it(server):
    """Somebody wrote something else under its name: what is due stays where it is."""
    server.command("SET", STREAM, "no stream")
    for number in range(3):
        server.command("ZADD", DELAYED, 1, str(number))
        server.command("HSET", MESSAGES, str(number), orjson.dumps(["task", "t"]))
    with pytest.raises(Exception, match="WRONGTYPE"):
        promote(server)
    assert (server.command("ZCARD", DELAYED), server.command("HLEN", MESSAGES)) == (3, 3)
    server.command("DEL", STREAM)
    assert promote(server)[0] == 3
    assert length(server) == 3


@pytest.mark.parametrize("broken", ["dead", "delayed", "messages"])
def test_no_delivery_is_lost_to_a_key_of_somebody_else(server, broken):
    """What cannot be moved stays with its holder; once the other's key is gone it goes where it should."""
    prepare(server)
    (entry,) = sent(server, 1)
    taken(server)
    names = {"dead": DEAD, "delayed": DELAYED, "messages": MESSAGES}
    bury = ("dead_letter", [STREAM, CRASHES, DEAD, TOTALS], "g", "me", entry, 100, 0, 0, 60, 0, 2, "task", "t")
    postpone = ("postpone", [STREAM, CRASHES, DELAYED, MESSAGES], "g", "me", entry, 10, "x", b'["task","t"]', WAKE)
    steps = {"dead": [bury], "delayed": [postpone], "messages": [postpone]}[broken]
    server.command("LPUSH", names[broken], "theirs")
    for name, *rest in steps:
        with pytest.raises(Exception, match="WRONGTYPE"):
            run(server, name, *rest)
        assert server.command("XPENDING", STREAM, "g")[0] == 1
        assert length(server) == 1
    server.command("DEL", names[broken])
    assert run(server, *steps[0]) == 1
    assert length(server) == 0


def cancel(server, task_id, entry="", ttl=0, members=None):
    members = members or (task_id, f"g:{task_id}")
    names = [STREAM, DELAYED, MESSAGES, CRASHES, *["r"] * bool(ttl)]
    told = ("keep_result", 1, 2, ttl, "cancelled") if ttl else ()
    return run(server, "cancel", names, entry, WAKE, HOUR, len(members), *members, *told)


def test_a_delayed_task_is_cancelled(server):
    """Withdrawn for good, whether it waits for its time or for a retry."""
    accept(server, "x", delay=HOUR, due=0)
    assert cancel(server, "x", ttl=5000) == b"delayed"
    assert server.command("GET", "r") == b"cancelled"
    assert cancel(server, "x") == b"unknown"
    prepare(server)
    (entry,) = sent(server)
    taken(server)
    postpone(server, entry, member="g:y")
    assert cancel(server, "y") == b"delayed"
    assert server.command("EXISTS", DELAYED, MESSAGES) == 0


def test_a_queued_task_is_cancelled_and_a_running_one_is_told(server):
    """What somebody holds is not taken out of his hands."""
    prepare(server)
    (entry,) = sent(server)
    assert cancel(server, "x", entry) == b"queued"
    assert length(server) == 0
    (entry,) = sent(server)
    taken(server)
    assert cancel(server, "x", entry, ttl=5000) == b"running"
    assert length(server) == 1
    ack(server, entry)
    assert cancel(server, "x", entry) == b"unknown"


def test_a_dead_letter_is_replayed_once(server):
    """It becomes a task, and is gone from the dead letters."""
    dead = server.command("XADD", DEAD, "*", "task", "t")
    again = (9000, "", "", 0, "task", "t", "retries", "3")
    entry, _ = run(server, "replay", [DEAD, STREAM, "k", "latest"], dead, "n", "x", *again)
    assert server.command("GET", "k") == b"n"
    assert server.command("XRANGE", STREAM, "-", "+") == [[entry, [b"task", b"t", b"retries", b"3"]]]
    assert run(server, "replay", [DEAD, STREAM, "k", "latest"], dead, "m", "x", 9000, "", "", 0, "task", "t") == [
        b"",
        b"",
    ]
    assert length(server) == 1
    assert length(server, DEAD) == 0


@pytest.mark.parametrize("holder", ["x", "y"])
def test_a_replay_takes_the_key_from_its_dead_task_alone(server, holder):
    """With the note of who waits for it; a note of somebody else is left as it is."""
    dead = server.command("XADD", DEAD, "*", "task", "t")
    server.command("SET", "k", holder)
    server.command("HSET", "latest", "id", "x", "next", "after")
    reply = run(server, "replay", [DEAD, STREAM, "k", "latest"], dead, "n", "x", 9000, "", "", 0, "task", "t")
    if holder == "x":
        assert server.command("GET", "k") == b"n"
        assert server.command("HMGET", "latest", "id", "next") == [b"n", b"after"]
        assert 0 < server.command("PTTL", "latest") <= 9000
        assert (length(server), length(server, DEAD)) == (1, 0)
    else:
        assert reply == [b"", b"y"]
        assert server.command("HGET", "latest", "id") == b"x"
        assert (length(server), length(server, DEAD)) == (0, 1)


def test_counters_add_up_and_their_window_ends(server):
    """A window's hash has a TTL."""
    run(server, "add_counters", ["c"], 900, "a", 2, "b", 3)
    run(server, "add_counters", ["c"], 900, "a", 5)
    assert server.command("HGET", "c", "a") == b"7"
    assert server.command("TTL", "c") > 800


def test_a_verdict_stands_until_it_is_carried_out(server):
    """P5: whoever learned that a delivery takes workers down may be taken down itself before it says so."""
    prepare(server)
    (entry,) = sent(server)
    taken(server, "a")
    for consumer, heir, crashes, convicted in (
        ("a", "b", "a", 0),
        ("b", "c", "a b", 0),
        ("c", "d", "a b c", 1),
        ("d", "e", "a b c d", 1),
    ):
        if consumer == "c":
            assert alone(server, entry, "c") == 1
        make_idle(server, entry, consumer)
        lapse(server, consumer)
        assert reclaim(server, heir)[1] == [(entry, crashes, convicted)]


# --- a group or a consumer that an operator has removed ------------------------------------------


@pytest.fixture(params=["consumer", "group", "group, not made anew"])
def remove(request, server):
    """Remove what holds the deliveries of "g" in STREAM."""

    def now():
        if request.param == "consumer":
            server.command("XGROUP", "DELCONSUMER", STREAM, "g", "me")
        else:
            server.command("XGROUP", "DESTROY", STREAM, "g")
            if request.param == "group":
                server.command("XGROUP", "CREATE", STREAM, "g", "0")

    return now


@pytest.mark.parametrize("per_entry", ["0", "1"])
def test_a_success_counts_though_its_delivery_was_dropped(server, remove, per_entry):
    """What is still in the stream is not settled, if no other group reads it."""
    prepare(server)
    one, two = sent(server, 2)
    taken(server)
    remove()
    assert run(server, "ack", [STREAM, CRASHES], "g", per_entry, 2, one, two) == [[]]
    assert length(server) == 0
    again = run(server, "ack", [STREAM, CRASHES], "g", per_entry, 1, one)
    assert again == [[one if per_entry == "1" else b""]]


def test_a_result_is_kept_though_its_delivery_was_dropped(server, remove):
    """Its entry was deleted, its result was not written, and whoever waited for it waited in vain."""
    prepare(server)
    one, two = sent(server, 2)
    taken(server)
    remove()
    names = [STREAM, CRASHES, "r1", "r2"]
    assert run(server, "ack_results", names, "g", 2, 5000, 2, one, two, "first", "other") == []
    assert (server.command("GET", "r1"), server.command("GET", "r2"), length(server)) == (b"first", b"other", 0)
    assert run(server, "ack_results", names[:3], "g", 2, 5000, 1, one, "late") == [one]
    assert server.command("GET", "r1") == b"first"


def test_what_follows_a_success_is_sent_though_its_delivery_was_dropped(server, remove):
    """Once."""
    prepare(server)
    (entry,) = sent(server)
    taken(server)
    remove()
    for late in ([], [entry]):
        assert (
            run(server, "ack_side_effects", [STREAM, CRASHES, "next"], "g", entry, "send_task", 1, 2, "task", "n")
            == late
        )
    assert (length(server), length(server, "next")) == (0, 1)


@pytest.mark.parametrize("then", ["retry", "death"])
def test_a_failure_of_a_dropped_delivery_is_settled_by_who_ran_it(server, remove, request, then):
    """Its retry was not written, and after DELCONSUMER the entry lay in its stream for ever."""
    prepare(server)
    (entry,) = sent(server)
    taken(server)
    remove()
    if not server.command("XINFO", "GROUPS", STREAM):
        server.command("XGROUP", "CREATE", STREAM, "g", "0")  # as a worker does when it hears NOGROUP
    settle = postpone if then == "retry" else bury
    assert settle(server, entry) == 1
    assert (length(server), settle(server, entry)) == (0, 0)


def test_a_failure_of_a_dropped_delivery_that_another_has_counts_for_nothing(server):
    """It was read again: who has it settles it."""
    prepare(server)
    (entry,) = sent(server)
    taken(server)
    server.command("XGROUP", "DESTROY", STREAM, "g")
    server.command("XGROUP", "CREATE", STREAM, "g", "0")
    taken(server, "other")
    assert postpone(server, entry) == 0
    assert held(server) == {entry: "other"}


def test_a_success_of_a_dropped_delivery_waits_where_others_read(server):
    """Where another group reads, nobody knows whether it was settled: the delivery comes again."""
    prepare(server, "g", "h")
    (entry,) = sent(server)
    taken(server)
    server.command("XGROUP", "DESTROY", STREAM, "g")
    server.command("XGROUP", "CREATE", STREAM, "g", "0")
    assert run(server, "ack_results", [STREAM, CRASHES, "r1"], "g", 2, 5000, 1, entry, "x") == [entry]
    assert (server.command("EXISTS", "r1"), length(server)) == (0, 1)
