"""Eyes on the pools while they are under attack: the server's count of sessions, how
late waits end, who is stuck, what the process holds."""

from __future__ import annotations

import itertools
import os
import statistics
import threading
import time
from collections import deque
from typing import Any

import fastpool
from fastpool.testing import LocalPostgres

from .jobs import Worker
from .world import Admin, World

__all__ = ["Control", "Ear", "Resources", "Sampler", "Watchman", "descriptors", "tasks"]

_TOLERANCE = 0.1
"""Seconds that a wait may outlast its timeout, beyond what a bare lock's wait does."""
_AROUND = 0.5
_SLOW = 3.0
"""Seconds that a checkout's own work on a connection does not take."""
_HELD = 10.0
"""Seconds that no errand needs a connection that a worker has acquired for it."""
_STUCK = 45.0
"""Seconds after which a job is stuck: every fault ends in far less."""


class Control(threading.Thread):
    """Waits for a lock with the timeouts that callers have, and notes how late it is."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._world = world
        self._rng = world.rng(name)
        self._seen: deque[tuple[float, float]] = deque(maxlen=20_000)

    def run(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        while not self._world.over.is_set():
            timeout = self._rng.uniform(0.001, 0.05)
            began = time.monotonic()
            lock.acquire(timeout=timeout)
            ended = time.monotonic()
            self._seen.append((ended, ended - began - timeout))

    def most(self, begin: float, end: float) -> float:
        """The latest it was in that time."""
        seen = list(self._seen)
        return max((over for at, over in seen if begin <= at <= end), default=0.0)


class Sampler(threading.Thread):
    """Has the server count its sessions, again and again.

    One look takes its time and may count a session that goes and one that comes after
    it; those that two looks in a row have seen were all there in between.
    """

    LOOK = """
    CREATE FUNCTION soak_look() RETURNS TABLE (name text, still bigint) LANGUAGE plpgsql AS $$
    DECLARE
        before int[] := '{}';
    BEGIN
        FOR look IN 1..3 LOOP
            PERFORM pg_stat_clear_snapshot();
            RETURN QUERY SELECT application_name, count(*) FILTER (WHERE pid = ANY (before))
                FROM pg_stat_activity WHERE application_name LIKE 'soak-%' GROUP BY 1;
            before := ARRAY(SELECT pid FROM pg_stat_activity);
        END LOOP;
    END $$
    """

    def __init__(self, world: World, server: LocalPostgres) -> None:
        super().__init__(name="sampler", daemon=True)
        self._world = world
        self._admin = Admin(server, world.over.is_set)
        self.looks = 0
        self.most_disturbed: dict[str, int] = {}

    def run(self) -> None:
        try:
            while not self._world.over.wait(0.02):
                self._look()
        except Exception as error:
            if not self._world.over.is_set():
                self._world.found("the sampler failed", error)
        finally:
            self._admin.close()

    def _look(self) -> None:
        began = time.monotonic()
        rows = self._admin.run("SELECT name, max(still) FROM soak_look() GROUP BY 1")
        self.looks += 1
        seen_now = dict(map(tuple, rows))
        for target in self._world.targets:
            name, seen = target.name, seen_now.get(target.name, 0)
            # A session whose client's network is broken is beyond the pool's reach.
            if target.proxy is not None and target.disturbed > began:
                self.most_disturbed[name] = max(seen, self.most_disturbed.get(name, 0))
                continue
            target.most_seen = max(target.most_seen, seen)
            if seen > target.max_size:
                self._world.found(
                    f"the server counts {seen} sessions of {name}, max_size={target.max_size}; "
                    f"{target.pool.stats()}"
                )


class Ear(threading.Thread):
    """Listens to what the workers notify of; each has a number and the time it began."""

    def __init__(self, world: World, pool: fastpool.Pool[Any]) -> None:
        super().__init__(name="ear", daemon=True)
        self._world = world
        self._pool = pool
        self._states = bytearray(1 << 20)  # 0: never sent, 1: perhaps sent, 2: received
        self._numbers = itertools.count(1)
        # epoch: the listener's gaps when it was last heard; sent later, with no gap
        # since, a notification cannot be missed.
        self._epoch = -1
        self._epochs: dict[int, int] = {}
        self._due: deque[tuple[float, int, int]] = deque()
        self.received = 0
        self.gaps = 0
        self.heard = threading.Event()

    def next(self) -> tuple[int, str]:
        """A new number, and what to send."""
        number = next(self._numbers)
        # Now: it may be sent long before its sender hears that it was.
        self._epochs[number] = self._epoch
        if number >= len(self._states):
            self._states.extend(bytes(1 << 20))
        self._states[number] = 1
        return number, f"{number} {time.monotonic()!r}"

    def sent(self, number: int) -> None:
        """It was committed; and it was sent to a listener that was there."""
        self._due.append((time.monotonic(), number, self._epochs.pop(number)))

    def run(self) -> None:
        try:
            with fastpool.listen(self._pool, "soak") as notes:
                while not self._world.over.is_set():
                    try:
                        note = notes.get(0.2)
                    except TimeoutError:
                        continue
                    finally:
                        self.gaps = notes.gaps
                    self._hear(note.payload, notes.gaps)
        except Exception as error:
            self._world.found("the listener failed", error)

    def _hear(self, payload: str, gaps: int) -> None:
        text, _, begun = payload.partition(" ")
        number = int(text)
        if self._states[number] != 1:
            self._world.found(f"notification {number} was received twice, or never sent")
        self._states[number] = 2
        self.received += 1
        self._epoch = gaps
        while self._due and self._due[0][0] < float(begun):
            _, earlier, epoch = self._due.popleft()
            if epoch == gaps and self._states[earlier] != 2:
                self._world.found(f"notification {earlier} was lost, and gaps does not say so")
        self.heard.set()


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def tasks() -> int:
    """Threads of this process, as the kernel counts."""
    return len(os.listdir("/proc/self/task"))


def resident() -> float:
    """Memory of this process, in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Resources:
    """What the process holds, over time."""

    def __init__(self) -> None:
        self._samples: list[tuple[int, int, float]] = []

    def sample(self) -> None:
        self._samples.append((descriptors(), tasks(), resident()))

    def flat(self, with_memory: bool) -> tuple[bool, str]:
        """Whether the last quarter holds no more than the second, and the figures."""
        self.sample()
        quarter = max(1, len(self._samples) // 4)
        early = self._samples[quarter : 2 * quarter] or self._samples
        late = self._samples[-quarter:]
        told, flat = [], True
        for index, (what, slack) in enumerate([("files", 12), ("threads", 6), ("MiB", 8)]):
            before = statistics.median(sample[index] for sample in early)
            after = statistics.median(sample[index] for sample in late)
            told.append(f"{what} {before:.0f} -> {after:.0f}")
            if index < 2 or with_memory:
                flat = flat and after <= before * 1.05 + slack
        return flat, ", ".join(told)


class Watchman(threading.Thread):
    """Looks at everything twice a second, and tells how it goes."""

    def __init__(
        self, world: World, workers: list[Worker], controls: list[Control], every: float
    ) -> None:
        super().__init__(name="watchman", daemon=True)
        self._world = world
        self._workers = workers
        self._controls = controls
        self._every = every
        self.resources = Resources()
        self.timeouts = 0
        self.latest = 0.0
        self.latest_control = 0.0

    def run(self) -> None:
        told = 0.0
        try:
            while not self._world.over.wait(0.5):
                self.resources.sample()
                self._judge_pools()
                self._judge_jobs()
                self._judge_holders()
                self.judge_waits(time.monotonic() - 2 * _AROUND)
                if time.monotonic() - told >= self._every:
                    told = time.monotonic()
                    self._tell()
        except Exception as error:
            self._world.found("the watchman failed", error)

    def _judge_pools(self) -> None:
        for target in self._world.targets:
            seen = target.pool.stats()
            parts = (seen.idle, seen.in_use, seen.connecting, seen.closing, seen.checking)
            if seen.size != sum(parts) or min(parts) < 0 or seen.size > target.max_size:
                self._world.found(f"the numbers do not add up: {seen}")

    def _judge_jobs(self) -> None:
        for worker in self._workers:
            age = time.monotonic() - worker.since
            if age > _STUCK:
                self._world.found(
                    f"{worker.name} is stuck in {worker.job} for {age:.0f} s\n"
                    f"{self._world.state()}\n{self._world.stacks()}"
                )
                worker.since = time.monotonic()  # said once

    def _judge_holders(self) -> None:
        """Nobody sleeps on with a connection that he was handed long ago, and nobody has
        one that he has forgotten."""
        workers = {worker.ident: (worker, worker.asking) for worker in self._workers}
        for target in self._world.targets:
            for holder in target.pool.holders():
                worker, asked = workers.get(holder.thread_id, (None, None))
                if worker is None or holder.age < _SLOW:
                    continue
                handed = time.monotonic() - holder.age
                asks = asked is not None and asked[0] is target and asked[1] < handed
                if asks and worker.asking is asked:
                    self._world.found(f"a waiter of {target.name} was not woken: {holder}")
                elif holder.age > _HELD and worker.since > handed and not asks:
                    lost = f"a connection of {target.name} was lost: {holder.site}"
                    if not any(lost in finding for finding in self._world.findings):
                        self._world.found(lost)

    def judge_waits(self, before: float) -> None:
        """Those that ended before that time: the control has been seen around them."""
        waits = self._world.overshoots
        while waits and waits[0][1] < before:
            begun, ended, over, what = waits.popleft()
            self.timeouts += 1
            self.latest = max(self.latest, over)
            if over <= _TOLERANCE:
                continue
            most = max(c.most(begun - _AROUND, ended + _AROUND) for c in self._controls)
            self.latest_control = max(self.latest_control, most)
            if over > most + _TOLERANCE:
                self._world.found(
                    f"a wait ended {over * 1000:.0f} ms late, a lock's {most * 1000:.0f} ms: {what}"
                )

    def _tell(self) -> None:
        world = self._world
        jobs = world.total("jobs done").total()
        failed = world.total("jobs failed").total()
        faults = world.total("injected").total() + world.total("caused").total()
        print(
            f"{time.monotonic() - world.began:6.0f} s  {jobs:8} jobs done, {failed:6} failed  "
            f"{faults:6} faults  {len(world.findings)} findings",
            flush=True,
        )
