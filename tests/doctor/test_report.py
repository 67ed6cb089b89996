"""The values of `streamq.doctor` without a server: JSON, exit codes, codes, findings that tests cannot provoke."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from streamq.doctor import SEVERITIES, Finding, Report, Severity
from streamq.doctor.checks import run_checks
from streamq.doctor.finding_codes import make_finding, redis_cli_command
from streamq.doctor.observations import Observations, Server
from streamq.doctor.read_keys import TYPES, WITH_TTL, KeyCatalogue
from streamq.doctor.read_server import FEATURES
from streamq.wire.keys import Keys
from streamq.wire.tiers import DEFAULT_TIERS
from tests.docs.pages import ROOT, table_under

SERVER = Server(product="redis", version="7.0.15", round_trips=(0.001,) * 5, features=dict.fromkeys(FEATURES, True))


def codes(**server):
    """Return the codes for a server with these values."""
    return {finding.code: finding for finding in run_checks(Observations(now=1e9, server=replace(SERVER, **server)))}


def report(*severities):
    """Return a report with findings of these severities."""
    findings = tuple(Finding(f"code{at}", severity, "text") for at, severity in enumerate(severities))
    at = datetime(2030, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)
    return Report(server="redis://x", namespace="queue", group="workers", role="worker", taken_at=at, findings=findings)


# --- what cannot be provoked, or takes too long ----------------------------------------------------


def test_an_old_server():
    """Redis 6.0 has no XAUTOCLAIM."""
    seen = codes(features={**SERVER.features, "XAUTOCLAIM": False, "WAITAOF": False})
    assert seen["too_old"].evidence["missing"] == ["XAUTOCLAIM"]
    assert "features_missing" not in seen
    assert "too_old" not in codes(features={**SERVER.features, "WAITAOF": False})
    assert "features" in codes()


def test_a_sentinel():
    """It answers, and holds no tasks."""
    found = codes(info={"redis_mode": "sentinel"}, features=dict.fromkeys(FEATURES, False))["too_old"]
    assert "Sentinel" in found.message
    assert "GET-MASTER-ADDR-BY-NAME" in found.remedy


@pytest.mark.parametrize(("lag", "expected"), [("0", "primary"), ("10", "primary"), ("11", "replica_behind")])
def test_a_replica_without_reports(lag, expected):
    """A replica reports its offset each second."""
    replica = f"ip=10.0.0.7,port=6379,state=online,offset=1,lag={lag}"
    seen = codes(info={"role": "master", "connected_slaves": "1", "slave0": replica})
    assert set(seen) & {"primary", "replica_behind"} == {expected}
    if expected == "replica_behind":
        assert "10.0.0.7:6379" in seen[expected].message


def test_the_limits_of_slowness():
    """The fastest round trip counts: a busy client machine is not a slow server."""
    assert "slow" not in codes(round_trips=(0.5, 0.4, 0.05))
    assert codes(round_trips=(0.5, 0.4, 0.051))["slow"].evidence["best_ms"] == 51.0
    assert codes(round_trips=(0.5, 0.4, 0.051))["reachable"].evidence["median_ms"] == 400.0


def test_a_clock_behind_a_slow_line():
    """The possible delay of the connection is not counted as a clock offset."""
    assert "clock_fine" in codes(offset=1.4, offset_error=0.5)
    assert "clock_offset" in codes(offset=-1.6, offset_error=0.5)


def test_a_remedy_can_be_pasted():
    """Names from the server are quoted for the shell."""
    assert redis_cli_command("DEL", "x; rm -rf /") == "redis-cli DEL 'x; rm -rf /'"
    assert redis_cli_command("ACL", "SETUSER", "a b", "~queue:*") == "redis-cli ACL SETUSER 'a b' '~queue:*'"


# --- the report --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("severities", "code", "strict"),
    [
        ((), 0, 0),
        ((Severity.OK, Severity.INFO), 0, 0),
        ((Severity.WARNING, Severity.INFO), 0, 1),
        ((Severity.WARNING, Severity.ERROR, Severity.OK), 2, 2),
    ],
)
def test_exit_codes(severities, code, strict):
    """0 for no finding above info, 1 for warnings with strict, 2 for errors."""
    assert report(*severities).exit_code() == code
    assert report(*severities).exit_code(strict=True) == strict


def test_as_json():
    """The format for programs."""
    whole = report(Severity.OK, Severity.WARNING).as_dict()
    assert json.loads(json.dumps(whole)) == {
        "server": "redis://x", "namespace": "queue", "group": "workers", "role": "worker",
        "taken_at": "2030-01-02T03:04:05.678+00:00", "worst": "warning",
        "counts": {"ok": 1, "info": 0, "warning": 1, "error": 0},
        "findings": [
            {"code": "code0", "severity": "ok", "message": "text", "evidence": {}, "remedy": ""},
            {"code": "code1", "severity": "warning", "message": "text", "evidence": {}, "remedy": ""},
        ],
    }  # fmt: skip


def test_codes_by_severity():
    """Each code once, in order, from this severity up."""
    seen = report(Severity.ERROR, Severity.OK, Severity.WARNING)
    assert seen.codes() == ["code0", "code1", "code2"]
    assert seen.codes(Severity.WARNING) == ["code0", "code2"]


# --- codes, keys and docs belong together --------------------------------------------------------------


def test_every_code_has_one_severity():
    with pytest.raises(KeyError):
        make_finding("no_such_code", "text")
    source = (ROOT / "streamq" / "doctor" / "finding_codes.py").read_text()
    listed = re.findall(r'Severity.\w+: """(.*?)"""', source, re.DOTALL)
    assert len(" ".join(listed).split()) == len(SEVERITIES)


def test_every_code_is_used_and_provoked():
    """A code that no check uses, or that no test expects, is an error."""
    sources = "".join(
        path.read_text() for path in (ROOT / "streamq" / "doctor").glob("*.py") if path.name != "finding_codes.py"
    )
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    for code in SEVERITIES:
        assert f'"{code}"' in sources, code
        assert f'"{code}"' in tests, code


def test_the_table_of_codes():
    """The page lists all codes with their severities, the worst first, and no others."""
    rows = [tuple(row[:2]) for row in table_under(ROOT / "docs" / "doctor.md", "## Codes")]
    assert dict(rows) == {code: severity.word for code, severity in SEVERITIES.items()}
    order = [SEVERITIES[code] for code, _ in rows]
    assert order == sorted(order, reverse=True)


def test_keys_are_those_of_the_wire_format():
    """The doctor expects the types and lifetimes of docs/wire-format.md."""
    keys = Keys.of("<ns>", "<group>", DEFAULT_TIERS)
    catalogue = KeyCatalogue(keys, DEFAULT_TIERS)
    types = {"stream": "stream", "sorted set": "zset", "hash": "hash", "string": "string"}
    rows = table_under(ROOT / "docs" / "wire-format.md", "## Keys")
    for name, kind, _, _, lifetime in rows:
        if kind == "channel":
            continue
        what = catalogue.kind_of(name.replace("<stream>", "<ns>:bulk"))
        assert what is not None, name
        assert TYPES[what] == types[kind], name
        assert (what in WITH_TTL) == bool(re.search(r"\d h|\d s|ttl|:alive:", lifetime)), (name, lifetime)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("q:standard", "stream"), ("q:standard:alive:other", "alive"), ("q:standard:alive:", None), ("q:else", None),
        ("q:else:delayed", None), ("q:dead", "dead"), ("q:result:a:b", "result"),
        ("q:stats:other:5", "stats"), ("q", None),
    ],
)  # fmt: skip
def test_names(name, what):
    """The kind of a key comes from its name."""
    keys = Keys.of("q", "workers", DEFAULT_TIERS)
    assert KeyCatalogue(keys, DEFAULT_TIERS).kind_of(name) == what
