"""`streamq dlq`: list, show, follow, replay and purge dead letters."""

from __future__ import annotations

import json
import signal

import pytest

from streamq.cli.dlq import REASONS, _start
from streamq.tasks.outcome import Reason
from tests.docs.pages import ROOT
from tests.servers import available


@pytest.fixture
def valkey(shared_server):
    return shared_server("valkey")


def die(server, task_id: str, task: str = "send", reason: str = "rejected") -> None:
    server.command(
        "XADD", "queue:dead", "*", "task_id", task_id, "task", task, "args", '["a@b.c"]', "kwargs", "{}", "tier",
        "standard", "reason", reason, "error_type", "ValueError", "error", "no\x1b[31m good\nat all", "traceback",
        "Traceback:\n  here", "attempts", "4", "starts", "5", "enqueued_at", "2026-01-01T00:00:00.000+00:00",
        "died_at", "2026-01-01T00:00:09.000+00:00", "worker", "w1", "origin", "queue:standard 1-0",
    )  # fmt: skip


def test_every_reason_can_be_chosen_and_is_on_both_pages():
    """--reason of ls, tail and replay knows them all, as do the tables of dead letters and of the wire format."""
    assert set(REASONS) == set(Reason)
    table = (ROOT / "docs" / "dead-letters.md").read_text()
    assert [reason for reason in Reason if f"\n| `{reason}` |" not in table] == []
    (row,) = [line for line in (ROOT / "docs" / "wire-format.md").read_text().splitlines() if "| `reason` |" in line]
    assert [reason for reason in Reason if f"`{reason}`" not in row] == []


@pytest.mark.slow
def test_a_dead_letter_is_listed_with_its_error(start, streamq, valkey):
    """Dead letters of a worker are listed: newest first, filtered, and as JSON."""
    assert streamq("enqueue", "broken", "--url", valkey.url)[0] == 0
    assert start("worker", "app", "--burst", "--url", valkey.url).ended() == 0
    die(valkey, "later", task="send")
    code, output = streamq("dlq", "ls", "--url", valkey.url)
    lines = output.splitlines()
    assert code == 0
    assert lines[0].startswith("DIED AT (UTC)")
    assert "later" in lines[1]
    assert "retries_exhausted" in lines[2]
    assert "ValueError: no\\x1b[31m good" in lines[2]  # it cannot drive the terminal
    assert lines[3] == "queue:dead holds 2 dead letters"
    code, output = streamq(
        "dlq", "ls", "--json", "--task", "broken", "--reason", "retries_exhausted", "--url", valkey.url
    )
    letter = json.loads(output)
    assert (letter["task"], letter["attempts"], letter["args"]) == ("broken", 1, [])
    assert letter["traceback"]


def test_count_bounds_the_list(streamq, valkey):
    """Shows the newest dead letters and the total number."""
    for number in range(5):
        die(valkey, f"t{number}")
    code, output = streamq("dlq", "ls", "-n", "2", env={"STREAMQ_URL": valkey.url})
    assert code == 0
    assert [line.split()[2] for line in output.splitlines()[1:3]] == ["t4", "t3"]
    assert output.splitlines()[-1] == "queue:dead holds 5 dead letters, 2 shown"


def test_show_prints_everything(streamq, valkey):
    """Prints all fields with the traceback. An unknown id is a usage error."""
    die(valkey, "t1")
    code, output = streamq("dlq", "show", "t1", "--url", valkey.url)
    assert code == 0
    assert 'args         ["a@b.c"]' in output
    assert "Traceback:\n  here" in output
    code, output = streamq("dlq", "show", "t2", "--url", valkey.url)
    assert (code, len(output.splitlines())) == (2, 1)


def test_tail_follows_and_misses_nothing(start, valkey):
    """tail blocks on the server, prints new dead letters until Ctrl-C, and starts at --since."""
    die(valkey, "before")
    program = start("dlq", "tail", "--json", "--since", "1d", "--reason", "rejected", "--url", valkey.url)
    assert json.loads(program.expect("{"))["task_id"] == "before"
    die(valkey, "other", reason="expired")
    die(valkey, "after")
    assert json.loads(program.expect("{"))["task_id"] == "after"
    program.signal(signal.SIGINT)
    assert program.ended() == 130
    assert "Traceback (most" not in program.output


