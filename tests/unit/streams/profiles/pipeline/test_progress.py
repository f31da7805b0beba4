"""A worker's messages about the progress of profiles, and its claims that they are complete."""

from __future__ import annotations

from dataclasses import replace
from threading import Timer

import pytest

from paywarden.schemas.avro import Decoder, LocalSchemaIds
from paywarden.streams.profiles.events import ARRIVED_MS
from paywarden.streams.profiles.progress.watermarks import CLAIM_KEY, PREFIX
from paywarden.streams.profiles.repartition import decode_frame
from tests.unit.streams.profiles.pipeline.worker import (
    FETCH_AGE_MS,
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


def test_progress_is_sent_behind_the_events_it_speaks_of(worker: Worker) -> None:
    worker.pay(world()[0][:5])
    worker.step()
    assert worker.sender.frames() == [(5, {}), (0, {0: NOW_MS - FETCH_AGE_MS, 1: NOW_MS - FETCH_AGE_MS})]


def test_an_abandoned_batch_sends_no_progress_of_its_records(worker: Worker) -> None:
    worker.step()
    claimed = len(worker.sender.claims())
    worker.pay(world()[0][:5])
    worker.pay(world()[0][5:10], P1)
    worker.step_while_store_is_away(lost=P1)
    # The client needs a while until it has the records again.
    read = worker.client._read
    worker.client._read = lambda *_: None  # type: ignore[method-assign]
    worker.store.is_away = False
    worker.step()
    assert all(0 not in claim for claim in worker.sender.claims()[claimed:])
    worker.client._read = read  # type: ignore[method-assign]
    worker.step()
    assert worker.sender.claims()[-1] == {0: NOW_MS - FETCH_AGE_MS}


def test_after_a_hold_an_end_counts_only_when_reported_again(worker: Worker) -> None:
    """More payments may come while the worker reads nothing."""
    worker.step()
    worker.pay(world()[0][:1], P1)
    worker.store.is_away = True
    back = Timer(0.05, lambda: setattr(worker.store, "is_away", False))
    back.start()
    worker.step()
    back.join()
    worker.now_ms += 10_000
    worker.client._read = lambda *_: None  # type: ignore[method-assign]
    worker.step()
    # Both are complete to where they were before the hold.
    assert worker.sender.claims()[-1] == {0: NOW_MS - FETCH_AGE_MS, 1: NOW_MS - FETCH_AGE_MS}


def test_after_a_rebalance_an_end_counts_only_when_reported_again(worker: Worker) -> None:
    """The client reads nothing until the worker has let it report the rebalance."""
    worker.step()
    claimed = len(worker.sender.claims())
    worker.now_ms += 10_000
    worker.client.will_revoke(P1)
    worker.client._read = lambda *_: None  # type: ignore[method-assign]
    worker.step()
    # Claims from before the rebalance stay true.
    assert worker.sender.claims()[claimed:] == [{0: NOW_MS - FETCH_AGE_MS}]


def test_a_full_batch_sends_no_progress_by_the_clock() -> None:
    """Records of another partition may wait in the client when the batch is full."""
    worker = Worker(P0, P1, batch_max=10)
    worker.step()
    worker.now_ms += 10_000
    worker.pay(world()[0][:15])
    worker.pay(world()[0][15:16], P1)
    worker.step()
    assert worker.sender.claims()[-1] == {0: NOW_MS - FETCH_AGE_MS, 1: NOW_MS - FETCH_AGE_MS}


def changelog_progress(worker: Worker) -> list[bytes]:
    """Returns the keys of the progress that travels with the frames."""
    sent = worker.sender.sent + worker.sender.queued
    keys = [key for topic, _, key, _ in sent if topic == "profiles" and key is not None]
    return [key for key in keys if key.startswith(PREFIX) and key != CLAIM_KEY]


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


def test_the_changelog_gets_no_progress_of_unapplied_events(worker: Worker) -> None:
    """The progress is in the frames of the batch that waits for the store."""
    worker.pay(world()[0][:5])
    worker.step()
    worker.sender.flush(1)
    worker.step_while_store_is_away(lost=FRAMES[0])
    worker.store.is_away = False
    worker.client._read = lambda *_: None  # type: ignore[method-assign]
    worker.step()
    assert changelog_progress(worker) == []


def test_a_new_owner_sends_only_progress_that_it_has_read_itself(worker: Worker) -> None:
    worker.pay(world()[0][:5])
    worker.step(4)
    assert b"progress:card:0" in changelog_progress(worker)
    told = len(changelog_progress(worker))
    worker.client.will_revoke(FRAMES[0])
    worker.step()
    # Another worker owns it meanwhile. After it has come back no frame has arrived yet.
    worker.broker.committed[FRAMES[0]] = worker.broker.end(FRAMES[0])
    worker.now_ms += 10_000
    worker.client.will_assign(FRAMES[0])
    worker.client._read = lambda *_: None  # type: ignore[method-assign]
    worker.step()
    assert b"progress:card:0" not in changelog_progress(worker)[told:]
    assert ("card", 0) not in worker.pipeline._routed._heard


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
    claimed = len(worker.sender.claims())
    # Five of six batches: more records wait, so the worker is behind by an unknown time.
    worker.step(5)
    claims = [claim[0] for claim in worker.sender.claims()[claimed:] if 0 in claim]
    assert claims
    # The pause between question and answer is by the real clock, and this one jumps: the bounds are not sharp.
    assert all(asked_ms - HOUR_MS // 6 <= claim < worker.now_ms for claim in claims)
    worker.step(10)
    assert worker.now_ms - FETCH_AGE_MS <= worker.sender.claims()[-1][0] < worker.now_ms
    assert_profiles_are_of(worker, 60)
    arrived = [
        int(row[ARRIVED_MS])
        for topic, _, _, value in worker.sender.sent
        if topic == "repartition-card"
        for row in decode_frame(value, 1)[0].rows
    ]
    assert len(arrived) == 60
    assert all(asked_ms - HOUR_MS // 6 <= at_ms <= worker.now_ms for at_ms in arrived)
