"""`streamq doctor` on healthy and broken queues: each finding, on each kind of server."""

from __future__ import annotations

import shlex

import anyio
import pytest

from streamq import Tier, task
from streamq.doctor import Severity
from tests.at_work import burst, until, working
from tests.doctor.examined import GROUP, STREAM, add, bad, examined, heartbeat, make_group, ms, one, take
from tests.servers import fresh_server

pytestmark = [pytest.mark.anyio, pytest.mark.paired("memory")]
MESSAGE = '["id","a","task","send"]'


@task(retries=0)
async def send(seconds=0.0, fate="well"):
    await anyio.sleep(seconds)
    if fate == "fail":
        raise ValueError


async def healthy(url, backend):
    """Run tasks, leave some waiting and delayed, and examine while a worker is alive."""
    from streamq import RedisBroker
    from streamq.doctor import examine

    async with RedisBroker(url) as broker:
        await broker.enqueue_many([send.call() for _ in range(20)])
        await broker.enqueue(send.options(result_ttl=60, task_id="known"))
        await broker.enqueue(send.options(dedup_key="once"))
        await broker.enqueue(send.options(delay=1000))
        await broker.is_duplicate("seen")
        await burst(broker, send)
        async with working(broker, send, concurrency=2, grace_period=0.1) as worker:
            await broker.enqueue_many([send.call(60) for _ in range(3)])
            await until(lambda: worker.health.running == 2)
            report = await examine(broker)
            await broker.client.flushall()
        return report


class TestHealth:
    @pytest.mark.parametrize("kind", ["valkey", "redis"])
    async def test_of_a_real_server(self, anyio_backend, kind):
        """A server with full persistence and a running worker: no finding above info."""
        with fresh_server(kind, "--appendonly", "yes", "--appendfsync", "always", "--maxmemory", "1gb") as server:
            report = await healthy(server.url, anyio_backend)
        assert bad(report) == []
        assert report.exit_code(strict=True) == 0
        assert set(report.codes()) >= {
            "reachable", "permissions_fine", "clock_fine", "settings_fine", "memory_fine", "persistence_fine",
            "primary", "streams_fine", "workers_fine", "delayed_fine", "dead_letters_none", "keys_fine",
        }  # fmt: skip
        assert len(one(report, "workers_fine").evidence["workers"]) == 1

    async def test_of_a_server_in_memory(self, server, anyio_backend):
        """memory:// works as well, and the report says which checks it does not have."""
        report = await healthy(server.url, anyio_backend)
        if server.kind == "memory":
            assert bad(report) == []
            assert "in_process" in report.codes()
        assert {"streams_fine", "workers_fine", "delayed_fine", "keys_fine"} <= set(report.codes())

    async def test_of_nothing(self, server):
        """An empty server gives info findings and no problem."""
        report = await examined(server.url)
        assert one(report, "stream_missing").evidence["streams"] == ["queue:critical", STREAM, "queue:bulk"]
        assert set(bad(report)) <= {"persistence_off"}
        assert server.keys() == []

    async def test_of_one_stream(self, server):
        """A broker of one stream is examined like any other."""
        add(server, stream="mail:out")
        report = await examined(server.url, queue_name="mail:out")
        assert one(report, "group_missing").evidence == {"stream": "mail:out", "length": 1}
        assert report.namespace == "mail"


