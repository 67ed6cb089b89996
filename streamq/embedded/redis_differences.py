"""Where fakeredis answers otherwise than Redis in what leases rest on, put right.

With `groups`, the only module that knows the inside of fakeredis: it subclasses the socket
on which its commands are methods, so that a corrected command is corrected inside scripts
and transactions too. If a newer fakeredis has moved these names, `dataset` goes on without.

Found with fakeredis 2.40 by `tests/embedded/test_parity.py`, which compares the replies
with those of real servers:

- XREADGROUP of a missing stream is NOGROUP, not ERR; of another type WRONGTYPE; COUNT 0 is
  no limit; reading the history resets the idle time; an empty read keeps `inactive`.
- XPENDING: IDLE n means at least n, no idle time is negative; counts of consumers are
  strings and sorted by name; nothing pending ends in nil.
- XCLAIM answers in the order asked, clamps a TIME in the future to now, honours LASTID,
  refuses unknown options.
- XAUTOCLAIM looks at ten times COUNT entries and returns the id to go on from, drops
  deleted entries however young, takes "(" and "-".
- XACK refuses a malformed id. BUSYGROUP is the first word of its error.
- Idle times of consumers move when the consumer acts, not when an entry is acknowledged.
- Inside scripts, commands that block do not (they hung); redis.pcall gives its error as a
  string. (`redis.lua` corrects cjson.encode, global variables and redis.error_reply.)
- A fault in fakeredis itself is an error reply and does not end the connection.
- XREAD without news is nil; COMMAND INFO knows only what this kind of server has.

Not corrected: XRANGE with COUNT 0 answers an empty array instead of nil; one stream named
twice in one XREAD is answered once; error({err=...}) loses its code; what Lua's own pcall
catches of redis.call is userdata (redis.pcall is as in Redis); no redis.sha1hex, bit,
cmsgpack or struct.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from fakeredis import FakeRedisConnection
from fakeredis._commands import SUPPORTED_COMMANDS, Signature
from fakeredis._helpers import SimpleError, current_time
from fakeredis._socket import FakeSocket
from fakeredis.model import StreamEntryKey, StreamRangeTest, XStream
from fakeredis.model._stream import MAX_ID_PART

from streamq.embedded import consumer_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fakeredis import FakeServer
    from fakeredis._core import CommandItem
    from fakeredis.model import StreamGroup

_Reply: TypeAlias = Any

_WRONG_TYPE: Final = "WRONGTYPE Operation against a key holding the wrong kind of value"
_SYNTAX: Final = "ERR syntax error"
_NOT_AN_INTEGER: Final = "ERR value is not an integer or out of range"
_MIN: Final = StreamEntryKey(0, 0)
_MAX: Final = StreamEntryKey(MAX_ID_PART, MAX_ID_PART)


class CorrectedSocket(FakeSocket):
    """One connection of fakeredis, answering as Redis does."""

    def _decode_result(self, result: _Reply) -> _Reply:
        """Hand out statuses and errors as they are, with the first word of an error."""
        return result

    def _blocking(
        self, timeout: float | None, func: Callable[[bool], _Reply], shape: Callable[[_Reply], _Reply] | None = None
    ) -> _Reply:
        """Never wait: outside scripts `blocking` does, and inside them nobody may."""
        del timeout
        result = func(True)  # as at the first try, which refuses wrong types
        return result if shape is None else shape(result)

    def _run_command(
        self, func: Callable[[Any], Any] | None, sig: Signature, args: list[Any], from_script: bool
    ) -> _Reply:
        """Turn any fault of fakeredis into an error reply: it would end the connection."""
        try:
            return super()._run_command(func, sig, args, from_script)
        except Exception as error:  # noqa: BLE001 - what a fault raises is not known
            return SimpleError(f"ERR {type(error).__name__}: {error}")

    # --- reading ---------------------------------------------------------------------------

    def xread(self, *args: bytes) -> _Reply:
        return super().xread(*args) or None

    def xreadgroup(self, group_const: bytes, group_name: bytes, consumer_name: bytes, *args: bytes) -> _Reply:
        if group_const.upper() != b"GROUP":
            raise SimpleError(_SYNTAX)
        options, streams, starts = _read_options(args)
        read_from = []
        for name, start in zip(streams, starts, strict=True):
            group = self._group_of(name, group_name)
            after = None if start == b">" else StreamEntryKey.parse_str(start)
            read_from.append((name, group, after))
        count = _integer(options.get(b"COUNT", b"0"))
        limit = count if count > 0 else None
        reply = []
        for name, group, after in read_from:
            consumer = consumer_groups.seen(group, consumer_name, current_time())
            if after is not None:
                reply.append([name, consumer_groups.history(group, consumer, after, limit)])
            elif entries := consumer_groups.deliver(group, consumer, limit, keep=b"NOACK" not in options):
                reply.append([name, entries])
        return reply or None

    def _group_of(self, key: bytes, group_name: bytes) -> StreamGroup:
        item = self._db.get(key)
        if item is not None and not isinstance(item.value, XStream):
            raise SimpleError(_WRONG_TYPE)
        group: StreamGroup | None = None if item is None else item.value.group_get(group_name)
        if group is None:
            raise SimpleError(
                f"NOGROUP No such key '{_text(key)}' or consumer group '{_text(group_name)}' "
                "in XREADGROUP with GROUP option"
            )
        return group

    # --- the pending list --------------------------------------------------------------------

    def xack(self, key: CommandItem, group_name: bytes, *args: bytes) -> int:
        if not args:
            raise SimpleError("ERR wrong number of arguments for 'xack' command")
        group = None if key.value is None else key.value.group_get(group_name)
        if group is None:
            return 0
        return sum(consumer_groups.drop(group, entry) for entry in [StreamEntryKey.parse_str(arg) for arg in args])

    def xpending(self, key: CommandItem, group_name: bytes, *args: bytes) -> _Reply:
        group = _group(key, group_name)
        if not args:
            return consumer_groups.summary(group)
        idle, words = 0, list(args)
        if words[0].upper() == b"IDLE" and len(words) > 1:
            idle, words = _integer(words[1]), words[2:]
        if len(words) not in {3, 4}:
            raise SimpleError(_SYNTAX)
        low, high = _lower(words[0]), _upper(words[1])
        consumer = words[3] if len(words) == 4 else None
        return consumer_groups.pending(group, low, high, _integer(words[2]), idle, consumer)

    def xclaim(
        self, key: CommandItem, group_name: bytes, consumer_name: bytes, min_idle_ms: int, *args: bytes
    ) -> _Reply:
        group = _group(key, group_name)
        ids = []
        for arg in args:
            if not StreamRangeTest.valid_key(arg):
                break
            ids.append(StreamEntryKey.parse_str(arg))
        now = current_time()
        terms = _claim_terms(args[len(ids) :], now)
        consumer = consumer_groups.seen(group, consumer_name, now)
        claimed = [entry for entry in ids if consumer_groups.claim(group, entry, consumer, min_idle_ms, terms)]
        if terms.last_id is not None:
            group.last_delivered_key = max(group.last_delivered_key, terms.last_id)
        return consumer_groups.records(group, claimed, only_ids=terms.only_ids)

    def xautoclaim(
        self, key: CommandItem, group_name: bytes, consumer_name: bytes, min_idle_ms: int, start: bytes, *args: bytes
    ) -> _Reply:
        group = _group(key, group_name)
        low, count, only_ids = _lower(start), 100, False
        rest = list(args)
        while rest:
            option = rest.pop(0).upper()
            if option == b"JUSTID":
                only_ids = True
            elif option == b"COUNT" and rest:
                count = _integer(rest.pop(0))
            else:
                raise SimpleError(_SYNTAX)
        if count < 1:
            raise SimpleError("ERR COUNT must be > 0")
        now = current_time()
        terms = consumer_groups.Terms(time=now, only_ids=only_ids)
        sweep = consumer_groups.sweep(
            group, consumer_groups.seen(group, consumer_name, now), low, count, min_idle_ms, terms
        )
        return [
            sweep.cursor.encode(),
            consumer_groups.records(group, sweep.claimed, only_ids=only_ids),
            [entry.encode() for entry in sweep.deleted],
        ]

    # --- groups and consumers ------------------------------------------------------------------

    def xgroup_create(self, key: CommandItem, group_name: bytes, start_key: bytes, *args: bytes) -> _Reply:
        try:
            return super().xgroup_create(key, group_name, start_key, *args)
        except SimpleError as error:
            raise SimpleError(error.value.removeprefix("ERR ") if "BUSYGROUP" in error.value else error.value) from None

    def xinfo_groups(self, key: CommandItem) -> _Reply:
        return sorted(super().xinfo_groups(key), key=lambda facts: facts[b"name"])

    def xinfo_consumers(self, key: CommandItem, group_name: bytes) -> _Reply:
        return sorted(super().xinfo_consumers(key, group_name), key=lambda facts: facts["name"])

    # --- the rest --------------------------------------------------------------------------------

    def command_info(self, *commands: bytes) -> _Reply:
        return [
            facts if (known := SUPPORTED_COMMANDS.get(_text(name).lower())) and self.server_type in known.server_types
            else None
            for name, facts in zip(commands, super().command_info(*(name.lower() for name in commands)), strict=True)
        ]  # fmt: skip

    def _lua_redis_pcall(self, lua_runtime: Any, expected_globals: set[Any], op: bytes, *args: Any) -> _Reply:
        try:
            return self._lua_redis_call(lua_runtime, expected_globals, op, *args)
        except SimpleError as error:
            return lua_runtime.table_from({b"err": error.value.encode()})


class CorrectedConnection(FakeRedisConnection):
    """Opens a `CorrectedSocket`."""

    def _connect(self) -> CorrectedSocket:
        return CorrectedSocket(
            cast("FakeServer", self._server),
            client_class=self._client_class,
            db=self.db,
            lua_modules=self._lua_modules,
            client_info=self._client_info,
        )


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _integer(value: bytes) -> int:
    try:
        return int(value)
    except ValueError:
        raise SimpleError(_NOT_AN_INTEGER) from None


def _group(key: CommandItem, group_name: bytes) -> StreamGroup:
    group: StreamGroup | None = None if key.value is None else key.value.group_get(group_name)
    if group is None:
        raise SimpleError(f"NOGROUP No such key '{_text(key.key)}' or consumer group '{_text(group_name)}'")
    return group


def _read_options(args: Sequence[bytes]) -> tuple[dict[bytes, bytes], Sequence[bytes], Sequence[bytes]]:
    """Take the arguments of a read apart: options, names of streams, ids to start after."""
    options: dict[bytes, bytes] = {}
    rest = list(args)
    while rest:
        option = rest.pop(0).upper()
        if option == b"STREAMS" and rest and len(rest) % 2 == 0:
            half = len(rest) // 2
            return options, rest[:half], rest[half:]
        if option == b"NOACK":
            options[option] = b""
        elif option in {b"COUNT", b"BLOCK"} and rest:
            options[option] = rest.pop(0)
        else:
            break
    raise SimpleError(_SYNTAX)


def _claim_terms(args: Sequence[bytes], now: int) -> consumer_groups.Terms:
    """Read what follows the ids in XCLAIM."""
    time, count, last_id, only_ids, force = now, None, None, False, False
    rest = list(args)
    while rest:
        option = rest.pop(0)
        match option.upper():
            case b"JUSTID":
                only_ids = True
            case b"FORCE":
                force = True
            case b"IDLE" if rest:
                time = now - _integer(rest.pop(0))
            case b"TIME" if rest:
                time = _integer(rest.pop(0))
            case b"RETRYCOUNT" if rest:
                count = _integer(rest.pop(0))
            case b"LASTID" if rest:
                last_id = StreamEntryKey.parse_str(rest.pop(0))
            case _:
                raise SimpleError(f"ERR Unrecognized XCLAIM option '{_text(option)}'")
    return consumer_groups.Terms(
        time=time if 0 <= time <= now else now,
        count=count if count is not None and count >= 0 else None,
        only_ids=only_ids,
        force=force,
        last_id=last_id,
    )


def _lower(value: bytes) -> StreamEntryKey:
    """The first id of a range that begins like this."""
    if value in {b"-", b"+"}:
        return _MIN if value == b"-" else _MAX
    bound = StreamRangeTest.decode(value)
    ts, seq = cast("StreamEntryKey", bound.value)
    if not bound.exclusive:
        return StreamEntryKey(ts, seq)
    return StreamEntryKey(ts, seq + 1) if seq < MAX_ID_PART else StreamEntryKey(ts + 1, 0)


def _upper(value: bytes) -> StreamEntryKey:
    """The last id of a range that ends like this."""
    if value in {b"-", b"+"}:
        return _MIN if value == b"-" else _MAX
    bound = StreamRangeTest.decode(value, missing_seq=MAX_ID_PART)
    ts, seq = cast("StreamEntryKey", bound.value)
    if not bound.exclusive:
        return StreamEntryKey(ts, seq)
    return StreamEntryKey(ts, seq - 1) if seq else StreamEntryKey(ts - 1, MAX_ID_PART)
