"""The requests that wait in the fast path (scoring/http/fast_path.py), in the arrays of its compiled half.

    data      │ request of connection 7 │ request of connection 19 │ … room │     entries   file, sizes, arrival of each
    by file   state (idle, or a request of it waits) │ number of its caller │ when its last answer left

See scoring/http/read_call.py for the arrays.
"""

from __future__ import annotations

import ctypes
import platform
import select
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.scoring.engine.one_call import CALLER_BYTES_MAX, ListedChunk
from paywarden.scoring.engine.records import RecordWriter
from paywarden.scoring.http import read_call as reads
from paywarden.scoring.requests.fast_requests import FastRequests

# Room for the heads that `read_ready` knows.
KNOWN_HEADS_BYTES = 256 << 10
# No connection's caller has this number.
NOBODY = -1
# Linux packs an event of epoll on this processor only.
_EVENT_BYTES = 12 if platform.machine() in ("x86_64", "AMD64") else 16


def address_of(function: Any) -> int:
    """Returns the address of a function of the C library."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class WaitingRequests:
    """The arrays of the requests that wait, and of their connections."""

    def __init__(self, files: NDArray[np.int64], library: ctypes.CDLL) -> None:
        """`files` gets the files of a chunk's connections."""
        self._arrays: dict[str, NDArray[Any]] = {
            "numbers": np.zeros(reads.NUMBER_COUNT, dtype=np.int64),
            "events": np.zeros(reads.EVENTS_MAX * _EVENT_BYTES, dtype=np.uint8),
            "data": np.zeros(reads.WAITING_BYTES + reads.READ_BYTES, dtype=np.uint8),
            "entries": np.zeros((reads.WAITING_MAX, reads.ENTRY_WIDTH), dtype=np.int64),
            "arrivals": np.zeros(reads.WAITING_MAX),
            "states": np.zeros(1, dtype=np.int64),
            "callers": np.zeros(1, dtype=np.int64),
            "answered": np.zeros(1),
            "heads": np.zeros(KNOWN_HEADS_BYTES, dtype=np.uint8),
            "head_places": np.zeros((reads.READ_BYTES, 2), dtype=np.int64),
            "others": np.zeros((reads.EVENTS_MAX, reads.OTHER_WIDTH), dtype=np.int64),
            "others_data": np.zeros(reads.EVENTS_MAX * reads.READ_BYTES, dtype=np.uint8),
            "files": files,
        }
        self.frame = Frame(reads.SLOT, self._arrays)
        self.numbers = self._arrays["numbers"].data
        self.arrivals, self.others, self.others_data = (
            self._arrays[name] for name in ("arrivals", "others", "others_data")
        )
        self._data, self._entries = self._arrays["data"].data, self._arrays["entries"]
        self.states, self.callers, self.answered = self._by_file()
        numbers = self.numbers
        if hasattr(select, "epoll"):
            numbers[reads.EPOLL_WAIT] = address_of(library.epoll_wait)
            numbers[reads.ENDED] = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
        numbers[reads.RECV], numbers[reads.MEMMOVE] = address_of(library.recv), address_of(library.memmove)
        numbers[reads.FLAGS], numbers[reads.EVENT_BYTES] = socket.MSG_DONTWAIT, _EVENT_BYTES

    def _by_file(self) -> tuple[memoryview, memoryview, memoryview]:
        return self._arrays["states"].data, self._arrays["callers"].data, self._arrays["answered"].data

    def make_file(self, file: int) -> None:
        """Make room for a new connection's file."""
        if file >= len(self.states):
            for name in ("states", "callers", "answered"):
                larger = np.zeros(2 * file + 64, dtype=self._arrays[name].dtype)
                larger[: len(self.states)] = self._arrays[name]
                self._arrays[name] = larger
                self.frame.put(name, larger)
            self.states, self.callers, self.answered = self._by_file()

    def add(self, file: int, data: bytes, body_bytes: int, arrived: float) -> bool:
        """Let a request wait. Returns False if there is no room."""
        place, at, size = self.numbers[reads.WAITING], self.numbers[reads.USED], len(data)
        if place >= reads.WAITING_MAX or at + size > reads.WAITING_BYTES:
            return False
        self._data[at : at + size] = data
        self._entries[place] = file, size, body_bytes
        self.arrivals[place] = arrived
        self.states[file] = reads.WAITS
        self.numbers[reads.WAITING], self.numbers[reads.USED] = place + 1, at + size
        return True

    def place_of(self, file: int) -> int:
        """Returns the place of a connection's request."""
        return self.files_of(self.numbers[reads.WAITING]).index(file)

    def files_of(self, count: int) -> list[int]:
        """Returns the files of the first requests' connections."""
        files: list[int] = self._entries[:count, reads.FILE].tolist()
        return files

    def listed(self, count: int) -> list[tuple[int, bytes, int, float]]:
        """Returns file, bytes, size of the body and arrival of the first requests."""
        listed, at = [], 0
        for (file, size, body_bytes), arrived in zip(
            self._entries[:count].tolist(), self.arrivals[:count].tolist(), strict=True
        ):
            listed.append((file, self._data[at : at + size].tobytes(), body_bytes, arrived))
            at += size
        return listed

    def take_out(self, place: int, count: int, now_s: float) -> None:
        """Take requests out; see read_call.py."""
        reads.take_out(self.frame.address, place, count, now_s)

    def put_head(self, size: int, head: bytes, at: int) -> None:
        """Put the head of requests of a size among those that `read_ready` knows."""
        self._arrays["heads"][at : at + len(head)] = np.frombuffer(head, dtype=np.uint8)
        self._arrays["head_places"][size] = at, len(head)

    def forget_heads(self) -> None:
        """Forget all heads."""
        self._arrays["head_places"][:] = 0


class WaitingChunk:
    """The first requests that wait, as a chunk of the one call."""

    def __init__(self, waiting: WaitingRequests, count: int, caller: bytes) -> None:
        self._waiting, self._count, self._caller = waiting, count, caller

    def __len__(self) -> int:
        return self._count

    def put(self, requests: FastRequests, writer: RecordWriter) -> int:
        """See one_call.Chunk."""
        if not requests.can_read or len(self._caller) > CALLER_BYTES_MAX:
            return -1
        writer.put_callers(self._count, (), self._callers(), ())
        writer.has_arrivals = True
        return reads.hand_on(self._waiting.frame.address, requests.frame_at, writer.frame_at, self._count)

    def listed(self) -> ListedChunk:
        """See one_call.Chunk."""
        requests = self._waiting.listed(self._count)
        bodies = [data[-body_bytes:] for _, data, body_bytes, _ in requests]
        return ListedChunk(bodies, arrivals=[arrived for *_, arrived in requests], callers=self._callers())

    def _callers(self) -> Sequence[bytes]:
        return [self._caller] * self._count if self._caller else ()