class TestStreams:
    async def test_group_missing(self, server):
        add(server, 2)
        report = await examined(server.url)
        assert one(report, "group_missing").evidence["length"] == 2

    @pytest.mark.parametrize(
        "key", [STREAM, f"{STREAM}:delayed", "queue:dead", f"{STREAM}:alive:{GROUP}", "queue:result:x"]
    )
    async def test_wrong_type(self, server, key):
        """Another program uses the name of a streamq key."""
        make_group(server)
        server.command("RPUSH", key + "2", "x")
        server.command("DEL", key)
        server.command("RENAME", key + "2", key)
        report = await examined(server.url)
        finding = one(report, "wrong_type")
        assert finding.evidence == {"key": key, "type": "list"}
        assert report.exit_code() == 2
        words = shlex.split(finding.remedy.partition("redis-cli ")[2])
        assert words[:2] == ["RENAMENX", key]
        assert not words[2].startswith("queue:")  # inside of the namespace it would be a key of the same kind
        server.command("RENAME", *words[1:])  # memory:// has no RENAMENX
        assert "wrong_type" not in (await examined(server.url)).codes()

    async def test_other_groups(self, server):
        """Another group is info. One without a worker that keeps entries in the stream is a warning."""
        make_group(server)
        make_group(server, name="audit")
        add(server)
        server.command("ZADD", f"{STREAM}:alive:audit", ms(60), "w9")
        report = await examined(server.url)
        assert one(report, "other_groups").evidence["groups"] == ["audit"]
        assert "group_abandoned" not in report.codes()
        server.command("DEL", f"{STREAM}:alive:audit")
        report = await examined(server.url)
        abandoned = one(report, "group_abandoned")
        assert abandoned.evidence["group"] == "audit"
        assert "redis-cli XGROUP DESTROY queue:standard audit" in abandoned.remedy
        assert "become dead letters (unknown_group)" in abandoned.remedy
        assert "stranded" not in report.codes()

    async def test_group_ahead(self, server):
        """After a failover the group's last delivered id may be above the newest entry."""
        add(server, at="5-5")
        make_group(server)
        assert "group_ahead" not in (await examined(server.url)).codes()
        server.command("XGROUP", "SETID", STREAM, GROUP, "9-9")
        evidence = one(await examined(server.url), "group_ahead").evidence
        assert (evidence["last_delivered_id"], evidence["last_generated_id"]) == ("9-9", "5-5")

    async def test_stranded(self, server):
        """Entries before a group created at $ never run. Pending and waiting entries are not stranded."""
        ids = add(server, 25)
        make_group(server, start="$")
        held = add(server, 2)
        take(server, "w1")
        report = await examined(server.url)
        assert one(report, "stranded").evidence["entries"] == ids
        assert "XGROUP DELCONSUMER" in one(report, "stranded").message
        server.command("XGROUP", "SETID", STREAM, GROUP, "0")  # the remedy
        take(server, "w1", 100)
        assert "stranded" not in (await examined(server.url)).codes()
        assert held

    async def test_pending_gone(self, server):
        """A stream was trimmed by hand: pending entries are missing."""
        make_group(server)
        ids = add(server, 15)
        take(server, "w1", 12)
        assert "pending_gone" not in (await examined(server.url)).codes()
        server.command("XTRIM", STREAM, "MAXLEN", "5")
        server.command("XDEL", STREAM, ids[11])
        report = await examined(server.url)
        assert one(report, "pending_gone").evidence["entries"] == [*ids[:10], ids[11]]

    async def test_clock_went_back(self, server):
        """Entries from the future."""
        (entry,) = add(server, at=f"{ms(3600)}-0")
        evidence = one(await examined(server.url), "clock_went_back").evidence
        assert (evidence["last_id"], 3500 < evidence["ahead_s"] < 3601) == (entry, True)