@pytest.mark.parametrize(
    ("since", "start"),
    [
        ("0", "0-0"), ("0.0", "0-0"), ("0-0", "0-0"), ("0s", 0.0), ("600", 600.0), ("1.5", 1.5), ("10m", 600.0),
        ("999999999", 999_999_999.0), ("1000000000", "1000000000000-0"), ("1767225600", "1767225600000-0"),
        ("1767225600.25", "1767225600250-0"), ("20000d", 20_000 * 86_400.0), ("1767225600000", "1767225600000"),
        ("2026-01-01T00:00Z", "1767225600000-0"), ("1767225600000-3", "1767225600000-3"),
    ],
)  # fmt: skip
def test_where_tail_starts(since, start):
    """A plain number is seconds ago, a large one Unix seconds, a larger one an entry id; 0 is the beginning."""
    assert _start(since) == start


def test_tail_from_the_beginning(start, valkey):
    """As 0 does in Redis."""
    die(valkey, "before")
    start("dlq", "tail", "--since", "0", "--url", valkey.url).expect("before")


def test_tail_begins_now(start, valkey):
    """Without --since it prints only new dead letters."""
    die(valkey, "before")
    program = start("dlq", "tail", "--url", valkey.url)
    program.expect("DIED AT")
    while not any(b"cmd=xread" in line for line in valkey.command("CLIENT", "LIST").splitlines()):
        pass
    die(valkey, "after")
    assert "after" in program.expect("ValueError")


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_tail_goes_on_after_a_failover(start, shared_server, kind):
    """The server becomes a replica for a moment, and ends the blocked read: tail prints on, until Ctrl-C."""
    if not available(kind):
        pytest.skip(f"no {kind}-server on PATH")
    server = shared_server(kind)
    program = start("dlq", "tail", "--url", server.url)
    program.expect("DIED AT")
    try:
        while b"cmd=xread" not in server.command("CLIENT", "LIST"):
            pass
        server.command("REPLICAOF", "127.0.0.1", "1")
        program.expect("waiting for the server")
    finally:
        server.command("REPLICAOF", "NO", "ONE")
    die(server, "after")
    assert "after" in program.expect("ValueError")


@pytest.mark.slow
@pytest.mark.parametrize("role", ["producer", "monitor"])
def test_a_missing_right_is_named_with_its_command_and_key(streamq, valkey, role):
    """As everywhere: this user may not read dead letters."""
    words = streamq("acl", "--role", role, "--user", "eve")[1].replace(">PASSWORD", ">pw").split()
    valkey.command(*words)
    url = valkey.url.replace("unix://", "unix://eve:pw@")
    try:
        for arguments in (["ls"], ["show", "x"], ["tail"], ["replay", "x"], ["rm", "x"], ["purge", "--yes"]):
            code, line = streamq("dlq", *arguments, "--url", url)
            assert code == 2, arguments
            assert "in XREVRANGE on queue:dead; run 'streamq doctor" in line, arguments
    finally:
        valkey.command("ACL", "DELUSER", "eve")


def test_replay_and_purge(streamq, valkey):
    """Dead letters are enqueued again, or removed."""
    pytest.importorskip("streamq.dead_letter")
    for name in ("t1", "t2", "t3"):
        die(valkey, name, task="send" if name != "t3" else "other")
    code, output = streamq("dlq", "replay", "--task", "send", "--url", valkey.url)
    assert code == 0, output
    assert valkey.command("XLEN", "queue:standard") == 2
    code, output = streamq("dlq", "purge", "--yes", "--url", valkey.url)
    assert code == 0, output
    assert valkey.command("XLEN", "queue:dead") == 0


HOSTILE = {
    "a name of a field": {"\x1b]0;PWNED\x07": "v", "task": "t"},
    "attempts that are null": {"task_id": "a", "task": "t", "attempts": "null"},
    "attempts that are a list": {"task_id": "a", "task": "t", "attempts": "[1]"},
    "deep arguments": {"task_id": "a", "task": "t", "args": "[" * 254 + "]" * 254},
    "deeper arguments": {"task_id": "a", "task": "t", "args": "[" * 2000 + "]" * 2000},
    "a number of many digits": {"task_id": "a", "task": "t", "retries": "9" * 5000, "attempts": "9" * 40},
    "bytes": {"task_id": b"\xff\xfe", "task": b"\xff", "args": b"\xff"},
    "no task id": {"x": "y"},
    "a field entry_id": {"entry_id": "1-1", "task_id": "a", "task": "t"},
    "a huge name": {"task_id": "t" * 100_000, "task": "x" * 200_000, "error": "e\n" * 10_000},
    "forged lines": {"task_id": "a\nqueue:dead holds 0", "task": "\x9b2J", "error": "\u202e\u2028", "reason": "\r"},
}


