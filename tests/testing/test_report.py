"""Reports: the table, the summary, the command line."""

from __future__ import annotations

import subprocess
import sys

import orjson
import pytest

from streamq.testing import Limits, Question, Report, Row, scenarios, summary, table
from tests.testing.builder import orderly


def lost(log):
    for number in range(5):
        log.accepted(f"x{number}")


def test_the_table_of_a_clean_run_says_ok():
    """Every row with its value and its limit."""
    report = orderly().check()
    text = table(report)
    assert "VIOLATED" not in text
    assert len([line for line in text.splitlines() if line.endswith(" ok")]) == len(report.rows)
    assert text.splitlines()[-1] == f"OK: 18 tasks, {report.records} records, 0 faults"
    assert "effects per task: 3 with 0, 15 with 1" in text


def test_a_violation_is_marked_and_has_examples():
    """The last line names the violation."""
    report = orderly(lost).check()
    lines = table(report, examples=2).splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.endswith("VIOLATED")]
    assert lines[at].split() == ["P1", "lost", "5", "0", "VIOLATED"]
    assert lines[at + 1].strip() == "x0, never started"
    assert lines[at + 3].split()[0] == "P1"
    assert summary(report).startswith("VIOLATED: 23 tasks")
    assert summary(report).endswith("P1 lost: 5")


def test_a_value_without_a_limit_is_reported_only():
    """With the limit None the row is ok."""
    assert Row("P7", "wait", 1e9).ok
    assert Row("P7", "wait", 5, 5).ok
    assert not Row("P7", "wait", 5.1, 5).ok


def test_the_report_as_json():
    """All values, and `ok` for each row."""
    whole = orjson.loads(orjson.dumps(orderly(lost).check().to_dict()))
    assert whole["ok"] is False
    assert whole["effects"] == {"0": 8, "1": 15}
    row = next(row for row in whole["rows"] if row["question"] == "lost")
    assert (row["value"], row["limit"], row["ok"]) == (5, 0, False)


def test_a_row_is_found_by_its_question():
    """By name or by constant."""
    report = orderly().check()
    assert report["lost"] is report[Question.LOST]
    with pytest.raises(KeyError):
        _ = report["nothing"]


def test_the_table_of_scenarios():
    """One line for each run."""
    text = scenarios([(("killed", "trio"), orderly().check()), (("cut", "asyncio"), orderly(lost).check())],
                     ("scenario", "backend"))  # fmt: skip
    head, _, good, bad = text.splitlines()
    assert head.split()[:3] == ["scenario", "backend", "tasks"]
    assert good.split() == ["killed", "trio", "18", "0", "0", "0", "0", "0", "0.00", "/", "6", "s", "ok"]
    assert bad.split()[-1] == "lost"


def test_an_empty_report_is_no_error():
    """A report without rows is ok."""
    assert summary(Report(())) == "OK: 0 tasks, 0 records, 0 faults"


def test_limits_have_a_window():
    """Lease, one sweep (a third of the lease), slack."""
    assert Limits(lease=3.0, slack=0.5).window == 4.5


# --- by hand -----------------------------------------------------------------------------------------


def command(log, url, *options):
    arguments = [sys.executable, "-m", "streamq.testing", "check", str(log), "--url", url, "--lease", "3", *options]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)


def written(log, path):
    path.write_bytes(b"".join(orjson.dumps(record.details) + b"\n" for record in log.records))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_command_line_checks_a_log(tmp_path, shared_server, backend):
    """Exit code 0 and a table if all promises held, 1 if not, 2 if the log cannot be checked."""
    server = shared_server("valkey")
    options = ("--grace", "5", "--dead", "rejected", "--culprit", "killer", "--clean-exit", "--backend", backend)
    server.command("XADD", "queue:dead", "*", "task_id", "c-rejected", "reason", "rejected")
    clean = written(orderly(), tmp_path / "clean")
    done = command(clean, server.url, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "OK: 18 tasks" in done.stdout

    done = command(written(orderly(lost), tmp_path / "lost"), server.url, *options, "--json")
    assert done.returncode == 1
    assert orjson.loads(done.stdout)["ok"] is False

    clean.write_bytes(b"garbage\n" + clean.read_bytes())
    done = command(clean, server.url, *options)
    assert done.returncode == 2
    assert "line 1" in done.stderr


@pytest.mark.slow
def test_the_command_line_reads_redis(tmp_path, shared_server):
    """A task without an end in the log is not lost if it is in Redis; it is then reported as left."""
    server = shared_server("valkey")
    server.command("XADD", "queue:dead", "*", "task_id", "c-rejected", "reason", "rejected")
    server.command("XADD", "queue:bulk", "*", "task", "send", "id", "x0")
    log = orderly(lambda log: log.accepted("x0"))
    done = command(written(log, tmp_path / "log"), server.url, "--dead", "rejected", "--json")
    rows = {row["question"]: row["value"] for row in orjson.loads(done.stdout)["rows"]}
    assert (rows["lost"], rows["left in Redis"], done.returncode) == (0, 1, 1)
    done = command(tmp_path / "log", server.url, "--dead", "rejected", "--not-drained")
    assert done.returncode == 0


@pytest.mark.slow
def test_importing_the_package_loads_no_testing():
    """`import streamq` and a worker do not load streamq.testing."""
    script = "from streamq import RedisBroker, Worker\nRedisBroker()\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert not [name for name in done.stdout.split() if name.startswith("streamq.testing")]