class TestWorkers:
    async def test_no_worker(self, server):
        """Tasks wait without a worker: first info, later an error."""
        make_group(server)
        add(server)
        report = await examined(server.url)
        assert one(report, "no_worker_yet").evidence["waiting"] == 1
        server.command("DEL", STREAM)
        make_group(server)
        add(server, at=f"{ms(-3600)}-0")
        finding = one(await examined(server.url), "no_worker")
        assert finding.severity is Severity.ERROR
        assert finding.evidence["by_stream"] == {"queue:critical": 0, STREAM: 1, "queue:bulk": 0}
        assert 3590 < finding.evidence["oldest_s"] < 3700
        heartbeat(server, "w1", 30)
        assert not {"no_worker", "no_worker_yet"} & set((await examined(server.url)).codes())

    async def test_a_tier_that_no_worker_serves(self, server):
        """Workers of other tiers are none for it: an error once its tasks have waited, with or without a group."""
        for stream in ("queue:critical", STREAM):
            make_group(server, stream)
        heartbeat(server, "w1", 30, "queue:critical")
        fine = one(await examined(server.url), "workers_fine")
        assert fine.evidence["unserved"] == [STREAM, "queue:bulk"]
        assert fine.message.endswith("0 tasks wait; none of them serves queue:standard, queue:bulk")
        add(server, stream="queue:bulk")
        assert one(await examined(server.url), "no_worker_yet").evidence["unserved"] == ["queue:bulk"]
        add(server, 2, STREAM, at=f"{ms(-600)}-*")
        add(server, stream="queue:critical", at=f"{ms(-600)}-0")
        report = await examined(server.url)
        finding = one(report, "no_worker")
        assert report.exit_code() == 2
        assert "workers_fine" not in report.codes()
        assert (finding.evidence["unserved"], finding.evidence["waiting"]) == ([STREAM, "queue:bulk"], 3)
        assert finding.evidence["workers"] == ["w1"]
        assert "no worker serves queue:standard, queue:bulk (1 worker is alive, and serves" in finding.message
        assert "--tiers standard=1,bulk=1; without --tiers it serves all" in finding.remedy
        heartbeat(server, "w2", 30, "queue:bulk")
        heartbeat(server, "w2", 30)
        assert one(await examined(server.url), "workers_fine").evidence["waiting"] == 4

    async def test_entries_of_other_groups_do_not_wait(self, server):
        """What this group has settled stays in the stream for another group: nobody is missing here."""
        make_group(server)
        make_group(server, name="audit")
        server.command("ZADD", f"{STREAM}:alive:audit", ms(60), "w9")
        (entry,) = add(server, at=f"{ms(-600)}-0")
        take(server, "w1")
        server.command("XACK", STREAM, GROUP, entry)
        assert not {"no_worker", "no_worker_yet"} & set((await examined(server.url)).codes())
        add(server, at=f"{ms(-500)}-0")
        server.command("XGROUP", "DELCONSUMER", STREAM, GROUP, "w1")
        assert "no_worker" in (await examined(server.url)).codes()

    async def test_a_reader_without_heartbeat(self, server):
        """Another program of the group, that has just read, serves the stream."""
        make_group(server)
        add(server, 2, at=f"{ms(-600)}-*")
        take(server, "of another program")
        assert "no_worker" not in (await examined(server.url)).codes()

    async def test_dead_with_entries_where_no_worker_is(self, server):
        """Nobody takes over in a tier that no worker serves: not for want of capacity."""
        make_group(server)
        add(server)
        take(server, "w1")
        heartbeat(server, "w1", -600)
        heartbeat(server, "w2", 30, "queue:critical")
        report = await examined(server.url)
        assert "no worker is alive for queue:standard" in one(report, "orphans").message
        assert one(report, "no_worker").evidence["orphaned"] == 1

    async def test_unknown_tasks(self, server):
        """A task that no worker knows is named, once it has waited longer than a deploy takes."""
        make_group(server)
        heartbeat(server, "w1", 30)
        for name, age in (("a", 30), ("b", 200), ("c", 90)):
            task_name = "lately" if name == "a" else "nosuch"
            server.command(
                "HSET", f"{STREAM}:messages", name,
                f'["id","{name}","task","{task_name}","unknown_since","{ms(-age)}"]',
            )  # fmt: skip
            server.command("ZADD", f"{STREAM}:delayed", ms(5), name)
        server.command("HSET", f"{STREAM}:messages", "d", '{"unknown_since":')
        server.command("ZADD", f"{STREAM}:delayed", ms(5), "d")
        finding = one(await examined(server.url), "unknown_tasks")
        assert finding.severity is Severity.WARNING
        assert set(finding.evidence["tasks"]) == {"nosuch"}
        assert finding.evidence["tasks"]["nosuch"]["waiting"] == 2
        assert "2 tasks wait for a worker that knows the name: 'nosuch' for 3 min" in finding.message

    async def test_released(self, server):
        """Released tasks wait. Their consumer `released` is never dead."""
        make_group(server)
        add(server, at=f"{ms(-3600)}-0")
        take(server, "released")
        report = await examined(server.url)
        assert one(report, "no_worker").evidence["waiting"] == 1
        assert not {"unknown_consumer", "orphans"} & set(report.codes())

    async def test_dead_consumers(self, server):
        """Dead consumers with recent, old and no pending entries, each with its own lease."""
        make_group(server)
        add(server, 6)
        take(server, "lately", 1)
        take(server, "long", 2)
        take(server, "slow", 3)
        heartbeat(server, "lately", -5)
        heartbeat(server, "long", -600)
        heartbeat(server, "slow", -600)
        heartbeat(server, "empty", -700)
        server.command("HSET", f"{STREAM}:leases:{GROUP}", "slow", 3_600_000)
        server.command("EXPIRE", f"{STREAM}:leases:{GROUP}", 1000)
        report = await examined(server.url)
        (late,) = one(report, "orphans").evidence["consumers"]
        assert (late["consumer"], late["pending"], 599 < late["dead_for_s"] < 620) == ("long", 2, True)
        assert "no worker is alive" in one(report, "orphans").message
        due = one(report, "takeover_due").evidence["consumers"]
        assert {row["consumer"]: row["pending"] for row in due} == {"lately": 1, "slow": 3}
        assert one(report, "dead_consumers").evidence["consumers"] == ["empty"]
        nobody = one(report, "no_worker").evidence
        assert (nobody["waiting"], nobody["orphaned"], nobody["oldest_s"] > 599) == (0, 6, True)
        heartbeat(server, "alive", 30)
        assert "no free capacity" in one(await examined(server.url), "orphans").message

    async def test_unknown_consumer(self, server):
        """A consumer without any heartbeat reads the group."""
        make_group(server)
        add(server)
        take(server, "by hand")
        finding = one(await examined(server.url), "unknown_consumer")
        assert finding.evidence["consumers"][0]["consumer"] == "by hand"
        assert finding.remedy.endswith("redis-cli XPENDING queue:standard workers - + 10 'by hand'")

    async def test_lease_not_renewed(self, server):
        """A consumer that is alive and does not renew an entry. Renewed entries are no finding."""
        make_group(server)
        stale, _ = add(server, 2)
        take(server, "w1", 2)
        heartbeat(server, "w1", 30)
        assert "lease_not_renewed" not in (await examined(server.url)).codes()
        server.command("XCLAIM", STREAM, GROUP, "w1", 0, stale, "IDLE", 600_000, "JUSTID")
        (row,) = one(await examined(server.url), "lease_not_renewed").evidence["entries"]
        assert (row["entry"], row["consumer"], 599 < row["idle_s"] < 620) == (stale, "w1", True)
        server.command("HSET", f"{STREAM}:leases:{GROUP}", "w1", 3_600_000)
        assert "lease_not_renewed" not in (await examined(server.url)).codes()

    async def test_crashes(self, server):
        """Crash evidence of one worker, of several, and a verdict."""
        server.command("HSET", f"{STREAM}:crashes:{GROUP}", "1-1", "w1", "2-1", "w1 w2", "2-1:alone", "w3",
                       "3-1", "w1 w2 w3", "3-1:alone", "!")  # fmt: skip
        report = await examined(server.url)
        assert one(report, "crash_evidence").evidence["entries"] == ["1-1"]
        assert one(report, "suspects").evidence["entries"] == {"2-1": 2}
        assert one(report, "crash_verdict").evidence["entries"] == ["3-1"]


