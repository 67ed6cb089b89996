"""The command line `streamq`.

Owns the commands, their options and their output. The modules that declare commands import only click,
so that `streamq --help` is quick. A command imports its implementation when it runs.
"""

from streamq.cli.entry import main

__all__ = ["main"]
