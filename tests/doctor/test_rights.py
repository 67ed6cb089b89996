"""P11, `streamq doctor` and rights: missing ones are found, refused checks are reported, and nothing is changed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from streamq import RedisBroker, Tier
from streamq.doctor import examine, server_checks
from streamq.doctor.observations import Observations
from streamq.doctor.queries import Queries
from streamq.doctor.read_rights import probes, read_rights
from streamq.errors import ConfigurationError
from streamq.wire.acl import acl_rules
from streamq.wire.rights import FEATURES, ROLES, features_of
from tests.doctor.examined import STREAM, add, bad, examined, heartbeat, make_group, one, take
from tests.servers import fresh_server

pytestmark = [pytest.mark.anyio, pytest.mark.paired("memory")]


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
    """The rights to publish are asked for by a script that publishes nothing."""
    async with RedisBroker(real_server.url) as broker, broker.client.subscriber() as subscriber:
        await subscriber.subscribe(broker.keys.wake)
        report = await examine(broker)
        await broker.client.publish(broker.keys.wake, "the first")
        assert await subscriber.receive() == (b"queue:wake", b"the first")
    assert "permissions_fine" in report.codes()


def with_features(role):
    """Return what doctor may be asked for: all features that a role has by itself, and all that it may have."""
    every = features_of([role], [name for name, one in FEATURES.items() if role in one.roles | one.on_demand])
    return [None, [name for name in every if name != "durable-aof"]]  # Redis 7.0 has no WAITAOF


async def rights_found(url, role):
    """Examine the rights alone."""
    async with RedisBroker(url) as broker:
        rights = await read_rights(Queries(broker.store), broker.keys, role)
    return SimpleNamespace(findings=list(server_checks.permissions(Observations(now=0.0, rights=rights))))


def rules_of(url, role, features=None, **options):
    return acl_rules(RedisBroker(url, **options).keys, [role], features)


@pytest.mark.parametrize("features", [0, 1], ids=["by itself", "on demand"])
@pytest.mark.parametrize("role", ROLES)
async def test_the_rules_are_enough(real_server, user, anyio_backend, role, features):
    """A user with the rules of `streamq acl`, and with nothing else, has all rights of the role, for any id."""
    wanted = with_features(role)[features]
    rules = rules_of(real_server.url, role, wanted)
    url = user("reset", *rules.words()[1:], ">pw")
    for _ in range(2):
        report = await examined(url, role=role, features=wanted)
        assert "permissions_fine" in report.codes(), one(report, "permission_missing").message
        assert report.exit_code() == 0


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
async def test_each_rule_that_is_taken_away_is_found(real_server, user, anyio_backend, role):
    """Without one command, one pattern of keys or one channel: that one is reported, and no other."""
    rules = rules_of(real_server.url, role)
    every = [*rules.keys, *rules.channels, *rules.commands]
    for gone in every:
        url = user("resetchannels", *(rule for rule in every if rule != gone))
        found = one(await rights_found(url, role), "permission_missing")
        assert found.evidence["missing"] == [gone]
        unasked = found.evidence["unasked"]
        assert sorted(found.remedy.replace("'", "").split()[4:]) == sorted([gone, *unasked])
        assert bool(unasked) == ("could not be asked for, and may be there: " in found.message)
        assert not unasked or (role, gone) == ("operator", "+publish"), "no other command of its role has a channel"
        for feature, lacks in found.evidence["by_feature"].items():
            assert lacks == [gone]
            assert f"{feature}: {gone}" in found.message


@pytest.mark.parametrize("features", [0, 1], ids=["by itself", "on demand"])
@pytest.mark.parametrize("role", ROLES)
async def test_the_remedy_is_one(real_server, user, anyio_backend, role, features):
    """After the command of the first remedy a user without rights has all of them, and those of `streamq acl` only."""
    wanted = with_features(role)[features]
    rules = rules_of(real_server.url, role, wanted)
    url = user("resetchannels")
    words = one(await examined(url, role=role, features=wanted), "permission_missing").remedy.replace("'", "").split()
    assert words[:3] == ["redis-cli", "ACL", "SETUSER"]
    assert sorted(words[4:]) == sorted([*rules.keys, *rules.channels, *rules.commands])
    real_server.command(*words[1:])
    assert "permissions_fine" in (await examined(url, role=role, features=wanted)).codes()


async def test_tiers_of_its_own_that_were_forgotten(real_server, user, anyio_backend):
    """Who has other keys, and none of the default tiers, is told to name its tiers before anything is granted."""
    own = [Tier("now", threshold=10), Tier("later")]
    rules = rules_of(real_server.url, "producer", tiers=own)
    url = user("reset", *rules.words()[1:], ">pw")
    remedy = one(await examined(url, role="producer"), "permission_missing").remedy
    assert "tiers of its own, grant nothing, and run this again with --tiers NAME,... (STREAMQ_TIERS); if" in remedy
    assert "; if it has none: redis-cli ACL SETUSER" in remedy
    assert "permissions_fine" in (await examined(url, role="producer", tiers=own)).codes()
    make_group(real_server, "queue:now")
    make_group(real_server, "queue:later")
    add(real_server, stream="queue:now")
    url = user("reset", *rules.words()[1:], ">pw", "+scan", "+type", "+pttl", "+xinfo", "+xlen", "+zcount", "+xrange")
    remedy = one(await examined(url, role="producer"), "permission_missing").remedy
    assert "run this again with --tiers later,now, which have groups; if it has none: redis-cli" in remedy
    some = user("reset", *rules_of(real_server.url, "producer").words()[1:], ">pw", "resetkeys", "~queue:result:*")
    assert "tiers of its own" in one(await examined(some, role="producer"), "permission_missing").remedy
    none = user("reset", *rules_of(real_server.url, "producer").words()[1:], ">pw", "resetkeys")
    assert one(await examined(none, role="producer"), "permission_missing").remedy.startswith("redis-cli ACL SETUSER")


async def test_reading_alone_is_not_enough(real_server, user, anyio_backend):
    """Redis 7 has patterns that allow reading alone, or writing alone: both are needed where both are done."""
    rules = rules_of(real_server.url, "worker")
    for sign in ("%R", "%W"):
        keys = [f"{sign}{rule}" if rule.endswith(":seen:*") or ":result:" in rule else rule for rule in rules.keys]
        url = user("resetchannels", *keys, *rules.channels, *rules.commands)
        missing = one(await examined(url), "permission_missing").evidence["missing"]
        assert "~queue:result:*" in missing


async def test_rights_to_the_names_of_a_probe(real_server, user, anyio_backend):
    """A user with rights to the very keys that a probe asked for has not the right to any other."""
    keys = [f"~{probe.words[1]}" for probe in probes(RedisBroker(real_server.url).keys, "worker") if probe.pattern]
    url = user("+@all", "&*", *keys)
    assert "~queue:result:*" in one(await examined(url), "permission_missing").evidence["missing"]


@pytest.mark.parametrize("namespace", ["{queue}", "shop:eu", "a'b", 'a"b', "^-$"])
async def test_namespaces(real_server, user, anyio_backend, namespace):
    """What is special in a pattern stands for itself: the rules fit this namespace, and no other."""
    rules = rules_of(real_server.url, "worker", namespace=namespace)
    url = user("resetchannels", *rules.keys, *rules.channels, *rules.commands)
    assert "permissions_fine" in (await examined(url, namespace=namespace)).codes()
    missing = one(await examined(url, namespace="axb"), "permission_missing").evidence["missing"]
    assert {rule[0] for rule in missing} == {"~", "&"}


async def test_custom_tiers(real_server, user, anyio_backend):
    """Each tier has a stream of its own, and keys beside it."""
    tiers = [Tier("fast", threshold=50), Tier("slow", stream="other:slow")]
    rules = rules_of(real_server.url, "worker", tiers=tiers)
    assert {"~queue:fast", "~other:slow", "~other:slow:alive:workers"} <= set(rules.keys)
    url = user("resetchannels", *rules.keys, *rules.channels, *rules.commands)
    assert "permissions_fine" in (await examined(url, tiers=tiers)).codes()
    assert "~queue:bulk" in one(await examined(url), "permission_missing").evidence["missing"]


async def test_a_user_of_few_rights(real_server, user, anyio_backend):
    """A user with only a monitor's permissions: refused checks are info, and no conclusion is drawn from them."""
    fill(real_server)
    real_server.command("DEL", "queue:result:streamq-doctor", "queue:id:streamq-doctor")
    url = user(*rules_of(real_server.url, "monitor").words()[4:])
    report = await examined(url, role="monitor")
    assert bad(report) == []
    assert "permissions_fine" in report.codes()
    assert not {"delayed_fine", "keys_fine", "persistence_fine", "memory_fine", "settings_fine"} & set(report.codes())
    assert "last hour" not in one(report, "dead_letters").message  # XREVRANGE is refused
    finding = one(report, "not_asked")  # one, and its remedy leaves the user as it is
    assert {"+info", "+config|get", "+scan", "+type", "+hscan", "+hexists"} <= set(finding.evidence["permissions"])
    assert "that is normal for a monitor" in finding.message
    assert finding.remedy.endswith("a user of its own: streamq acl --role monitor --features doctor --user doctor")
    assert one(report, "workers_fine")


