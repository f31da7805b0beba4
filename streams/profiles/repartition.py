"""Carry events from payments to the owners of profiles, on one repartition topic for each kind of entity.

A payment touches a card, a merchant and a device. Each of their profiles has one owner: the worker with the partition
of `repartition-ENTITY` that the profile's key belongs to. The worker with the partition of `payments` sends the events
there. A record of such a topic is a *frame*: all events that one batch has for one partition. One record then carries
hundreds of events, and costs little for each.

    1. partition_of(key)    crc32("card:c") % 6 = 5: the event goes to repartition-card/5
    2. encode_frame         the events of a batch for that partition, at most 1000, in their order
    3. decode_frame         the owner gets the same events

    byte      FRAME_VERSION
    byte      the number of attributes of a payment in this frame
    2 bytes   the number of partitions that keys are spread over (all numbers are little endian)
    4 bytes   the number of events
    rows      int64, one row for each event: streams/profiles/events.py has the columns
    lengths   2 bytes for each event: the length of its key
    keys      the bytes of all keys, one after the other

Replays are harmless because of the order: a profile contains all events of a source up to the offset it stores. A
sender commits after the broker has its frames, and after a crash it starts again at its last commit. A partition may
therefore hold an event twice, but the first copies stand in the order of their source.

What can go wrong:

- A frame made for another number of partitions would give a profile two owners. `decode_frame` then raises
  Misconfigured, and the worker stops before it commits. The same holds for a frame of another version.
- A record is no frame at all. It is refused, and the next one is read. Bytes at random must not stop every worker, so a
  number of partitions counts only in a frame that is whole, and another version only with the right number.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.streams.profiles.events import ATTRIBUTES_AT, ROW_WIDTH, ROW_WIDTH_MAX, EntityEvents, joined_rows

FRAME_VERSION = 4
# Even with the longest keys such a frame stays under Kafka's default limit of 1 MiB.
FRAME_EVENTS_MAX, _FRAME_BYTES_MAX = 1000, 1_000_000

_HEADER = struct.Struct("<BBHI")


def partition_of(key: bytes, partition_count: int) -> int:
    """Returns the partition of a profile's key. It is cheaper than Kafka's partitioner, and only we write there."""
    return zlib.crc32(key) % partition_count


def frames_of(events: EntityEvents, partition_count: int, zeros: Sequence[int] = ()) -> Iterator[tuple[int, bytes]]:
    """Yields (partition, frame) for all events; the events of a partition keep their order.

    The frames' rows have 0 in the columns `zeros`.
    """
    event_bytes_max = events.rows.itemsize * events.rows.shape[1] + 2 + KEY_BYTES_MAX
    count_max = min(FRAME_EVENTS_MAX, _FRAME_BYTES_MAX // event_bytes_max)
    crc32 = zlib.crc32
    partitions = np.array([crc32(key) for key in events.keys], dtype=np.int64) % partition_count
    order = np.argsort(partitions, kind="stable")
    rows = events.rows[order]
    rows[:, zeros] = 0
    all_keys = events.keys
    keys = [all_keys[number] for number in order.tolist()]
    counts = np.bincount(partitions, minlength=partition_count)
    end = 0
    for partition in np.flatnonzero(counts).tolist():
        begin, end = end, end + int(counts[partition])
        for first in range(begin, end, count_max):
            last = min(first + count_max, end)
            yield partition, encode_frame(EntityEvents(keys[first:last], rows[first:last]), partition_count)


def encode_frame(events: EntityEvents, partition_count: int) -> bytes:
    """Returns one frame."""
    attribute_count = events.rows.shape[1] - ATTRIBUTES_AT
    return b"".join(
        (
            _HEADER.pack(FRAME_VERSION, attribute_count, partition_count, len(events.keys)),
            np.ascontiguousarray(events.rows, dtype="<i8").tobytes(),
            np.array([len(key) for key in events.keys], dtype="<u2").tobytes(),
            *events.keys,
        )
    )


def decode_frame(value: bytes | None, partition_count: int) -> EntityEvents:
    """Returns the events in a frame of a topic with `partition_count` partitions.

    The rows have the declared fields of the worker that sent them, which may be others than the reader's.

    Raises InvalidEvent for a value that is no frame. Raises Misconfigured for a frame of another version, or for
    another number of partitions: a profile would have two owners, so the worker must stop and lose nothing.
    """
    if value is None or len(value) < _HEADER.size:
        raise InvalidEvent("not a frame: it is too short")
    version, attribute_count, spread_over, event_count = _HEADER.unpack_from(value)
    if version != FRAME_VERSION:
        if spread_over != partition_count:
            raise InvalidEvent(f"not a frame: it is of version {version}, for {spread_over} partitions")
        raise Misconfigured(f"a repartition topic has frames of version {version}, this release reads {FRAME_VERSION}")
    width = ATTRIBUTES_AT + attribute_count
    lengths_at = _HEADER.size + 8 * width * event_count
    keys_at = lengths_at + 2 * event_count
    if width > ROW_WIDTH_MAX or keys_at > len(value):
        raise InvalidEvent("not a frame: it ends before its events do, or has unknown attributes")
    rows = np.frombuffer(value, "<i8", width * event_count, _HEADER.size).reshape(-1, width).astype(np.int64)
    if width < ROW_WIDTH:
        rows = joined_rows([rows])
    ends = np.cumsum(np.frombuffer(value, "<u2", event_count, lengths_at), dtype=np.int64) + keys_at
    if (int(ends[-1]) if event_count else keys_at) != len(value):
        raise InvalidEvent("not a frame: its keys are not as long as it says")
    if spread_over != partition_count:
        raise Misconfigured(
            f"a repartition topic has frames for {spread_over} partitions, and it has {partition_count}: "
            "see docs/operate/upgrade.md, More partitions"
        )
    keys, start = [], keys_at
    for end in ends.tolist():
        keys.append(value[start:end])
        start = end
    return EntityEvents(keys, rows)