@pytest.mark.parametrize(("attempts", "shown"), [("3", "3"), ("0", "0"), ("99999999999", "?"), ("many", "?")])
def test_the_column_of_runs_believes_no_refused_number(here, valkey, attempts, shown):
    """It is a number of runs that a message may have, or unknown. --json and `show` have what is in the entry."""
    valkey.command("XADD", "queue:dead", "*", "task_id", "a", "task", "t", "reason", "rejected", "attempts", attempts)
    _, (_, row), _ = here("dlq", "ls")
    assert row.split()[-1] == shown


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE.keys())
def test_one_hostile_letter_ends_no_command_and_drives_no_terminal(here, valkey, fields):
    """P13: it is shown with escapes, or passed over; the others are listed, shown and replayed."""
    die(valkey, "before")
    entry = valkey.command("XADD", "queue:dead", "*", *(part for pair in fields.items() for part in pair)).decode()
    die(valkey, "after")
    code, out, err = here("dlq", "ls")
    assert (code, len(out), err) == (0, 4, ["queue:dead holds 3 dead letters"])
    assert "before" in out[3]
    assert "after" in out[1]
    code, out, _ = here("dlq", "ls", "--json")
    assert (code, len([json.loads(line) for line in out])) == (0, 3)
    assert here("dlq", "show", entry)[0] == 0
    code, out, _ = here("dlq", "show", entry, "--json")
    assert (code, json.loads(out[0])["entry_id"]) == (0, entry)
    code, out, err = here("dlq", "replay", "--all")
    left = valkey.command("XLEN", "queue:dead")
    assert (code, left, len(out), valkey.command("XLEN", "queue:standard")) == (1, 1, 2, 2)
    assert err[-2:] == ["2 replayed", "streamq: 1 passed over"]


def test_replay_passes_over_what_it_cannot_replay_and_says_why(here, valkey):
    """By id as well: unknown ids, unknown tiers, letters that are no message, keys that another task holds."""
    die(valkey, "good")
    valkey.command("XADD", "queue:dead", "*", "task_id", "tier", "task", "send", "tier", "nosuch")
    valkey.command("XADD", "queue:dead", "*", "task_id", "raw", "task", "send", "tier", "standard", "args", "[")
    valkey.command("XADD", "queue:dead", "*", "task_id", "key", "task", "send", "tier", "standard", "dedup", "k")
    valkey.command("SET", "queue:dedup:k", "holder")
    die(valkey, "last")
    code, out, err = here("dlq", "replay", "good", "nobody", "tier", "raw", "key", "last")
    assert (code, len(out), err[-2:]) == (1, 2, ["2 replayed", "streamq: 4 passed over"])
    assert any("task 'holder' holds its deduplication key" in line for line in err)
    assert any("'nobody'" in line for line in err)
    assert (valkey.command("XLEN", "queue:dead"), valkey.command("XLEN", "queue:standard")) == (3, 2)


def test_replay_says_that_it_replays_what_crashed_workers(here, valkey):
    """A filter takes them as well, with a new crash budget. Who chose them by reason or by id knows."""
    for name in ("a", "b"):
        die(valkey, name, reason="crash_loop")
    die(valkey, "c")
    code, out, err = here("dlq", "replay", "--all")
    assert (code, len(out), err[0]) == (0, 3, "3 replayed")
    assert err[1].startswith("streamq: 2 of them had crashed their workers (crash_loop)")
    assert "--reason retries_exhausted" in err[1]
    for chosen in (("--all", "--reason", "rejected"), ("--reason", "crash_loop"), ("d",)):
        die(valkey, "d", reason="crash_loop")
        die(valkey, "e")
        code, _, err = here("dlq", "replay", *chosen)
        assert (code, len(err)) == (0, 1), err
        valkey.command("DEL", "queue:dead")
    die(valkey, "f", reason="crash_loop")
    code, out, err = here("dlq", "replay", "--task", "send", "--json")
    assert (code, len(out), len(err)) == (0, 1, 1)


