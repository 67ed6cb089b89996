"""The command line `streamq`.

Owns what people type and what they read. Commands are declared in light modules (click and
nothing else), so that `streamq --help` is quick; what carries them out is imported when one runs.
"""

from streamq.cli.entry import main

__all__ = ["main"]
