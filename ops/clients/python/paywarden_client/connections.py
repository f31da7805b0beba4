"""Connections to one host, for threads: kept, bounded, and each with a deadline.

with a deadline of 40 ms:  kept connection? ─ no ─► connect ─► TLS ─► send ─► receive … whole
                                  │ closed by the host: take the next one
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Sequence

from .attempts import AVOID_MS
from .http1 import AnswerReader
from .settings import ClientSettings, Target

AVOID_S = AVOID_MS / 1000.0
_RECEIVE_BYTES = 16 * 1024
# Addresses that are remembered as failed. A name has a few.
_FAILED_MAX = 64
Address = tuple[socket.AddressFamily, tuple[object, ...]]


class DeadlinePassed(Exception):
    """There is no time left."""


class NoConnection(Exception):
    """No connection could be made."""


class NoneFree(Exception):
    """All connections were in use until the deadline."""


class Addresses:
    """The addresses of a host's name, in turn. One that could not be reached is left out for a second."""

    def __init__(self) -> None:
        self._all: Sequence[Address] = ()
        self._next = 0
        self._failed_s: dict[Address, float] = {}

    def __bool__(self) -> bool:
        return bool(self._all)

    def set(self, addresses: Sequence[Address]) -> None:
        """Take the present addresses of the name. Without any, the earlier ones stay."""
        if addresses:
            self._all = addresses

    def take(self, now_s: float) -> Address:
        """Returns the next address; one that failed if all have."""
        addresses, first = self._all, self._next + 1
        for self._next in range(first, first + len(addresses)):
            address = addresses[self._next % len(addresses)]
            if now_s - self._failed_s.get(address, -AVOID_S) >= AVOID_S:
                return address
        self._next = first
        return addresses[first % len(addresses)]

    def failed(self, address: Address, now_s: float) -> None:
        """Note that no connection could be made."""
        if len(self._failed_s) >= _FAILED_MAX:
            self._failed_s.clear()
        self._failed_s[address] = now_s


