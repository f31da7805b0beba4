"""Reads Kafka's record batches for aiokafka, so that no header of a record can stop the reading.

aiokafka decodes the names of all headers as UTF-8. Kafka accepts any bytes there, and aiokafka then raises for the
batch, at each attempt again. Agents use no headers: if aiokafka refuses a batch, the rest of it is read here without
them.

    batch   record 0, 1 │ record 2: header name FF FE │ record 3
            aiokafka    │ `_read_without_headers`     ┘
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol, cast

import aiokafka.consumer.fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint


class _Batch(Protocol):
    def __iter__(self) -> Iterator[Any]: ...


def ignore_headers() -> None:
    """Let every aiokafka consumer of this process read batches whose headers have any names."""
    # aiokafka has no public way. tests/unit/streams/faust/test_record_batches.py fails if it looks elsewhere for it.
    aiokafka.consumer.fetcher.MemoryRecords = TolerantRecords


class TolerantRecords:
    """The batches of one answer to a fetch, for aiokafka's fetcher."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._records = MemoryRecords(data)

    def has_next(self) -> bool:
        """Return whether there is another whole batch."""
        return bool(self._records.has_next())

    def size_in_bytes(self) -> int:
        """Return the size of the answer."""
        return len(self._data)

    def next_batch(self) -> Any:
        """Return the next batch. Raises CorruptRecordException."""
        start, length = self._at, int.from_bytes(self._data[self._at + 8 : self._at + 12], "big")
        batch = self._records.next_batch()
        # Its offset has 8 bytes, its length 4; the length counts the bytes after it.
        self._at = start + 12 + length
        if batch is None or not isinstance(batch, DefaultRecordBatch):
            return batch
        return _TolerantBatch(batch, self._data[start : self._at])


class _TolerantBatch:
    def __init__(self, batch: Any, data: bytes) -> None:
        self._batch, self._data = batch, data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        count = 0
        try:
            for record in self._batch:
                yield record
                count += 1
        except (UnicodeDecodeError, CorruptRecordException):
            # A batch that is really corrupt raises again.
            yield from islice(cast(_Batch, _HeadlessBatch(self._data)), count, None)


class _HeadlessBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # it is final; the whole reader would be copied here
    """aiokafka's own reader in Python, which passes over the headers of each record."""

    _pos: int

    def _read_msg(self, *_: Any) -> _DefaultRecordPy:
        buffer = self._buffer
        length, start = decode_varint(buffer, self._pos)
        _, at = decode_varint(buffer, start)
        time_delta, at = decode_varint(buffer, at)
        offset_delta, at = decode_varint(buffer, at)
        key, at = _content(buffer, at)
        value, at = _content(buffer, at)
        end = start + length
        if not at <= end <= len(buffer):
            raise CorruptRecordException("a record is longer or shorter than it says")
        self._pos = end
        is_appended = self.timestamp_type == self.LOG_APPEND_TIME
        time_ms = self.max_timestamp if is_appended else self.first_timestamp + time_delta
        return _DefaultRecordPy(self.base_offset + offset_delta, time_ms, self.timestamp_type, key, value, [])


def _content(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    """Return a key or a value, and the place behind it."""
    length, at = decode_varint(buffer, at)
    return (None, at) if length < 0 else (bytes(buffer[at : at + length]), at + length)
