"""Open-loop load: requests leave when they are due, whether or not earlier ones have been answered.

1. All arrival times are drawn before the first request leaves: at equal distances, or as a Poisson process,
   which is what many independent callers look like.
2. A latency counts from the time a request was due, not from when it could be sent. A server that stalls for
   a second at 1,000 requests a second thus shows a thousand slow answers, not one: the error known as
   coordinated omission. It also means that delays of this program itself are in the numbers.
3. A request takes an unused connection, or opens one, up to a limit; beyond it, it waits, and its time runs.

Event loops time in whole milliseconds, which would be most of a latency here, so on Linux the next arrival
is waited for with a timer of the kernel (timerfd), which an event loop sees as a readable file.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import random
import socket
import struct
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from schemas.errors import Misconfigured

_DEFAULT_PATH = "/v1/score"


@dataclass(frozen=True)
class LoadReport:
    """What came of a load. `sent` = `ok` + `shed` + `errors`; latencies are of the `ok` ones, 0 if there are none."""

    sent: int
    ok: int
    # 429: refused because of overload.
    shed: int
    # Any other status, a broken connection, or no answer in time.
    errors: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `index` counts the requests from 0; `latency_ms` is from when the request was due."""

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
    on_answer: Callable[[Answer], None] | None = None,
    content_type: str = "application/x-protobuf",
    connections_max: int = 256,
    timeout_ms: int = 5_000,
    seed: int = 1,
) -> LoadReport:
    """Send `rate` requests a second for `seconds` to `target`, an http:// URL, and report on the answers.

    A body is taken from `bodies` when its request is due, so it may hold the time; when they run out the load
    ends. `arrivals` is "poisson" or "fixed". `on_answer` is called from the event loop for every answer of
    whatever status. Returns at the latest `timeout_ms` after the last request. Raises Misconfigured when the
    target is no such URL or nobody answers there.
    """
    address = _Address.of(target)
    if arrivals not in ("poisson", "fixed"):
        raise Misconfigured(f"load: arrivals must be poisson or fixed, is {arrivals}")
    if not (rate > 0 and seconds > 0 and connections_max > 0):
        raise Misconfigured("load: rate, seconds and connections must be above 0")
    due = _schedule(rate, seconds, arrivals, seed)
    load = _Load(
        address,
        address.head(content_type),
        on_answer=on_answer,
        connections_max=connections_max,
        timeout_seconds=timeout_ms / 1000,
    )
    await load.open_first()
    return await load.run(bodies, due)


@dataclass(frozen=True)
class _Address:
    host: str
    port: int
    authority: str
    path: str

    @classmethod
    def of(cls, target: str) -> _Address:
        try:
            parts = urlsplit(target)
            port = parts.port
        except ValueError:
            raise Misconfigured(f"load: not a URL: {target}") from None
        if parts.scheme != "http" or not parts.hostname or parts.username is not None:
            raise Misconfigured(f"load: target must be http://HOST[:PORT][/PATH], is {target}")
        path = parts.path if parts.path not in ("", "/") else _DEFAULT_PATH
        path += f"?{parts.query}" if parts.query else ""
        return cls(parts.hostname, 80 if port is None else port, parts.netloc, path)

    def head(self, content_type: str) -> bytes:
        """All of a request but its length and body."""
        lines = (f"POST {self.path} HTTP/1.1", f"Host: {self.authority}", f"Content-Type: {content_type}")
        return "\r\n".join((*lines, "Content-Length: ")).encode()


def _schedule(rate: float, seconds: float, arrivals: str, seed: int) -> array[float]:
    """Seconds from the start at which requests are due, ascending."""
    if arrivals == "fixed":
        return array("d", (index / rate for index in range(math.ceil(rate * seconds))))
    generator = random.Random(seed)
    due = array("d")
    at = generator.expovariate(rate)
    while at < seconds:
        due.append(at)
        at += generator.expovariate(rate)
    return due


@dataclass(slots=True)
class _Call:
    index: int
    due: float
    body: bytes


