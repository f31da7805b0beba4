"""A stream worker whose host's clock is not the broker's."""

from __future__ import annotations

import pytest

from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles import pipeline
from paywarden.streams.profiles.guards.broker_clock import ClocksDisagree
from tests.services.product.in_process import running
from tests.services.product.processes import wait_until
from tests.unit.streams.profiles.pipeline.worker import HOUR_MS, NOW_MS, P0, Worker, world


@pytest.fixture
def stamped() -> Worker:
    """A worker whose broker stamps its frames."""
    worker = Worker()
    worker.sender.tells, worker.sender.stamp_ms = True, NOW_MS
    worker.step()
    # As it does when it starts.
    worker.pipeline._ask_time()
    return worker


def pay_now(worker: Worker, count: int, *, ahead_ms: int = 0, is_producers_time: bool = True) -> None:
    """Send payments that are made now. `ahead_ms`: how far ahead the clock of their producer is."""
    for number, row in enumerate(world()[0][:count]):
        now_ms = NOW_MS + ahead_ms + number
        value = worker._payments.encode({**row, "event_time_ms": now_ms, "payment_id": f"{ahead_ms}/{number}"})
        worker.broker.append(P0, value, now_ms, is_producers_time=is_producers_time)


def dead_letters(worker: Worker) -> int:
    return sum(topic == "dead-letters" for topic, *_ in worker.sender.sent + worker.sender.queued)


def ahead_s(worker: Worker) -> float:
    return float(worker.pipeline.metrics.clock_ahead._value.get())


@pytest.mark.parametrize("wrong", ["host", "broker"])
@pytest.mark.parametrize("leap_ms", [-HOUR_MS, HOUR_MS])
def test_a_worker_waits_while_the_clocks_disagree_and_refuses_nothing(
    stamped: Worker, wrong: str, leap_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_ASK_TIME_EVERY_S", 0.01)
    worker = stamped
    worker.now_ms, worker.sender.stamp_ms = (
        (NOW_MS + leap_ms, NOW_MS) if wrong == "host" else (NOW_MS, NOW_MS + leap_ms)
    )
    with running(worker.pipeline):
        problem = f"{'ahead of' if (leap_ms > 0) == (wrong == 'host') else 'behind'} the broker's"
        wait_until(lambda: problem in " ".join(worker.pipeline.problems()), "it is not ready", every_s=0.01)
        assert 3500 < abs(ahead_s(worker)) < 3700
        pay_now(worker, 20)
        worker.now_ms = worker.sender.stamp_ms = NOW_MS
        wait_until(lambda: worker.broker.committed.get(P0, 0) == 20, "the worker goes on", every_s=0.01)
    assert dead_letters(worker) == 0
    assert worker.pipeline.problems() == []


def test_a_leap_before_a_batch_ends_the_worker_which_commits_nothing(stamped: Worker) -> None:
    pay_now(stamped, 20)
    stamped.now_ms -= HOUR_MS
    with pytest.raises(ClocksDisagree, match="s behind the broker's"):
        stamped.step()
    assert (stamped.broker.committed.get(P0, 0), dead_letters(stamped)) == (0, 0)


def test_a_leap_in_the_middle_of_a_batch_refuses_nothing(stamped: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    due_outcomes = stamped.pipeline._due_outcomes

    def leap(**of_batch: bool) -> list[Record]:
        """Come between the look at the clock and the payments."""
        stamped.now_ms -= HOUR_MS
        return due_outcomes(**of_batch)

    monkeypatch.setattr(stamped.pipeline, "_due_outcomes", leap)
    pay_now(stamped, 20)
    stamped.step()
    assert dead_letters(stamped) == 0
    assert stamped.broker.committed[P0] == 20


def test_a_clock_that_stood_still_with_its_machine_refuses_nothing(stamped: Worker) -> None:
    """A hypervisor stops a machine with both of its clocks: only the broker shows how long."""
    stamped.sender.stamp_ms += HOUR_MS
    pay_now(stamped, 20, ahead_ms=HOUR_MS)
    with pytest.raises(ClocksDisagree, match="s behind the broker's"):
        stamped.step()
    assert dead_letters(stamped) == 0


@pytest.mark.parametrize("ahead_ms", [-HOUR_MS, HOUR_MS])
def test_a_producer_with_a_wrong_clock_does_not_stop_the_worker(stamped: Worker, ahead_ms: int) -> None:
    pay_now(stamped, 3, ahead_ms=ahead_ms)
    pay_now(stamped, 20)
    stamped.step(2)
    assert stamped.broker.committed[P0] == 23
    # A payment from the future is still refused.
    assert dead_letters(stamped) == (3 if ahead_ms > 0 else 0)
    assert stamped.pipeline.problems() == []


def test_without_stamps_of_the_broker_there_is_nothing_to_compare() -> None:
    worker = Worker()
    # 1234 is what the embedded broker says.
    for stamp_ms in (0, 1234):
        worker.sender.tells, worker.sender.stamp_ms = True, stamp_ms
        pay_now(worker, 20)
        worker.step(2)
        assert worker.pipeline.problems() == []
    assert worker.broker.committed[P0] == 40
