"""A worker's messages about the progress of profiles, and its claims that they are complete."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paywarden.schemas.avro import Decoder, LocalSchemaIds
from paywarden.streams.profiles.events import ARRIVED_MS
from paywarden.streams.profiles.progress.watermarks import CLAIM_KEY
from paywarden.streams.profiles.repartition import decode_frame
from tests.unit.streams.profiles.pipeline.worker import (
    FRAMES,
    HOUR_MS,
    NOW_MS,
    O0,
    P0,
    P1,
    TIMING,
    Worker,
    assert_profiles_are_of,
    outcomes_of,
    world,
)


def claimed_ms(worker: Worker) -> list[int]:
    """Returns the moments that the worker has claimed, 0 for none yet."""
    sent = worker.sender.sent + worker.sender.queued
    values = [value for topic, _, key, value in sent if topic == "profiles" and key == CLAIM_KEY]
    return [Decoder("profiles", LocalSchemaIds()).decode(value or b"")["complete_to_time_ms"] for value in values]


def test_a_worker_claims_completeness_when_all_it_has_read_is_in(worker: Worker) -> None:
    worker.pay(world()[0][:5])
    worker.step()
    assert worker.broker.committed[P0] == 5
    assert set(claimed_ms(worker)) == {0}
    worker.sender.flush(1)
    worker.step(6)
    assert claimed_ms(worker)[-1] == NOW_MS


def test_a_worker_without_records_sleeps_until_it_has_something_to_do() -> None:
    worker = Worker(progress_every_ms=300, timing=replace(TIMING, outcomes_alone_after_s=3_600.0))
    worker.step(4)
    assert worker.pipeline._first_wait_s() == pytest.approx(0.3)
    worker.now_ms += 300
    worker.step(4)
    assert claimed_ms(worker)[-1] == NOW_MS + 300
    # No payments have come since the last round: the next one is due after twice 300 ms.
    assert worker.pipeline._first_wait_s() == pytest.approx(0.5)
    worker.now_ms += 400
    assert worker.pipeline._first_wait_s() == pytest.approx(0.2)
    worker.now_ms += 200
    worker.step(2)
    assert claimed_ms(worker)[-1] == NOW_MS + 900
    # While outcomes wait for their payments it looks more often.
    rows = world()[0][:20]
    worker.pay(rows)
    worker.report(outcomes_of(rows))
    worker.step(4)
    assert worker.broker.committed[O0] == 0
    assert worker.pipeline._first_wait_s() == pytest.approx(0.2)


def test_only_the_owner_of_the_first_repartition_partition_claims() -> None:
    worker = Worker(P0, P1, O0, *FRAMES[1:])
    worker.step(4)
    assert claimed_ms(worker) == []
    worker.client.will_assign(FRAMES[0])
    worker.step(4)
    assert claimed_ms(worker)[-1] == NOW_MS


def test_a_claim_waits_for_what_other_workers_have_not_committed() -> None:
    worker = Worker(P0, O0, *FRAMES)
    worker.broker.append(P1)
    worker.step(4)
    assert set(claimed_ms(worker)) == {0}
    worker.broker.committed[P1] = 1
    worker.step(4)
    assert claimed_ms(worker)[-1] == NOW_MS


@pytest.mark.parametrize("clock_ms", [-HOUR_MS, HOUR_MS], ids=["an hour behind", "an hour ahead"])
def test_the_clock_of_a_producer_decides_no_claim_and_no_age(clock_ms: int) -> None:
    """A producer ahead made stale profiles look fresh, one behind made fresh ones look stale."""
    worker = Worker(batch_max=10, timing=replace(TIMING, ask_ends_every_s=0.0))
    worker.step(2)
    asked_ms = worker.now_ms
    worker.now_ms += 1_000
    for row in world()[0]:
        time_ms = worker.now_ms + clock_ms
        worker.broker.append(P0, worker._payments.encode(dict(row)), time_ms, is_producers_time=True)
    # Five of six batches: more records wait, so the worker is behind by an unknown time.
    worker.step(5)
    assert max(claimed_ms(worker)) <= asked_ms
    worker.step(10)
    assert claimed_ms(worker)[-1] == worker.now_ms
    assert_profiles_are_of(worker, 60)
    arrived = [
        int(row[ARRIVED_MS])
        for topic, _, _, value in worker.sender.sent
        if topic == "repartition-card"
        for row in decode_frame(value, 1).rows
    ]
    assert len(arrived) == 60
    # The pause between question and answer is by the real clock, and this one jumps: the bounds are not sharp.
    assert all(asked_ms - HOUR_MS // 6 <= at_ms <= worker.now_ms for at_ms in arrived)
