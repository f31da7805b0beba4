"""The stream worker's steps without a broker: clients in memory, and a store that can be down."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest

from paywarden.schemas.errors import BrokerUnavailable, Misconfigured
from paywarden.streams.profiles import set_aside_profile
from paywarden.streams.profiles.events import record_key
from paywarden.streams.profiles.progress.watermarks import PREFIX
from tests.fakes.kafka import Place
from tests.services.product.in_process import running
from tests.services.product.processes import wait_until
from tests.unit.streams.profiles.pipeline.worker import (
    FRAMES,
    NOW_MS,
    O0,
    P0,
    P1,
    TIMING,
    Worker,
    assert_profiles_are_of,
    in_essence,
    profiles_of,
    world,
)


def test_payments_reach_profiles_and_the_changelog_matches_the_store(worker: Worker) -> None:
    worker.pay(world()[0])
    worker.step(4)
    assert_profiles_are_of(worker, 60)
    assert worker.broker.committed[P0] == 60
    last = {key: value for topic, _, key, value in worker.sender.sent if topic == "profiles"}
    states = worker.profiles()
    assert {key for key in last if key and not key.startswith(PREFIX)} == states.keys()
    assert all(states[key] in (value or b"") for key, value in last.items() if key in states)


def test_payments_in_a_currency_without_a_rate_are_worked_in_and_counted(worker: Worker) -> None:
    worker.pay([row | {"currency": "NGN"} if number < 5 else row for number, row in enumerate(world()[0])])
    worker.step(4)
    assert worker.pipeline.metrics.unknown_rates._value.get() == 5
    assert len(worker.profiles()) == len(profiles_of(60))
    assert worker.pipeline.metrics.dead_letters.labels("payments")._value.get() == 0


def test_a_worker_does_not_wait_for_frames_that_it_has_written_to_itself() -> None:
    worker = Worker(timing=replace(TIMING, ask_time_every_s=3_600.0))
    worker.sender.tells = True
    worker.step()
    worker.client.commits.clear()
    worker.pay(world()[0][:30])
    worker.step()
    assert_profiles_are_of(worker, 30)
    # Payments and frames are committed together, and the frames are not worked in again. The first card frame is empty.
    assert worker.client.commits == [{P0: 30, **dict.fromkeys(FRAMES, 1), FRAMES[0]: 2}]
    worker.step(3)
    assert worker.pipeline.metrics._replayed.labels("card")._value.get() == 0
    worker.pay(world()[0][30:])
    worker.step()
    assert_profiles_are_of(worker, 60)
    assert worker.broker.committed == {P0: 60, P1: 0, O0: 0, **dict.fromkeys(FRAMES, 2), FRAMES[0]: 3}


def test_frames_behind_those_of_another_worker_are_read_from_the_topic() -> None:
    """Their order in the partition is that of the profile's events."""
    worker = Worker(timing=replace(TIMING, ask_time_every_s=3_600.0))
    worker.sender.tells = True
    worker.step()
    worker.pay(world()[0])
    worker.sender.meanwhile = lambda: [worker.broker.append(place, b"", NOW_MS) for place in FRAMES]
    worker.step()
    assert worker.profiles() == {}
    assert worker.broker.committed == {P0: 60, P1: 0, O0: 0, **dict.fromkeys(FRAMES, 0)}
    worker.sender.meanwhile = lambda: None
    worker.step()
    assert_profiles_are_of(worker, 60)
    assert worker.broker.committed == {P0: 60, P1: 0, O0: 0, **{place: worker.end(*place) for place in FRAMES}}


def test_a_worker_abandons_its_own_frames_as_any_others() -> None:
    worker = Worker(timing=replace(TIMING, ask_time_every_s=3_600.0))
    worker.sender.tells = True
    worker.step()
    worker.pay(world()[0])

    def store_goes() -> None:
        worker.store.is_away = True
        worker.store.meanwhile = [lambda: worker.client.will_revoke(FRAMES[1])]

    worker.sender.meanwhile = store_goes
    worker.step()
    assert worker.pipeline.metrics.abandoned._value.get() == 1
    worker.sender.meanwhile = lambda: None
    worker.store.is_away = False
    worker.client.will_assign(FRAMES[1])
    worker.step(4)
    assert_profiles_are_of(worker, 60)
    assert worker.broker.committed[P0] == 60


