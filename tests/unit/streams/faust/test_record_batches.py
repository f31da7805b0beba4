"""aiokafka's reading of record batches, which Faust uses, with headers whose names are not UTF-8."""

from __future__ import annotations

import aiokafka.consumer.fetcher
import pytest
from aiokafka.errors import CorruptRecordException

from paywarden.streams.faust.record_batches import TolerantRecords, ignore_headers
from tests.services.servers.odd_headers import batch_of

RECORDS: list[tuple[bytes | None, bytes | None, bool]] = [
    (b"a", b"first", False),
    (b"b", b"second", True),
    (None, b"third", False),
    (b"d", None, True),
]


def read(data: bytes) -> list[tuple[int, int, bytes | None, bytes | None]]:
    records, read_ = TolerantRecords(data), []
    while records.has_next():
        batch = records.next_batch()
        assert batch.validate_crc()
        read_ += [(record.offset, record.timestamp, record.key, record.value) for record in batch]
    return read_


def test_batches_with_odd_headers_are_read_whole_and_once() -> None:
    data = batch_of(*RECORDS) + batch_of(*RECORDS[2:])
    first = [(number, 1_700_000_000_000 + number, key, value) for number, (key, value, _) in enumerate(RECORDS)]
    second = [(number, 1_700_000_000_000 + number, key, value) for number, (key, value, _) in enumerate(RECORDS[2:])]
    assert read(data) == first + second
    # aiokafka itself cannot read them: if it can, this module is not needed any more.
    with pytest.raises(UnicodeDecodeError):
        list(aiokafka.record.memory_records.MemoryRecords(data).next_batch())


def test_a_batch_that_is_cut_short_is_left_for_the_next_fetch() -> None:
    data = batch_of(*RECORDS)
    assert read(data + data[:-1]) == read(data)
    assert TolerantRecords(data + data[:-1]).size_in_bytes() == 2 * len(data) - 1


def test_a_batch_that_is_really_corrupt_is_still_refused() -> None:
    data = bytearray(batch_of(*RECORDS))
    # The length of the first record, behind the 61 bytes of the batch's head.
    data[61] = 0x7E
    with pytest.raises(CorruptRecordException):
        list(TolerantRecords(bytes(data)).next_batch())


def test_a_batch_of_the_old_format_is_aiokafkas_own() -> None:
    from aiokafka.record.legacy_records import LegacyRecordBatchBuilder

    builder = LegacyRecordBatchBuilder(1, 0, 1_000)
    builder.append(0, 5, b"k", b"v")
    assert read(bytes(builder.build())) == [(0, 5, b"k", b"v")]


def test_the_fetcher_of_aiokafka_uses_it() -> None:
    ignore_headers()
    assert aiokafka.consumer.fetcher.MemoryRecords is TolerantRecords
    assert "MemoryRecords" in aiokafka.consumer.fetcher.Fetcher._proc_fetch_request.__code__.co_names
