"""What `streamq doctor` says of signatures: fleets that mix, messages that workers will refuse."""

from __future__ import annotations

import pytest

from streamq import RedisBroker, SigningKeys
from streamq.doctor import examine
from tests.doctor.examined import STREAM, examined, one

pytestmark = pytest.mark.anyio
KEYS = SigningKeys({"a": b"a" * 32})


async def sign_one(server, **options):
    async with RedisBroker(server.url, signing=KEYS, **options) as broker:
        await broker.enqueue("send", 1)


async def codes(server, **options):
    report = await examined(server.url, **options)
    return {finding.code for finding in report.findings if finding.code.startswith("signatures")}


async def test_a_fleet_that_mixes_is_named(server):
    """Without keys by what waits; with keys by what a worker would refuse."""
    assert await codes(server) == set()
    await sign_one(server)
    assert await codes(server) == {"signatures_unchecked"}
    assert await codes(server, signing=KEYS) == set()
    server.command("XADD", STREAM, "*", "task", "send")
    report = await examined(server.url)
    assert one(report, "signatures_mixed").evidence == {"signed": 1, "unsigned": 1}
    async with RedisBroker(server.url, signing=KEYS) as broker:
        finding = one(await examine(broker), "signatures_refused")
    assert "the message is not signed; accepted here: 'a'" in finding.message
    assert finding.evidence["refused"] == 1
    assert finding.evidence["first"].startswith(f"{STREAM} ")
    open_for_all = SigningKeys({"a": b"a" * 32}, accept_unsigned=True)
    assert await codes(server, signing=open_for_all) == {"signatures_mixed"}
    assert await codes(server, signing=SigningKeys({"b": b"b" * 32})) == {"signatures_refused"}
