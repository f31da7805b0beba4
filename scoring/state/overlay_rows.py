"""Exchanges rows of the overlay between hosts: own payments leave as datagrams, others' payments enter the table.

    host A   worker answers payment 7 of merchant M ─► table A ─ `take_new` ─► datagram ─┐
    host B   worker answers payment 8 of merchant M                                      │
             payment 7 counts for M ◄── table B ◄───────── `add` ◄── checked ◄───────────┘

1. A datagram has at most DATAGRAM_BYTES: a head, some rows, and a code that only a holder of the deployment's identity
   key can make. A row is a payment's tag, the hashes of its entities, and its attributes. It has no card number.
2. A datagram names its process and its number among that process's datagrams. A datagram that comes again, or late, is
   dropped.
3. There are no clocks in it. A payment of another host is pending for a lifetime from the moment it comes. Its own time
   must be near this host's time of day, as for the host's own payments.
4. A payment counts once, even if several hosts send it: readers compare tags. The marks cover the payments of all
   hosts, so rows of other hosts retire as own rows do.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.kernel.layout import TAG_MIN
from paywarden.features.profiles.plan import Plan
from paywarden.schemas.file_state import file_at
from paywarden.scoring.state import overlay_table as tables
from paywarden.scoring.state.overlay import OverlaySettings, monotonic_ms, open_table, shape_of

# Fits one packet on every usual network.
DATAGRAM_BYTES = 1400
ROWS_AT_ONCE = 512
"""The most rows of one `take_new`."""
_MAGIC = b"PWR1"
_HEAD = struct.Struct("<4s8sQQ")
_CODE_BYTES = 16
# Processes whose last datagram is remembered: more than the hosts of any deployment.
_SENDERS_MAX = 4096


class Drop(Enum):
    """Reasons for dropping a datagram."""

    FOREIGN = "foreign"  # not made with this deployment's key, or no datagram of ours
    CATALOGUE = "catalogue"  # of hosts with another catalogue
    OWN = "own"  # this process has sent it
    REPEATED = "repeated"  # it came before, or after a later one
    BROKEN = "broken"  # a number in it cannot be


class RowDatagrams:
    """Makes datagrams of rows, and takes rows out of them. One for each process. Not thread-safe."""

    def __init__(self, plan: Plan) -> None:
        self._width = 1 + plan.entity_count + plan.row_width
        self._entities = plan.entity_count
        self._code_key = _key_of(plan.key)
        self._digest = bytes.fromhex(plan.digest[:16])
        self._sender, self._sent = secrets.randbits(64), 0
        self._heard: dict[int, int] = {}
        self.rows_max = max(1, (DATAGRAM_BYTES - _HEAD.size - _CODE_BYTES) // (8 * self._width))
        """Rows of one datagram."""
        self.bytes_max = _HEAD.size + 8 * self._width * self.rows_max + _CODE_BYTES
        """The size of the largest datagram."""

    def of_rows(self, rows: NDArray[np.int64]) -> Iterator[bytes]:
        """Make the datagrams of rows."""
        for first in range(0, len(rows), self.rows_max):
            self._sent += 1
            body = _HEAD.pack(_MAGIC, self._digest, self._sender, self._sent)
            body += rows[first : first + self.rows_max].astype("<i8").tobytes()
            yield body + self._code_of(body)

    def read(self, datagram: bytes) -> NDArray[np.int64] | Drop:
        """Returns the rows of a datagram, or why it is dropped."""
        body, code = datagram[:-_CODE_BYTES], datagram[-_CODE_BYTES:]
        has_size = _HEAD.size + _CODE_BYTES <= len(datagram) <= self.bytes_max
        if not has_size or not secrets.compare_digest(code, self._code_of(body)):
            return Drop.FOREIGN
        magic, digest, sender, place = _HEAD.unpack_from(body)
        if magic != _MAGIC:
            return Drop.FOREIGN
        if digest != self._digest:
            return Drop.CATALOGUE
        if sender == self._sender:
            return Drop.OWN
        if place <= self._heard.get(sender, 0):
            return Drop.REPEATED
        self._note(sender, place)
        if (len(body) - _HEAD.size) % (8 * self._width):
            return Drop.BROKEN
        rows = np.frombuffer(body, dtype="<i8", offset=_HEAD.size).reshape(-1, self._width).astype(np.int64)
        attributes = rows[:, 1 + self._entities :]
        has_amounts = (attributes[:, kernel.AMOUNT] >= kernel.UNKNOWN_AMOUNT).all()
        others = np.delete(rows, 1 + self._entities + kernel.AMOUNT, axis=1)
        is_right = (
            has_amounts
            and others.min(initial=0) >= 0
            and (rows[:, 0] >= TAG_MIN).all()
            and (attributes[:, kernel.TIME_MS] > 0).all()
        )
        return rows if is_right else Drop.BROKEN

    def _note(self, sender: int, place: int) -> None:
        if sender not in self._heard and len(self._heard) == _SENDERS_MAX:
            del self._heard[next(iter(self._heard))]
        self._heard[sender] = place

    def _code_of(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, key=self._code_key, digest_size=_CODE_BYTES).digest()


def _key_of(key: IdentityKey) -> bytes:
    halves = b"".join(half.to_bytes(8, "little", signed=True) for half in (key.low, key.high))
    return hashlib.blake2b(halves, person=b"paywarden rows").digest()


class SharedRows:
    """The companion's access to the table: takes the host's own new rows, adds those of others. Not thread-safe."""

    def __init__(self, settings: OverlaySettings, plan: Plan, clock_ms: Callable[[], int] = monotonic_ms) -> None:
        self._settings, self._plan, self._clock_ms = settings, plan, clock_ms
        self._shape = shape_of(settings, plan)
        self._out = np.zeros((ROWS_AT_ONCE, 1 + plan.entity_count + plan.row_width), dtype=np.int64)
        self._reading = np.zeros(tables.READING_COUNT, dtype=np.int64)
        self._numbers = np.zeros(tables.NUMBER_COUNT, dtype=np.int64)
        self._numbers[tables.LIFE_MS] = settings.lifetime_ms
        self._table: NDArray[np.int64] | None = None
        self._file: tuple[int, int] | None = None

    def look(self) -> bool:
        """Open the table, or one that has replaced it. Returns False if there is none. The rows in it are not new."""
        file = file_at(Path(self._settings.path))
        if self._table is None or file != self._file:
            self._table, self._file = open_table(self._settings, self._plan), file
            if self._table is not None:
                self._reading[tables.GOES_ON_AT] = self._table[tables.NEXT_AT] + 1
        if self._table is not None:
            # The numbers go back when the newest one was damaged.
            following = self._table[tables.NEXT_AT] + 1
            self._reading[tables.GOES_ON_AT] = min(self._reading[tables.GOES_ON_AT], following)
        return self._table is not None

    @property
    def missed(self) -> int:
        """The host's own rows that were not taken in time, since the start."""
        return int(self._reading[tables.MISSED_AT])

    def take_new(self) -> NDArray[np.int64]:
        """Returns the rows of payments that this host has answered since the last call, at most ROWS_AT_ONCE."""
        if self._table is None:
            return self._out[:0]
        found = tables.take_new(self._table, self._shape, self._reading, self._clock_ms(), self._out)
        return self._out[:found].copy()

    def add(self, rows: NDArray[np.int64], now_ms: int) -> tuple[int, int, int]:
        """Make payments of another host pending. Returns how many were added, found no room, and had another time.

        `now_ms`: the time of day that the payments' own times are near.
        """
        if self._table is None:
            return 0, 0, 0
        entities, life_ms = self._plan.entity_count, self._settings.lifetime_ms
        tables.add_all(
            self._table,
            self._shape,
            np.ascontiguousarray(rows[:, 1 + entities :]),
            rows[:, 1 : 1 + entities].ravel(),
            rows[:, 0].copy(),
            self._numbers,
            self._clock_ms(),
            now_ms - life_ms,
            now_ms + life_ms,
            tables.OTHERS,
        )
        numbers = self._numbers
        return int(numbers[tables.ADDED]), int(numbers[tables.FULL]), int(numbers[tables.UNTIMELY])

    def close(self) -> None:
        """Close the table. Its payments stay."""
        self._table = None
