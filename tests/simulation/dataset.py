"""The data of the simulated server: that of `memory://`, driven more directly.

A history is some hundred commands, and there are to be thousands of histories: so requests go
straight to the commands of fakeredis, scripts are compiled once, and Lua's garbage waits for
the end of the history. What a command does and answers is as in `streamq.embedded`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from fakeredis import FakeRedis
from fakeredis._commands import COMMANDS_WITH_SUB
from fakeredis._helpers import SimpleError, decode_command_bytes
from fakeredis.commands_mixins.scripting_mixin import LUA_MODULE, _convert_redis_arg
from fakeredis.model import ClientInfo

from streamq.embedded.dataset import Dataset
from streamq.embedded.redis_differences import CorrectedSocket

# What a server refuses when it may not write, or has no memory to; those of `_GROWING` alone need memory.
_GROWING = frozenset({"xadd", "set", "zadd", "hset", "hincrby"})
_WRITING = _GROWING | {
    "xack",
    "xdel",
    "xclaim",
    "xautoclaim",
    "xreadgroup",
    "zrem",
    "hdel",
    "expire",
    "pexpire",
    "xgroup create",
}
OOM = "OOM command not allowed when used memory > 'maxmemory'."
READONLY = "READONLY You can't write against a read only replica."


class QuickSocket(CorrectedSocket):
    """One connection of fakeredis without a parser, a queue or checks of globals; it may be refused writes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.replies: list[Any] = []

    def put_response(self, msg: Any) -> None:
        self.replies.append(msg)

    def _run_command(self, func: Any, sig: Any, args: list[Any], from_script: bool) -> Any:
        server = self._server
        refused = server.refusing
        if refused:
            name = sig.name
            # Out of memory, a script that has begun to write may go on.
            if (refused is READONLY and name in _WRITING) or (
                name in _GROWING and not (from_script and server.writing)
            ):
                return SimpleError(refused)
            server.writing = from_script and (server.writing or name in _WRITING)
        return super()._run_command(func, sig, args, from_script)

    def _keyspace_notifications(self, *_: Any) -> None:
        pass

    def _subkey_notifications(self, *_: Any) -> None:
        pass

    # --- scripts -----------------------------------------------------------------------------

    def eval(self, script: bytes, numkeys: int, *keys_and_args: bytes) -> Any:
        server = self._server
        runtime = self._get_server_runtime(server)
        compiled = server.compiled.get(script)
        if compiled is None:
            digest = hashlib.sha1(script, usedforsecurity=False).hexdigest().encode()
            compiled = server.compiled[script] = (digest, runtime.compile(script))
        server.script_cache[compiled[0]] = script
        server._lua_current_socket[0] = self
        server.writing = False
        self._script_resp = 2
        server._lua_set_keys_argv(
            runtime.table_from(keys_and_args[:numkeys]), runtime.table_from(keys_and_args[numkeys:])
        )
        try:
            result = compiled[1]()
        except LUA_MODULE.LuaError as error:
            raise SimpleError(f"ERR {error}") from None
        finally:
            self._script_resp = None
        return self._convert_lua_result(result, nested=False)

    def _lua_redis_call(self, lua_runtime: Any, expected_globals: Any, op: bytes, *args: Any) -> Any:
        name = decode_command_bytes(op)
        if name in COMMANDS_WITH_SUB and args:
            name += " " + decode_command_bytes(args[0])
            args = args[1:]
        func, sig = self._name_to_func(name)
        result = self._run_command(func, sig, [_convert_redis_arg(arg) for arg in args], True)
        return self._convert_redis_result(lua_runtime, result)


class QuickSession:
    """As `streamq.embedded.dataset.Session`."""

    def __init__(self, dataset: QuickDataset) -> None:
        self._clock = dataset.clock
        self._server = dataset.server
        self._socket = QuickSocket(
            dataset.server, client_class=FakeRedis, db=0, lua_modules=set(), client_info=ClientInfo()
        )

    def run(self, arguments: list[bytes]) -> list[Any]:
        with self._clock:
            self._socket._process_command(arguments)
        return self.take()

    def take(self) -> list[Any]:
        socket = self._socket
        replies, socket.replies = socket.replies, []
        return replies

    def close(self) -> None:
        server, socket = self._server, self._socket
        if socket in server.sockets:
            server.sockets.remove(socket)
            socket._cleanup(server)


class QuickDataset(Dataset):
    """One dataset for all histories of a process; `reset` empties it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.server.refusing = ""
        self.server.writing = False
        self.server.compiled = {}
        # fakeredis collects Lua's garbage after each script, which is half of what a script costs.
        runtime = self.server._lua_runtime
        self._collect = runtime.eval("collectgarbage")

    def session(self) -> Any:
        if not hasattr(self.server, "compiled"):  # the base class sets Lua up through a session of its own
            return super().session()
        return QuickSession(self)

    def reset(self) -> None:
        """Forget everything: data, scripts, connections, subscriptions."""
        server = self.server
        server.refusing = ""
        server.dbs.clear()
        server.script_cache = {}
        for subscriptions in (server.subscribers, server.psubscribers, server.ssubscribers):
            subscriptions.clear()
        server.sockets.clear()
        server.closed_sockets.clear()
        server.scan_cursors.clear()
        server._next_client_id = 1
        self._collect()
