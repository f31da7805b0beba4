"""Load from one process, as an open or a closed loop.

In an open loop a request leaves when it is due, whether or not earlier ones are answered. In a closed loop a new
request leaves for every answer.

1. In an open loop all arrival times are drawn before the first request leaves: at equal distances, or as a Poisson
   process, which is how many independent callers arrive.
2. A latency counts from the time a request was due, not from when it could be sent. A server that stalls for a second
   at 1,000 requests a second thus shows a thousand slow answers, not one. Counting from the send would hide them: that
   error is known as coordinated omission. Delays of this program itself are in the latencies, too: `lag_p99_ms` says
   how large they were. The garbage collector ignores objects from before the load, so that it causes no pause for them.
3. A request takes an unused connection, or opens one, up to a limit. Over gRPC it then shares a connection, up to a
   limit. Beyond that it waits, and its time runs.
4. In each turn of the event loop all requests that are due are handed to connections, and each connection writes once.
   Under a higher rate turns are fuller, and a request becomes cheaper.

An event loop counts time in whole milliseconds, which would be most of a latency here. On Linux the load therefore
waits for the next arrival with a timer of the kernel (timerfd), which an event loop sees as a readable file. It spends
the last microseconds in turns of the loop, because to sleep and to wake takes longer.
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
# If the next arrival is closer than this, the loop does not sleep.
_AWAKE_S = 60e-6
# Most requests of one turn. Then answers are read, however late the load is.
_TURN_MAX = 256
_SWEEP_S = 0.1
# How long a closed loop waits for its connections before it begins to count.
_OPEN_S = 1.0


@dataclass(frozen=True, slots=True)
class LoadAnswer:
    """One answer. `index` counts the requests from 0; `latency_ms` counts from when the request was due.

    `status` is an HTTP status; those of gRPC are translated.
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

    A body is taken from `bodies` when its request is due, so it may hold the time. The load ends when they run out.
    `arrivals` is "poisson" or "fixed". `on_answer` is called from the event loop for every answer, whatever its status.
    Returns at the latest `timeout_ms` after the last request. Raises Misconfigured when the target is no such URL or
    does not answer.
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
    """Run a load with requests due at `due_s`, seconds from the start, ascending. `record` notes each of them."""
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
    record: RequestLog | None = None,
) -> LoadReport:
    """Send a new request for every answer, so that each of `connections` always carries as many as it may.

    `record` notes each request. Runs for `seconds` or until the bodies run out. A latency counts from when the request
    was sent. Raises as `run_load`.
    """
    if not seconds > 0:
        raise Misconfigured("load: seconds must be above 0")
    load = _ClosedLoop(_Opener(target, options or LoadOptions()), bodies, on_answer, record)
    with _earlier_objects_frozen():
        return await load.run(seconds)


def arrival_times(rate: float, seconds: float, arrivals: str, seed: int) -> NDArray[np.float64]:
    """Returns the seconds from the start at which requests are due, ascending, shape (requests,)."""
    if arrivals == "fixed":
        return np.arange(int(np.ceil(rate * seconds)), dtype=np.float64) / rate
    # The number of arrivals of a Poisson process has a Poisson distribution. Given the number, the times are uniform.
    rng = np.random.default_rng(seed)
    return np.sort(rng.random(rng.poisson(rate * seconds)) * seconds)


@contextlib.contextmanager
def _earlier_objects_frozen() -> Iterator[None]:
    """Make the garbage collector skip the objects that exist now, unless some were frozen before."""
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
    """Opens connections to a target."""

    def __init__(self, url: str, options: LoadOptions) -> None:
        options.check()
        self.target, self.options = Target.of(url), options
        self.timeout_s = options.timeout_ms / 1000
        # gRPC connections are few and long-lived: all of them are opened at the start.
        self.connections_max = (
            options.connections if self.target.is_grpc else max(options.connections, options.connections_max)
        )
        self._context = self.target.tls_context(options)

    async def open(self, load: _Load) -> None:
        """Open a connection, which then calls the load's `opened`. Raises OSError."""
        target, loop = self.target, asyncio.get_running_loop()
        channel = (GrpcChannel if target.is_grpc else HttpChannel)(load, target, self.options)
        try:
            await asyncio.wait_for(
                loop.create_connection(lambda: channel, target.host, target.port, ssl=self._context), self.timeout_s
            )
        except BaseException:
            # If the time runs out just as a connection is made, uvloop closes it and never calls `connection_lost`.
            # The requests that the channel has taken by then would wait for ever.
            channel.connection_lost(None)
            raise


