"""When a worker takes outcomes, holds them back and commits them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paywarden.schemas.proto.store_pb2 import PaymentRecord
from paywarden.streams.profiles.events import record_key
from paywarden.streams.profiles.guards import store_retry
from tests.services.product.processes import wait_until
from tests.unit.streams.profiles.pipeline.worker import FRAMES, O0, P0, P1, TIMING, Worker, outcomes_of, world


def test_an_outcome_is_not_committed_before_it_is_processed(worker: Worker) -> None:
    rows = world()[0][:20]
    worker.report(outcomes_of(rows))
    # Its payments belong to another worker and are not committed yet.
    worker.client.will_revoke(P1)
    worker.pay(rows, P1)
    worker.step(5)
    assert O0 not in worker.broker.committed
    worker.client.will_assign(P1)
    worker.step(8)
    assert worker.broker.committed[O0] == len(outcomes_of(rows)) > 0
    assert [topic for topic, *_ in worker.sender.sent if topic == "dead-letters"] == []


def test_outcomes_wait_for_a_batch_of_payments_to_go_with() -> None:
    """A batch of their own would cost as much as one of payments, several times a second."""
    worker = Worker(timing=replace(TIMING, outcomes_alone_after_s=3_600.0))
    rows = world()[0][:20]
    worker.pay(rows)
    worker.report(outcomes_of(rows))
    worker.step(4)
    assert O0 not in worker.broker.committed
    worker.client.commits.clear()
    worker.pay(world()[0][20:30])
    worker.step()
    (commit,) = worker.client.commits
    assert (commit[P0], commit[O0]) == (30, len(outcomes_of(rows)))


def test_outcomes_go_alone_where_no_payments_come() -> None:
    worker = Worker(timing=replace(TIMING, outcomes_alone_after_s=0.001))
    rows = world()[0][:20]
    worker.pay(rows)
    worker.report(outcomes_of(rows))

    def are_worked_in() -> bool:
        worker.step()
        return O0 in worker.broker.committed

    wait_until(are_worked_in, what="the outcomes are worked in")


def test_a_worker_of_all_payments_does_not_ask_what_is_committed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("it knows what it has committed itself")

    rows = world()[0][:20]
    worker.step()
    monkeypatch.setattr(worker.client, "committed", fail)
    worker.pay(rows[:10])
    worker.pay(rows[10:], P1)
    worker.report(outcomes_of(rows))
    worker.step(8)
    assert worker.broker.committed[O0] == len(outcomes_of(rows)) > 0


def test_the_end_behind_transaction_markers_is_committed_after_waiting(worker: Worker) -> None:
    """A reader that waits until the group reaches the end would wait for ever without this commit."""
    rows = world()[0][:20]
    worker.pay(rows)
    worker.report(outcomes_of(rows))
    worker.broker.unseen[O0] = 1
    worker.step(8)
    assert worker.broker.committed[O0] == worker.broker.end(O0) == len(outcomes_of(rows)) + 1


def test_waiting_outcomes_are_read_again_after_an_abandoned_batch(worker: Worker) -> None:
    rows = world()[0][:20]
    worker.client.will_revoke(P1)
    worker.pay(rows, P1)
    worker.report(outcomes_of(rows))
    worker.step(2)
    worker.pay(world()[0][20:25])
    worker.step_while_store_is_away(lost=P0)
    worker.store.is_away = False
    worker.client.will_assign(P0, P1)
    worker.step(10)
    assert worker.broker.committed[O0] == len(outcomes_of(rows))
    assert worker.pipeline.metrics.outcomes._value.get() == len(outcomes_of(rows))
    assert [topic for topic, *_ in worker.sender.sent if topic == "dead-letters"] == []


def test_waiting_outcomes_of_a_revoked_partition_go_to_the_next_owner(worker: Worker) -> None:
    rows = world()[0][:20]
    worker.client.will_revoke(P1)
    worker.pay(rows, P1)
    worker.report(outcomes_of(rows))
    worker.step(2)
    worker.client.will_revoke(O0)
    worker.client.will_assign(P1)
    worker.step(8)
    assert worker.broker.committed[P1] == 20
    assert worker.pipeline.metrics.outcomes._value.get() == 0


def test_outcomes_are_paused_while_too_many_wait() -> None:
    worker = Worker(O0, *FRAMES, batch_max=5)
    worker.broker.append(P0, b"")
    worker.report(world()[1][:50])
    worker.step(20)
    assert worker.pipeline.metrics.waiting_outcomes._value.get() <= 10
    assert O0 not in worker.broker.committed


def test_outcomes_of_payments_that_may_be_hidden_wait(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_retry, "_LOOK_AT_STORE_EVERY_S", 0.0)
    rows = [row for row in world()[0] if any(one["label"] == "fraud" for one in outcomes_of([row]))][:1]
    worker.pay(rows)
    worker.step()
    keys = [record_key(row["payment_id"]) for row in rows]
    hidden = {key: value for key, value in zip(keys, worker.store.read(keys), strict=True) if value is not None}
    worker.store.delete(keys)
    worker.store.why_hidden = "copies move"

    worker.report(outcomes_of(rows))
    worker.step(8)
    assert worker.broker.committed.get(O0, 0) == 0
    # Payments go on meanwhile.
    worker.pay(world()[0][20:25])
    worker.step()
    assert worker.broker.committed[P0] == worker.end(*P0) > 1
    assert [topic for topic, *_ in worker.sender.sent if topic == "dead-letters"] == []

    worker.store.write(hidden, ttl_s=0)
    worker.store.why_hidden = ""
    worker.step(8)
    assert worker.broker.committed[O0] == len(outcomes_of(rows))
    assert [topic for topic, *_ in worker.sender.sent if topic == "dead-letters"] == []
    after = [PaymentRecord.FromString(value or b"") for value in worker.store.read(keys)]
    assert all(record.label_changes for record in after)
