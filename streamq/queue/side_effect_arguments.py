"""The KEYS and ARGV of side effects, for the scripts that carry them out. Needs keys alone; nothing here sends.

The side effects are values of `wire.side_effects`. The messages that they send are signed here, where messages are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from streamq.wire.keys import Keys, TierKeys
from streamq.wire.message import Field, as_text, milliseconds, pack_flat
from streamq.wire.side_effects import (
    BeginWorkflow,
    DelayTask,
    FreeKey,
    JoinGroup,
    KeepResult,
    NoteStep,
    SendTask,
    SideEffect,
)
from streamq.wire.signing import Signer
from streamq.wire.workflow_record import KEPT_AFTER_END


def side_effect_arguments(
    keys: Keys, wanted: Sequence[SideEffect], signer: Signer | None = None
) -> tuple[list[str], list[Field | int]]:
    """Return the KEYS and the ARGV of side effects, as `carry_out` in `_side_effects.lua` reads them."""
    names: list[str] = []
    values: list[Field | int] = []
    for one in wanted:
        of_one, arguments = _arguments(keys, one, signer)
        names += of_one
        values += (one.effect, len(of_one), len(arguments), *arguments)
    return names, values


def _arguments(keys: Keys, wanted: SideEffect, signer: Signer | None) -> tuple[list[str], list[Field | int]]:
    match wanted:
        case BeginWorkflow() | NoteStep():
            return _of_record(keys, wanted)
        case KeepResult(task_id, ttl, payload):
            return [keys.result(task_id)], [max(1, milliseconds(ttl)), payload]
        case FreeKey(key, task_id):
            names = [keys.dedup(key), keys.latest(key), *(tier.delayed for tier in keys.tiers)]
            return names, [task_id, keys.wake]
        case SendTask(stream, fields):
            return [stream], list(fields if signer is None else signer.sign(stream, fields))
        case DelayTask(stream, task_id, fields, delay):
            target = TierKeys.of(stream, keys.group)
            packed = pack_flat(as_text(fields if signer is None else signer.sign(stream, fields)))
            member = keys.retry_member(task_id)
            return [target.delayed, target.messages], [member, milliseconds(delay), keys.wake, packed]
        case JoinGroup(stream, task_id, fields):
            target = TierKeys.of(stream, keys.group)
            result = wanted.result
            if signer is not None and wanted.rest:
                fields = signer.sign_joined(stream, fields, wanted.size, wanted.rest)
                result = signer.sign_result(task_id, wanted.index, wanted.size, result)
            elif signer is not None:
                fields = signer.sign(stream, fields)
            names = [keys.join(task_id), stream, target.delayed, target.messages]
            return names, [
                wanted.index, result, wanted.size, milliseconds(wanted.keep), keys.retry_member(task_id),
                milliseconds(wanted.delay), keys.wake, wanted.rest, *fields,
            ]  # fmt: skip
        case _:
            assert_never(wanted)


def _of_record(keys: Keys, wanted: BeginWorkflow | NoteStep) -> tuple[list[str], list[Field | int]]:
    if isinstance(wanted, BeginWorkflow):
        return [keys.workflow(wanted.workflow_id)], [wanted.plan, wanted.total, milliseconds(wanted.ttl)]
    times = milliseconds(wanted.ttl), milliseconds(KEPT_AFTER_END)
    return [keys.workflow(wanted.place.workflow_id)], [wanted.place.number, keys.group, wanted.state, *times]
