"""Topics that are created again, end early or have lost records."""

from __future__ import annotations

import pytest

from paywarden.streams.kafka.source_register import SOURCES_KEY, SourceChanged, SourceRegister, split_offset
from tests.unit.streams.profiles.pipeline.worker import O0, P0, P1, Worker, assert_profiles_are_of, outcomes_of, world
from tests.worlds.stream.packed import sources_of


def test_a_topic_made_anew_is_not_read_until_it_is_accepted(worker: Worker) -> None:
    worker.pay(world()[0][:30])
    worker.step(4)
    worker.broker.topic_ids["payments"] = "another"
    worker.broker.records[P0], worker.broker.committed[P0] = [], 0
    worker.pay(world()[0][30:])
    with pytest.raises(
        SourceChanged, match=r"^topic payments: it was deleted and created again.*`paywarden admin source --accept"
    ):
        worker.pipeline.join()
    assert_profiles_are_of(worker, 30)
    SourceRegister(worker.store, SOURCES_KEY, {"payments": "payments"}).accept({"payments": "another"})
    worker.client.will_revoke(P0)
    worker.client.will_assign(P0)
    worker.step(4)
    assert_profiles_are_of(worker, 60)
    offsets = {
        split_offset(sources_of(profile)[0]) for key, profile in worker.profiles().items() if 0 in sources_of(profile)
    }
    assert {generation for generation, _ in offsets} == {0, 1}
    assert max(offset for _, offset in offsets) == 29


def test_a_topic_made_anew_is_noticed_at_an_assignment_before_it_is_read(worker: Worker) -> None:
    worker.pay(world()[0][:30])
    worker.step(4)
    worker.broker.topic_ids["payments"] = "another"
    worker.client.will_revoke(P1)
    worker.client.will_assign(P1)
    worker.pay(world()[0][30:], P1)
    with pytest.raises(SourceChanged):
        worker.step()
    assert_profiles_are_of(worker, 30)
    assert worker.broker.committed[P1] == 0


def test_a_topic_made_anew_is_noticed_while_it_is_read(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client notices nothing if the new topic is as long as the old one was."""
    worker.pay(world()[0][:30])
    worker.step(4)
    worker.broker.topic_ids["payments"] = "another"
    # Ten seconds later.
    monkeypatch.setattr(worker.pipeline._sources._watch, "_ask_at", 0.0)
    with pytest.raises(SourceChanged, match="topic payments: it was deleted and created again"):
        worker.step(3)


def test_an_outcome_whose_payment_stands_at_a_passed_offset_is_no_dead_letter(worker: Worker) -> None:
    """A topic created again that has outgrown the old one is noticed late. Its first records count as read."""
    rows = world()[0]
    reported = next(number for number in range(2, 60) if outcomes_of(rows[number : number + 1]))
    worker.pay(rows[:2])
    worker.step(4)
    worker.broker.topic_ids["payments"] = "another"
    worker.broker.records[P0] = []
    worker.pay([rows[reported], *(row for row in rows[2:20] if row is not rows[reported])])
    outcomes = outcomes_of(rows[reported : reported + 1])
    worker.report(outcomes)
    with pytest.raises(SourceChanged):
        worker.step(4)
    assert worker.broker.committed[O0] == 0
    SourceRegister(worker.store, SOURCES_KEY, {"payments": "payments"}).accept({"payments": "another"})
    worker.broker.committed[P0] = 0
    worker.client.will_revoke(P0, O0)
    worker.client.will_assign(P0, O0)
    worker.step(6)
    assert worker.broker.committed[O0] == len(outcomes)
    assert [topic for topic, *_ in worker.sender.sent if topic == "dead-letters"] == []


def test_a_partition_that_ends_before_what_was_read_stops_every_later_start(worker: Worker) -> None:
    worker.pay(world()[0][:30])
    worker.step(4)
    del worker.broker.records[P0][20:]
    with pytest.raises(SourceChanged, match="partition 0 was read to offset 30 and ends at 20"):
        worker.step(2)
    # Once it has grown past the old end, its offsets show nothing.
    worker.pay(world()[0][30:])
    with pytest.raises(SourceChanged, match="partition 0 was read to offset 30 and ends at 20"):
        worker.pipeline.join()


def test_records_that_expired_unread_are_counted_and_the_rest_is_read(worker: Worker) -> None:
    worker.step()
    worker.pay(world()[0])
    worker.broker.begins[P0] = 30
    worker.step(6)
    expired = worker.pipeline.metrics.expired.labels("payments")._value.get()
    assert expired == 30
    assert worker.broker.committed[P0] == 60
