"""One concurrency limit by its scripts, one step at a time."""

from __future__ import annotations

import time

from streamq.scripts import step

PERMITS, RESERVED, WAITING, LIMITS = (f"queue:{name}" for name in ("permits:t", "called:t", "line:t", "limits"))
DELAYED = "queue:standard:delayed"


def card(server, key):
    return server.command("ZCARD", key)


class Scripted:
    """One limit of the name `t`, by hand."""

    def __init__(self, server, maximum=1, reserve=2000, lease=30_000):
        self.server, self.maximum, self.reserve, self.lease = server, maximum, reserve, lease

    def run(self, name, *arguments):
        keys = [PERMITS, RESERVED, WAITING, LIMITS, DELAYED]
        reply = self.server.command("EVAL", step(name).source, len(keys), *keys, "t", *arguments)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def waiter(self, number, expires=0, key=DELAYED):
        return f"{number}-0 {expires} {key} workers|{number}"

    def acquire(self, number, since="", run=None, **waiter):
        run = run or f"run{number}"
        reply = self.run(
            "permit_acquire", self.maximum, self.lease, self.reserve, "wake", run, self.waiter(number, **waiter), since
        )
        return reply[0] == 1, reply[1].decode(), reply[3:]

    def release(self, *runs):
        return self.run("permit_release", self.maximum, self.reserve, "wake", *runs)

    def renew(self, *runs):
        return self.run("permit_renew", self.maximum, self.lease, self.reserve, "wake", *runs)[0]

    def check(self, number, since):
        return self.run("permit_check", "wake", self.waiter(number), since)

    def sweep(self):
        self.run("permit_sweep", self.reserve, "wake")

    def delay(self, number, seconds=300):
        due = round((time.time() + seconds) * 1000)
        self.server.command("ZADD", DELAYED, due, f"workers|{number}")

    def left(self, number):
        """Return in how many seconds one is due."""
        return float(self.server.command("ZSCORE", DELAYED, f"workers|{number}")) / 1000 - time.time()

    def reserved(self):
        return [waiter.decode().split()[0] for waiter in self.server.command("ZRANGE", RESERVED, 0, -1)]

    def waiting(self):
        return [waiter.decode().split()[0] for waiter in self.server.command("ZRANGE", WAITING, 0, -1)]