def test_an_offset_is_committed_only_after_the_broker_has_its_results(worker: Worker) -> None:
    worker.pay(world()[0][:5])
    worker.sender.is_broker_away = True
    with pytest.raises(BrokerUnavailable):
        worker.step()
    assert worker.broker.committed == {}
    assert sum(worker.sender.frames()) == 5


def test_no_event_is_sent_before_its_payment_is_stored(worker: Worker) -> None:
    """After a crash between the two, a repeated payment in another record would count as a new one."""
    worker.pay(world()[0][:5])
    worker.step_while_store_is_away()
    assert worker.sender.frames() == []
    assert worker.broker.committed == {}


def test_no_state_is_sent_that_the_store_has_not_acknowledged(worker: Worker) -> None:
    """Otherwise mirrors would hold states that a restart takes back."""
    worker.pay(world()[0][:5])
    worker.step()
    worker.step_while_store_is_away()
    sent = [key or b"" for topic, _, key, _ in worker.sender.sent + worker.sender.queued if topic == "profiles"]
    assert [key for key in sent if not key.startswith(PREFIX)] == []


def test_while_the_store_is_down_nothing_is_read_and_then_it_goes_on(worker: Worker) -> None:
    worker.pay(world()[0][:20])
    worker.store.is_away = True
    worker.store.meanwhile = [
        lambda: worker.pay(world()[0][20:]),
        lambda: None,
        lambda: setattr(worker.store, "is_away", False),
    ]
    worker.step()
    assert worker.store.meanwhile == []
    assert worker.broker.committed == {P0: 20, P1: 0, O0: 0, **dict.fromkeys(FRAMES, 0)}
    worker.step(5)
    assert_profiles_are_of(worker, 60)


def test_a_store_that_is_down_is_not_asked_in_a_busy_loop() -> None:
    worker = Worker(timing=replace(TIMING, retry_first_s=0.02))
    worker.pay(world()[0][:5])
    worker.step_while_store_is_away()
    # The pauses double: a busy loop would ask thousands of times.
    assert worker.store.calls <= 12


def test_a_worker_that_waits_for_its_store_turns_and_one_that_hangs_does_not(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_s = 0.0
    turned: list[bool] = []
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed_s)

    def takes(seconds: float) -> None:
        nonlocal passed_s
        passed_s += seconds
        turned.append(worker.pipeline.turns())

    worker.pay(world()[0][:5])
    worker.store.is_away = True
    # Each try takes long; the last one takes longer than a round may.
    worker.store.meanwhile = [
        *[lambda: takes(100)] * 3,
        lambda: takes(181),
        lambda: setattr(worker.store, "is_away", False),
    ]
    worker.step()
    assert turned == [True, True, True, False]
    assert worker.pipeline.turns()


def test_an_abandoned_batch_loses_no_records(worker: Worker) -> None:
    worker.pay(world()[0][:30])
    worker.pay(world()[0][30:], P1)
    worker.step_while_store_is_away(lost=P1)
    worker.store.is_away = False
    worker.step(5)
    worker.client.will_assign(P1)
    worker.step(5)
    assert_profiles_are_of(worker, 60)
    assert worker.pipeline.metrics.abandoned._value.get() == 1


def test_a_worker_is_ready_again_only_when_the_store_is_healthy(worker: Worker) -> None:
    """An abandoned batch does not show that the store is back."""
    worker.pay(world()[0][:5])
    worker.step_while_store_is_away(lost=P0)
    assert worker.pipeline.problems() == ["the store does not take batches: away"]
    worker.step()
    assert worker.pipeline.problems() == ["the store does not take batches: away"]
    worker.store.is_away = False
    worker.pipeline._store_retry.ask_at = 0.0
    worker.step()
    assert worker.pipeline.problems() == []