class TestDelayed:
    async def test_overdue(self, server):
        """Overdue and not promoted."""
        for name, due in (("a", -300), ("b", -90), ("c", -5), ("d", 900)):
            server.command("HSET", f"{STREAM}:messages", name, MESSAGE)
            server.command("ZADD", f"{STREAM}:delayed", ms(due), name)
        evidence = one(await examined(server.url), "delayed_overdue").evidence
        assert (evidence["overdue"], 299 < evidence["late_s"] < 320) == (2, True)

    async def test_halves(self, server):
        """Ids without a message, and messages without a due time."""
        server.command("HSET", f"{STREAM}:messages", "both", MESSAGE, "lost one", MESSAGE)
        server.command("ZADD", f"{STREAM}:delayed", ms(900), "both", ms(900), "empty")
        report = await examined(server.url)
        assert one(report, "delayed_without_message").evidence["ids"] == ["empty"]
        lost = one(report, "message_without_delay")
        assert lost.evidence["ids"] == ["lost one"]
        assert "redis-cli ZADD queue:standard:delayed 0 'lost one'" in lost.remedy
        server.command("ZREM", f"{STREAM}:delayed", "empty")
        server.command("HDEL", f"{STREAM}:messages", "lost one")
        assert "delayed_fine" in (await examined(server.url)).codes()


