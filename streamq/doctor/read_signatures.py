"""Reads whether the messages that wait are signed, and with keys what would be refused, wherever it lies.

The oldest entries of each stream are a sample. Delayed messages, dead letters and schedules are read up to `_MOST`,
and so are the results that wait in workflow groups, in the keys that the scan has met.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from typing import Any, Final

import orjson

from streamq.doctor.observations import LateCause, Signatures
from streamq.doctor.queries import Queries, pairs, rows, text
from streamq.errors import SignatureError
from streamq.queue.schedule_problem import problem_of_ticks
from streamq.queue.schedules import ScheduleDefinition
from streamq.wire.delivery import Delivery
from streamq.wire.signing import SIG, signature_of_result
from streamq.wire.tiers import Tier
from streamq.wire.workflow_steps import NOT_TAKEN

_SAMPLE: Final = 10  # entries of each stream; an entry may be large
_MOST: Final = 10_000  # delayed messages of each tier, and dead letters
_PAGE: Final = 100


async def read_signatures(queries: Queries, tiers: Sequence[Tier], joins: Sequence[str] = ()) -> Signatures:
    """Count signed and unsigned messages among the oldest entries. With keys, check them as a worker would.

    `joins` are the hashes of workflow groups of which not all members are done.
    """
    store = queries.store
    signed = unsigned = 0
    refused: dict[str, str] = {}
    for index, tier in enumerate(tiers):
        stream = store.keys.tiers[index].stream
        for entry_id, flat in rows(await queries.one("XRANGE", stream, "-", "+", "COUNT", _SAMPLE)):
            if not flat:
                continue
            delivery = Delivery(index, tier.name, entry_id, flat)
            signed += SIG in delivery.fields
            unsigned += SIG not in delivery.fields
            _check(queries, delivery, f"{stream} {text(entry_id)}", refused)
    if store.signer is not None:
        for index, tier in enumerate(tiers):
            await _check_delayed(queries, index, tier.name, refused)
        await _check_dead_letters(queries, refused)
        await _check_schedules(queries, refused)
        await _check_results(queries, joins, refused)
    return Signatures(signed=signed, unsigned=unsigned, checked=store.signer is not None, refused=refused)


def _check(queries: Queries, delivery: Delivery, place: str, refused: dict[str, str]) -> None:
    store = queries.store
    try:
        store.check_signature(delivery)
    except SignatureError:
        refused[place] = _cause(queries, delivery.fields.get(SIG))


async def _check_delayed(queries: Queries, tier: int, tier_name: str, refused: dict[str, str]) -> None:
    key = queries.store.keys.tiers[tier].messages
    async with aclosing(_scan(queries, key)) as found:
        async for name, packed in found:
            try:
                fields = orjson.loads(packed)
            except orjson.JSONDecodeError:
                continue
            if isinstance(fields, list) and fields and all(isinstance(part, str) for part in fields):
                flat = [part.encode() for part in fields]
                _check(queries, Delivery(tier, tier_name, b"0-0", flat), f"{key} {name}", refused)


async def _scan(queries: Queries, key: str) -> AsyncGenerator[tuple[str, bytes], None]:
    cursor: Any = 0
    seen = 0
    while seen < _MOST:
        reply = await queries.one("HSCAN", key, cursor, "COUNT", _PAGE)
        if not isinstance(reply, list):
            return
        for pair in pairs(reply[1]).items():
            yield pair
            seen += 1
        cursor = text(reply[0])
        if cursor == "0":
            return


async def _check_dead_letters(queries: Queries, refused: dict[str, str]) -> None:
    """Check the newest dead letters that may be replayed: those without a field `raw`."""
    store, start, seen = queries.store, "+", 0
    while store.signer is not None and seen < _MOST:
        page = rows(await queries.one("XREVRANGE", store.keys.dead, start, "-", "COUNT", _PAGE))
        for entry_id, flat in page:
            if flat is None or any(name.startswith(b"raw.") for name in flat[::2]):
                continue
            try:
                store.signer.check_dead_letter(text(entry_id), flat)
            except SignatureError:
                fields = dict(zip(flat[::2], flat[1::2], strict=False))
                refused[f"{store.keys.dead} {text(entry_id)}"] = _cause(queries, fields.get(SIG))
        if len(page) < _PAGE:
            return
        seen += len(page)
        start = f"({text(page[-1][0])}"


async def _check_schedules(queries: Queries, refused: dict[str, str]) -> None:
    """Check stored schedules. Those from code are signed anew by the workers that start."""
    key = queries.store.keys.schedules
    for name, packed in pairs(await queries.one("HGETALL", key)).items():
        definition = ScheduleDefinition.parse(name, packed)
        if definition is None or definition.declared:
            continue
        try:
            definition.check_signature(queries.store.signer)
        except SignatureError:
            refused[f"{key} {name}"] = _cause(queries, definition.sig.encode() or None)


async def read_late_causes(queries: Queries, late: Collection[str], now: float) -> dict[str, LateCause]:
    """Return why these schedules are not ticked, where their definitions tell."""
    causes = {}
    for name, packed in pairs(await queries.one("HGETALL", queries.store.keys.schedules)).items():
        if name not in late:
            continue
        definition = ScheduleDefinition.read(name, packed)
        if isinstance(definition, str):
            causes[name] = LateCause(definition, refused=False)
        elif queries.store.signer is None and definition.sig:
            causes[name] = LateCause("signed: give --signing-keys FILE to see whether workers refuse it", refused=True)
        elif not definition.declared:
            try:
                definition.check_signature(queries.store.signer)
            except SignatureError:
                causes[name] = LateCause(_cause(queries, definition.sig.encode() or None), refused=True)
        if name in causes or isinstance(definition, str):
            continue
        if problem := problem_of_ticks(definition.cron, definition.tz, now):
            causes[name] = LateCause(problem, refused=False)
    return causes


async def _check_results(queries: Queries, joins: Sequence[str], refused: dict[str, str]) -> None:
    """Check which keys signed the results that wait for the other members of their group, up to `_MOST`.

    Their digests cannot be checked: they cover the number of members, which only the messages know.
    """
    seen = 0
    for key in joins:
        async with aclosing(_scan(queries, key)) as found:
            async for index, packed in found:
                seen += 1
                if packed != NOT_TAKEN and not _is_accepted(queries, signature := signature_of_result(packed)):
                    refused[f"{key} {index}"] = _cause(queries, signature)
        if seen >= _MOST:
            return


def _is_accepted(queries: Queries, signature: bytes | None) -> bool:
    signer = queries.store.signer
    if signer is None or signature is None:
        return signer is None or signer.accepts_unsigned
    return text(signature).split(":")[1] in signer.key_ids


def _cause(queries: Queries, signature: bytes | None) -> str:
    """Return why a signature is refused, in the same words for all that share the cause."""
    if signature is None:
        return "not signed"
    key = text(signature).split(":")[1:2]
    signer = queries.store.signer
    if not key or signer is None:
        return "no signature"
    known = signer.key_ids
    return f"a wrong signature (key {key[0]!r})" if key[0] in known else f"signed with the unknown key {key[0]!r}"
