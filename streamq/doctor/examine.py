"""`examine`: reads the state of the server, then runs all checks on it. Changes nothing on the server."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from streamq.broker import RedisBroker
from streamq.diagnostics.safe_text import repr_of
from streamq.diagnostics.unawaited import name_remedy
from streamq.doctor.checks import run_checks
from streamq.doctor.finding import Finding, Report
from streamq.doctor.finding_codes import make_finding, redis_cli_command
from streamq.doctor.observations import Observations, Rights
from streamq.doctor.queries import NOT_READY, Queries
from streamq.doctor.read_circuits import read_circuits
from streamq.doctor.read_keys import read_keys
from streamq.doctor.read_rights import read_rights
from streamq.doctor.read_schedules import read_unusable_schedules
from streamq.doctor.read_server import read_server
from streamq.doctor.read_signatures import read_late_causes, read_signatures
from streamq.doctor.read_streams import read_dead_letters, read_late_schedules, read_tier
from streamq.doctor.read_values import read_foreign_values
from streamq.doctor.read_waiting import read_other_streams, read_unknown_tasks
from streamq.errors import BrokerError, ConfigurationError
from streamq.queue.read_queues import queues_read_beside
from streamq.queue.remedies import LOADED, parted_login, remedy_of
from streamq.queue.remedies import NOT_READY as NOT_READY_YET
from streamq.queue.server_errors import NO_DATABASE
from streamq.wire import bounds
from streamq.wire.command_line import streamq_command
from streamq.wire.rights import ROLES, Role, features_of

MAX_SCANNED: Final = 100_000
_LOGIN_CODES: Final = ("NOAUTH", "WRONGPASS")


async def examine(
    broker: RedisBroker, *, role: Role = "worker", features: Collection[str] | None = None, scan: int = MAX_SCANNED
) -> Report:
    """Check the server of an open broker, and its queue, and return the findings.

    `role` selects the rights that the user of the broker's URL must have: those of a `worker`, `producer`, `monitor` or
    `operator`, as `streamq acl` prints them. `features` are the features that it uses; None stands for all that the
    role has by itself. `scan` is the most keys that the server may scan in search of unknown ones; 0 turns the scan
    off. Changes nothing. If the user may not make a check, that is a finding.

    A server that cannot be reached is a finding as well. Raises ConfigurationError for an unknown role or feature.
    """
    if role not in ROLES:
        raise ConfigurationError(f"role={repr_of(role)} is not known: give one of {', '.join(ROLES)}")
    features_of([role], features)
    bounds.SCAN.check(scan)
    taken_at = datetime.now(UTC)
    try:
        findings = tuple(run_checks(await observe(broker, role=role, features=features, scan=scan)))
    except BrokerError as error:
        findings = (
            _without_database(error, broker, role, features)
            if error.code == NO_DATABASE
            else _server_unusable(error, shown_address(broker)),
        )
    keys = broker.keys
    return Report(
        server=shown_address(broker), namespace=keys.namespace, group=keys.group, role=role, taken_at=taken_at,
        findings=findings,
    )  # fmt: skip


async def observe(
    broker: RedisBroker, *, role: Role = "worker", features: Collection[str] | None = None, scan: int = MAX_SCANNED
) -> Observations:
    """Read everything that the checks need. Raises BrokerError if the server cannot be used."""
    queries = Queries(broker.store)
    keys = broker.keys
    server, now = await read_server(queries)
    # memory:// has no users and no permissions.
    allowed = Rights(role=role) if server.in_process else await read_rights(queries, keys, role, features)
    late = await read_late_schedules(queries, now)
    tiers = [await read_tier(queries, broker.tiers, index, now) for index in range(len(broker.tiers))]
    scanned = await read_keys(queries, broker.tiers, scan) if scan else None
    observed = Observations(
        now=now, group=keys.group, keys=keys, server=server, rights=allowed, tiers=tuple(tiers), dead_key=keys.dead,
        dead=await read_dead_letters(queries, broker.dead_letters.max_size, now),
        circuits=await read_circuits(queries, now),
        late_schedules=late, late_causes=await read_late_causes(queries, late, now) if late else {},
        unusable_schedules=await read_unusable_schedules(queries, now),
        signatures=await read_signatures(queries, broker.tiers, scanned.joins if scanned else ()),
        scan=scanned, other_streams=await read_other_streams(queries, scanned.streams, now) if scanned else (),
        unknown_tasks=await read_unknown_tasks(queries),
    )  # fmt: skip
    if scan and (unread := observed.never_read()):
        beside = await queues_read_beside(broker.store, unread[0].keys.stream, embedded=server.in_process)
        observed = replace(observed, read_instead=beside)
    names = dict.fromkeys(
        [(kind, getattr(tier.keys, kind)) for tier in observed.tiers for kind in ("leases", "crashes", "alive")]
        + [("stats", keys.stats(now)), ("totals", keys.totals)]
        + [(kind, name) for kind, some in (observed.scan.by_kind if observed.scan else {}).items() for name in some]
    )
    foreign = await read_foreign_values(queries, names, now)
    return replace(observed, foreign=foreign, refused=dict(queries.refused))


def shown_address(broker: RedisBroker) -> str:
    """Return the broker's address without its password."""
    embedded = broker.url.startswith(("memory:", "embedded:"))
    return broker.url if embedded else str(broker.client.address)


def _without_database(error: BrokerError, broker: RedisBroker, role: Role, features: Collection[str] | None) -> Finding:
    """Return the finding for a user that may not choose the database of the URL: no other right could be asked for."""
    address = broker.client.address
    user = address.username or "default"
    words = ("acl", "--role", role, "--user", user, *(("--features", ",".join(features)) if features else ()))
    rules = streamq_command(broker.keys, *words, "--url", f"redis://localhost/{address.db}")
    return make_finding(
        "permission_missing", str(error).partition("; ")[0],
        f"{redis_cli_command('ACL', 'SETUSER', user, '+select')}, and run this again; all rights: {rules}",
        missing=["+select"], rules=["+select"], user=user, role=role, features=features_of([role], features),
    )  # fmt: skip


def _server_unusable(error: BrokerError, address: str) -> Finding:
    """Return the finding for a server that answers no command."""
    remedy = remedy_of(error)
    if error.code in _LOGIN_CODES:
        found, remedy = parted_login(error)
        return make_finding("login_refused", found, remedy, error=error.code)
    if error.code in NOT_READY or NOT_READY_YET in str(error):
        return make_finding("not_ready", str(error), remedy or LOADED, error=error.code)
    return make_finding("unreachable", f"{address} cannot be used: {error}", remedy, error=error.code)


name_remedy(examine, "examine(...)")
