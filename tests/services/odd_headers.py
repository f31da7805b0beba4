"""Produce records whose headers have names that are not UTF-8, as Kafka allows. No client in Python writes them."""

from __future__ import annotations

from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

# The name is not UTF-8. The text of the same length stands in for it where a client wants a text.
NAME = b"\xff\xfename"


class _Name(str):
    """A header's name that is written as NAME."""

    __slots__ = ()

    def encode(self, *_: object, **__: object) -> bytes:
        return NAME


def batch_of(*records: tuple[bytes | None, bytes | None, bool]) -> bytes:
    """Return a batch in Kafka's format. A record is a key, a value, and whether a header has the odd name."""
    builder = _DefaultRecordBatchBuilderPy(
        2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1_000_000
    )
    for number, (key, value, is_odd) in enumerate(records):
        headers: list[tuple[str, bytes | None]] = [("trace", b"1")]
        headers += [(_Name("x" * len(NAME)), b"2")] if is_odd else []
        assert builder.append(number, 1_700_000_000_000 + number, key, value, headers) is not None
    return bytes(builder.build())


async def produce_odd(
    bootstrap: str, topic: str, *records: tuple[bytes | None, bytes | None, bool], partition: int = 0
) -> None:
    """Produce records in one batch. Return when the broker has them."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=False)
    await producer.start()
    try:
        batch = producer.create_batch()
        builder = _DefaultRecordBatchBuilderPy(
            2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1_000_000
        )
        batch._builder = builder
        for key, value, is_odd in records:
            headers = [("trace", b"1"), *([(_Name("x" * len(NAME)), b"2")] if is_odd else [])]
            assert batch.append(timestamp=None, key=key, value=value, headers=headers) is not None
        batch.close()
        await (await producer.send_batch(batch, topic, partition=partition))
    finally:
        await producer.stop()
