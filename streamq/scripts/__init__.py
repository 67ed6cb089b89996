"""The atomic steps of the queue: one Lua file each, and how they are loaded.

A file begins with its name and meaning, then its KEYS and ARGV. This header is checked when the script is loaded, and
the number of keys at each call (`...` ends a list that repeats). `_shared.lua` is prepended to every script. Others
with `_` are prepended to the scripts that call their functions (see `_MORE`). Scripts that call `counted` settle. They
take what that counts from the ends of their KEYS and ARGV: see `with_counters`.

All files are read together with the code that calls them. So a worker needs neither a file descriptor nor the disk to
settle a task, and a package that is replaced meanwhile gives it no script of another version.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from streamq.client import Command, Script

_KEYS = re.compile(r"^-- KEYS: (.+)$", re.MULTILINE)
_MORE = {  # files to prepend, by a function that the script calls
    "holds(": "_holds.lua",
    "dropped_entry(": "_holds.lua _dropped_entry.lua",
    "holds_or_dropped(": "_holds.lua _dropped_entry.lua",
    "entry_state(": "_entry_state.lua",
    "deletable(": "_remove_settled.lua",
    "crashes(": "_crashes.lua",
    "crashes_exist(": "_crashes.lua",
    "crash_count(": "_crashes.lua",
    "cancelled_among(": "_cancel_marks.lua",
    "mark_cancelled(": "_cancel_marks.lua",
    "cancelled_of(": "_cancel_marks.lua",
    "marks_of(": "_cancel_marks.lua",
    "announce(": "_delay.lua",
    "delay(": "_delay.lua",
    "carry_out(": (
        "_delay.lua _check_stream.lua _side_effects.lua _workflow_effects.lua _send_effects.lua _join_effects.lua "
        "_carry_out.lua"
    ),
    "check_stream(": "_check_stream.lua",
    "holders(": "_consumers.lua _claim.lua",
    "gone(": "_consumers.lua _gone.lua",
    "hold_key(": "_delay.lua _newest_wins.lua _delete_old.lua _hold_key.lua",
    "count_dropped(": "_dropped.lua",
    "delete_old(": "_delete_old.lua",
    "replay_letter(": "_delete_old.lua _replay.lua",
    "kept_from(": "_operation.lua",
    "time_in(": "_time_in.lua",
    "read_bucket(": "_time_in.lua _bucket.lua",
    "place_of(": "_wake.lua _sweep.lua",
    "reserve_permits(": "_wake.lua _permits.lua _sweep.lua",
    "save_circuit(": "_time_in.lua _circuit.lua",
    "add_to_index(": "_circuit_index.lua",
    "drop_from_index(": "_circuit_index.lua",
    "fields_of(": "_fields_of.lua",
    "sound(": "_fields_of.lua",
    "add_counters(": "_add_counters.lua",
    "counted(": "_add_counters.lua _late.lua _counted.lua",
}
_TOTALS = {"dead_letter": (3, 6)}  # where a step has the key of the totals, and their TTL
_TOTALS_OF: dict[str, tuple[int, int]] = {}  # the same, by the digest
_COUNTS_NOTHING = (0, "", "")  # of a script that settles: stats_ttl_s counts shares (see `_counted.lua`)
_SETTLING: set[str] = set()  # the digests of scripts that count
_ARGV = re.compile(r"^-- ARGV: (.+)$", re.MULTILINE)
_TEXTS = {file.name: file.read_text() for file in files(__name__).iterdir() if file.name.endswith(".lua")}


class Step:
    """One script whose header has been checked."""

    def __init__(self, name: str) -> None:
        source = _TEXTS[f"{name}.lua"]
        keys, arguments = _KEYS.search(source), _ARGV.search(source)
        if not source.startswith(f"-- {name}: ") or keys is None or arguments is None:
            raise ValueError(f"{name}.lua: the header must give its name, KEYS and ARGV")
        self.name = name
        self.keys = keys[1]
        self._least = sum(not word.endswith((".", "]")) for word in self.keys.split())
        self._open = "..." in self.keys or "[" in self.keys or ":" in self.keys
        more = dict.fromkeys(file for call, names in _MORE.items() if call in source for file in names.split())
        shared = ["_trial.lua", "_shared.lua", *more]
        self.source = "\n".join([*(_TEXTS[name] for name in shared), source])
        self._script = Script(self.source)
        self._end = _COUNTS_NOTHING if "_counted.lua" in more else ()
        if self._end:
            _SETTLING.add(self._script.sha)
        if name in _TOTALS:
            _TOTALS_OF[self._script.sha] = _TOTALS[name]

    def __repr__(self) -> str:
        return f"<Step {self.name} KEYS: {self.keys}>"

    def __call__(self, keys: Sequence[str | bytes], *arguments: str | bytes | float) -> Command:
        """Return the command that runs this step. Raises ValueError if the number of keys is wrong."""
        if len(keys) != self._least and not (self._open and len(keys) >= min(self._least, 1)):
            raise ValueError(f"{self!r} was given {len(keys)} keys")
        return self._script.command(keys, (*arguments, *self._end))


def with_counters(command: Command, stats: str | None, ttl: int, counts: bytes, shares: bytes = b"") -> Command:
    """Return the command of a script that settles, with what it counts (see `wire.counters`).

    `stats` is the window of the counters, which is kept for `ttl` seconds. None: what is counted comes back unwritten,
    and no key is used that only counts. Any other command is returned as it is.
    """
    if not _settles(command):
        return command
    name, digest, number, *rest = command
    end = int(number)
    names: list[Any] = rest[:end]
    arguments: list[Any] = rest[end : -len(_COUNTS_NOTHING)]
    if stats is None:
        if (places := _TOTALS_OF.get(str(digest))) is not None:
            key, totals_ttl = places
            names[key], arguments[totals_ttl] = names[0], "0"
        return name, digest, number, *names, *arguments, 0, counts, shares
    return name, digest, end + 1, *names, stats, *arguments, ttl, counts, shares


def writes_counters(command: Command) -> bool:
    """Return whether a command of a script that settles has the key of the counters."""
    return _settles(command) and command[-len(_COUNTS_NOTHING)] != 0


def _settles(command: Command) -> bool:
    return len(command) > 1 and command[1] in _SETTLING


@cache
def step(name: str) -> Step:
    """Return a script by its name. It is put together once, at the first call."""
    return Step(name)
