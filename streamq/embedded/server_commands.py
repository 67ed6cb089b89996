"""Commands about connections and about the server itself: CLIENT, INFO, CONFIG and others.

fakeredis lacks them, or does not know the state that they need. Each function takes the
connection and the whole request. It returns a reply, or `PASS_ON` to let fakeredis reply. It
raises CommandError for an error reply. Called under the lock of the server.
"""

from __future__ import annotations

import fnmatch
import os
from typing import TYPE_CHECKING, Final

from streamq.embedded.resp import OK, CommandError, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamq.embedded.server_state import ConnectionState

PASS_ON: Final = object()
"""The dataset replies to this request."""

VERSION: Final = "7.2.4"
"""The version of Redis that memory:// is compared with. Valkey reports it as redis_version, too."""

_UNBLOCKED: Final = CommandError("UNBLOCKED client unblocked via CLIENT UNBLOCK")
_SYNTAX: Final = CommandError("ERR syntax error")
_CONFIGURATION: Final = {
    "appendonly": "no",
    "databases": "16",
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "proto-max-bulk-len": "536870912",
    "save": "",
    "stream-node-max-bytes": "4096",
    "stream-node-max-entries": "100",
    "timeout": "0",
}


# --- connections -------------------------------------------------------------------------------


def _hello(connection: ConnectionState, request: list[bytes]) -> Reply:
    options = request[1:]
    if options and options[0] != b"2":
        raise CommandError("NOPROTO unsupported protocol version")
    options = options[1:]
    while options:
        if options[0].upper() == b"AUTH" and len(options) >= 3:
            options = options[3:]
        elif options[0].upper() == b"SETNAME" and len(options) >= 2:
            connection.name, options = options[1], options[2:]
        else:
            raise CommandError("ERR Syntax error in HELLO option")
    fields: dict[bytes, Reply] = {
        b"server": b"streamq-memory",  # as INFO has it
        b"version": VERSION.encode(),
        b"proto": 2,
        b"id": connection.id,
        b"mode": b"standalone",
        b"role": b"master",
        b"modules": [],
    }
    return fields


def _auth(_: ConnectionState, request: list[bytes]) -> Reply:
    """Accept every password: a client in the same process needs none."""
    if len(request) not in {2, 3}:
        raise CommandError("ERR wrong number of arguments for 'auth' command")
    return OK


def _quit(connection: ConnectionState, _: list[bytes]) -> Reply:
    connection.quitting = True
    return OK


def _reset(connection: ConnectionState, _: list[bytes]) -> Reply:
    connection.name, connection.database = b"", 0
    connection.server.subscribers.discard(connection)
    return PASS_ON


def _client(connection: ConnectionState, request: list[bytes]) -> Reply:
    if len(request) < 2:
        raise CommandError("ERR wrong number of arguments for 'client' command")
    subcommand = _CLIENT.get(request[1].upper())
    if subcommand is None:
        name = request[1].decode(errors="replace")
        raise CommandError(f"ERR unknown subcommand '{name[:128]}'. Try CLIENT HELP.")
    return subcommand(connection, request[2:])


def _client_setname(connection: ConnectionState, rest: list[bytes]) -> Reply:
    if len(rest) != 1:
        raise CommandError("ERR wrong number of arguments for 'client|setname' command")
    if any(not 33 <= byte <= 126 for byte in rest[0]):
        raise CommandError("ERR Client names cannot contain spaces, newlines or special characters.")
    connection.name = rest[0]
    return OK


def _client_setinfo(connection: ConnectionState, rest: list[bytes]) -> Reply:
    if len(rest) != 2 or rest[0].upper() not in {b"LIB-NAME", b"LIB-VER"}:
        raise CommandError("ERR Unrecognized option of CLIENT SETINFO")
    connection.library[rest[0].decode().lower()] = rest[1]
    return OK


def _client_list(connection: ConnectionState, rest: list[bytes]) -> Reply:
    shown = list(connection.server.connections.values())
    if rest and rest[0].upper() == b"ID":
        wanted = {_integer(item) for item in rest[1:]}
        shown = [each for each in shown if each.id in wanted]
    elif rest and rest[0].upper() != b"TYPE":
        raise _SYNTAX
    return "".join(_client_line(each) for each in shown)


