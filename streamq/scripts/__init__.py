"""The atomic steps of the queue: one Lua file each, and how they are loaded.

A file opens with its name and meaning, then names its KEYS and ARGV; the names of KEYS are
checked against every use (`...` ends a list that repeats). `_shared.lua` stands before each, `_consequences.lua`
before those that carry out what follows from a settlement, `_newest.lua` before `debounce` and `keep_last`,
`_permits.lua` before the steps of a concurrency limit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from streamq.client import Command, Script

_KEYS = re.compile(r"^-- KEYS: (.+)$", re.MULTILINE)
_MORE = {  # by a function that the file has
    "carry_out(": "_consequences.lua _join.lua",
    "hold_key(": "_newest.lua",
    "hand_out(": "_permits.lua",
    "kept_for(": "_circuit.lua",
}
_ARGV = re.compile(r"^-- ARGV: (.+)$", re.MULTILINE)


class Step:
    """One script with a checked header."""

    def __init__(self, name: str) -> None:
        folder = files(__name__)
        source = (folder / f"{name}.lua").read_text()
        keys, arguments = _KEYS.search(source), _ARGV.search(source)
        if not source.startswith(f"-- {name}: ") or keys is None or arguments is None:
            raise ValueError(f"{name}.lua: the header must give its name, KEYS and ARGV")
        self.name = name
        self.keys = keys[1]
        self._least = sum(not word.endswith((".", "]")) for word in self.keys.split())
        self._open = "..." in self.keys or "[" in self.keys or ":" in self.keys
        shared = ["_shared.lua", *(file for call, names in _MORE.items() if call in source for file in names.split())]
        self.source = "\n".join([*((folder / name).read_text() for name in shared), source])
        self._script = Script(self.source)

    def __repr__(self) -> str:
        return f"<Step {self.name} KEYS: {self.keys}>"

    def __call__(self, keys: Sequence[str | bytes], *arguments: str | bytes | float) -> Command:
        """Return the command that runs this step. Raises ValueError for a wrong number of keys."""
        if len(keys) != self._least and not (self._open and len(keys) >= min(self._least, 1)):
            raise ValueError(f"{self!r} was given {len(keys)} keys")
        return self._script.command(keys, arguments)


@cache
def step(name: str) -> Step:
    """Return a script by its name; its file is read once, when it is first asked for."""
    return Step(name)
