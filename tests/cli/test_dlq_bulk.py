"""`streamq dlq` for many letters: search, stats, replay, purge, operations, stop, resume, export, import."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.cli.test_dlq import HOSTILE, die
from tests.dead_letter.letters import bury, bury_many, dead_ids, replayed_from
from tests.servers import available


@pytest.fixture
def valkey(shared_server):
    return shared_server("valkey")


def test_search_prints_what_it_finds_and_how_to_go_on(here, valkey):
    bury_many(valkey, 40)
    bury(valkey, "mail", task="mail", error="Connection refused")
    code, out, err = here("dlq", "search", "--task", "send", "-n", "2")
    assert (code, [line.split()[2] for line in out]) == (0, ["(UTC)", "t39", "t38"])
    assert err[0].startswith("3 dead letters looked at, 2 found; go on with --after ")
    after = err[0].split()[-1]
    code, out, err = here("dlq", "search", "--after", after, "--examine", "10", "--json")
    assert (code, err) == (0, [])
    assert [json.loads(line)["task_id"] for line in out[:-1]] == [f"t{number}" for number in range(37, 27, -1)]
    assert json.loads(out[-1]) == {"examined": 10, "found": 10, "after": json.loads(out[-2])["entry_id"]}
    code, out, err = here("dlq", "search", "--text", "REFUSED", "--reason", "rejected", "--newer-than", "1h")
    assert (code, len(out), err) == (0, 2, ["41 dead letters looked at, 1 found"])
    code, out, err = here("dlq", "search", "--arg", "n=1", "--arg", "0=a@b.c", "--tier", "standard", "--json")
    assert [json.loads(line).get("task_id") for line in out] == ["mail", None]
    assert here("dlq", "search", "--older-than", "1h")[1] == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--arg", "x"], "is no argument: write its name and a value"), (["--text", ""], "text='' is in every"),
        (["--after", "x"], "is not an entry id"), (["-n", "0"], "out of bounds"), (["--older-than", "x"], "no"),
        (["--redact", ""], "--redact: names of arguments"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(here, arguments, named):
    code, out, err = here("dlq", "search", *arguments)
    assert (code, out, len(err)) == (2, [], 1)
    assert named in err[0]


def test_stats(here, valkey):
    for number in range(3):
        die(valkey, f"t{number}")
    die(valkey, "mail", task="mail", reason="expired")
    code, out, err = here("dlq", "stats")
    assert (code, err) == (0, ["4 dead letters of 4 counted"])
    assert out[1].split()[0] == "3"
    assert out[1].endswith("send: ValueError")
    code, out, _ = here("dlq", "stats", "--reason", "expired", "--json")
    (found,) = map(json.loads, out)
    assert (found["task"], found["count"], found["first"]) == ("mail", 1, "2026-01-01T00:00:09+00:00")
    assert here("dlq", "show", found["example"])[0] == 0


def test_replay_by_filter_is_an_operation(here, valkey):
    """With a limit, a dry run, other arguments, and the counts at the end."""
    bury(valkey, "raw", args="[")
    for number in range(5):
        bury(valkey, f"t{number}")
    code, out, err = here("dlq", "replay", "--task", "send", "--limit", "2", "--dry-run")
    assert (code, out, err[1:]) == (1, ["t0", "t1"], ["2 would be replayed", "streamq: 1 passed over"])
    assert len(dead_ids(valkey)) == 6
    code, out, err = here("dlq", "replay", "--task", "send", "--limit", "2", "--set", "n=[2]", "--set", "0=x", "--json")
    assert (code, [json.loads(line)["task_id"] for line in out]) == (1, ["t0", "t1"])
    assert "is not a message" in err[0]
    flat = valkey.command("XRANGE", "queue:standard", "-", "+")[0][1]
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    assert (fields[b"args"], fields[b"kwargs"]) == (b'["x"]', b'{"n":[2]}')
    code, out, _ = here("dlq", "operations", "--json")
    (one,) = map(json.loads, out)
    assert (code, one["state"], one["done"], one["passed_over"], one["limit"]) == (0, "finished", 2, 1, 2)
    assert here("dlq", "replay", "--error-type", "ValueError", "--text", "no good")[:2][0] == 1
    assert dead_ids(valkey) == ["raw"]


@pytest.mark.parametrize(
    "arguments", [["x", "--limit", "2"], ["x", "--set", "a=1"], ["x", "--dry-run"], ["x", "--text", "y"], []]
)
def test_replay_of_ids_takes_no_filter(here, arguments):
    code, out, err = here("dlq", "replay", *arguments)
    assert (code, out, len(err)) == (2, [], 1)


def test_an_app_checks_what_is_set(streamq, valkey):
    """As it checks an enqueue."""
    bury(valkey, "a", args="[]", kwargs='{"to":"x"}')
    code, output = streamq("dlq", "replay", "--all", "--set", "n=many", "--app", "app", "--url", valkey.url)
    assert code == 1, output
    assert "task 'send': argument n" in output
    assert dead_ids(valkey) == ["a"]
    code, output = streamq("dlq", "replay", "--all", "--set", "n=7", "--app", "app", "--url", valkey.url)
    assert code == 0, output


def test_purge_asks_with_the_count(here, valkey):
    """Without a terminal it is refused with the remedy; --dry-run and --yes do not ask."""
    for number in range(3):
        bury(valkey, f"t{number}")
    bury(valkey, "mail", task="mail")
    code, out, err = here("dlq", "purge", "--task", "send")
    assert (code, out) == (2, [])
    assert "this removes dead letters that match: add --yes, or --dry-run" in err[0]
    assert here("dlq", "purge", "--task", "send", "--dry-run") == (0, ["3 would be removed"], [])
    assert here("dlq", "purge", "--dry-run", "--json")[1] == ['{"would_be_removed":4}']
    assert len(dead_ids(valkey)) == 4
    assert here("dlq", "purge", "--task", "send", "--yes", "--limit", "2") == (0, ["2 removed"], [])
    assert here("dlq", "purge", "--yes", "--json")[1] == ['{"removed":2}']
    assert dead_ids(valkey) == []


@pytest.mark.parametrize("answer", ["y", "n"])
def test_purge_removes_what_it_has_counted(here, valkey, monkeypatch, answer):
    """What arrives while it asks stays; the question has the filter and the count."""
    bury(valkey, "a")
    bury(valkey, "b", task="mail")
    asked = []

    def confirm(text, **_):
        asked.append(text)
        bury(valkey, "newer")
        if answer == "n":
            raise click.Abort

    import click

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("streamq.cli.run_dlq_bulk.click.confirm", confirm)
    code, out, _ = here("dlq", "purge", "--task", "send")
    assert asked == ["Remove 1 dead letter with task_name='send'?"]
    if answer == "y":
        assert (code, out, dead_ids(valkey)) == (0, ["1 removed"], ["b", "newer"])
    else:
        assert (out, dead_ids(valkey)) == ([], ["a", "b", "newer"])
        assert code != 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["valkey", "redis"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_replay_that_is_killed_goes_on(start, streamq, shared_server, kind, number):
    """Each letter once. Ctrl-C says how to go on; after SIGKILL the list of operations does."""
    if not available(kind):
        pytest.skip(f"no {kind}-server on PATH")
    server = shared_server(kind)
    bury_many(server, 2000)
    program = start("dlq", "replay", "--all", "--rate", "1000", "--url", server.url)
    while server.command("XLEN", "queue:standard") < 300:
        time.sleep(0.001)
    program.signal(number)
    code = program.ended()
    assert 300 <= server.command("XLEN", "queue:standard") < 2000
    (one,) = map(json.loads, streamq("dlq", "operations", "--json", "--url", server.url)[1].splitlines())
    assert one["state"] == "running"
    assert one["done"] == server.command("XLEN", "queue:standard")
    if number == signal.SIGINT:
        assert code == 130
        assert f"streamq dlq resume {one['id']}" in program.output
    server.command("HDEL", f"queue:operation:{one['id']}", "rate")
    code, output = streamq("dlq", "resume", one["id"], "--url", server.url)
    assert (code, output.splitlines()[-1]) == (0, "2000 replayed")
    assert replayed_from(server) == [f"t{place}" for place in range(2000)]


def test_stop_and_resume(start, streamq, here, valkey):
    """From another shell. What was stopped exits with 1 and says how to go on."""
    bury_many(valkey, 60)
    program = start("dlq", "replay", "--all", "--rate", "40", "--url", valkey.url)
    while not valkey.command("XLEN", "queue:standard"):
        time.sleep(0.001)
    (one,) = map(json.loads, here("dlq", "operations", "--json")[1])
    code, out, _ = here("dlq", "stop", one["id"])
    assert code == 0
    assert "replay stopped" in out[0]
    assert program.ended() == 1
    assert f"it was stopped; to go on: streamq dlq resume {one['id']}" in program.output
    valkey.command("HDEL", f"queue:operation:{one['id']}", "rate")
    assert here("dlq", "resume", one["id"])[0] == 0
    assert replayed_from(valkey) == [f"t{number}" for number in range(60)]
    for command in ("stop", "resume"):
        code, _, err = here("dlq", command, "nosuch")
        assert (code, len(err)) == (2, 1)
        assert "no operation has the id 'nosuch'" in err[0]


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_letters_are_searched_counted_exported_and_imported(here, valkey, tmp_path, fields):
    """P13: nothing drives the terminal (`here` looks), nothing is lost, no command ends."""
    entry = valkey.command("XADD", "queue:dead", "*", *(part for pair in fields.items() for part in pair)).decode()
    die(valkey, "after")
    assert (here("dlq", "search")[0], len(here("dlq", "search")[1])) == (0, 3)
    assert len(here("dlq", "search", "--json", "--redact", "*")[1]) == 3
    assert here("dlq", "stats")[2] == ["2 dead letters of 2 counted"]
    code, out, err = here("dlq", "export")
    assert (code, len(out), err) == (0, 2, ["2 dead letters exported"])
    flat = valkey.command("XRANGE", "queue:dead", entry, entry)[0][1]
    file = tmp_path / "letters.jsonl"
    file.write_text("\n".join(out))
    valkey.command("DEL", "queue:dead")
    assert here("dlq", "import", str(file)) == (0, [], ["2 dead letters imported"])
    assert valkey.command("XRANGE", "queue:dead", "-", "+")[0][1][: len(flat)] == flat


def test_import_passes_over_what_is_no_line(here, valkey, tmp_path):
    file = tmp_path / "letters.jsonl"
    file.write_bytes(b'{"fields": {"task_id": "a", "task": "t"}}\n\x1b[2J\n\n{"fields": {"task_id": "b"}}\n')
    code, out, err = here("dlq", "import", str(file), "--json")
    assert (code, [json.loads(line)["line"] for line in out]) == (1, [1, 4])
    assert err[0].startswith("streamq: line 2: ")
    assert err[1:] == ["2 dead letters imported", "streamq: 1 passed over"]
    assert dead_ids(valkey) == ["a", "b"]
    assert here("dlq", "import", str(tmp_path / "nosuch"))[0] == 2


def test_redact_hides_arguments_wherever_letters_are_printed(here, valkey, start):
    """By option or by variable; an export that lacks values cannot be imported."""
    bury(valkey, "a", kwargs='{"password":"hunter2","n":1}', error="bad hunter2")
    for arguments in (
        ("ls",),
        ("ls", "--json"),
        ("search", "--json"),
        ("show", "a"),
        ("show", "a", "--json"),
        ("export",),
    ):
        code, out, _ = here("dlq", *arguments, "--redact", "PASS*")
        assert code == 0
        assert out
        assert "hunter2" not in "\n".join(out), arguments
    program = start("dlq", "tail", "--json", "--since", "0", "--url", valkey.url, env={"STREAMQ_REDACT": "password"})
    assert json.loads(program.expect("{"))["kwargs"] == {"password": "[redacted]", "n": 1}
    assert '"redacted":true' in here("dlq", "export", "--redact", "password")[1][0]


@pytest.mark.slow
def test_ten_thousand_letters_are_replayed_in_linear_time(here, valkey):
    """One step a letter, in pipelines: the commands of 10,000 letters are ten times those of 1,000."""
    calls = []
    for number in (1_000, 10_000):
        valkey.flush()
        bury_many(valkey, number)
        valkey.command("CONFIG", "RESETSTAT")
        code, out, err = here("dlq", "replay", "--all")
        assert (code, len(out), err) == (0, number, [f"{number} replayed"])
        stats = valkey.command("INFO", "commandstats").decode()
        calls.append(sum(int(line.split("calls=")[1].split(",")[0]) for line in stats.splitlines() if "calls=" in line))
    assert calls[1] < 10.5 * calls[0]