class _Load:
    """The base of both kinds of load: connections, requests that wait for one, and counts."""

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
        # Connections without a request, the last used on top; and connections with room for more, taken in turns.
        self._idle: list[Channel] = []
        self._shared: deque[Channel] = deque()
        self._opening: set[asyncio.Task[bool]] = set()
        self._backlog: deque[Asked] = deque()
        self._progress = asyncio.Event()

    async def open_some(self, count: int) -> None:
        """Open the first connections. Raises Misconfigured for a wrong address, instead of a report full of errors."""
        try:
            for _ in range(count):
                await self._opener.open(self)
        except ssl.SSLError as error:
            raise Misconfigured(f"load: no TLS with {self._opener.target}: {error.reason}") from error
        except OSError as error:
            raise Misconfigured(f"load: cannot connect to {self._opener.target}: {_reason(error)}") from error

    async def finish(self) -> None:
        """Wait until every request is answered. `sweep` turns those without an answer into errors in time.

        The limit is for a connection whose end the event loop never reports.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._opener.timeout_s + 2 * _SWEEP_S):
                while not self.tally.is_complete:
                    self._progress.clear()
                    await self._progress.wait()

    async def close(self) -> None:
        """Close every connection, also connections that are being opened."""
        self._backlog.clear()
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for channel in list(self._channels):
            channel.abort()
        # The loop closes sockets in its next turn: this gives it one.
        await asyncio.sleep(0)

    async def sweep(self) -> None:
        """Give up requests that have waited too long. One look over all of them is cheaper than a timer for each."""
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._opener.timeout_s / 4))
            self._give_up()
            oldest = time.perf_counter() - self._opener.timeout_s
            for channel in list(self._channels):
                if any(asked.due < oldest for asked in channel.unanswered()):
                    channel.abort()

    def _give_up(self) -> None:
        """Give up requests that have waited for a connection for too long."""
        oldest = time.perf_counter() - (self._opener.options.give_up_ms / 1000 or self._opener.timeout_s)
        while self._backlog and self._backlog[0].due < oldest:
            self._failed(self._backlog.popleft())

    def take_channel(self) -> Channel | None:
        """Take a channel that can carry another request out of the lists; None when there is no such channel."""
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
        """Put a channel into the list it belongs to, if any. It may still be in the other list, which then skips it."""
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

    def _is_open(self, task: asyncio.Task[bool]) -> None:
        self._opening.discard(task)
        # A request that came meanwhile counted on this connection, which another request took.
        self.open_if_needed()

    async def _open_one(self) -> bool:
        """Open a connection; returns whether it was opened."""
        try:
            await self._opener.open(self)
        except OSError:
            # Each failure ends one request. Otherwise a dead server would be tried in an endless loop.
            if self._backlog:
                self._failed(self._backlog.popleft())
            return False
        return True

    def _failed(self, asked: Asked) -> None:
        """Count a request as one without an answer."""
        self.tally.answered(asked.number, 0, time.perf_counter() - asked.due)
        self._progress.set()

    def send(self, channel: Channel, asked: Asked) -> None:
        """Hand a request to a channel."""
        self.tally.left(asked.number, asked.due)
        channel.send(asked)

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
        is_newest_first = self._opener.options.give_up_ms > 0
        while self._backlog and channel.in_flight < channel.capacity:
            self.send(channel, self._backlog.pop() if is_newest_first else self._backlog.popleft())
        channel.flush()
        self.list_channel(channel)

    def closed(self, channel: Channel, unanswered: Iterable[Asked]) -> None:
        self._channels.discard(channel)
        for asked in unanswered:
            self._failed(asked)
        self.open_if_needed()


class _OpenLoop(_Load):
    """A load whose requests leave when they are due."""

    async def run(self, due_s: array[float]) -> LoadReport:
        await self.open_some(self._opener.options.connections)
        self._due_s = due_s
        self._all_handed_over = asyncio.get_running_loop().create_future()
        self._timer = _Timer(self._on_due)
        sweeper = asyncio.create_task(self.sweep())
        self._start = time.perf_counter()
        try:
            self._on_due()
            await self._all_handed_over
            seconds, ok_in_time = time.perf_counter() - self._start, self.tally.ok
            await self.finish()
        finally:
            self._timer.close()
            sweeper.cancel()
            await self.close()
        return self.tally.report(seconds, ok_in_time)

    def _on_due(self) -> None:
        if self._all_handed_over.done():
            return
        try:
            self._turn()
        except Exception as error:  # noqa: BLE001 - `run` raises it
            # Raised by the bodies. Without this the load would wait for a next turn that never comes.
            self._all_handed_over.set_exception(error)

    def _turn(self) -> None:
        """Hand over the requests that are due, and schedule the next call for the next request."""
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
            tally.lag.append(now_s - at_s)
            self._begin(Asked(self._start + at_s, index, body), touched)
            index += 1
        for channel in touched:
            channel.flush()
        if index >= len(due_s):
            self._all_handed_over.set_result(None)
            return
        wait_s = due_s[index] - (time.perf_counter() - self._start)
        if wait_s > _AWAKE_S:
            self._timer.set(wait_s - _AWAKE_S / 2)
        else:
            asyncio.get_running_loop().call_soon(self._on_due)

    def _begin(self, asked: Asked, touched: list[Channel]) -> None:
        channel = None if self._backlog else self.take_channel()
        if channel is None:
            self._backlog.append(asked)
            self.open_if_needed()
            return
        self.send(channel, asked)
        touched.append(channel)
        self.list_channel(channel)


class _ClosedLoop(_Load):
    """A new request leaves for every answer."""

    async def run(self, seconds: float) -> LoadReport:
        self._over = asyncio.Event()
        self._start = time.perf_counter()
        await self.open_some(1)
        # A server that takes no more connections leaves the others waiting.
        for _ in range(1, self._opener.options.connections):
            self._reopen()
        if self._opening:
            await asyncio.wait(self._opening, timeout=_OPEN_S)
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
        self._reopen()

    def _reopen(self) -> None:
        if not self._over.is_set() and len(self._channels) + len(self._opening) < self._opener.options.connections:
            task = asyncio.create_task(self._open_one())
            self._opening.add(task)
            task.add_done_callback(self._is_reopened)

    def _is_reopened(self, task: asyncio.Task[bool]) -> None:
        self._opening.discard(task)
        # The server may have closed it before this is known. A server that takes none is not asked again at once.
        if not task.cancelled() and task.result():
            self._reopen()


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