def test_a_store_conflict_reads_again_and_loses_nothing(worker: Worker) -> None:
    worker.pay(world()[0])
    # The first answers the try to write payments' records unread, which is no other worker's doing.
    worker.store.conflicts = 3
    worker.step(5)
    assert_profiles_are_of(worker, 60)
    assert worker.pipeline.metrics.conflicts._value.get() == 2
    assert worker.pipeline.metrics.duplicates._value.get() == 0


def test_sent_records_are_flushed_before_a_partition_is_revoked(worker: Worker) -> None:
    """The next owner's frames must not come before those of this worker."""
    worker.step()
    worker.sender.queued.append(("repartition-card", 0, None, b""))
    worker.client.will_revoke(P0)
    worker.step()
    assert ("repartition-card", 0, None, b"") in worker.sender.sent


@pytest.mark.parametrize("place", [P0, O0, FRAMES[0]])
def test_too_many_refusals_stop_before_anything_is_committed(worker: Worker, place: Place) -> None:
    for _ in range(60):
        worker.broker.append(place, b"x")
    with pytest.raises(Misconfigured, match="cannot be used"):
        worker.step(3)
    assert place not in worker.broker.committed


@pytest.mark.parametrize("lost", [P0, FRAMES[0]])
def test_a_stalled_client_ends_the_worker(lost: Place) -> None:
    worker = Worker(timing=replace(TIMING, ask_ends_every_s=0.0))
    worker.clients[0].stalled.add(lost)
    worker.pay(world()[0], P0)
    with pytest.raises(BrokerUnavailable, match=f"has stalled on {lost[0]}/{lost[1]}"):
        worker.pipeline.run(worker.stop)
    assert worker.clients[0].is_closed


def test_a_worker_logs_its_partitions_when_they_change(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    worker = Worker(timing=replace(TIMING, ask_ends_every_s=0.0))
    worker.pay(world()[0], P0)
    with running(worker.pipeline):
        wait_until(lambda: worker.broker.committed.get(P0) == 60, "the worker has come so far", every_s=0.01)
    lines = [record.message for record in caplog.records if record.levelno == logging.INFO]
    assert len([line for line in lines if line.startswith("stream: 6 partitions")]) == 1


def test_an_unreadable_profile_stops_neither_the_worker_nor_other_profiles(worker: Worker) -> None:
    payments, _ = world()
    worker.pay(payments[:30])
    worker.step(4)
    card = min({row["card_id"] for row in payments[:30]} & {row["card_id"] for row in payments[30:]})
    key = f"card:{card}".encode()
    (good,) = worker.store.read([key])
    assert good is not None
    worker.store.write({key: b"\x63 of a later release"}, ttl_s=0)
    sent = len(worker.sender.sent)
    worker.pay(payments[30:])
    worker.step(4)
    # Every offset is committed, and the others are as if nothing had happened.
    assert worker.broker.committed[P0] == worker.end(*P0)
    others = {name: state for name, state in worker.profiles().items() if name != key}
    assert in_essence(others) == {name: state for name, state in profiles_of(60).items() if name != key}
    assert key not in [name for topic, _, name, _ in worker.sender.sent[sent:] if topic == "profiles"]
    # The bytes come back, and the next payment of the card.
    kept = set_aside_profile.decode(worker.store.read([key])[0] or b"")
    worker.store.write({key: set_aside_profile.SetAsideEvents(good, kept.rows).encode()}, ttl_s=0)
    worker.pay([{**payments[0], "card_id": card, "payment_id": "one more"}])
    worker.step(4)
    assert not set_aside_profile.is_set_aside(worker.store.read([key])[0])
    value = worker.pipeline.metrics._restored.labels("card")._value.get()
    assert value == 1


def test_events_of_a_damaged_payment_record_become_dead_letters(worker: Worker) -> None:
    payments, _ = world()
    worker.store.write({record_key(payments[1]["payment_id"]): b"\xff damaged"}, ttl_s=0)
    worker.pay(payments[:3])
    worker.step(3)
    assert [topic for topic, *_ in worker.sender.sent].count("dead-letters") == 1
    assert worker.broker.committed[P0] == 3
