"""Corrections of fakeredis where it differs from Redis in replies that leases depend on.

Only this module and `consumer_groups` know the inside of fakeredis. It subclasses the socket
class whose methods are the commands, so that a correction also applies inside scripts and
transactions. If a newer fakeredis has moved these names, `dataset` works without corrections.

The differences were found with fakeredis 2.40 by `tests/embedded/test_parity.py`, which
compares the replies with those of real servers. Corrected is:

- XREADGROUP: a missing stream is NOGROUP, not ERR; a key of another type is WRONGTYPE; COUNT 0
  is no limit; reading pending entries again resets their idle time; an empty read does not
  change `inactive`.
- XPENDING: IDLE n means n or more; no idle time is negative; the counts of consumers are
  strings, sorted by name; without pending entries the last part is nil.
- XCLAIM replies in the order of the request, takes now for a TIME in the future, applies
  LASTID, refuses unknown options.
- XAUTOCLAIM examines ten times COUNT entries and returns the id to continue from; it removes
  deleted entries of any age; it accepts "(" and "-".
- XACK refuses a malformed id. BUSYGROUP is the first word of its error.
- The idle time of a consumer starts again with its commands, not when an entry is acknowledged.
- Inside scripts, blocking commands do not block (they hung); redis.pcall returns its error as
  a string. (`lua_setup.lua` corrects cjson.encode, global variables and redis.error_reply.)
- An exception inside fakeredis is an error reply, and does not end the connection.
- XREAD without entries is nil; COMMAND INFO knows only the commands of this kind of server.

Not corrected is: XRANGE with COUNT 0 replies an empty array instead of nil; one stream named
twice in one XREAD is in the reply once; error({err=...}) loses its code; an error of redis.call
that Lua's own pcall catches is userdata (redis.pcall is as in Redis); redis.sha1hex, bit,
cmsgpack and struct are missing.
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
    """One connection of fakeredis that replies as Redis does."""

    def _decode_result(self, result: _Reply) -> _Reply:
        """Return statuses and errors unchanged, with the code of an error."""
        return result

    def _blocking(
        self, timeout: float | None, func: Callable[[bool], _Reply], shape: Callable[[_Reply], _Reply] | None = None
    ) -> _Reply:
        """Never wait: outside scripts `server_state` does that, and inside scripts no command may wait."""
        del timeout
        result = func(True)  # as in the first try, which refuses wrong types
        return result if shape is None else shape(result)

    def _run_command(
        self, func: Callable[[Any], Any] | None, sig: Signature, args: list[Any], from_script: bool
    ) -> _Reply:
        """Turn any exception of fakeredis into an error reply: it would end the connection."""
        try:
            return super()._run_command(func, sig, args, from_script)
        except Exception as error:  # noqa: BLE001 - a bug of fakeredis may raise anything
            return SimpleError(f"ERR {type(error).__name__}: {error}")

    # --- reading -------------------------------------------------------------------------------

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
            consumer = consumer_groups.touch_consumer(group, consumer_name, current_time())
            if after is not None:
                reply.append([name, consumer_groups.redeliver_pending(group, consumer, after, limit)])
            elif entries := consumer_groups.deliver(group, consumer, limit, add_to_pending=b"NOACK" not in options):
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

    # --- the pending list ----------------------------------------------------------------------

    def xack(self, key: CommandItem, group_name: bytes, *args: bytes) -> int:
        if not args:
            raise SimpleError("ERR wrong number of arguments for 'xack' command")
        group = None if key.value is None else key.value.group_get(group_name)
        if group is None:
            return 0
        return sum(
            consumer_groups.remove_pending(group, entry) for entry in [StreamEntryKey.parse_str(arg) for arg in args]
        )

    def xpending(self, key: CommandItem, group_name: bytes, *args: bytes) -> _Reply:
        group = _group(key, group_name)
        if not args:
            return consumer_groups.pending_summary(group)
        idle, words = 0, list(args)
        if words[0].upper() == b"IDLE" and len(words) > 1:
            idle, words = _integer(words[1]), words[2:]
        if len(words) not in {3, 4}:
            raise SimpleError(_SYNTAX)
        low, high = _lower(words[0]), _upper(words[1])
        consumer = words[3] if len(words) == 4 else None
        return consumer_groups.pending_range(group, low, high, _integer(words[2]), idle, consumer)

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
        options = _claim_options(args[len(ids) :], now)
        consumer = consumer_groups.touch_consumer(group, consumer_name, now)
        claimed = [entry for entry in ids if consumer_groups.claim(group, entry, consumer, min_idle_ms, options)]
        if options.last_id is not None:
            group.last_delivered_key = max(group.last_delivered_key, options.last_id)
        return consumer_groups.format_entries(group, claimed, only_ids=options.only_ids)

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
        options = consumer_groups.ClaimOptions(time=now, only_ids=only_ids)
        result = consumer_groups.autoclaim(
            group, consumer_groups.touch_consumer(group, consumer_name, now), low, count, min_idle_ms, options
        )
        return [
            result.cursor.encode(),
            consumer_groups.format_entries(group, result.claimed, only_ids=only_ids),
            [entry.encode() for entry in result.deleted],
        ]

    # --- groups and consumers ------------------------------------------------------------------

    def xgroup_create(self, key: CommandItem, group_name: bytes, start_key: bytes, *args: bytes) -> _Reply:
        try:
            return super().xgroup_create(key, group_name, start_key, *args)
        except SimpleError as error:
            raise SimpleError(error.value.removeprefix("ERR ") if "BUSYGROUP" in error.value else error.value) from None

    def xinfo_groups(self, key: CommandItem) -> _Reply:
        return sorted(super().xinfo_groups(key), key=lambda fields: fields[b"name"])

    def xinfo_consumers(self, key: CommandItem, group_name: bytes) -> _Reply:
        return sorted(super().xinfo_consumers(key, group_name), key=lambda fields: fields["name"])

    # --- the rest ------------------------------------------------------------------------------

    def command_info(self, *commands: bytes) -> _Reply:
        replies = super().command_info(*(name.lower() for name in commands))
        return [reply if self._is_supported(name) else None for name, reply in zip(commands, replies, strict=True)]

    def _is_supported(self, name: bytes) -> bool:
        """Whether this kind of server has the command."""
        command = SUPPORTED_COMMANDS.get(_text(name).lower())
        return command is not None and self.server_type in command.server_types

    def _lua_redis_pcall(self, lua_runtime: Any, expected_globals: set[Any], op: bytes, *args: Any) -> _Reply:
        try:
            return self._lua_redis_call(lua_runtime, expected_globals, op, *args)
        except SimpleError as error:
            return lua_runtime.table_from({b"err": error.value.encode()})


class CorrectedConnection(FakeRedisConnection):
    """A connection of fakeredis that opens a `CorrectedSocket`."""

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
    """Parse the arguments of a read. Return its options, the streams, and the ids to start after."""
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


def _claim_options(args: Sequence[bytes], now: int) -> consumer_groups.ClaimOptions:
    """Parse the options after the ids of XCLAIM."""
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
    return consumer_groups.ClaimOptions(
        time=time if 0 <= time <= now else now,
        count=count if count is not None and count >= 0 else None,
        only_ids=only_ids,
        force=force,
        last_id=last_id,
    )


def _lower(value: bytes) -> StreamEntryKey:
    """Return the first id of a range with this start."""
    if value in {b"-", b"+"}:
        return _MIN if value == b"-" else _MAX
    bound = StreamRangeTest.decode(value)
    ts, seq = cast("StreamEntryKey", bound.value)
    if not bound.exclusive:
        return StreamEntryKey(ts, seq)
    return StreamEntryKey(ts, seq + 1) if seq < MAX_ID_PART else StreamEntryKey(ts + 1, 0)


def _upper(value: bytes) -> StreamEntryKey:
    """Return the last id of a range with this end."""
    if value in {b"-", b"+"}:
        return _MIN if value == b"-" else _MAX
    bound = StreamRangeTest.decode(value, missing_seq=MAX_ID_PART)
    ts, seq = cast("StreamEntryKey", bound.value)
    if not bound.exclusive:
        return StreamEntryKey(ts, seq)
    return StreamEntryKey(ts, seq - 1) if seq else StreamEntryKey(ts - 1, MAX_ID_PART)
