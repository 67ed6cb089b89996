"""A worker process that a supervisor started: `python -m streamq.cli.child_main FD MODULE...`.

The settings come over the supervisor channel and not as arguments, so that `ps` shows no password.
The module names are arguments only to make the process recognisable in `ps`.
"""

from __future__ import annotations

import sys

from streamq.cli import inherited, output
from streamq.cli.stop_signals import StopSignals
from streamq.cli.supervisor_channel import SupervisorChannel
from streamq.cli.usage_errors import CommandLineError
from streamq.cli.worker_process import serve

if __name__ == "__main__":
    inherited.make_usable()
    stops = StopSignals()
    stops.install()
    channel = SupervisorChannel(int(sys.argv[1]))
    try:
        serve(channel.settings, stops, channel)
    except CommandLineError as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        output.give_up()
