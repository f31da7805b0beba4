from __future__ import annotations

import asyncio

import aiokafka

from paywarden.streams.faust.consumer import _gather, _look_rarely, _read_committed_only


def test_aiokafka_still_has_the_private_parts_that_are_set() -> None:
    """An attribute of another name would be set without effect, and no other test would see it."""

    async def consumers() -> tuple[dict[str, object], dict[str, object]]:
        consumer = aiokafka.AIOKafkaConsumer()
        before = dict(vars(consumer))
        _read_committed_only(consumer)
        _gather(consumer, 700)
        _look_rarely(consumer)
        after = dict(vars(consumer))
        await consumer.stop()
        return before, after

    before, after = asyncio.run(consumers())
    assert after.keys() == before.keys()
    changed = {name: value for name, value in after.items() if value != before[name]}
    assert changed == {
        "_isolation_level": "read_committed",
        "_fetch_min_bytes": 65536,
        "_fetch_max_wait_ms": 700,
        "_consumer_timeout": 1.0,
    }
