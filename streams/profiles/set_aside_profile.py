"""A profile that cannot be read, with the events that wait for it: one record in the profile's own place in the store.

    byte      0xFF, which is no version of a profile's layout
    byte      FORMAT
    4 bytes   the length of the profile's bytes (all numbers are little endian)
    bytes     the profile as it was found, unchanged
    2 bytes   the number of columns of an event's row
    rest      the rows, int64, column by column, packed by zlib: streams/profiles/events.py has the columns

The owner of a profile sets it aside when its bytes are damaged, or of another release (streams/profiles/updater.py).
Each later batch with an event for it tries the bytes again, and applies the waiting events first, in their order, once
they can be read. Nothing is sent to the changelog meanwhile: mirrors keep the last good state.

    batch 1   card:c is damaged, event 7     ─►   {bytes, 7}
    batch 2   event 9                        ─►   {bytes, 7, 9}
              `paywarden admin set-aside --retry` puts the changelog's copy in the place of the bytes
    batch 3   event 12                       ─►   the profile with 7, 9 and 12

A fault: a crash after the record is written and before the commit. The batch comes again, and its events are
in the record already: an event whose source has a higher or equal offset there is passed over, as in a profile.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.profiles.events import OFFSET, ROW_WIDTH, ROW_WIDTH_MAX, SOURCE, joined_rows

MARK = 0xFF
FORMAT = 1
# The most events that wait for one profile. Rows of small numbers pack to some 20 bytes each; a store's record has room
# for them even if they do not pack.
EVENTS_MAX = 4_000

_HEADER = struct.Struct("<BBI")
_WIDTH = struct.Struct("<H")


@dataclass(frozen=True)
class SetAsideEvents:
    """`profile`: the bytes that cannot be read. `rows`: the waiting events, in order.

    `rows` has shape (events, at least ROW_WIDTH): as many columns as the widest of the events.
    """

    profile: bytes
    rows: NDArray[np.int64]

    def encode(self) -> bytes:
        """Returns the record."""
        rows = np.ascontiguousarray(self.rows.T, dtype="<i8")
        return b"".join(
            (
                _HEADER.pack(MARK, FORMAT, len(self.profile)),
                self.profile,
                _WIDTH.pack(self.rows.shape[1]),
                zlib.compress(rows.tobytes(), 1),
            )
        )

    def with_events(self, rows: NDArray[np.int64]) -> tuple[SetAsideEvents, NDArray[np.int64]]:
        """Returns this with more events behind it, and those of them for which there is no room."""
        newest: dict[int, int] = {}
        for source, offset in self.rows[:, (SOURCE, OFFSET)].tolist():
            newest[source] = max(newest.get(source, -1), offset)
        new = []
        for number, (source, offset) in enumerate(rows[:, (SOURCE, OFFSET)].tolist()):
            if offset > newest.get(source, -1):
                newest[source] = offset
                new.append(number)
        room = max(0, EVENTS_MAX - len(self.rows))
        return SetAsideEvents(self.profile, joined_rows([self.rows, rows[new[:room]]])), rows[new[room:]]


def is_set_aside(state: bytes | None) -> bool:
    """Returns whether a stored profile is one that was set aside."""
    return state is not None and state[:1] == b"\xff"


def set_aside(profile: bytes) -> SetAsideEvents:
    """Returns a profile's bytes, readable or not, with no event that waits."""
    return SetAsideEvents(profile, np.empty((0, ROW_WIDTH), dtype=np.int64))


def decode(state: bytes) -> SetAsideEvents:
    """Returns the profile and the events that `encode` turned into these bytes.

    Raises InvalidEvent if they are damaged, or written by a later release.
    """
    try:
        mark, form, length = _HEADER.unpack_from(state)
        end = _HEADER.size + length
        (width,) = _WIDTH.unpack_from(state, end)
        if (mark, form) != (MARK, FORMAT) or not ROW_WIDTH_MAX >= width > OFFSET:
            raise InvalidEvent("it was set aside by another release")
        unpacking = zlib.decompressobj()
        packed = unpacking.decompress(state[end + _WIDTH.size :], 8 * width * EVENTS_MAX)
    except (struct.error, zlib.error) as error:
        raise InvalidEvent("it was set aside, and is damaged") from error
    if not unpacking.eof or len(packed) % (8 * width):
        raise InvalidEvent("it was set aside, and is damaged")
    rows = np.frombuffer(packed, "<i8").reshape(width, -1).T.astype(np.int64)
    # Rows of another declaration may have fewer columns.
    return SetAsideEvents(state[_HEADER.size : end], joined_rows([rows]))


def rows_of(keys: Sequence[bytes], rows: NDArray[np.int64]) -> dict[bytes, NDArray[np.int64]]:
    """Returns the rows of each key, in their order."""
    numbers: dict[bytes, list[int]] = {}
    for number, key in enumerate(keys):
        numbers.setdefault(key, []).append(number)
    return {key: rows[chosen] for key, chosen in numbers.items()}
