"""Virtual time, and actors that run one at a time: the ground that the simulator stands on.

    actor      a thread that stands for one process: it runs only while it holds the baton
    seam       a call to the outside (Kafka, store, files, a sleep): here an actor may be suspended, frozen or killed
    timer      a function that runs at a moment of virtual time, in nobody's name

1. An event is a moment, a random number and an actor or a function. The earliest event is next; events of one moment
   come in the order of their random numbers. All random numbers come from the seed, so a seed is one history.
2. An actor that waits runs the next events itself. When an event is another actor's, it hands the baton over and
   sleeps until somebody hands it back. So there is never more than one thread that runs, and no scheduler's thread.
3. `kill` ends an actor as SIGKILL does: its next seam raises Died. Died is a SystemExit, which no code of ours catches
   and which asyncio lets through. While Died unwinds the stack, `finally` blocks run, which a killed process would not
   do. Every further seam of a dead actor therefore raises Died again and has no effect.
4. `freeze` is SIGSTOP and SIGCONT: until then the actor does nothing, and neither do its clients of Kafka.

The trace is a hash over all that happened: equal traces mean equal histories.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import random
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NoReturn

from paywarden.schemas.errors import PaywardenError

# The wall clock at the start of every history: 2027-01-15 08:00 UTC.
START_S = 1_800_000_000
_FIRST_PID = 1000
_NOTES_KEPT = 8000
# As `waitpid` has them: an exit code in the second byte, a signal in the first.
_KILLED_STATUS, _FAILED_STATUS, _BUG_STATUS = 9, 1 << 8, 70 << 8


class Died(SystemExit):
    """This actor was killed here."""


class Failed(Exception):
    """A promise was broken. The text says which, and with what."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass
class Life:
    """The state that the threads of one process share."""

    name: str
    machine: str
    pid: int
    started_at: float
    frozen_until: float = 0.0
    # When it was stopped last.
    frozen_since: float = -1.0
    is_dead: bool = False
    # The number of seams until it dies; None: it does not.
    fuse: int | None = None
    fds: set[int] = field(default_factory=set)
    # The process that has forked it, if that is simulated; and its children that have ended, as `waitpid` tells them.
    parent: Life | None = None
    ended_children: list[tuple[int, int]] = field(default_factory=list)
    # The signal handlers of its threads, by number.
    signals: dict[int, Callable[[], object]] = field(default_factory=dict)
    # Called once when the process has ended, however it ended.
    at_end: list[Callable[[], object]] = field(default_factory=list)
    threads: list[Actor] = field(default_factory=list)


class Actor:
    """One thread of a process; most processes have only one."""

    def __init__(self, world: World, life: Life) -> None:
        self.world, self.life = world, life
        life.threads.append(self)
        self.is_main = len(life.threads) == 1
        self.baton = threading.Lock()
        self.baton.acquire()
        self.token = 0
        self.has_ended = False
        self.outcome = ""
        # Opens the port of a scoring worker, given the factory of its connections.
        self.accept: Callable[[Callable[[], Any]], Any] | None = None

    def __repr__(self) -> str:
        return f"{self.life.name}#{self.life.pid}"

    @property
    def name(self) -> str:
        return self.life.name

    @property
    def is_dead(self) -> bool:
        """Whether the process was killed."""
        return self.life.is_dead

    @property
    def is_over(self) -> bool:
        """Whether the process has ended, killed or not."""
        return self.life.is_dead or self.life.threads[0].has_ended

    @property
    def is_frozen(self) -> bool:
        return self.life.frozen_until > self.world.now


