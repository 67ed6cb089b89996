"""Signing keys on the command line: from a file or the environment, for each command that sends, and never printed."""

from __future__ import annotations

import json

import pytest

from streamq import SigningKeys

KEY, OTHER = bytes(range(32)).hex(), "77" * 32


@pytest.fixture
def valkey(shared_server):
    return shared_server("valkey")


@pytest.fixture
def keys(app, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# keys\nold={OTHER}\nnew={KEY}\n")
    file.chmod(0o600)
    return file


def test_enqueue_work_and_replay(streamq, valkey, keys):
    """A signed task runs, an unsigned one is refused, a dead letter is replayed with a signature."""
    signed = ("--signing-keys", str(keys), "--sign-with", "new", "--url", valkey.url)
    secret = {"STREAMQ_SIGNING_KEYS": f"new={KEY}", "STREAMQ_URL": valkey.url}
    assert streamq("enqueue", "send", "file", *signed)[0] == 0
    assert streamq("enqueue", "send", "variable", env=secret)[0] == 0
    assert streamq("enqueue", "broken", *signed)[0] == 0
    assert streamq("enqueue", "send", "nobody", "--url", valkey.url)[0] == 0
    code, output = streamq("worker", "app", "--burst", *signed)
    assert code == 0, output
    assert "sent file 1" in output
    assert "sent variable 1" in output
    assert "sent nobody" not in output
    assert "the message is not signed; accepted here: 'old', 'new'" in output
    assert KEY not in output
    letters = [json.loads(line) for line in streamq("dlq", "ls", "--json", env=secret)[1].splitlines()]
    (mine,) = [one for one in letters if one["reason"] != "undecodable"]
    assert len(letters) == 2
    code, output = streamq("dlq", "replay", mine["task_id"], env=secret)
    assert code == 0, output
    ((_, flat),) = valkey.command("XRANGE", "queue:standard", "-", "+")
    assert flat[-2] == b"sig"
    assert flat[-1].startswith(b"v1:new:")
    code, output = streamq("doctor", "--json", env=secret)
    assert "signatures" not in output


def test_processes_of_one_worker_have_the_keys(streamq, valkey, keys):
    """The path goes to the children, the variable is theirs by themselves."""
    assert (
        streamq("enqueue", "send", "x", env={"STREAMQ_SIGNING_KEYS": f"new={KEY}", "STREAMQ_URL": valkey.url})[0] == 0
    )
    signed = ("--signing-keys", str(keys), "--sign-with", "new", "--url", valkey.url)
    code, output = streamq("worker", "app", "--burst", "--processes", "2", *signed)
    assert code == 0, output
    assert "sent x 1" in output


@pytest.mark.parametrize(
    ("options", "env", "why"),
    [
        (["--sign-with", "new"], {}, "--sign-with without signing keys: give --signing-keys FILE, or set"),
        (["--accept-unsigned"], {}, "--accept-unsigned without signing keys"),
        (["--signing-keys", "missing"], {}, "the signing keys in missing cannot be read: No such file"),
        ([], {"STREAMQ_SIGNING_KEYS": KEY}, "STREAMQ_SIGNING_KEYS: signing key number 1 cannot be read"),
        ([], {"STREAMQ_SIGNING_KEYS": f"a={KEY},b={OTHER}"}, "sign_with=None is no key"),
        ([], {"STREAMQ_SIGNING_KEYS": "a=77"}, "has 1 bytes"),
    ],
)  # fmt: skip
def test_keys_that_cannot_be_used(streamq, options, env, why):
    """One line, which shows no key, and exit code 2."""
    for command in (["enqueue", "send"], ["worker", "app", "--burst"]):
        code, output = streamq(*command, *options, env={"STREAMQ_URL": "redis://localhost:1", **env})
        assert code == 2
        assert why in " ".join(output.split())
        assert KEY not in output
        assert OTHER not in output


def test_a_file_that_others_may_write_is_refused(streamq, keys):
    keys.chmod(0o622)
    code, output = streamq("enqueue", "send", "--signing-keys", str(keys), "--url", "redis://localhost:1")
    assert code == 2
    assert "others may write the signing keys" in output


def test_a_module_whose_broker_has_no_keys_is_refused(streamq, app, valkey):
    """Or it would run what nobody signed, and nobody would see it."""
    (app / "own.py").write_text(f"""
from streamq import RedisBroker, task
broker = RedisBroker({valkey.url!r})
@task
async def t(): ...
""")
    code, output = streamq("worker", "own", "--burst", env={"STREAMQ_SIGNING_KEYS": f"a={KEY}"})
    assert code == 2
    assert "own.broker has none: give it signing=SigningKeys(...)" in " ".join(output.split())


def test_a_text_of_the_documentation_is_read():
    assert SigningKeys.parse(f"2026-11={KEY}").sign_with == "2026-11"