def _client_line(connection: ConnectionState) -> str:
    server = connection.server
    now = server.clock()
    flags = "P" if connection in server.subscribers else "b" if connection.blocked else "N"
    library = {name: value.decode(errors="replace") for name, value in connection.library.items()}
    fields = {
        "id": connection.id,
        "addr": f"memory:{connection.id}",
        "laddr": server.url,
        "fd": -1,
        "name": connection.name.decode(errors="replace"),
        "age": int(now - connection.connected_at),
        "idle": int(now - connection.last_used_at),
        "flags": flags,
        "db": connection.database,
        "cmd": connection.last_command or "NULL",
        "user": "default",
        "lib-name": library.get("lib-name", ""),
        "lib-ver": library.get("lib-ver", ""),
        "resp": 2,
    }
    return " ".join(f"{name}={value}" for name, value in fields.items()) + "\n"


def _client_unblock(connection: ConnectionState, rest: list[bytes]) -> Reply:
    if not 1 <= len(rest) <= 2:
        raise CommandError("ERR wrong number of arguments for 'client|unblock' command")
    reason = rest[1].upper() if len(rest) == 2 else b"TIMEOUT"
    if reason not in {b"TIMEOUT", b"ERROR"}:
        raise CommandError("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
    target = connection.server.connections.get(_integer(rest[0]))
    blocked = target.blocked if target else None
    if blocked is None or blocked.reply is not None:
        return 0
    blocked.finish(_UNBLOCKED if reason == b"ERROR" else None)
    return 1


def _client_kill(connection: ConnectionState, rest: list[bytes]) -> Reply:
    if not rest or len(rest) % 2:
        raise CommandError("ERR memory:// supports only CLIENT KILL ID id [SKIPME yes|no]")
    options = {rest[i].upper(): rest[i + 1] for i in range(0, len(rest), 2)}
    wanted, skip_me = options.pop(b"ID", None), options.pop(b"SKIPME", b"yes").lower() == b"yes"
    if wanted is None or options:
        raise _SYNTAX
    target = connection.server.connections.get(_integer(wanted))
    if target is None or target.closed or (skip_me and target is connection):
        return 0
    if target is connection:
        target.quitting = True  # ends after its reply
    else:
        target.kill()
    return 1


def _integer(value: bytes) -> int:
    try:
        return int(value)
    except ValueError:
        raise CommandError("ERR value is not an integer or out of range") from None


_CLIENT: Final[dict[bytes, Callable[[ConnectionState, list[bytes]], Reply]]] = {
    b"GETNAME": lambda connection, _: connection.name or None,
    b"ID": lambda connection, _: connection.id,
    b"INFO": lambda connection, _: _client_line(connection),
    b"KILL": _client_kill,
    b"LIST": _client_list,
    b"NO-EVICT": lambda *_: OK,
    b"NO-TOUCH": lambda *_: OK,
    b"SETINFO": _client_setinfo,
    b"SETNAME": _client_setname,
    b"UNBLOCK": _client_unblock,
}


# --- the server --------------------------------------------------------------------------------


def _info(connection: ConnectionState, request: list[bytes]) -> Reply:
    """INFO. By default it has all sections but the counts per command, as in Redis."""
    wanted = {section.decode(errors="replace").lower() for section in request[1:]}
    everything = bool(wanted & {"all", "everything"})
    chosen = [
        section
        for section in _SECTIONS
        if everything or section in wanted or (section != "commandstats" and wanted <= {"default"})
    ]
    lines: list[str] = []
    for section in chosen:
        lines.append(f"# {section.capitalize()}")
        lines += [f"{name}:{value}" for name, value in _SECTIONS[section](connection).items()]
        lines.append("")
    return "\r\n".join(lines)


_Fields = dict[str, object]


def _info_server(connection: ConnectionState) -> _Fields:
    server = connection.server
    return {
        "redis_version": VERSION,
        "server_name": "streamq-memory",
        "redis_mode": "standalone",
        "process_id": os.getpid(),
        "run_id": f"{id(server):040x}",
        "tcp_port": 0,
        "uptime_in_seconds": int(server.clock() - server.started_at),
    }


def _info_clients(connection: ConnectionState) -> _Fields:
    server = connection.server
    return {"connected_clients": len(server.connections), "blocked_clients": len(server.blocked)}


def _info_stats(connection: ConnectionState) -> _Fields:
    server = connection.server
    return {"total_connections_received": server.accepted, "total_commands_processed": server.calls.total()}


def _info_commandstats(connection: ConnectionState) -> _Fields:
    return {
        f"cmdstat_{name}": f"calls={calls},usec=0,usec_per_call=0.00,rejected_calls=0,failed_calls=0"
        for name, calls in sorted(connection.server.calls.items())
    }


def _info_keyspace(connection: ConnectionState) -> _Fields:
    sizes = connection.server.dataset.sizes()
    return {f"db{number}": f"keys={keys},expires=0,avg_ttl=0" for number, keys in sizes}


_SECTIONS: Final[dict[str, Callable[[ConnectionState], _Fields]]] = {
    "server": _info_server,
    "clients": _info_clients,
    "memory": lambda _: {"used_memory": 0, "maxmemory": 0, "maxmemory_policy": "noeviction"},
    "persistence": lambda _: {"loading": 0, "aof_enabled": 0},
    "stats": _info_stats,
    "replication": lambda _: {"role": "master", "connected_slaves": 0},
    "commandstats": _info_commandstats,
    "keyspace": _info_keyspace,
}


def _config(connection: ConnectionState, request: list[bytes]) -> Reply:
    match [part.upper() for part in request[1:2]]:
        case [b"GET"] if len(request) > 2:
            patterns = [part.decode(errors="replace").lower() for part in request[2:]]
            return {
                name.encode(): value.encode()
                for name, value in _CONFIGURATION.items()
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
            }
        case [b"RESETSTAT"]:
            connection.server.calls.clear()
            connection.server.accepted = 0
            return OK
        case _:
            raise CommandError("ERR memory:// supports only CONFIG GET and CONFIG RESETSTAT")


def _wait(_: ConnectionState, request: list[bytes]) -> Reply:
    """WAIT. There is no replica, so 0 is returned at once instead of after the timeout."""
    if len(request) != 3:
        raise CommandError("ERR wrong number of arguments for 'wait' command")
    return 0


def _command(connection: ConnectionState, request: list[bytes]) -> Reply:
    """COMMAND INFO, with the commands of this module added."""
    if len(request) < 3 or request[1].upper() != b"INFO":
        return PASS_ON
    (known,) = connection.session.run(request)
    if not isinstance(known, list):
        return known
    own = {name for name in COMMANDS if name not in _REFUSED}
    return [
        [name.lower(), -1, [], 0, 0, 0] if entry is None and name.upper() in own else entry
        for name, entry in zip(request[2:], known, strict=True)
    ]


def _refuse(_: ConnectionState, request: list[bytes]) -> Reply:
    name = request[0].decode(errors="replace").lower()
    raise CommandError(f"ERR unknown command '{name}', with args beginning with: ")


_REFUSED: Final = frozenset({b"MONITOR", b"SHUTDOWN", b"REPLICAOF", b"SLAVEOF", b"FAILOVER", b"DEBUG"})

COMMANDS: Final[dict[bytes, Callable[[ConnectionState, list[bytes]], Reply]]] = {
    b"AUTH": _auth,
    b"CLIENT": _client,
    b"COMMAND": _command,
    b"CONFIG": _config,
    b"HELLO": _hello,
    b"INFO": _info,
    b"QUIT": _quit,
    b"RESET": _reset,
    b"ROLE": lambda *_: [b"master", 0, []],
    b"WAIT": _wait,
    **dict.fromkeys(_REFUSED, _refuse),
}
"""The commands of this module, by upper-case name."""