class World:
    """Time, actors and chance of one history."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.faults: Counter[str] = Counter()
        self._hash = blake2b(digest_size=8)
        self.notes: list[str] = []
        self._events: list[tuple[float, float, int, Actor | None, int, Callable[[], object] | None]] = []
        self._count = 0
        self._pid = _FIRST_PID
        self.clock_offset_s: dict[str, float] = {}
        self.by_pid: dict[int, Life] = {}
        self.failure: BaseException | None = None
        # How likely an actor is suspended at a seam.
        self.suspend_share = 0.15
        self.main = Actor(self, Life("main", "sim", 1, 0.0))
        self.current: Actor | None = self.main

    # Time

    def next_pid(self) -> int:
        self._pid += 1
        return self._pid

    def wall_s(self, machine: str | None = None) -> float:
        """Returns the time in epoch seconds on the clock of a machine; by default that of the running actor."""
        if machine is None:
            machine = "" if self.current is None else self.current.life.machine
        return START_S + self.now + self.clock_offset_s.get(machine, 0.0)

    def wall_ms(self, machine: str | None = None) -> int:
        return int(self.wall_s(machine) * 1000)

    def at(self, moment: float, action: Callable[[], object]) -> None:
        """Run `action` at a moment of virtual time."""
        self._push(moment, None, 0, action)

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        self._push(self.now + seconds, None, 0, action)

    def _push(self, moment: float, actor: Actor | None, token: int, action: Callable[[], object] | None) -> None:
        self._count += 1
        heapq.heappush(self._events, (moment, self.random.random(), self._count, actor, token, action))

    # Calls of actors

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        notes = self.notes
        notes.append(f"{self.now:.6f} {'-' if self.current is None else self.current.life.name} {text}")
        if len(notes) == _NOTES_KEPT:
            self._hash_notes()
            del notes[: _NOTES_KEPT // 2]

    def _hash_notes(self) -> None:
        self._hash.update("\n".join(self.notes).encode())

    def digest(self) -> str:
        """Returns the hash of the trace."""
        self._hash_notes()
        return self._hash.hexdigest()

    def seam(self, what: str) -> None:
        """The running actor is about to call the outside. Raises Died when it is killed here."""
        actor = self.current
        if actor is None or actor is self.main:
            return
        if actor.is_dead:
            raise Died
        self.steps += 1
        self.note(what)
        life = actor.life
        if life.fuse is not None:
            life.fuse -= 1
            if life.fuse < 0:
                self.die()
        if life.frozen_until > self.now or self.random.random() < self.suspend_share:
            self.sleep(self.random.random() * 0.003)

    def die(self) -> NoReturn:
        """Kill the running process here. Raises Died."""
        assert self.current is not None
        self.note("dies")
        self._die(self.current.life)
        raise Died

    def sleep(self, seconds: float) -> None:
        """Suspend the running actor, but not past a `wake`. Raises Died."""
        actor = self.current
        assert actor is not None, "only an actor sleeps"
        if actor.is_dead:
            raise Died
        self._push(self.now + max(0.0, seconds), actor, actor.token, None)
        self._run_others(actor)
        if actor.is_dead:
            raise Died

    def pause(self, seconds: float) -> None:
        """Suspend the running actor for this long, even if another actor wakes it. Raises Died."""
        until = self.now + seconds
        while self.now < until:
            self.sleep(until - self.now)

    def wait(self) -> None:
        """Suspend the running actor until a `wake`. Raises Died."""
        actor = self.current
        assert actor is not None
        if actor.is_dead:
            raise Died
        self._run_others(actor)
        if actor.is_dead:
            raise Died

    def wake(self, actor: Actor) -> None:
        """Let a waiting actor go on now."""
        if not actor.has_ended:
            self._push(self.now, actor, actor.token, None)

    def start(self, name: str, machine: str, work: Callable[[Actor], object]) -> Actor:
        """Start a process. It ends when `work` returns or raises."""
        life = Life(name, machine, self.next_pid(), self.now)
        self.by_pid[life.pid] = life
        return self._start(life, work)

    def fork(self, name: str, work: Callable[[Actor], object]) -> Actor:
        """Start a child of the running process."""
        assert self.current is not None
        parent = self.current.life
        life = Life(name, parent.machine, self.next_pid(), self.now, parent=parent)
        self.by_pid[life.pid] = life

        def told() -> None:
            outcome = life.threads[0].outcome
            status = {"ended": 0, "bug": _BUG_STATUS, "": _KILLED_STATUS}.get(outcome, _FAILED_STATUS)
            parent.ended_children.append((life.pid, status))
            for actor in parent.threads:
                self.wake(actor)

        life.at_end.append(told)
        return self._start(life, work)

    def start_thread(self, work: Callable[[], object]) -> Actor:
        """Start another thread of the running process. It ends with the process at the latest."""
        assert self.current is not None
        return self._start(self.current.life, lambda _: work())

    def _start(self, life: Life, work: Callable[[Actor], object]) -> Actor:
        actor = Actor(self, life)
        threading.Thread(target=self._live, args=(actor, work), name=life.name, daemon=True).start()
        self.wake(actor)
        return actor

    def kill(self, life: Life) -> None:
        """End a process at once."""
        if life.is_dead or life.threads[0].has_ended:
            return
        self.note(f"{life.name} is killed")
        life.frozen_until = 0.0
        self._die(life)

    def freeze(self, life: Life, seconds: float) -> None:
        """Stop a process for a while."""
        self.note(f"{life.name} is frozen for {seconds:.3f} s")
        life.frozen_until, life.frozen_since = self.now + seconds, self.now

    def thaw(self, life: Life) -> None:
        """Let a stopped process go on."""
        life.frozen_until = self.now
        for actor in life.threads:
            self.wake(actor)

    def _die(self, life: Life) -> None:
        life.is_dead = True
        # The kernel does this at once; the rest of the process is unwound later and changes nothing.
        self._tidy(life)
        for actor in life.threads:
            if actor is not self.current:
                self.wake(actor)

    def _tidy(self, life: Life) -> None:
        for fd in life.fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        life.fds.clear()
        actions, life.at_end = life.at_end, []
        for action in actions:
            action()

    def _live(self, actor: Actor, work: Callable[[Actor], object]) -> None:
        actor.baton.acquire()
        try:
            if not actor.is_dead:
                work(actor)
            actor.outcome = "ended"
        except Died:
            actor.outcome = "killed"
        except PaywardenError as error:
            actor.outcome = f"{type(error).__name__}: {error}"
        except OSError as error:
            actor.outcome = f"{type(error).__name__}: {error}"
        except BaseException as error:  # noqa: BLE001 - the top of a process
            actor.outcome = "bug"
            if self.failure is None and not actor.is_dead:
                text = "".join(traceback.format_exception(error))
                self.failure = Failed("bug", f"{actor.name} ended with {type(error).__name__}: {error}\n{text}")
        if actor.is_dead:
            actor.outcome = "killed"
        actor.has_ended = True
        if actor.is_main and not actor.is_dead:
            # Its other threads end with it.
            self._die(actor.life)
        self.current = None
        self.note(f"{actor.name} has ended: {actor.outcome}")
        self._run_others(actor, is_last=True)

    def _run_others(self, me: Actor, *, is_last: bool = False) -> None:
        """Run events until one is `me`'s; with `is_last` until one is another actor's."""
        while True:
            moment, _, _, actor, token, action = heapq.heappop(self._events)
            if moment > self.now:
                self.now = moment
            if actor is None:
                assert action is not None
                self.current = None
                try:
                    action()
                except BaseException as error:  # noqa: BLE001 - told to the main thread
                    if self.failure is None:
                        self.failure = error
                if self.failure is not None:
                    self.wake(self.main)
                continue
            if actor.token != token or actor.has_ended:
                continue
            if actor.life.frozen_until > self.now:
                self._push(actor.life.frozen_until, actor, token, None)
                continue
            actor.token += 1
            self.current = actor
            if actor is me:
                return
            actor.baton.release()
            if not is_last:
                me.baton.acquire()
            return

    # For the main thread

    def run_until(self, is_done: Callable[[], bool], limit_s: float, look_every_s: float = 1.0) -> bool:
        """Let the actors work until `is_done`, or until `limit_s` have passed. Returns whether it is done."""
        deadline = self.now + limit_s
        while True:
            if self.failure is not None:
                raise self.failure
            if is_done():
                return True
            if self.now >= deadline:
                return False
            self.sleep(min(look_every_s, deadline - self.now))

    def end(self) -> None:
        """Kill all processes, and wait for their threads. Processes whose start was due by then are killed, too."""
        while True:
            for life in self.by_pid.values():
                life.at_end.clear()
                self.kill(life)
            if all(actor.has_ended for life in self.by_pid.values() for actor in life.threads):
                return
            self.sleep(0.001)
