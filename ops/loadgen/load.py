"""Load from one process: open loop, where requests leave when they are due whether or not earlier ones have been
answered, or closed loop, where a new one leaves for every answer.

1. In an open loop all arrival times are drawn before the first request leaves: at equal distances, or as a Poisson
   process, which is what many independent callers look like.
2. A latency counts from the time a request was due, not from when it could be sent. A server that stalls for
   a second at 1,000 requests a second thus shows a thousand slow answers, not one: the error known as
   coordinated omission. It also means that delays of this program itself are in the numbers (`lag_p99_ms`). So that
   garbage collection is not among them, what is alive before a load is not looked at during it.
3. A request takes an unused connection, or opens one, up to a limit; then it shares one, as far as that is allowed;
   beyond it, it waits, and its time runs.
4. Once a turn of the event loop all that is due by then is handed to connections, and each writes once. So under a
   higher rate turns grow fuller, and a request becomes cheaper.

Event loops time in whole milliseconds, which would be most of a latency here, so on Linux the next arrival
is waited for with a timer of the kernel (timerfd), which an event loop sees as a readable file; the last microseconds
are spent in turns of the loop, because to sleep and wake takes longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import socket
import ssl
import struct
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.ops.loadgen.channels import Asked, Channel, GrpcChannel, HttpChannel
from paywarden.ops.loadgen.report import LoadReport, LoadTally, RequestLog
from paywarden.ops.loadgen.target import LoadOptions, Target
from paywarden.schemas.errors import Misconfigured

ARRIVALS = ("poisson", "fixed")
# Arrivals closer than this are waited for awake.
_AWAKE_S = 60e-6
# Handed over in one turn; then answers are read, however far behind the schedule is.
_TURN_MAX = 256
_SWEEP_S = 0.1


@dataclass(frozen=True, slots=True)
class LoadAnswer:
    """One answer. `index` counts the requests from 0; `latency_ms` is from when the request was due.

    `status` is an HTTP one; gRPC's are translated.
    """

    index: int
    request: bytes
    status: int
    body: bytes
    latency_ms: float


async def run_load(
    target: str,
    bodies: Iterator[bytes],
    *,
    rate: float,
    seconds: float,
    arrivals: str = "poisson",
    on_answer: Callable[[LoadAnswer], None] | None = None,
    seed: int = 1,
    options: LoadOptions | None = None,
) -> LoadReport:
    """Send `rate` requests a second for `seconds` to `target` and report on the answers.

    A body is taken from `bodies` when its request is due, so it may hold the time; when they run out the load
    ends. `arrivals` is "poisson" or "fixed". `on_answer` is called from the event loop for every answer of
    whatever status. Returns at the latest `timeout_ms` after the last request. Raises Misconfigured when the
    target is no URL of ours or nobody answers there.
    """
    if arrivals not in ARRIVALS:
        raise Misconfigured(f"load: arrivals must be poisson or fixed, is {arrivals}")
    if not (rate > 0 and seconds > 0):
        raise Misconfigured("load: rate and seconds must be above 0")
    due = arrival_times(rate, seconds, arrivals, seed)
    return await run_arrivals(target, bodies, due, on_answer=on_answer, options=options)


async def run_arrivals(
    target: str,
    bodies: Iterator[bytes],
    due_s: NDArray[np.float64],
    *,
    on_answer: Callable[[LoadAnswer], None] | None = None,
    options: LoadOptions | None = None,
    record: RequestLog | None = None,
) -> LoadReport:
    """`run_load` with requests due at `due_s`, seconds from the start, ascending; `record` is given each of them."""
    load = _OpenLoop(_Opener(target, options or LoadOptions()), bodies, on_answer, record)
    with _earlier_objects_frozen():
        return await load.run(array("d", due_s.tobytes()))


async def run_closed(
    target: str,
    bodies: Iterator[bytes],
    *,
    seconds: float,
    on_answer: Callable[[LoadAnswer], None] | None = None,
    options: LoadOptions | None = None,
) -> LoadReport:
    """As many requests as are answered: each of `connections` always carries as many as it may, for `seconds` or until
    the bodies run out. A latency counts from when the request was sent. Raises as `run_load`.
    """
    if not seconds > 0:
        raise Misconfigured("load: seconds must be above 0")
    load = _ClosedLoop(_Opener(target, options or LoadOptions()), bodies, on_answer, None)
    with _earlier_objects_frozen():
        return await load.run(seconds)


def arrival_times(rate: float, seconds: float, arrivals: str, seed: int) -> NDArray[np.float64]:
    """Seconds from the start at which requests are due, ascending."""
    if arrivals == "fixed":
        return np.arange(int(np.ceil(rate * seconds)), dtype=np.float64) / rate
    # Given their number, which is Poisson's, the arrivals of a Poisson process are uniform.
    rng = np.random.default_rng(seed)
    return np.sort(rng.random(rng.poisson(rate * seconds)) * seconds)


@contextlib.contextmanager
def _earlier_objects_frozen() -> Iterator[None]:
    """The garbage collector passes over what is alive now, unless something was frozen before."""
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Opener:
    """Makes connections to a target."""

    def __init__(self, url: str, options: LoadOptions) -> None:
        options.check()
        self.target, self.options = Target.of(url), options
        self.timeout_s = options.timeout_ms / 1000
        # Over gRPC connections are few and long-lived: all of them are there from the start.
        self.connections_max = (
            options.connections if self.target.is_grpc else max(options.connections, options.connections_max)
        )
        self._context = self.target.tls_context(options)

    async def open(self, load: _Load) -> None:
        """Connect; the load hears of it by `opened`. Raises OSError."""
        kind = GrpcChannel if self.target.is_grpc else HttpChannel
        loop = asyncio.get_running_loop()

        def made() -> Channel:
            return kind(load, self.target, self.options)

        if self.target.socket_path:
            await asyncio.wait_for(loop.create_unix_connection(made, self.target.socket_path), self.timeout_s)
            return
        await asyncio.wait_for(
            loop.create_connection(made, self.target.host, self.target.port, ssl=self._context), self.timeout_s
        )


class _Load:
    """What both kinds of load share: the connections, what waits for one, and the counts."""

    def __init__(
        self,
        opener: _Opener,
        bodies: Iterator[bytes],
        on_answer: Callable[[LoadAnswer], None] | None,
        record: RequestLog | None,
    ) -> None:
        self._opener, self._bodies, self._on_answer = opener, bodies, on_answer
        self.tally = LoadTally(record)
        self._start = 0.0
        self._channels: set[Channel] = set()
        # Those with nothing on them, the last used on top; and those with room for more, by turns.
        self._idle: list[Channel] = []
        self._shared: deque[Channel] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._backlog: deque[Asked] = deque()
        self._progress = asyncio.Event()

    async def open_all(self) -> None:
        """Open what there is to be at the start. A wrong address is one clear error, not a report full of them."""
        try:
            for _ in range(self._opener.options.connections):
                await self._opener.open(self)
        except ssl.SSLError as error:
            raise Misconfigured(f"load: no TLS with {self._opener.target}: {error.reason}") from error
        except OSError as error:
            raise Misconfigured(f"load: cannot connect to {self._opener.target}: {_reason(error)}") from error

    async def finish(self) -> None:
        """Wait for what is on its way; what is not answered in time is an error by then, thanks to `sweep`."""
        while not self.tally.is_complete:
            self._progress.clear()
            await self._progress.wait()

    async def close(self) -> None:
        """End every connection, those that are being opened too."""
        self._backlog.clear()
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for channel in list(self._channels):
            channel.abort()
        # The loop closes sockets in its next turn, and may have none after this.
        await asyncio.sleep(0)

    async def sweep(self) -> None:
        """Give up on requests that have waited too long. One look over all of them, not a timer for each."""
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._opener.timeout_s / 4))
            oldest = time.perf_counter() - self._opener.timeout_s
            while self._backlog and self._backlog[0].due < oldest:
                self._failed(self._backlog.popleft())
            for channel in list(self._channels):
                if any(asked.due < oldest for asked in channel.unanswered()):
                    channel.abort()

    def take_channel(self) -> Channel | None:
        """One that can carry another request, out of the lists; None when there is none."""
        while self._idle:
            channel = self._idle.pop()
            channel.is_listed_idle = False
            if channel.capacity and channel.in_flight == 0:
                return channel
        if len(self._channels) + len(self._opening) >= self._opener.connections_max:
            while self._shared:
                channel = self._shared.popleft()
                channel.is_listed_shared = False
                if channel.in_flight < channel.capacity:
                    return channel
        return None

    def list_channel(self, channel: Channel) -> None:
        """Into the list it belongs to, if any; it may be in the other one still, and is passed over there."""
        if channel.in_flight == 0:
            if not channel.is_listed_idle and channel.capacity:
                channel.is_listed_idle = True
                self._idle.append(channel)
        elif channel.in_flight < channel.capacity and not channel.is_listed_shared:
            channel.is_listed_shared = True
            self._shared.append(channel)

    def open_if_needed(self) -> None:
        count = len(self._channels) + len(self._opening)
        if len(self._opening) < len(self._backlog) and count < self._opener.connections_max:
            task = asyncio.create_task(self._open_one())
            self._opening.add(task)
            task.add_done_callback(self._is_open)

    def _is_open(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        # A request that came between the connection and this had counted on it.
        self.open_if_needed()

    async def _open_one(self) -> None:
        try:
            await self._opener.open(self)
        except OSError:
            # Each failure answers for one request, or a server that is gone would be knocked at in a loop.
            if self._backlog:
                self._failed(self._backlog.popleft())

    def _failed(self, asked: Asked) -> None:
        """No answer came, or will come."""
        self.tally.answered(asked.number, 0, time.perf_counter() - asked.due)
        self._progress.set()

    # For channels

    def opened(self, channel: Channel) -> None:
        self._channels.add(channel)
        self.freed(channel)

    def answered(self, asked: Asked, status: int, body: bytes, now: float) -> None:
        self.tally.answered(asked.number, status, now - asked.due)
        self._progress.set()
        if self._on_answer is not None:
            self._on_answer(LoadAnswer(asked.number, asked.body, status, body, (now - asked.due) * 1000))

    def freed(self, channel: Channel) -> None:
        while self._backlog and channel.in_flight < channel.capacity:
            channel.send(self._backlog.popleft())
        channel.flush()
        self.list_channel(channel)

    def closed(self, channel: Channel, unanswered: Iterable[Asked]) -> None:
        self._channels.discard(channel)
        for asked in unanswered:
            self._failed(asked)
        self.open_if_needed()


class _OpenLoop(_Load):
    """Requests leave when they are due."""

    async def run(self, due_s: array[float]) -> LoadReport:
        await self.open_all()
        self._due_s = due_s
        self._all_handed_over = asyncio.Event()
        self._timer = _Timer(self._turn)
        sweeper = asyncio.create_task(self.sweep())
        self._start = time.perf_counter()
        try:
            self._turn()
            await self._all_handed_over.wait()
            seconds, ok_in_time = time.perf_counter() - self._start, self.tally.ok
            await self.finish()
        finally:
            self._timer.close()
            sweeper.cancel()
            await self.close()
        return self.tally.report(seconds, ok_in_time)

    def _turn(self) -> None:
        """Hand over what is due by now, and see to it that this is called when the next one is."""
        if self._all_handed_over.is_set():
            return
        due_s, index, tally = self._due_s, self.tally.sent, self.tally
        now_s = time.perf_counter() - self._start
        touched: list[Channel] = []
        stop = min(len(due_s), index + _TURN_MAX)
        while index < stop and (at_s := due_s[index]) <= now_s:
            body = next(self._bodies, None)
            if body is None:
                stop = index
                due_s = self._due_s = due_s[:index]
                break
            tally.begin(at_s)
            tally.lag.add(now_s - at_s)
            self._begin(Asked(self._start + at_s, index, body), touched)
            index += 1
        for channel in touched:
            channel.flush()
        if index >= len(due_s):
            self._all_handed_over.set()
            return
        wait_s = due_s[index] - (time.perf_counter() - self._start)
        if wait_s > _AWAKE_S:
            self._timer.set(wait_s - _AWAKE_S / 2)
        else:
            asyncio.get_running_loop().call_soon(self._turn)

    def _begin(self, asked: Asked, touched: list[Channel]) -> None:
        channel = None if self._backlog else self.take_channel()
        if channel is None:
            self._backlog.append(asked)
            self.open_if_needed()
            return
        channel.send(asked)
        touched.append(channel)
        self.list_channel(channel)


class _ClosedLoop(_Load):
    """A new request leaves for every answer."""

    async def run(self, seconds: float) -> LoadReport:
        self._over = asyncio.Event()
        self._start = time.perf_counter()
        await self.open_all()
        sweeper = asyncio.create_task(self.sweep())
        started, ok_before = time.perf_counter(), self.tally.ok
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), seconds)
            self._over.set()
            elapsed, ok_in_time = time.perf_counter() - started, self.tally.ok - ok_before
            await self.finish()
        finally:
            self._over.set()
            sweeper.cancel()
            await self.close()
        return self.tally.report(elapsed, ok_in_time)

    def freed(self, channel: Channel) -> None:
        now = time.perf_counter()
        while not self._over.is_set() and channel.in_flight < channel.capacity:
            body = next(self._bodies, None)
            if body is None:
                self._over.set()
                break
            index = self.tally.sent
            self.tally.begin(now - self._start)
            channel.send(Asked(now, index, body))
        channel.flush()

    def closed(self, channel: Channel, unanswered: Iterable[Asked]) -> None:
        super().closed(channel, unanswered)
        if not self._over.is_set() and len(self._channels) + len(self._opening) < self._opener.options.connections:
            task = asyncio.create_task(self._open_one())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)


class _Timer:
    """Calls back to within some 50 µs where the kernel has timerfd, else to the millisecond."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._call = call
        self._fd = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._on_readable)

    def set(self, seconds: float) -> None:
        """Call once, `seconds` (above 0) from now."""
        if self._fd < 0:
            self._loop.call_later(seconds, self._call)
            return
        # struct itimerspec: no interval, then the time until it expires; all zeros would switch it off.
        nanoseconds = max(1, int(seconds * 1e9))
        setting = struct.pack("@llll", 0, 0, *divmod(nanoseconds, 1_000_000_000))
        self._libc.timerfd_settime(self._fd, 0, setting, None)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_readable(self) -> None:
        os.read(self._fd, 8)
        self._call()


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "unknown host"
    return os.strerror(error.errno) if error.errno is not None else type(error).__name__
