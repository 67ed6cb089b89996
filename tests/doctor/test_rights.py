"""`streamq doctor` and permissions: missing ones are found, refused checks are reported, and nothing is changed."""

from __future__ import annotations

import pytest

from streamq import RedisBroker
from streamq.doctor import examine
from streamq.doctor.queries import missing_permission
from streamq.doctor.read_rights import ROLES, probes
from streamq.errors import ConfigurationError
from tests.doctor.examined import STREAM, add, bad, examined, heartbeat, make_group, one, take

pytestmark = pytest.mark.anyio


@pytest.fixture
def user(real_server):
    """Make users with these ACL rules. They are removed at the end."""
    names = []

    def make(*rules):
        names.append(f"user{len(names)}")
        assert real_server.command("ACL", "SETUSER", names[-1], "on", ">pw", *rules) == b"OK"
        return real_server.url.replace("unix://", f"unix://{names[-1]}:pw@")

    yield make
    for name in names:
        real_server.command("ACL", "DELUSER", name)


def fill(server):
    """Write to each key that a probe uses."""
    make_group(server)
    add(server, 3)
    take(server, "streamq-doctor", 2)
    heartbeat(server, "streamq-doctor", 60)
    for key in ("messages:", "leases:workers", "crashes:workers"):
        server.command("HSET", f"{STREAM}:{key.rstrip(':')}", "streamq-doctor", "30000")
    server.command("ZADD", f"{STREAM}:delayed", 9e12, "streamq-doctor")
    server.command("XADD", "queue:dead", "*", "task_id", "x")
    for name in ("result", "id", "dedup", "seen"):
        server.command("SET", f"queue:{name}:streamq-doctor", "x")
    for name in ("stats:workers:0", "join:workers:streamq-doctor"):
        server.command("HSET", f"queue:{name}", "streamq-doctor", "1")


def state(server):
    """Return all data of a server, and its number of writes."""
    dumps = {name: (server.command("DUMP", name), server.command("PTTL", name) > 0) for name in server.keys()}  # noqa: SIM118
    written = [line for line in server.command("INFO", "persistence").splitlines() if b"rdb_changes_since" in line]
    return dumps, written


@pytest.mark.parametrize("role", ROLES)
async def test_nothing_is_changed(real_server, anyio_backend, role):
    """No key, no TTL and no write changes, for each role, on a full queue."""
    fill(real_server)
    before = state(real_server)
    report = await examined(real_server.url, role=role)
    assert "permissions_fine" in report.codes()
    assert state(real_server) == before


async def test_nothing_is_published(real_server, anyio_backend):
    """The probe for PUBLISH is discarded and not run."""
    async with RedisBroker(real_server.url) as broker, broker.client.subscriber() as subscriber:
        await subscriber.subscribe(broker.keys.wake)
        report = await examine(broker)
        await broker.client.publish(broker.keys.wake, "the first")
        assert await subscriber.receive() == (b"queue:wake", b"the first")
    assert "permissions_fine" in report.codes()


@pytest.mark.parametrize("role", ROLES)
async def test_each_permission_is_found_missing(real_server, user, anyio_backend, role):
    """A user has all permissions except one command: exactly that one is reported."""
    async with RedisBroker(real_server.url) as broker:
        commands = sorted({missing_permission(probe, "run") for probe in probes(broker.keys, role)})
    for rule in commands:
        url = user("~*", "&*", "+@all", rule.replace("+", "-", 1))
        missing = one(await examined(url, role=role, scan=0), "permission_missing").evidence["missing"]
        assert missing == [rule]


async def test_keys_and_channels(user, anyio_backend):
    """Keys and channels are permissions as well."""
    url = user("~queue:*", "resetchannels", "&queue:result:*", "+@all")
    missing = one(await examined(url), "permission_missing").evidence["missing"]
    assert missing == ["&queue:wake"]
    url = user("~queue:*", "&*", "+@all")
    assert "permissions_fine" in (await examined(url)).codes()
    report = await examined(url, namespace="other")
    assert "~other:standard" in one(report, "permission_missing").evidence["missing"]
    assert report.exit_code() == 2


async def test_the_remedy_is_one(real_server, user, anyio_backend):
    """After the command of the remedy the role has all permissions."""
    url = user("+ping", "+client|setname", "+multi", "+discard", "resetchannels")
    for _ in range(6):  # a command that is missing hides a key that is missing, which hides a channel
        report = await examined(url)
        if "permission_missing" not in report.codes():
            break
        words = one(report, "permission_missing").remedy.replace("'", "").split()
        assert words[:3] == ["redis-cli", "ACL", "SETUSER"]
        real_server.command(*words[1:])
    assert "permissions_fine" in report.codes()


async def test_a_user_of_few_rights(real_server, user, anyio_backend):
    """A user with only a monitor's permissions: refused checks are info, and no conclusion is drawn from them."""
    fill(real_server)
    real_server.command("DEL", "queue:result:streamq-doctor", "queue:id:streamq-doctor")
    url = user(
        "~queue:*",
        "&queue:*",
        "+ping",
        "+time",
        "+xlen",
        "+xinfo",
        "+zcard",
        "+zrange",
        "+hgetall",
        "+xpending",
        "+xrange",
    )
    report = await examined(url, role="monitor")
    assert bad(report) == []
    assert "permissions_fine" in report.codes()
    refused = {finding.evidence["permission"] for finding in report.findings if finding.code == "not_asked"}
    assert {"+info", "+config|get", "+scan", "+type", "+hscan", "+hexists"} <= refused
    assert one(report, "workers_fine")
    remedies = [finding.remedy for finding in report.findings if finding.code == "not_asked"]
    assert "redis-cli ACL SETUSER user0 +info" in remedies


async def test_a_user_of_no_rights(real_server, user, anyio_backend):
    """A user without permissions gets only that finding."""
    fill(real_server)
    report = await examined(user("resetchannels"))
    assert bad(report) == ["permission_missing"]
    assert set(report.codes()) <= {"permission_missing", "reachable", "not_asked"}


async def test_an_unknown_role(server):
    async with RedisBroker(server.url) as broker:
        with pytest.raises(ConfigurationError, match="role='boss' is not known: give one of worker"):
            await examine(broker, role="boss")
        with pytest.raises(ConfigurationError, match="scan=-1"):
            await examine(broker, scan=-1)
