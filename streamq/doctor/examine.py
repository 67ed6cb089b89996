"""`examine`: ask everything, then judge it. Nothing on the server is changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from streamq.broker import RedisBroker
from streamq.doctor.checks import judge
from streamq.doctor.finding import Finding, Report
from streamq.doctor.finding_codes import found
from streamq.doctor.observations import Facts, Rights
from streamq.doctor.queries import NOT_READY, Questions
from streamq.doctor.read_keys import look_at_keys
from streamq.doctor.read_rights import ROLES, Role, rights
from streamq.doctor.read_server import look_at_server
from streamq.doctor.read_streams import look_at_schedules, look_at_the_dead, look_at_tier
from streamq.errors import BrokerError, ConfigurationError, check_integer

MOST_SCANNED: Final = 100_000
_LOGIN: Final = ("NOAUTH", "WRONGPASS")


async def examine(broker: RedisBroker, *, role: Role = "worker", scan: int = MOST_SCANNED) -> Report:
    """Examine the server behind an open broker, and its queue, and return what was found.

    `role` says what the user of the broker's URL must be allowed to do: what a `worker`, `producer`,
    `monitor` or `operator` does. `scan` is how many keys the server may look at in search of strange ones;
    0 is none. Works with few rights: what may not be asked is a finding as well. Changes nothing.

    A server that cannot be reached is a finding, too. Raises ConfigurationError for an unknown role.
    """
    if role not in ROLES:
        raise ConfigurationError(f"role={role!r} is not known: give one of {', '.join(ROLES)}")
    check_integer("scan", scan, 0)
    taken_at = datetime.now(UTC)
    try:
        findings = tuple(judge(await look(broker, role=role, scan=scan)))
    except BrokerError as error:
        findings = (_unusable(error, where(broker)),)
    keys = broker.keys
    return Report(
        server=where(broker), namespace=keys.namespace, group=keys.group, role=role, taken_at=taken_at,
        findings=findings,
    )  # fmt: skip


async def look(broker: RedisBroker, *, role: Role = "worker", scan: int = MOST_SCANNED) -> Facts:
    """Ask everything and judge nothing. Raises BrokerError if the server cannot be used."""
    questions = Questions(broker.store)
    keys = broker.keys
    server, now = await look_at_server(questions)
    # memory:// has no users: whoever shares the process may do everything.
    allowed = Rights(role=role) if server.in_process else await rights(questions, keys, role)
    tiers = [await look_at_tier(questions, broker.tiers, index, now) for index in range(len(broker.tiers))]
    facts = Facts(
        now=now, group=keys.group, server=server, rights=allowed, tiers=tuple(tiers), dead_key=keys.dead,
        dead=await look_at_the_dead(questions, broker.dead_letters.max_size, now),
        late_schedules=await look_at_schedules(questions, now),
        scan=await look_at_keys(questions, broker.tiers, scan) if scan else None,
    )  # fmt: skip
    return replace(facts, refused=dict(questions.refused))


def where(broker: RedisBroker) -> str:
    """Return the broker's address without its password."""
    embedded = broker.url.startswith(("memory:", "embedded:"))
    return broker.url if embedded else str(broker.client.address)


def _unusable(error: BrokerError, place: str) -> Finding:
    """Return the finding for a server that cannot be asked anything."""
    if error.code in _LOGIN:
        remedy = "give user and password in --url or STREAMQ_URL: redis://user:password@host:6379"
        return found("login_refused", str(error), remedy, error=error.code)
    if error.code in NOT_READY or " is not ready: " in str(error):
        return found("not_ready", str(error), "wait until it has loaded its data, and look again", error=error.code)
    remedy = "start a Redis or Valkey server there, or say where with --url or STREAMQ_URL"
    return found("unreachable", f"{place} cannot be used: {error}", remedy, error=error.code)
