"""Random orderly histories: a small world that keeps every promise, whatever happens to it, and its log.

Workers are killed, frozen, cut off and started again, the server goes and comes back, lines are written
late. What the world never does is break a promise; so a checker that finds something is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from streamq.testing import Limits
from tests.testing.builder import LEASE, Log

LIMITS = Limits(lease=LEASE, slack=0.5, dead_reasons=frozenset({"rejected"}), clean_exit=True)
RETRIES = 3


@dataclass(eq=False)
class Held:
    """A delivery in somebody's hands. `lost` once another has it."""

    who: str
    task: str
    entry: str
    attempt: int
    starts: int
    started: bool = True
    lost: bool = False
    acted: bool = False


@dataclass
class World:
    """Draws what happens next, with `random`; `faults` is how likely something bad is, from 0 to 1."""

    random: object
    faults: float = 0.3
    log: Log = field(default_factory=Log)

    def __post_init__(self):
        self.log.limits = LIMITS
        self.tasks = 0
        self.waiting = []  # (task, attempt, starts)
        self.held = []
        self.ended = set()
        self.state = {}  # worker -> well, frozen, cut, dead
        self.down = False
        self.peers = ["w1", "w2", "w3", "w4"]
        for who in self.peers:
            self.state[who] = "well"
            self.log.up(who)

    @property
    def well(self):
        return [] if self.down else [who for who in self.peers if self.state[who] == "well"]

    def history(self, steps):
        """Return a log of so many steps, worked off and left in order."""
        for _ in range(steps):
            good = [
                self.accept,
                self.accept,
                self.start,
                self.start,
                self.finish,
                self.finish,
                self.finish,
                self.withdraw,
            ]
            bad = [self.kill, self.freeze, self.restart, self.thaw, self.recover, self.recover, self.outage]
            self.random.choice(bad if self.random.random() < self.faults else good)()
            self.log.wait(self.random.choice([0, 0, 0.01, 0.2]))
        self.end()
        return self.log

    def end(self):
        """Cure everything, work everything off, leave."""
        if self.down:
            self.outage()
        for who in self.peers:
            if self.state[who] == "dead":
                self.restart(who)
            elif self.state[who] != "well":
                self.thaw(who)
        while self.waiting or self.held:
            self.recover()
            self.start()
            self.finish()
        self.log.leave(*self.peers)

    # --- what goes well

    def accept(self):
        self.tasks += 1
        task = f"t{self.tasks}"
        self.waiting.append((task, 1, 1))
        tier = self.random.choice(["critical", "standard", "bulk"])
        if self.random.random() < 0.1:
            self.log.add("unknown", task, who="p1", tier=tier, name="send")
            if self.random.random() < 0.3:
                self.waiting.pop()  # it never arrived
        else:
            self.log.accepted(task, tier, retries=RETRIES)

    def start(self, who=None):
        if self.well and self.waiting:
            task, attempt, starts = self.waiting.pop(self.random.randrange(len(self.waiting)))
            who = who or self.random.choice(self.well)
            held = Held(who, task, self.log.entry(task), attempt, starts)
            self.held.append(held)
            self.log.start(who, task, attempt=attempt, starts=starts)

    def withdraw(self):
        fresh = [one for one in self.waiting if one[2] == 1]
        if fresh and not self.down and self.random.random() < 0.2:
            one = self.random.choice(fresh)
            self.waiting.remove(one)
            self.ended.add(one[0])
            self.log.add("withdrawn", one[0], who="p1")

    def finish(self):
        mine = [held for held in self.held if held.who in self.well]
        if not mine:
            return
        held = self.random.choice(mine)
        if not held.started:
            held.started = True
            self.log.start(held.who, held.task, entry=held.entry, attempt=held.attempt, starts=held.starts)
            return
        how = self.random.choice(["ack", "ack", "ack", "retry", "postpone", "dead", "release"])
        if how == "retry" and held.attempt > RETRIES:
            how = "ack"
        if how == "ack":
            if not held.acted:  # it may have been frozen in between
                self.log.effect(held.who, held.task)
                held.acted = True
            if self.random.random() < 0.1:
                return
        self.settle(held, how)

    def settle(self, held, how):
        """Have the server carry it out, if it would."""
        self.held.remove(held)
        who, task, entry = held.who, held.task, held.entry
        if task in self.ended or (held.lost and how != "ack") or (held.lost and self.log.entry(task) != entry):
            self.log.superseded(who, task, entry=entry)
            return
        self.drop_buffered(who, entry)
        match how:
            case "ack":
                self.ended.add(task)
                self.log.settled(who, task, entry=entry)
            case "dead":
                self.ended.add(task)
                self.log.letter(task, "rejected")
                self.log.settled(who, task, "dead", entry=entry, reason="rejected")
            case "retry" | "postpone":
                self.log.entry(task, new=True)
                attempt = held.attempt + (how == "retry")
                self.waiting.append((task, attempt, held.starts + 1))
                if self.random.random() < 0.3:  # another is faster than the line that says so
                    self.start(self.random.choice(self.well))
                self.log.add("settled", task, who=who, entry=entry, outcome=how, attempt=held.attempt)
            case "release":
                self.log.settled(who, task, "release", entry=entry)
                self.take(held, died=False)

    # --- what goes wrong

    def kill(self):
        if len(self.well) > 1:
            who = self.random.choice(self.well)
            self.state[who] = "dead"
            self.log.world("died", who)
            # What it held alone is still pending for it; what it had lost is another's.
            self.held = [held for held in self.held if held.who != who or not held.lost]

    def restart(self, who=None):
        dead = [name for name in self.peers if self.state[name] == "dead"]
        if dead:
            who = who or self.random.choice(dead)
            self.adopt(who)
            self.state[who] = "well"
            self.log.up(who)

    def adopt(self, who):
        """A process of the same name comes up: what the old one held is nobody's, until somebody takes it."""
        for held in self.held:
            if held.who == who:
                held.who = f"the late {who}"
                self.state.setdefault(held.who, "dead")

    def freeze(self):
        if len(self.well) > 1:
            who = self.random.choice(self.well)
            self.state[who] = self.random.choice(["frozen", "cut", "blocked"])
            self.log.world(self.state[who], who)

    def thaw(self, who=None):
        ends = {"frozen": "thawed", "cut": "healed", "blocked": "unblocked"}
        ill = [name for name in self.peers if self.state[name] in ends]
        if ill:
            who = who or self.random.choice(ill)
            self.log.world(ends[self.state[who]], who)
            self.state[who] = "well"

    def outage(self):
        self.down = not self.down
        self.log.world("down" if self.down else "back", "server")
        self.log.wait(self.random.choice([0.1, 2]))

    def recover(self):
        """The leases of those who are not well are over; others take what they held."""
        stuck = [held for held in self.held if self.state[held.who] != "well" and not held.lost]
        if self.well and stuck:
            self.log.wait(LEASE * 1.2)
            self.take(self.random.choice(stuck), died=True)

    def take(self, held, *, died):
        """Somebody who is well takes a delivery over."""
        if held.task in self.ended or not self.well:
            if died and self.well and self.state[held.who] == "dead":
                self.held.remove(held)
            if not died:
                self.waiting.append((held.task, held.attempt, held.starts + 1))
            return
        who = self.random.choice(self.well)
        held.lost = True
        if self.state[held.who] == "dead" and held in self.held:
            self.held.remove(held)
        started = self.random.random() < 0.5
        self.drop_buffered(who, held.entry)
        self.held.append(replace(held, who=who, starts=held.starts + 1, started=started, lost=False, acted=False))
        self.log.reclaimed(who, held.task, died=died, entry=held.entry)
        if started:
            self.log.start(who, held.task, entry=held.entry, attempt=held.attempt, starts=held.starts + 1)

    def drop_buffered(self, who, entry):
        """A worker has one copy of a delivery in its buffer, and none once it has settled it."""
        self.held = [one for one in self.held if one.started or one.who != who or one.entry != entry]
