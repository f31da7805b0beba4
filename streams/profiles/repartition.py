"""From payments to the owners of profiles: events on a repartition topic for each kind of entity.

A payment touches a card, a merchant, a device, and each of their profiles has one owner: whoever has the partition of
`repartition-ENTITY` that its key belongs to. Whoever has the partition of `payments` sends the events there. A record
of such a topic is a *frame*: all the events that one batch has for one partition, so that what a record costs to send
and to read is paid once for hundreds of events.

    byte      FRAME_VERSION
    byte      how many attributes a payment has here
    2 bytes   how many partitions keys were spread over (little endian, as all numbers)
    4 bytes   how many progress entries, each 16 bytes: a partition of payments, and the moment up to which all its
              payments are in this frame or those before it
    4 bytes   how many events
    rows      int64, one row an event: streams/profiles/events.py has the columns
    lengths   2 bytes an event: of its key
    keys      one after the other

Order is what makes replays harmless: a profile contains all events of a source up to the offset it notes. A sender
begins anew where it last committed, and commits when the broker has the frames; so a partition may hold events twice,
but never an event before one that comes before it in its source, unless it comes again.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from paywarden.features import kernel
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.streams.profiles.events import ATTRIBUTES_AT, ROW_WIDTH, EntityEvents

FRAME_VERSION = 1
# With the longest keys there are a frame stays under Kafka's usual limit of 1 MiB.
FRAME_EVENTS_MAX = 1000

_HEADER = struct.Struct("<BBHII")


def partition_of(key: bytes, partition_count: int) -> int:
    """Which partition a profile's key belongs to. Not Kafka's own choice: cheaper, and no one else writes there."""
    return zlib.crc32(key) % partition_count


def frames_of(events: EntityEvents, partition_count: int) -> Iterator[tuple[int, bytes]]:
    """(partition, frame) for everything in `events`, of each partition in their order."""
    chosen: dict[int, list[int]] = {}
    for number, key in enumerate(events.keys):
        chosen.setdefault(zlib.crc32(key) % partition_count, []).append(number)
    for partition, numbers in chosen.items():
        for first in range(0, len(numbers), FRAME_EVENTS_MAX):
            part = numbers[first : first + FRAME_EVENTS_MAX]
            keys = [events.keys[number] for number in part]
            yield partition, encode_frame(EntityEvents(keys, events.rows[part]), {}, partition_count)


def encode_frame(events: EntityEvents, complete_to_ms: Mapping[int, int], partition_count: int) -> bytes:
    """One frame. `complete_to_ms`: the progress of partitions of payments."""
    progress = np.array(list(complete_to_ms.items()), dtype="<i8")
    return b"".join(
        (
            _HEADER.pack(FRAME_VERSION, kernel.ATTRIBUTE_COUNT, partition_count, len(complete_to_ms), len(events.keys)),
            progress.tobytes(),
            np.ascontiguousarray(events.rows, dtype="<i8").tobytes(),
            np.array([len(key) for key in events.keys], dtype="<u2").tobytes(),
            *events.keys,
        )
    )


def decode_frame(value: bytes | None, partition_count: int) -> tuple[EntityEvents, dict[int, int]]:
    """The events and the progress of a frame read from a topic of so many partitions.

    Raises InvalidEvent when it is no such frame, and Misconfigured when it comes from another release or was made for
    another number of partitions: a profile would have two owners, so whoever reads it must stop and lose nothing.
    """
    if value is None or len(value) < _HEADER.size:
        raise InvalidEvent("not a frame: it is too short")
    version, attribute_count, spread_over, progress_count, event_count = _HEADER.unpack_from(value)
    if version != FRAME_VERSION:
        raise Misconfigured(f"a repartition topic has frames of version {version}, this release reads {FRAME_VERSION}")
    if spread_over != partition_count:
        raise Misconfigured(
            f"a repartition topic has frames for {spread_over} partitions, and it has {partition_count}: "
            "see ARCHITECTURE.md, Partitions"
        )
    width = ATTRIBUTES_AT + attribute_count
    rows_at = _HEADER.size + 16 * progress_count
    lengths_at = rows_at + 8 * width * event_count
    keys_at = lengths_at + 2 * event_count
    if attribute_count > kernel.ATTRIBUTE_COUNT or keys_at > len(value):
        raise InvalidEvent("not a frame: it ends before its events do, or has attributes no one knows")
    progress = np.frombuffer(value, "<i8", 2 * progress_count, _HEADER.size).reshape(-1, 2)
    rows = np.frombuffer(value, "<i8", width * event_count, rows_at).reshape(-1, width).astype(np.int64)
    if width < ROW_WIDTH:
        rows = np.concatenate([rows, np.zeros((event_count, ROW_WIDTH - width), dtype=np.int64)], axis=1)
    ends = np.cumsum(np.frombuffer(value, "<u2", event_count, lengths_at), dtype=np.int64) + keys_at
    if (int(ends[-1]) if event_count else keys_at) != len(value):
        raise InvalidEvent("not a frame: its keys are not as long as it says")
    keys, start = [], keys_at
    for end in ends.tolist():
        keys.append(value[start:end])
        start = end
    return EntityEvents(keys, rows), {int(partition): int(time_ms) for partition, time_ms in progress.tolist()}