class Connection:
    """One connection. A thread has it to itself while it uses it."""

    __slots__ = ("_poll", "_socket", "used_s")

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self.used_s = connected, 0.0
        self._poll = Waiter(connected)

    def is_stale(self) -> bool:
        """Returns whether the host has closed the connection, or sent bytes that nobody asked for."""
        if not self._poll.can_read(0.0):
            return False
        try:
            # TLS may have had something to say for itself.
            self._socket.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        except OSError:
            pass
        return True

    def exchange(self, request: bytes, deadline_s: float) -> AnswerReader:
        """Send a request and returns its whole answer.

        Raises DeadlinePassed; OSError when the connection broke; AnswerError when no HTTP came.
        """
        self._send(request, deadline_s)
        reader = AnswerReader()
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                if not self._poll.can_read(deadline_s - time.monotonic()):
                    raise DeadlinePassed from None
                continue
            except ssl.SSLWantWriteError:
                if not self._poll.can_write(deadline_s - time.monotonic()):
                    raise DeadlinePassed from None
                continue
            if not data:
                if reader.end():
                    return reader
                raise ConnectionResetError
            if reader.feed(data):
                return reader
            # A host that never stops to send would keep the loop from waiting, where the time is looked at.
            if time.monotonic() >= deadline_s:
                raise DeadlinePassed

    def _send(self, request: bytes, deadline_s: float) -> None:
        rest = memoryview(request)
        while True:
            try:
                rest = rest[self._socket.send(rest) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                can_go_on = self._poll.can_write(deadline_s - time.monotonic())
            except ssl.SSLWantReadError:
                can_go_on = self._poll.can_read(deadline_s - time.monotonic())
            else:
                if not rest:
                    # The answer takes longer than that: wait for it before the first look.
                    if not self._poll.can_read(deadline_s - time.monotonic()):
                        raise DeadlinePassed
                    return
                continue
            if not can_go_on:
                raise DeadlinePassed

    def close(self) -> None:
        self._socket.close()


class Waiter:
    """Waits until a socket can be read or written."""

    __slots__ = ("_read", "_write")

    def __init__(self, waited_for: socket.socket) -> None:
        self._read, self._write = select.poll(), select.poll()
        self._read.register(waited_for, select.POLLIN)
        self._write.register(waited_for, select.POLLOUT)

    def can_read(self, seconds: float) -> bool:
        """Returns whether there is something to read within `seconds`."""
        return bool(self._read.poll(_whole_ms(seconds)))

    def can_write(self, seconds: float) -> bool:
        """Returns whether there is room to write within `seconds`."""
        return bool(self._write.poll(_whole_ms(seconds)))


def _whole_ms(seconds: float) -> int:
    """Returns the time in whole milliseconds, rounded down: `poll` knows no smaller part, and would round up."""
    return max(int(seconds * 1000.0), 0)


class HostConnections:
    """The connections to one host, the one used last taken first."""

    def __init__(self, target: Target, settings: ClientSettings, tls: ssl.SSLContext | None) -> None:
        self.target = target
        self._tls = tls if target.is_tls else None
        self._idle_s = settings.idle_ms / 1000.0
        self._connect_s = settings.connect_timeout_ms / 1000.0
        self._free_count = int(settings.connections_max)
        self._kept: list[Connection] = []
        self._changed = threading.Condition(threading.Lock())
        self._waiting = 0
        self._is_closed = False
        self._addresses = Addresses()
        self._resolved = threading.Event()

    def set_addresses(self, addresses: Sequence[Address]) -> None:
        """Take the addresses of the host's name. Without any, the earlier ones stay."""
        self._addresses.set(addresses)
        if addresses:
            self._resolved.set()

    def take(self, deadline_s: float, *, fresh: bool = False) -> Connection:
        """Returns a connection for this thread alone; `give_back` or `drop` it. `fresh`: not a kept one.

        Raises NoneFree, NoConnection, DeadlinePassed.
        """
        self._take_place(deadline_s)
        try:
            while not fresh:
                with self._changed:
                    if not self._kept:
                        break
                    kept = self._kept.pop()
                if time.monotonic() - kept.used_s < self._idle_s and not kept.is_stale():
                    return kept
                kept.close()
            return Connection(self._connect(deadline_s))
        except BaseException:
            self._give_place()
            raise

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for later."""
        connection.used_s = time.monotonic()
        with self._changed:
            if not self._is_closed:
                self._kept.append(connection)
                self._close_idle(connection.used_s)
                connection_to_close = None
            else:
                connection_to_close = connection
        if connection_to_close is not None:
            connection_to_close.close()
        self._give_place()

    def drop(self, connection: Connection) -> None:
        """Close a connection."""
        connection.close()
        self._give_place()

    def close(self) -> None:
        """Close the kept connections now, and later those in use."""
        with self._changed:
            self._is_closed = True
            kept, self._kept = self._kept, []
        for connection in kept:
            connection.close()

    def _close_idle(self, now_s: float) -> None:
        # The longest unused one is first.
        while self._kept and now_s - self._kept[0].used_s >= self._idle_s:
            self._kept.pop(0).close()

    def _take_place(self, deadline_s: float) -> None:
        with self._changed:
            while self._free_count == 0:
                self._waiting += 1
                try:
                    has_time = self._changed.wait(max(deadline_s - time.monotonic(), 0.0))
                finally:
                    self._waiting -= 1
                if not has_time and self._free_count == 0:
                    raise NoneFree
            self._free_count -= 1

    def _give_place(self) -> None:
        with self._changed:
            self._free_count += 1
            if self._waiting:
                self._changed.notify()

    def _connect(self, deadline_s: float) -> socket.socket:
        if not self._resolved.is_set() and not self._resolved.wait(min(deadline_s - time.monotonic(), self._connect_s)):
            raise NoConnection if time.monotonic() < deadline_s else DeadlinePassed
        until_s = min(time.monotonic() + self._connect_s, deadline_s)
        to = self._addresses.take(time.monotonic())
        try:
            return self._connect_to(to, until_s)
        except OSError as error:
            now_s = time.monotonic()
            self._addresses.failed(to, now_s)
            # The wait ends up to a millisecond before the time.
            if isinstance(error, TimeoutError) and until_s >= deadline_s:
                raise DeadlinePassed from None
            raise NoConnection from None

    def _connect_to(self, to: Address, until_s: float) -> socket.socket:
        """Raises OSError; TimeoutError when `until_s` has passed."""
        family, address = to
        connecting = socket.socket(family, socket.SOCK_STREAM)
        try:
            connecting.setblocking(False)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            waiter = Waiter(connecting)
            try:
                connecting.connect(address)
            except BlockingIOError:
                if not waiter.can_write(until_s - time.monotonic()):
                    raise TimeoutError from None
                if connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise ConnectionRefusedError from None
            if self._tls is None:
                return connecting
            connecting = wrapped = self._tls.wrap_socket(
                connecting, server_hostname=self.target.host, do_handshake_on_connect=False
            )
            _shake_hands(wrapped, waiter, until_s)
        except BaseException:
            connecting.close()
            raise
        return connecting


def _shake_hands(wrapped: ssl.SSLSocket, waiter: Waiter, until_s: float) -> None:
    while True:
        try:
            wrapped.do_handshake()
        except ssl.SSLWantReadError:
            can_go_on = waiter.can_read(until_s - time.monotonic())
        except ssl.SSLWantWriteError:
            can_go_on = waiter.can_write(until_s - time.monotonic())
        else:
            return
        if not can_go_on:
            raise TimeoutError


def resolve(target: Target) -> list[Address]:
    """Returns the addresses of a host's name; none if it has none now. It may take long."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [(family, address) for family, _, _, _, address in found]


def literal(target: Target) -> list[Address]:
    """Returns the address, if the host is one and no name."""
    try:
        found = socket.getaddrinfo(
            target.host, target.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except OSError:
        return []
    return [(family, address) for family, _, _, _, address in found]
