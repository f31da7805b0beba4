from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from paywarden.streams.profiles.events import ROW_WIDTH, EntityEvents
from paywarden.streams.profiles.repartition import FRAME_EVENTS_MAX, decode_frame, encode_frame, frames_of, partition_of

KEYS = st.binary(min_size=1, max_size=KEY_BYTES_MAX)
NUMBERS = st.integers(-(2**63), 2**63 - 1)


@st.composite
def entity_events(draw: st.DrawFn) -> EntityEvents:
    keys = draw(st.lists(KEYS, max_size=8))
    rows = draw(
        st.lists(st.lists(NUMBERS, min_size=ROW_WIDTH, max_size=ROW_WIDTH), min_size=len(keys), max_size=len(keys))
    )
    return EntityEvents(keys, np.array(rows, dtype=np.int64).reshape(-1, ROW_WIDTH))


def some_events(count: int, key_bytes: int = 12) -> EntityEvents:
    rows = np.arange(count * ROW_WIDTH, dtype=np.int64).reshape(count, ROW_WIDTH)
    return EntityEvents([f"{number % 37:>{key_bytes}}".encode() for number in range(count)], rows)


@given(entity_events())
def test_a_decoded_frame_equals_the_encoded_events(events: EntityEvents) -> None:
    back = decode_frame(encode_frame(events, 12), 12)
    assert back.keys == events.keys
    assert np.array_equal(back.rows, events.rows)


@given(st.integers(0, 5000), st.integers(1, 64))
def test_every_event_goes_once_and_in_order_to_its_keys_partition(count: int, partition_count: int) -> None:
    events = some_events(count)
    arrived: dict[bytes, list[int]] = {}
    for partition, frame in frames_of(events, partition_count):
        part = decode_frame(frame, partition_count)
        for key, row in zip(part.keys, part.rows.tolist(), strict=True):
            assert partition_of(key, partition_count) == partition
            arrived.setdefault(key, []).append(row[0])
    wanted: dict[bytes, list[int]] = {}
    for key, row in zip(events.keys, events.rows.tolist(), strict=True):
        wanted.setdefault(key, []).append(row[0])
    assert arrived == wanted


def test_a_full_frame_of_the_longest_keys_fits_kafkas_limit() -> None:
    events = some_events(3 * FRAME_EVENTS_MAX, KEY_BYTES_MAX)
    frames = [frame for _, frame in frames_of(events, 1)]
    assert len(frames) == 3
    assert max(map(len, frames)) < 1_000_000


@given(entity_events(), st.data())
def test_a_frame_that_was_cut_or_lengthened_is_refused(events: EntityEvents, data: st.DataObject) -> None:
    frame = encode_frame(events, 12)
    cut = data.draw(st.integers(0, len(frame) - 1))
    for damaged in (frame[:cut], frame + b"x", None):
        with pytest.raises(InvalidEvent, match="not a frame"):
            decode_frame(damaged, 12)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(junk: bytes) -> None:
    with pytest.raises((InvalidEvent, Misconfigured)):
        decode_frame(b"\4\x0d\x0c\0" + junk + b"!", 12)


def test_a_frame_for_another_number_of_partitions_stops_the_worker() -> None:
    with pytest.raises(Misconfigured, match="frames for 4 partitions, and it has 6"):
        decode_frame(encode_frame(some_events(1), 4), 6)


@pytest.mark.parametrize("value", [b"\xff" * 20, bytes(20), b"\1\0\xc9\xbc" + bytes(9), b"no frame at all"])
def test_a_record_that_is_no_frame_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidEvent, match="not a frame"):
        decode_frame(value, 4)


@pytest.mark.parametrize("version", [1, 3, 9])
def test_a_frame_of_another_version_stops_the_worker(version: int) -> None:
    frame = encode_frame(some_events(1), 4)
    with pytest.raises(Misconfigured, match=f"frames of version {version}, this release reads 4"):
        decode_frame(bytes([version]) + frame[1:], 4)


def test_a_frame_with_fewer_attributes_gets_zeros_for_the_rest() -> None:
    """A release adds attributes at the end."""
    events = some_events(2)
    header = struct.pack("<BBHI", 4, kernel.ATTRIBUTE_COUNT - 1, 4, 2)
    lengths = np.array([12, 12], dtype="<u2").tobytes()
    frame = header + np.ascontiguousarray(events.rows[:, :-1]).tobytes() + lengths + b"".join(events.keys)
    back = decode_frame(frame, 4)
    assert np.array_equal(back.rows[:, :-1], events.rows[:, :-1])
    assert back.rows[:, -1].tolist() == [0, 0]
