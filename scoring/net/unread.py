"""Says what waits unread in a connection's socket, and for how long.

A call that has waited too long is not worth reading.
"""

from __future__ import annotations

import fcntl
import math
import socket
import struct
import sys
import termios
from typing import NamedTuple

# The beginning of Linux's struct tcp_info: tcpi_state, and tcpi_last_data_recv in milliseconds.
_LAST_DATA_RECEIVED = struct.Struct("@B51xI")
_ESTABLISHED = 1


class Unread(NamedTuple):
    """The bytes that wait in the socket of a connection that nobody reads."""

    size: int
    """Bytes."""
    silent_s: float
    """Seconds since the last of them came. Infinite where the system does not say it: Linux says it of TCP alone."""
    has_gone: bool
    """Whether the caller has ended its side. False where the system does not say it."""


def unread_of(plain: socket.socket | None) -> Unread:
    """Return what waits in a socket; nothing without one."""
    if plain is None:
        return Unread(0, math.inf, has_gone=False)
    size: int = struct.unpack("@i", fcntl.ioctl(plain.fileno(), termios.FIONREAD, bytes(4)))[0]
    if plain.family == socket.AF_UNIX or sys.platform != "linux":
        return Unread(size, math.inf, has_gone=False)
    info = plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED.size)
    state, last_ms = _LAST_DATA_RECEIVED.unpack(info)
    return Unread(size, last_ms / 1000, has_gone=state != _ESTABLISHED)
