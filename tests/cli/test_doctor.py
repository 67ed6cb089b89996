"""`streamq doctor` as a command: output and exit codes."""

from __future__ import annotations

import json

import pytest

from tests.servers import fresh_server


def test_a_healthy_server(streamq):
    """Exit code 0, even with --strict. Each line is a finding."""
    with fresh_server("valkey", "--appendonly", "yes") as server:
        code, output = streamq("doctor", "--strict", "--url", server.url)
        assert code == 0
        assert "ok       reachable: valkey" in output
        assert "info     stream_missing: " in output
        assert output.splitlines()[-1].endswith("0 warning, 0 error")
        code, output = streamq("doctor", "-q", env={"STREAMQ_URL": server.url, "STREAMQ_DOCTOR_STRICT": "1"})
        assert code == 0
        assert len(output.splitlines()) == 1
        assert server.keys() == []


@pytest.mark.slow
def test_warnings_and_errors(streamq):
    """Warnings count with --strict, errors always. The remedy has its own line."""
    with fresh_server("valkey", "--appendonly", "yes", "--timeout", "60") as server:
        assert streamq("doctor", "--url", server.url)[0] == 0
        code, output = streamq("doctor", "--strict", "-q", "--url", server.url)
        assert code == 1
        assert output.startswith("WARNING  idle_timeout: ")
        assert "         -> redis-cli CONFIG SET timeout 0" in output.splitlines()
        server.command("XADD", "mail:out", "1-1", "task", "send")
        code, output = streamq("doctor", "-q", "--queue", "mail:out", "--url", server.url)
        assert code == 2
        assert "ERROR    no_worker: 1 task waits" in output
        assert "namespace=mail group=workers" in output.splitlines()[-1]


def test_as_json(streamq):
    """One object, the same findings, the same exit code."""
    with fresh_server("valkey", "--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru") as server:
        where = ("--namespace", "mail", "--group", "fleet", "--role", "operator", "--scan", "10", "--url", server.url)
        code, output = streamq("doctor", "--json", *where)
    report = json.loads(output)
    assert (code, report["worst"]) == (2, "error")
    assert (report["namespace"], report["group"], report["role"]) == ("mail", "fleet", "operator")
    assert set(report) == {"server", "namespace", "group", "role", "taken_at", "worst", "counts", "findings"}
    (eviction,) = [finding for finding in report["findings"] if finding["severity"] == "error"]
    assert set(eviction) == {"code", "severity", "message", "evidence", "remedy"}
    assert eviction["code"] == "eviction"
    assert eviction["evidence"]["maxmemory_policy"] == "allkeys-lru"
    assert sum(report["counts"].values()) == len(report["findings"])


@pytest.mark.slow
def test_unreachable(streamq):
    """This is a finding, also in JSON. The password is not shown."""
    for more in ((), ("--json",)):
        code, output = streamq("doctor", "--url", "redis://:hunter2@127.0.0.1:1", *more)
        assert code == 2
        assert "unreachable" in output
        assert "Connection refused" in output
        assert "hunter2" not in output


@pytest.mark.slow
def test_few_rights(streamq, shared_server):
    """The command works, reports the checks that it could not make, and shows no password."""
    server = shared_server("valkey")
    _, line = streamq("acl", "--role", "monitor", "--user", "bob")
    server.command(*line.replace("PASSWORD", "hunter2").split())
    try:
        url = server.url.replace("unix://", "unix://bob:hunter2@")
        code, output = streamq("doctor", "--role", "monitor", "--url", url)
        assert code == 0
        assert output.count("not_asked: ") == 1
        assert "+info" in output
        assert "ACL SETUSER" not in output  # a green role is not told to ask for more
        assert "hunter2" not in output
        code, output = streamq("doctor", "--url", url)
        assert code == 2
        assert "redis-cli ACL SETUSER bob" in output
    finally:
        server.command("ACL", "DELUSER", "bob")


@pytest.mark.slow
def test_names_cannot_control_the_terminal(streamq, shared_server):
    """Names of keys and consumers may contain control characters."""
    server = shared_server("valkey")
    server.command("SET", "queue:\x1b[31mred\nline", "x")
    _, output = streamq("doctor", "--url", server.url)
    assert "\x1b" not in output
    assert "\\x1b[31mred\\nline" in output


@pytest.mark.slow
def test_embedded(streamq, tmp_path):
    """memory:// and a server process."""
    assert "in_process" in streamq("doctor", "--url", "memory://")[1]
    code, output = streamq("doctor", "--strict", "--url", f"embedded://{tmp_path}/data")
    assert code == 0
    assert f"embedded://{tmp_path}/data" in output


@pytest.mark.slow
def test_usage_errors(streamq):
    """One line, exit code 2."""
    for arguments in (("--role", "boss"), ("--scan", "-1"), ("--url", "http://x"), ("--namespace", "a b")):
        code, output = streamq("doctor", *arguments)
        assert code == 2
        assert output.startswith("streamq: error: ")
        assert len(output.splitlines()) == 1