class TestDeadLetters:
    async def test_recent(self, server):
        """Dead letters of the last hour are counted by reason, older ones are not. Many are a warning."""
        server.command("XADD", "queue:dead", f"{ms(-7200)}-0", "task_id", "old", "reason", "expired")
        for number in range(9):
            server.command("XADD", "queue:dead", "*", "task_id", f"t{number}", "reason", "rejected")
        evidence = one(await examined(server.url), "dead_letters").evidence
        assert (evidence["size"], evidence["last_hour"], evidence["reasons"]) == (10, 9, {"rejected": 9})
        server.command("XADD", "queue:dead", "*", "task_id", "t", "reason", "expired")
        growing = one(await examined(server.url), "dead_letters_growing")
        assert growing.evidence["reasons"] == {"rejected": 9, "expired": 1}

    async def test_what_was_cut_off_is_said(self, server):
        """Dead letters that do not have all of their entry are counted."""
        server.command(
            "XADD", "queue:dead", "*", "task_id", "a", "reason", "undecodable", "cut", "5 bytes, 0 of 2 fields"
        )
        server.command("XADD", "queue:dead", "*", "task_id", "b", "reason", "undecodable")
        finding = one(await examined(server.url), "dead_letters")
        assert finding.evidence["cut"] == 1
        assert "1 of them without all of their entry" in finding.message

    async def test_counting_recent_dead_letters_is_bounded(self, server):
        """More dead letters than are read."""
        for number in range(510):
            server.command("XADD", "queue:dead", "*", "task_id", f"t{number}", "reason", "rejected")
        finding = one(await examined(server.url), "dead_letters_growing")
        assert finding.message.startswith("500 or more new dead letters")
        assert finding.evidence["size"] == 510

    async def test_dropped_by_the_bound(self, server):
        """Also when none is left."""
        server.command("HSET", "queue:stats:workers:totals", "dead_dropped", 7)
        report = await examined(server.url)
        assert "removed 7 dead letters" in one(report, "dead_letters_dropped").message
        assert "redis-cli DEL queue:stats:workers:totals" in one(report, "dead_letters_dropped").remedy
        assert "dead_letters_none" in report.codes()

    async def test_near_the_bound(self, server):
        """Almost as many dead letters as the bound."""
        from streamq.wire.dead_letter_fields import DeadLetterBound

        for number in range(9):
            server.command("XADD", "queue:dead", f"{number + 1}-1", "task_id", "t", "reason", "rejected")
        report = await examined(server.url, dead_letters=DeadLetterBound(max_size=10))
        assert one(report, "dead_letters_near_bound").evidence["bound"] == 10
        assert "dead_letters" not in report.codes()