class _Load:
    """The state of one load: what is due, what is on its way, and the connections."""

    def __init__(
        self,
        address: _Address,
        head: bytes,
        *,
        on_answer: Callable[[Answer], None] | None,
        connections_max: int,
        timeout_seconds: float,
    ) -> None:
        self.head = head
        self._address = address
        self._on_answer = on_answer
        self._connections_max = connections_max
        self._timeout_seconds = timeout_seconds
        self._connections: set[_Caller] = set()
        self._unused: list[_Caller] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._backlog: deque[_Call] = deque()
        self._latencies_ms = array("d")
        self._sent = self._ok = self._shed = self._errors = 0
        self._progress = asyncio.Event()

    async def open_first(self) -> None:
        """So that a wrong address is one clear error and not a report full of them."""
        try:
            await self._connect()
        except OSError as error:
            where = f"{self._address.host}:{self._address.port}"
            raise Misconfigured(f"load: cannot connect to {where}: {_reason(error)}") from error

    async def run(self, bodies: Iterator[bytes], due: array[float]) -> LoadReport:
        start = time.perf_counter()
        sweeper = asyncio.create_task(self._sweep())
        timer = _Timer()
        try:
            for index, offset in enumerate(due):
                if (wait := start + offset - time.perf_counter()) > 0:
                    await timer.sleep(wait)
                elif index % 64 == 0:
                    # Behind the schedule; answers must be read all the same.
                    await asyncio.sleep(0)
                body = next(bodies, None)
                if body is None:
                    break
                self._begin(_Call(index, start + offset, body))
            await self._finish()
        finally:
            timer.close()
            sweeper.cancel()
            self._backlog.clear()
            for task in self._opening:
                task.cancel()
            for caller in list(self._connections):
                caller.abort()
        return self._report()

    def _begin(self, call: _Call) -> None:
        self._sent += 1
        if self._unused:
            self._unused.pop().send(call)
            return
        self._backlog.append(call)
        self._open_if_needed()

    def _open_if_needed(self) -> None:
        count = len(self._connections) + len(self._opening)
        if len(self._opening) < len(self._backlog) and count < self._connections_max:
            task = asyncio.create_task(self._open_one())
            self._opening.add(task)
            task.add_done_callback(self._is_open)

    def _is_open(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        # A request that came between the connection and this had counted on it.
        self._open_if_needed()

    async def _open_one(self) -> None:
        try:
            await self._connect()
        except OSError:
            # Each failure answers for one request, or a server that is gone would be knocked at in a loop.
            if self._backlog:
                self._backlog.popleft()
                self._failed()

    async def _connect(self) -> None:
        await asyncio.wait_for(
            asyncio.get_running_loop().create_connection(lambda: _Caller(self), self._address.host, self._address.port),
            self._timeout_seconds,
        )

    async def _finish(self) -> None:
        """Wait for what is on its way; what is not answered in time is an error by then, thanks to `_sweep`."""
        while self._ok + self._shed + self._errors < self._sent:
            self._progress.clear()
            await self._progress.wait()

    async def _sweep(self) -> None:
        """Give up on requests that have waited too long. One look over all of them, not a timer for each."""
        while True:
            await asyncio.sleep(min(0.1, self._timeout_seconds / 4))
            oldest = time.perf_counter() - self._timeout_seconds
            while self._backlog and self._backlog[0].due < oldest:
                self._backlog.popleft()
                self._failed()
            for caller in list(self._connections):
                if caller.call is not None and caller.call.due < oldest:
                    caller.abort()

    # For callers

    def opened(self, caller: _Caller) -> None:
        self._connections.add(caller)
        self.unused(caller)

    def unused(self, caller: _Caller) -> None:
        """`caller` can take a request: the one that has waited longest, if any does."""
        if self._backlog:
            caller.send(self._backlog.popleft())
        else:
            self._unused.append(caller)

    def closed(self, caller: _Caller) -> None:
        """The connection is gone, and with it the request that was on it."""
        self._connections.discard(caller)
        if caller in self._unused:
            self._unused.remove(caller)
        if caller.call is not None:
            caller.call = None
            self._failed()
        self._open_if_needed()

    def answered(self, call: _Call, status: int, body: bytes) -> None:
        latency_ms = (time.perf_counter() - call.due) * 1000
        if status == 200:
            self._ok += 1
            self._latencies_ms.append(latency_ms)
        elif status == 429:
            self._shed += 1
        else:
            self._errors += 1
        self._progress.set()
        if self._on_answer is not None:
            self._on_answer(Answer(call.index, call.body, status, body, latency_ms))

    def _failed(self) -> None:
        self._errors += 1
        self._progress.set()

    def _report(self) -> LoadReport:
        ordered = sorted(self._latencies_ms)
        return LoadReport(
            sent=self._sent,
            ok=self._ok,
            shed=self._shed,
            errors=self._errors,
            p50_ms=_quantile(ordered, 0.5),
            p90_ms=_quantile(ordered, 0.9),
            p99_ms=_quantile(ordered, 0.99),
            p999_ms=_quantile(ordered, 0.999),
            max_ms=_quantile(ordered, 1.0),
        )


class _Caller(asyncio.Protocol):
    """One connection, with one request on it at a time."""

    def __init__(self, load: _Load) -> None:
        self.call: _Call | None = None
        self._load = load
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""

    def send(self, call: _Call) -> None:
        self.call = call
        self._body = b""
        self._transport.write(b"%b%d\r\n\r\n%b" % (self._load.head, len(call.body), call.body))

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._load.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._load.closed(self)

    def on_body(self, part: bytes) -> None:
        self._body += part

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        call = self.call
        if status < 200 or call is None:
            return  # 100 Continue, or what a server says before it closes an unused connection
        self.call = None
        self._load.answered(call, status, self._body)
        if self._parser.should_keep_alive():
            self._load.unused(self)
        else:
            self._transport.close()


class _Timer:
    """Sleeps to within some 50 µs where the kernel has timerfd, else to the millisecond."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._expired = asyncio.Event()
        self._fd = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._on_readable)

    async def sleep(self, seconds: float) -> None:
        """`seconds` above 0."""
        if self._fd < 0:
            await asyncio.sleep(seconds)
            return
        # struct itimerspec: no interval, then the time until it expires; all zeros would switch it off.
        nanoseconds = max(1, int(seconds * 1e9))
        setting = struct.pack("@llll", 0, 0, *divmod(nanoseconds, 1_000_000_000))
        self._expired.clear()
        self._libc.timerfd_settime(self._fd, 0, setting, None)
        await self._expired.wait()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def _on_readable(self) -> None:
        os.read(self._fd, 8)
        self._expired.set()


def _quantile(ordered: list[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "unknown host"
    return os.strerror(error.errno) if error.errno is not None else type(error).__name__
