"""Produce records whose headers have names that are not UTF-8, as Kafka allows. No client in Python writes them."""

from __future__ import annotations

from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

# It is not UTF-8. A text of the same length stands in for it where a client wants a text.
NAME = b"\xff\xfename"


class _Name(str):
    """A header's name that is written as these bytes."""

    __slots__ = ("written",)

    written: bytes

    @classmethod
    def of(cls, written: bytes) -> _Name:
        name = cls("x" * len(written))
        name.written = written
        return name

    def encode(self, *_: object, **__: object) -> bytes:
        return self.written


def _names(is_odd: bool) -> list[bytes]:
    return [b"trace", NAME] if is_odd else [b"trace"]


def _builder() -> _DefaultRecordBatchBuilderPy:
    return _DefaultRecordBatchBuilderPy(
        2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1_000_000
    )


async def produce_odd(
    bootstrap: str, topic: str, *records: tuple[bytes | None, bytes | None, bool], partition: int = 0
) -> None:
    """Produce records in one batch. Return when the broker has them."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=False)
    await producer.start()
    try:
        batch = producer.create_batch()
        batch._builder = _builder()
        for key, value, is_odd in records:
            headers = [(_Name.of(name), b"1") for name in _names(is_odd)]
            assert batch.append(timestamp=None, key=key, value=value, headers=headers) is not None
        batch.close()
        await (await producer.send_batch(batch, topic, partition=partition))
    finally:
        await producer.stop()
