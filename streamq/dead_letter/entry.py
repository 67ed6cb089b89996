"""A dead letter: one decoded entry of the dead letter stream.

Every entry of that stream is a dead letter, also one that was written by hand and lacks fields. How workers
write entries is in `wire/message.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from streamq.errors import SignatureError
from streamq.wire.bounds import ATTEMPT, STARTS, Bound
from streamq.wire.message import entry_ms, iso
from streamq.wire.signing import SIG, Signer
from streamq.wire.stored_numbers import stored_count

_REPLAYED_FIELDS = (
    "priority",
    "timeout",
    "result_ttl",
    "retries",
    "group",
    "then",
    "workflow",
    "dedup",
    "dedup_until",
    "dedup_ttl",
)  # fields that a replay keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterEntry:
    """One dead task. A field that its entry lacks is empty, zero or None.

    `died_at` and `enqueued_at` are aware datetimes. `starts` counts all runs, with crashed and postponed
    ones. `attempts` counts the runs of the retry budget. `crashed` names the workers that died while they ran
    it. `origin` is its stream and entry id. `raw` contains the bytes of the fields that could not be
    decoded; it is empty for a task that can be replayed. `options` are the message fields that a replay keeps,
    `flat` the fields of the entry as they are in the stream.
    """

    entry_id: str
    task_id: str
    task_name: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    tier: str = ""
    reason: str = ""
    error_type: str = ""
    error: str = ""
    traceback: str = ""
    attempts: int = 0
    starts: int = 0
    enqueued_at: datetime | None = None
    died_at: datetime
    worker: str = ""
    crashed: tuple[str, ...] = ()
    origin: str = ""
    headers: Mapping[str, Any] = field(default_factory=dict)
    raw: Mapping[str, bytes] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    flat: Sequence[bytes] = field(default=(), repr=False, compare=False)

    @property
    def replayable(self) -> bool:
        """Is this a task that was accepted once? Of all others, those refused for their signature may be replayed."""
        return bool(self.task_name) and not self.raw

    def check_signature(self, signer: Signer | None) -> None:
        """Raise SignatureError if messages are signed here, and no worker with a key wrote this dead letter.

        Without keys, if it is signed: what replaced it would have no signature, and workers with keys refuse that.
        """
        if signer is not None:
            signer.check_dead_letter(self.entry_id, self.flat)
        elif SIG in self.flat[::2]:
            raise SignatureError(
                f"the dead letter {self.entry_id} is signed and this broker has no keys: give --signing-keys FILE "
                "(signing=SigningKeys(...))"
            )

    @classmethod
    def of(cls, entry_id: bytes, flat: Sequence[bytes]) -> DeadLetterEntry:
        """Decode one entry of the dead letter stream. Never raises: fields that cannot be decoded are in `raw`."""
        return _Decoder(entry_id, flat).decode()


def replayed_options(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the fields of a message that a replay keeps. All fields can be decoded."""
    return {name: fields[name.encode()].decode() for name in _REPLAYED_FIELDS if name.encode() in fields}


class _Decoder:
    """Decodes one entry. Fields that cannot be decoded go into `raw`."""

    def __init__(self, entry_id: bytes, flat: Sequence[bytes]) -> None:
        pairs = iter(flat)
        self._entry_id = entry_id.decode()
        self._flat = flat
        self._died_at = datetime.fromisoformat(iso(entry_ms(entry_id) / 1000))
        named = zip(pairs, pairs, strict=False)
        self._fields = {name.decode(errors="backslashreplace"): value for name, value in named}
        self._raw = {name[4:]: value for name, value in self._fields.items() if name.startswith("raw.")}

    def decode(self) -> DeadLetterEntry:
        origin = self._text("origin")
        return DeadLetterEntry(
            entry_id=self._entry_id,
            task_id=self._text("task_id") or origin.partition(" ")[2] or self._entry_id,
            task_name=self._text("task", exact=True),
            args=self._json("args", []),
            kwargs=self._json("kwargs", {}),
            tier=self._text("tier"),
            reason=self._text("reason"),
            error_type=self._text("error_type"),
            error=self._text("error"),
            traceback=self._text("traceback"),
            attempts=self._count("attempts", ATTEMPT),
            starts=self._count("starts", STARTS),
            enqueued_at=self._time("enqueued_at"),
            died_at=self._time("died_at") or self._died_at,
            worker=self._text("worker"),
            crashed=tuple(self._text("crashed").split()),
            origin=origin,
            headers=self._json("headers", {}),
            options={name: self._text(name, exact=True) for name in _REPLAYED_FIELDS if name in self._fields},
            raw=self._raw,
            flat=self._flat,
        )

    def _text(self, name: str, *, exact: bool = False) -> str:
        value = self._fields.get(name, b"")
        try:
            return value.decode()
        except UnicodeDecodeError:
            if exact:
                self._raw.setdefault(name, value)
            return value.decode(errors="backslashreplace")

    def _json(self, name: str, default: Any) -> Any:
        value = self._fields.get(name)
        if not value:
            return default
        try:
            decoded = orjson.loads(value)
        except orjson.JSONDecodeError:
            decoded = None
        if type(decoded) is not type(default):
            self._raw.setdefault(name, value)
            return default
        return decoded

    def _count(self, name: str, bound: Bound) -> int:
        return stored_count(self._fields.get(name), int(bound.highest)) or 0

    def _time(self, name: str) -> datetime | None:
        try:
            time = datetime.fromisoformat(self._text(name))
        except ValueError:
            return None
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