@pytest.mark.parametrize("kind", ["redis", "valkey"])
@pytest.mark.parametrize("aof", ["yes", "no"])
async def test_what_only_the_configuration_tells(kind, anyio_backend, aof):
    """With INFO, and without CONFIG GET: neither that snapshots are on disk, nor that each task is."""
    with fresh_server(kind, "--save", "", "--appendonly", aof) as server:
        server.command("ACL", "SETUSER", "bob", "on", ">pw", "~*", "&*", "+@all", "-config", "-config|get")
        report = await examined(server.url.replace("unix://", "unix://bob:pw@"))
        found = {finding.code for finding in report.findings}
        assert not found & {"persistence_rdb_only", "persistence_off", "persistence_fine", "settings_fine"}
        assert "memory_unbounded" in found  # INFO tells it
        server.command("ACL", "SETUSER", "bob", "+config", "-info")
        server.command("CONFIG", "SET", "maxmemory", "1gb")
        found = set((await examined(server.url.replace("unix://", "unix://bob:pw@"))).codes())
        assert not found & {"memory_fine", "memory_unbounded"}  # CONFIG does not tell how much is in use


async def test_a_user_of_no_rights(real_server, user, anyio_backend):
    """A user without permissions gets only that finding."""
    fill(real_server)
    report = await examined(user("resetchannels"))
    assert bad(report) == ["permission_missing"]
    assert set(report.codes()) <= {"permission_missing", "reachable", "not_asked"}


async def test_an_unknown_role(server):
    async with RedisBroker(server.url) as broker:
        with pytest.raises(ConfigurationError, match="role='boss' is not known: give one of producer"):
            await examine(broker, role="boss")
        with pytest.raises(ConfigurationError, match="scan=-1"):
            await examine(broker, scan=-1)
