"""Signing keys on the command line: from a file or the environment, for each command that sends, and never printed."""

from __future__ import annotations

import json

import pytest

from streamq import SigningKeys

pytestmark = pytest.mark.slow

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
        ([], {"STREAMQ_SIGNING_KEYS": f"a={KEY},b={OTHER}"}, "sign_with=None (--sign-with) is no key"),
        ([], {"STREAMQ_SIGNING_KEYS": " "}, "STREAMQ_SIGNING_KEYS is empty: give signing keys, or unset it"),
        ([], {"STREAMQ_SIGNING_KEYS": "# none"}, "STREAMQ_SIGNING_KEYS: it has no keys"),
        ([], {"STREAMQ_SIGNING_KEYS_FILE": ""}, "STREAMQ_SIGNING_KEYS_FILE is empty: give signing keys, or unset it"),
        (["--signing-keys", ""], {}, "--signing-keys is empty: give signing keys, or leave the option out"),
        (["--signing-keys", "k"], {"STREAMQ_SIGNING_KEYS": f"a={KEY}"}, "signing keys are given twice"),
        ([], {"STREAMQ_SIGNING_KEYS_FILE": "k", "STREAMQ_SIGNING_KEYS": f"a={KEY}"}, "and the file k (--signing"),
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


def test_a_file_that_all_may_read_is_named(streamq, valkey, keys):
    """A warning: secrets that are mounted are often like that."""
    signed = ("--signing-keys", str(keys), "--sign-with", "new", "--url", valkey.url)
    for mode, warned in ((0o644, True), (0o640, False)):
        keys.chmod(mode)
        code, output = streamq("enqueue", "send", "x", *signed)
        assert code == 0
        assert (f"all users may read the signing keys in {keys}: chmod 600" in " ".join(output.split())) == warned


def test_a_signed_dead_letter_is_not_replayed_without_keys(streamq, valkey, keys):
    """Or its replay, which nobody signed, would be refused by the workers, and it would be gone."""
    signed = ("--signing-keys", str(keys), "--sign-with", "new", "--url", valkey.url)
    assert streamq("enqueue", "broken", *signed)[0] == 0
    assert streamq("worker", "app", "--burst", *signed)[0] == 0
    ((letter, _),) = valkey.command("XRANGE", "queue:dead", "-", "+")
    for which in (letter.decode(), "--all"):
        code, output = streamq("dlq", "replay", which, "--url", valkey.url)
        assert code == 1, output
        assert f"the dead letter {letter.decode()} is signed and this broker has no keys: give --signing-keys" in output
    code, output = streamq(
        "dlq", "replay", "--all", env={"STREAMQ_URL": valkey.url, "STREAMQ_SIGNING_KEYS": f"x={KEY}"}
    )
    assert code == 1
    assert f"the dead letter {letter.decode()} is signed with the unknown key 'new'; accepted here: 'x'; add" in output
    assert valkey.command("XLEN", "queue:dead") == 1
    assert valkey.command("XLEN", "queue:standard") == 0


OWN = """
from streamq import RedisBroker, SigningKeys, task
broker = RedisBroker({url!r}, signing={signing})
@task
async def t(): ...
"""


@pytest.mark.parametrize("by", ["file", "variable"])
def test_a_module_whose_broker_has_no_keys_is_refused(streamq, app, valkey, tmp_path, by):
    """Or it would run what nobody signed, and nobody would see it. With the same keys it runs."""
    (tmp_path / "one").write_text(f"a={KEY}")
    (tmp_path / "one").chmod(0o600)
    options = ["--signing-keys", str(tmp_path / "one")] if by == "file" else []
    env = {} if options else {"STREAMQ_SIGNING_KEYS": f"a={KEY}"}

    def worker(module: str, signing: str | None) -> tuple[int, str]:
        # Each module has a name of its own: Python takes one of the same second and length for the one it has compiled.
        (app / f"{module}.py").write_text(OWN.format(url=valkey.url, signing=signing))
        return streamq("worker", module, "--burst", *options, env=env)

    code, output = worker("without", None)
    assert code == 2
    assert "without.broker has none: give it signing=SigningKeys(...)" in " ".join(output.split())
    code, output = worker("same", f"SigningKeys.parse('a={KEY}')")
    assert code == 0, output
    code, output = worker("other", f"SigningKeys.parse('a={OTHER}')")
    assert code == (2 if options else 0), output  # what the environment says is for brokers of commands
    assert ("other.broker has other signing keys" in " ".join(output.split())) == bool(options)
    assert OTHER not in output


def test_a_text_of_the_documentation_is_read():
    assert SigningKeys.parse(f"2026-11={KEY}").sign_with == "2026-11"