class TestKeys:
    async def test_unknown_keys(self, server):
        """Undocumented names in the namespace are a finding. Names outside it are not."""
        server.command("SET", "queue:nonsense", "x")
        server.command("HSET", "queue:other:messages", "a", "b")  # of no stream
        server.command("SET", "queueing", "x")
        assert one(await examined(server.url), "unknown_keys").evidence["keys"] == {
            "queue:nonsense": "string", "queue:other:messages": "hash",
        }  # fmt: skip

    async def test_other_streams(self, server):
        """Streams of other tiers with their keys, and keys of other groups."""
        add(server, stream="queue:express")
        server.command("HSET", "queue:express:messages", "a", MESSAGE)
        server.command("ZADD", f"{STREAM}:alive:audit", 1, "w")
        server.command("EXPIRE", f"{STREAM}:alive:audit", 100)
        report = await examined(server.url)
        assert one(report, "other_streams").evidence["streams"] == ["queue:express"]
        assert "unknown_keys" not in report.codes()

    async def test_other_streams_wait(self, server):
        """Entries in a stream of a tier that only the producer knows, where nobody is alive."""
        add(server, stream="queue:express")
        add(server, stream="queue:shop:dead", at=f"{ms(-600)}-0")  # the dead letters of another namespace
        report = await examined(server.url)
        assert one(report, "other_streams").evidence["streams"] == ["queue:express"]
        assert "other_streams_wait" not in report.codes()
        add(server, stream="queue:now", at=f"{ms(-600)}-0")
        make_group(server, "queue:served")
        add(server, stream="queue:served", at=f"{ms(-600)}-0")
        heartbeat(server, "w1", 30, "queue:served")
        make_group(server, "queue:read", name="theirs")
        add(server, stream="queue:read", at=f"{ms(-600)}-0")
        take(server, "of another program", stream="queue:read", group="theirs")
        finding = one(await examined(server.url), "other_streams_wait")
        assert finding.severity is Severity.WARNING
        assert list(finding.evidence["streams"]) == ["queue:now"]
        assert "1 entry waits for up to 60" in finding.message
        assert "streamq worker app.tasks --queue queue:now" in finding.remedy

    async def test_tiers_that_only_one_side_has(self, server):
        """A stream without any group waits for nobody while workers of other tiers are alive: said at once, to both."""
        make_group(server, "queue:now")
        heartbeat(server, "w1", 30, "queue:now")
        add(server)
        finding = one(await examined(server.url), "no_worker")
        assert "workers of other tiers are alive: queue:now" in finding.message
        assert "streamq doctor --queue queue:now" in finding.remedy
        theirs = await examined(server.url, tiers=[Tier("now", threshold=1), Tier("later")])
        finding = one(theirs, "other_streams_wait")
        assert list(finding.evidence["streams"]) == [STREAM]
        make_group(server)
        codes = (await examined(server.url)).codes()
        assert ("no_worker" in codes, "no_worker_yet" in codes) == (False, True)

    async def test_never_read(self, server):
        """Tasks in a tier, or in a namespace, where no worker ever was, while others have been read."""
        server.command("XGROUP", "CREATE", "events:orders", GROUP, "0", "MKSTREAM")  # of another program
        add(server)
        assert "never_read" not in (await examined(server.url)).codes()
        heartbeat(server, "w1", -60, "events:orders")
        finding = one(await examined(server.url), "never_read")
        assert finding.severity is Severity.WARNING
        assert "1 task waits where no worker has ever read: queue:standard" in finding.message
        assert "other namespaces: events" in finding.message
        make_group(server, "queue:mail")
        server.command("ZADD", "queue:bulk:delayed", ms(60), "a")
        finding = one(await examined(server.url), "never_read")
        assert "2 tasks wait where no worker has ever read: queue:standard, queue:bulk; " in finding.message
        assert "other tiers: queue:mail" in finding.message
        heartbeat(server, "w1", 30, "queue:mail")
        codes = (await examined(server.url)).codes()
        assert ("never_read" in codes, "no_worker" in codes) == (False, True)
        make_group(server)
        make_group(server, "queue:bulk")
        server.command("DEL", "queue:mail:alive:workers")
        assert "never_read" not in (await examined(server.url)).codes()

    async def test_a_new_namespace_beside_others(self, server):
        """Nothing waits there: it may be a slip of the pen, so they are named."""
        make_group(server, "shop:bulk")
        heartbeat(server, "w1", 30, "shop:bulk")
        report = await examined(server.url)
        assert "other namespaces have workers: shop" in one(report, "stream_missing").message
        assert set(bad(report)) <= {"persistence_off"}

    async def test_remedies_are_about_this_queue(self, server):
        """Those that name a command of streamq, in another namespace and group."""
        options = {"namespace": "shop", "group": "mail"}
        add(server, stream="shop:standard", at=f"{ms(-600)}-0")
        add(server, stream="shop:express", at=f"{ms(-600)}-0")
        add(server, stream="shop:slow", at=f"{ms(-600)}-0")
        server.command("ZADD", "shop:bulk:delayed", ms(-600), "a")
        server.command("HSET", "shop:bulk:messages", "a", MESSAGE)
        server.command("XADD", "shop:dead", "*", "task_id", "x")
        report = await examined(server.url, **options)
        remedies = {finding.code: finding.remedy for finding in report.findings if "streamq " in finding.remedy}
        assert set(remedies) >= {"no_worker", "delayed_overdue", "dead_letters", "other_streams", "other_streams_wait"}
        for code, remedy in remedies.items():
            assert remedy.count("--group mail") == remedy.count("streamq "), (code, remedy)
            assert remedy.count("--namespace shop ") + remedy.count("--queue shop:") == remedy.count("streamq "), code
        assert remedies["other_streams"] == "streamq doctor --namespace shop --group mail --tiers express,slow"
        for number in range(10):
            add(server, stream=f"shop:a{number}")
        remedy = one(await examined(server.url, **options), "other_streams").remedy
        assert remedy.endswith(",a8,a9 (and again with the names of 2 more)")

    async def test_no_ttl(self, server):
        """Keys that have lost their TTL."""
        server.command("ZADD", f"{STREAM}:alive:{GROUP}", ms(60), "w1")
        server.command("SET", "queue:result:a", "{}")
        server.command("SET", "queue:id:b", "b", "PX", 1000)
        server.command("HSET", "queue:stats:workers:1", "standard|send|done", 1)
        server.command("HSET", f"{STREAM}:crashes:audit", "1-1", "w")
        assert one(await examined(server.url), "no_ttl").evidence["keys"] == [
            f"{STREAM}:alive:{GROUP}", "queue:result:a", f"{STREAM}:crashes:audit", "queue:stats:workers:1",
        ]  # fmt: skip

    async def test_a_key_of_another_program_has_lost_no_ttl(self, server):
        """It never had one: to let it expire would destroy what is not streamq's. Nor are all keys known then."""
        for name in ("leases:workers", "alive:workers"):
            server.command("SET", f"{STREAM}:{name}", "of another program")
        server.command("SET", "queue:stats:workers:totals", "of another program")
        server.command("SADD", "queue:result:a", "of another program")
        codes = (await examined(server.url)).codes()
        assert ("wrong_type" in codes, "no_ttl" in codes, "keys_fine" in codes) == (True, False, False)
        server.command("HSET", "queue:stats:workers:1", "standard|send|done", 1)
        finding = one(await examined(server.url), "no_ttl")
        assert (finding.evidence["keys"], "more" in finding.remedy) == (["queue:stats:workers:1"], False)
        server.command("HSET", "queue:stats:workers:2", "standard|send|done", 1)
        remedy = one(await examined(server.url), "no_ttl").remedy
        assert remedy == "redis-cli EXPIRE queue:stats:workers:1 3600 (then for 1 more: run the doctor again)"

    async def test_the_scan_stops_and_reports_it(self, server):
        """The scan of a large database stops at its limit. With 0 there is no scan."""
        for number in range(60):
            server.command("SET", f"else:{number}", "x")
        server.command("SET", "queue:nonsense", "x")
        report = await examined(server.url, scan=5)
        assert one(report, "scan_stopped").evidence["scanned"] == 5
        assert one(await examined(server.url), "unknown_keys")
        assert not {"scan_stopped", "keys_fine", "unknown_keys"} & set((await examined(server.url, scan=0)).codes())
