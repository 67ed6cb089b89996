"""`streamq doctor` on circuit breakers."""

from __future__ import annotations

import pytest

from streamq.doctor import Severity
from tests.doctor.examined import examined, ms, one

pytestmark = pytest.mark.anyio


def put(server, name, *fields, left=60):
    """Write a circuit by hand; the index forgets it in `left` seconds."""
    server.command("HSET", f"queue:circuit:{name}", *fields)
    server.command("ZADD", "queue:circuits", ms(left), name)
    for key in (f"queue:circuit:{name}", "queue:circuits"):
        server.command("EXPIRE", key, 60)


async def test_circuits_that_are_not_closed(server, anyio_backend):
    """Each with its worker and its last failure; closed, forgotten and foreign ones are passed over."""
    assert "circuits_open" not in (await examined(server.url)).codes()
    failed = ("failures", "5", "error_type", "OSError", "error", "refused", "since", ms(-12))
    put(server, "payments|charge", "state", "open", *failed)
    put(server, "@here-1|mail", "state", "half_open", "name", "mail", "worker", "here-1", "since", ms(-3))
    put(server, "closed", "state", "closed")
    put(server, "old", "state", "open", left=-5)
    put(server, "odd", "state", "what")
    finding = one(await examined(server.url, role="monitor"), "circuits_open")
    assert finding.severity is Severity.WARNING
    assert finding.message.startswith("2 circuits are not closed, and their tasks wait, delayed: ")
    assert "payments:charge is open for 12 s, the last failure: OSError: refused" in finding.message
    assert "mail of here-1 is half_open for 3 s" in finding.message
    assert {one["name"]: one["failures"] for one in finding.evidence["circuits"]} == {"payments:charge": 5, "mail": 0}


async def test_somebody_elses_key_is_none(server, anyio_backend):
    """Of another type: the doctor goes on, and says so elsewhere."""
    server.command("SET", "queue:circuits", "text")
    assert "circuits_open" not in (await examined(server.url)).codes()