def test_rm_removes_one(here, valkey):
    """By task id, the newest of several, or by entry id. Unknown ones are named, and stop no other."""
    for name in ("twice", "other", "twice", "stays"):
        die(valkey, name)
    first, other, second, stays = (entry.decode() for entry, _ in valkey.command("XRANGE", "queue:dead", "-", "+"))
    code, out, err = here("dlq", "rm", "twice", "nobody", other, "twice")
    assert (code, err) == (1, [])
    assert out == ["twice: removed", "nobody: not found", f"{other}: removed"]
    left = [entry.decode() for entry, _ in valkey.command("XRANGE", "queue:dead", "-", "+")]
    assert left == [first, stays]
    assert second not in left
    code, out, _ = here("dlq", "rm", "--json", first)
    assert (code, [json.loads(line) for line in out]) == (0, [{"id": first, "removed": True}])
    assert here("dlq", "rm", "a b", "\x1b[2J")[0] == 1


def test_replay_is_linear(here, valkey):
    """2,000 letters take two reads of the stream, not one for each."""
    for number in range(0, 2000, 100):
        valkey.command(
            "EVAL", "for n = 1, 100 do redis.call('XADD', KEYS[1], '*', 'task_id', ARGV[1] .. n, 'task', 'send', "
            "'tier', 'standard') end", 1, "queue:dead", f"t{number}.",
        )  # fmt: skip
    valkey.command("CONFIG", "RESETSTAT")
    code, out, _ = here("dlq", "replay", "--all")
    assert (code, len(out), valkey.command("XLEN", "queue:dead")) == (0, 2000, 0)
    reads = [line for line in valkey.command("INFO", "commandstats").decode().splitlines() if ":calls" in line]
    (ranges,) = [line for line in reads if line.startswith("cmdstat_xrange:")]
    assert int(ranges.split("calls=")[1].split(",")[0]) < 2100  # one in each step, and the pages


def test_an_id_that_cannot_be_one_stops_no_other(here, valkey):
    valkey.command("XADD", "queue:standard", "*", "task", "send", "id", "t1")
    code, out, err = here("cancel", "a b", "\x1b[2J", "t1", "gone")
    assert (code, out) == (1, ["a b: not found", "\\x1b[2J: not found", "t1: withdrawn", "gone: not found"])
    assert len(err) == 2


def test_schedules_that_nobody_can_read_are_listed(here, valkey):
    odd = "\x1b]0;PWNED\x07\nforged"
    valkey.command("HSET", "queue:schedules", odd, json.dumps({"cron": odd, "task": odd, "stream": "s", "fields": []}))
    deep = '{"cron":"* * * * *","task":"t","stream":"q","fields":["task","t","args","' + "[" * 300 + "]" * 300 + '"]}'
    valkey.command("HSET", "queue:schedules", "deep", deep, "good", deep.replace("[" * 300 + "]" * 300, "[]"))
    valkey.command("HSET", "queue:ticked", "deep", "9" * 5000)
    code, out, _ = here("schedules", "ls")
    assert (code, len(out)) == (0, 4)
    code, out, err = here("schedules", "ls", "--json")
    assert (code, len(out)) == (1, 2)
    assert err[-1] == "streamq: 1 passed over"


def test_errors_that_quote_an_argument_are_escaped(here):
    """Of click, of ours, and of the server."""
    for arguments in (
        ("enqueue", "\x1b[2J"), ("enqueue", "a", "--tier", "\x9b"), ("dlq", "show", "\x1b"), ("dlq", "ls", "--\x1b"),
        ("dlq", "ls", "-n", "\x1b\n2"), ("enqueue", "a", "-k", "\u202e"), ("\x1b",),
        ("dlq", "ls", "--namespace", "\x1b"),
    ):  # fmt: skip
        code, out, err = here(*arguments)
        assert (code, out, len(err)) == (2, [], 1), arguments


def test_an_entry_of_another_program_has_the_id_and_the_time_of_its_entry(here, valkey):
    """The id is what `show` and `rm` want; a letter of few fields has died when it was written."""
    entry_id = "1767225609000-7"
    valkey.command("XADD", "queue:dead", entry_id, "foo", "bar")
    _, (_, row), _ = here("dlq", "ls")
    assert row.split()[:3] == ["2026-01-01", "00:00:09", entry_id]
    assert any(line.split() == ["foo", "bar"] for line in here("dlq", "show", entry_id)[1])
    assert here("dlq", "rm", entry_id) == (0, [f"{entry_id}: removed"], [])
