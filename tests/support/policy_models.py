"""The eviction policies and the order in which the planner calls them, in plain Python.

With other data structures than the native ones: a policy here ranks rows by tuples and looks for
the smallest. A row is an id of table 0; `row_of` names those of other tables alike.
"""

import math
from collections import deque
from dataclasses import dataclass

FACTOR = 0xD6E8FEB86659FD93
MASK = 2**64 - 1


def row_of(table: int, row_id: int) -> int:
    """The id of table 0 that would have the same hash."""
    return (row_id + table * 0x9E3779B97F4A7C15) & MASK


def row_hash(row: int) -> int:
    """What places a row among the ghosts. 32 bits."""
    x = row & MASK
    for _ in range(2):
        x = ((x ^ (x >> 32)) * FACTOR) & MASK
    return x >> 32


class Lru:
    def __init__(self, num_slots: int) -> None:
        self.rank: dict[int, tuple[float, ...]] = {}  # of listed rows; the smallest goes first
        self.clock = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def use(self, row: int) -> None: ...

    def insert(self, row: int, next_use: int | None) -> None:
        self.rank[row] = (self.tick(),)

    def remove(self, row: int) -> None:
        del self.rank[row]

    def reschedule(self, row: int, next_use: int | None) -> None: ...

    def evict(self) -> int | None:
        if not self.rank:
            return None
        row = min(self.rank, key=lambda r: self.rank[r])
        self.remove(row)
        return row

    def leave(self, row: int) -> None: ...

    def postpone(self) -> None:
        """A batch from outside the window gets the next plan: all others come one later."""


