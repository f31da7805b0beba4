from __future__ import annotations

import asyncio

import aiokafka
from faust.types import TP

from paywarden.streams.faust.consumer import EndMarks, _gather, _look_rarely, _read_committed_only


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


PLACE = TP("decisions", 0)


def test_at_the_end_all_of_the_answer_is_read_at_once() -> None:
    marks = EndMarks()
    assert [marks.note(PLACE, 9, 9, at_ms) for at_ms in (1_000, 2_000)] == [1_000, 2_000]


def test_what_stands_behind_an_open_transaction_is_not_read() -> None:
    """A reader stands where the transaction begins. It took that for the end, and blocks of drift were evaluated
    without the decisions that waited there."""
    marks = EndMarks()
    assert marks.note(PLACE, 5, 5, 1_000) == 1_000
    assert [marks.note(PLACE, 5, end, at_ms) for end, at_ms in ((7, 2_000), (9, 3_000), (12, 60_000))] == [0, 0, 0]
    # The transaction has ended. The first of those answers said that the partition ended at 7.
    assert marks.note(PLACE, 8, 20, 61_000) == 2_000
    assert marks.note(PLACE, 20, 20, 62_000) == 62_000


def test_a_topic_that_never_pauses_is_read_up_to_each_mark() -> None:
    marks = EndMarks()
    # Half a second behind the end, all the time.
    read = [marks.note(PLACE, 100 * second - 50, 100 * second, 1_000 * second) for second in range(1, 6)]
    assert read == [0, 1_000, 2_000, 3_000, 4_000]
    marks.clear()
    assert marks.note(PLACE, 0, 10, 9_000) == 0