class Lfu(Lru):
    """Heat = (its value, the step in which it had that value)."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self.num_uses = 0
        self.uses_per_step = max(1, num_slots * 5 // 2)
        self.heats: dict[int, tuple[int, int]] = {}
        # Sets of four: fingerprint and heat.
        num_sets = math.ceil(num_slots / 8)
        self.ghosts: list[list[tuple[int, int, int] | None]] = [[None] * 4 for _ in range(num_sets)]

    def now(self, heat: tuple[int, int]) -> int:
        value, step = heat
        return max(1, value - (self.num_uses // self.uses_per_step - step))

    def ghost_set(self, row: int) -> tuple[list[tuple[int, int, int] | None], int]:
        return self.ghosts[row_hash(row) * len(self.ghosts) >> 32], row_hash(row) % 4096

    def forget(self, row: int) -> int:
        ghosts, fingerprint = self.ghost_set(row)
        for i, ghost in enumerate(ghosts):
            if ghost is not None and ghost[0] == fingerprint:
                ghosts[i] = None
                return self.now(ghost[1:])
        return 0

    def use(self, row: int) -> None:
        self.num_uses += 1
        heat = self.now(self.heats[row]) if row in self.heats else self.forget(row)
        count = 2 ** ((heat - 10) / 2) if heat else 0  # decayed uses
        heat = min(15, math.floor(10 + 2 * math.log2(1 + count) + 0.5))
        self.heats[row] = (heat, self.num_uses // self.uses_per_step)

    def insert(self, row: int, next_use: int | None) -> None:
        # The step in which its heat would reach 0 if it could; then the order of listing.
        heat, step = self.now(self.heats[row]), self.num_uses // self.uses_per_step
        self.rank[row] = (heat + step, self.tick())

    def leave(self, row: int) -> None:
        ghosts, fingerprint = self.ghost_set(row)
        heat = self.now(self.heats.pop(row))
        held = [0 if ghost is None else self.now(ghost[1:]) for ghost in ghosts]
        if min(held) <= heat:
            step = self.num_uses // self.uses_per_step
            ghosts[held.index(min(held))] = (fingerprint, heat, step)


class S3Fifo(Lru):
    """Algorithm 1 of the paper, where a pinned row is in no queue."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self.small_size = num_slots // 10
        self.freq: dict[int, int] = {}
        self.in_main: set[int] = set()
        num_sets = math.ceil(num_slots * 9 // 10 / 8)
        self.ghosts: list[deque[int]] = [deque(maxlen=8) for _ in range(num_sets)]

    def ghost_set(self, row: int) -> tuple[deque[int], int]:
        ghosts = self.ghosts[row_hash(row) * len(self.ghosts) >> 32] if self.ghosts else deque()
        return ghosts, max(1, row_hash(row) % 65536)

    def use(self, row: int) -> None:
        if row in self.freq:
            self.freq[row] = min(self.freq[row] + 1, 3)
            return
        self.freq[row] = 0
        ghosts, fingerprint = self.ghost_set(row)
        if fingerprint in ghosts:
            ghosts.remove(fingerprint)
            self.in_main.add(row)

    def evict(self) -> int | None:
        while self.rank:
            small = {r for r in self.rank if r not in self.in_main}
            main = set(self.rank) - small
            from_small = len(small) > self.small_size or not main
            row = min(small if from_small else main, key=lambda r: self.rank[r])
            if from_small and self.freq[row] > 1:
                self.in_main.add(row)
                self.freq[row] = 0
            elif not from_small and self.freq[row] > 0:
                self.freq[row] -= 1
            else:
                self.remove(row)
                return row
            self.rank[row] = (self.tick(),)
        return None

    def leave(self, row: int) -> None:
        del self.freq[row]
        if row in self.in_main:
            self.in_main.remove(row)
        elif self.ghosts:
            ghosts, fingerprint = self.ghost_set(row)
            ghosts.appendleft(fingerprint)


class Lookahead:
    def __init__(self, base: Lru) -> None:
        self.base = base
        self.scheduled: dict[int, tuple[int, int]] = {}  # the largest use goes first

    def postpone(self) -> None:
        self.scheduled = {row: (use + 1, order) for row, (use, order) in self.scheduled.items()}

    def use(self, row: int) -> None:
        self.base.use(row)

    def insert(self, row: int, next_use: int | None) -> None:
        if next_use is None:
            self.base.insert(row, None)
        else:
            self.scheduled[row] = (next_use, -self.base.tick())

    def remove(self, row: int) -> None:
        if row in self.scheduled:
            del self.scheduled[row]
        else:
            self.base.remove(row)

    def reschedule(self, row: int, next_use: int | None) -> None:
        self.remove(row)
        self.insert(row, next_use)

    def evict(self) -> int | None:
        row = self.base.evict()
        if row is None and self.scheduled:
            row = max(self.scheduled, key=lambda r: self.scheduled[r])
            self.remove(row)
        return row

    def leave(self, row: int) -> None:
        self.base.leave(row)


BASES = {"lru": Lru, "lfu": Lfu, "s3fifo": S3Fifo}


def make(name: str, num_slots: int) -> Lru | Lookahead:
    if name == "lookahead":
        name = "lookahead:lfu"
    ahead, _, base = name.rpartition(":")
    policy = BASES[base](num_slots)
    return Lookahead(policy) if ahead else policy


class Caller:
    """Calls a policy as the planner of one table does, and collects the victims of each plan."""

    def __init__(self, policy: str, num_slots: int) -> None:
        self.policy = make(policy, num_slots)
        self.num_slots = num_slots
        self.resident: dict[int, bool] = {}  # row: in a transient slot
        self.pins: dict[int, int] = {}
        self.listed: set[int] = set()
        self.window: deque[tuple[int, list[int]]] = deque()
        self.held: dict[int, list[int]] = {}
        self.released: set[int] = set()
        self.num_pushed = 0
        self.aside: set[int] = set()  # plans of batches that came from outside a window
        self.last_use: dict[int, list[int]] = {}  # row whose last use counts: that batch

    def next_use(self, row: int) -> int | None:
        """The plan that uses the row next, or its last use where a batch aside dropped it."""
        last = self.last_use.get(row)
        uses = (n for n, rows in self.window if rows is last or (last is None and row in rows))
        return next(uses, None)

    def push(self, ids: list[int]) -> None:
        rows = list(dict.fromkeys(ids))
        for row in rows:
            if row in self.listed and self.next_use(row) is None:
                self.policy.reschedule(row, self.num_pushed)
        self.window.append((self.num_pushed, rows))
        self.num_pushed += 1

    def put_aside(self, ids: list[int]) -> None:
        """The batch comes ahead of the window, in which nothing changes but the plans' numbers."""
        number = self.window[0][0] if self.window else self.num_pushed
        if self.window:
            self.aside.add(number)
        self.window = deque((n + 1, rows) for n, rows in self.window)
        self.window.appendleft((number, list(dict.fromkeys(ids))))
        self.num_pushed += 1
        self.policy.postpone()

    def release(self, number: int) -> None:
        self.released.add(number)

    def plan(self, depth: int) -> list[int]:
        number, rows = self.window.popleft()
        for row in rows:
            self.last_use.pop(row, None)
            if row in self.resident:
                self.pins[row] += 1
                if row in self.listed:
                    self.listed.remove(row)
                    self.policy.remove(row)
        transient = self.let_go(number - depth)
        for row in transient:
            self.leave(row)
        victims = transient
        for row in rows:
            if row in self.resident:
                continue
            full = sum(not t for t in self.resident.values()) == self.num_slots
            victim = self.policy.evict() if full else None
            if victim is not None:
                self.listed.remove(victim)
                self.leave(victim)
                victims.append(victim)
            self.resident[row] = full and victim is None
            self.pins[row] = 1
        for row in rows:
            self.policy.use(row)
        self.held[number] = rows
        return victims

    def let_go(self, before: int) -> list[int]:
        transient = []
        for number in sorted(self.held):
            if number >= before or number not in self.released:
                continue
            for row in self.held.pop(number):
                self.pins[row] -= 1
                if self.pins[row] == 0:
                    if number in self.aside and self.next_use(row) is not None:
                        self.last_use[row] = [r for _, r in self.window if row in r][-1]
                    if self.resident[row]:
                        transient.append(row)
                    else:
                        self.policy.insert(row, self.next_use(row))
                        self.listed.add(row)
        return transient

    def leave(self, row: int) -> None:
        self.policy.leave(row)
        del self.resident[row], self.pins[row]


@dataclass
class Moves:
    """What a plan of a Series moves, each in the plan's order."""

    victims: list[int]
    dirty: list[bool]  # of the victims
    to: list[int]  # of the victims: the lower slot that it gets, or -1
    rose: dict[int, int]  # staged row: the lower slot that it leaves, or -1
    fallen: list[tuple[int, int, bool]]  # row, lower slot, dirty
    num_transient: int  # rows in transient slots when all have moved


class Series(Caller):
    """Two tiers: what loses its slot in the upper one comes down to the lower one."""

    def __init__(self, policy: str, num_slots: int, lower_slots: int, *, backed: bool) -> None:
        super().__init__(policy, num_slots)
        self.backed = backed
        self.lower = make(policy, lower_slots)
        self.place: dict[int, int] = {}  # of the rows in the lower tier
        self.unused = list(range(lower_slots))[::-1]  # lower slots; the last one goes first
        self.can_fall: set[int] = set()
        self.dirty: set[int] = set()
        self.coming: list[int] = []  # down, by the plan that is being made

    def push(self, ids: list[int]) -> None:
        for row in dict.fromkeys(ids):
            if row in self.can_fall and self.next_use(row) is None:
                self.lower.reschedule(row, self.num_pushed)
        super().push(ids)

    def cancel(self) -> None:
        for _, rows in self.window:
            for row in rows:
                for policy in (self.policy, self.lower):
                    if isinstance(policy, Lookahead) and row in policy.scheduled:
                        policy.reschedule(row, None)
        self.num_pushed -= len(self.window)
        self.window.clear()
        self.last_use.clear()

    def put_aside(self, ids: list[int]) -> None:
        super().put_aside(ids)
        self.lower.postpone()

    def done(self, number: int, updated: bool) -> None:
        self.release(number)
        if updated:
            self.dirty.update(self.held[number])

    def leave(self, row: int) -> None:
        super().leave(row)
        self.coming.append(row)

    def move(self, depth: int) -> Moves:
        rose = {row: self.rise(row) for row in self.window[0][1] if row not in self.resident}
        self.coming = []
        victims = self.plan(depth)
        dirty = [row in self.dirty for row in victims]
        fallen = []
        while len(self.unused) < len(victims):
            row = self.lower.evict()
            if row is None:
                break
            self.can_fall.remove(row)
            self.lower.leave(row)
            self.unused.append(self.place.pop(row))
            fallen.append((row, self.unused[-1], row in self.dirty))
            self.dirty.discard(row)
        to = [self.come_down(row) for row in self.coming]
        return Moves(victims, dirty, to, rose, fallen, sum(self.resident.values()))

    def rise(self, row: int) -> int:
        if row not in self.place:
            return -1
        if row in self.can_fall:
            self.can_fall.remove(row)
            self.lower.remove(row)
        self.lower.leave(row)
        self.unused.append(self.place.pop(row))
        return self.unused[-1]

    def come_down(self, row: int) -> int:
        if not self.unused:
            self.dirty.discard(row)
            return -1
        self.place[row] = self.unused.pop()
        self.lower.use(row)
        if self.backed or row not in self.dirty:
            self.lower.insert(row, self.next_use(row))
            self.can_fall.add(row)
        return self.place[row]
