"""Simulated producers, with transactions and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from confluent_kafka import KafkaError

from tests.simulation.cluster.broker import Broker
from tests.simulation.cluster.logs import Entry, Message, Transaction, kafka_failure
from tests.simulation.world import Actor


@dataclass
class _Queued:
    topic: str
    partition: int
    entry: Entry
    on_delivery: Callable[[KafkaError | None, Any], object] | None


class SimulatedProducer:
    """The methods of `confluent_kafka.Producer` that our senders use. Idempotent: each record once and in order.

    It calls back for what it has sent, within `poll` and `flush` as the client does. One for failures only does not.
    """

    def __init__(self, broker: Broker, actor: Actor, *, only_failures: bool = True) -> None:
        self._broker, self._actor, self._world = broker, actor, broker.world
        self._only_failures = only_failures
        self._reports: list[Callable[[], object]] = []
        self._queue: list[_Queued] = []
        self._is_due = False
        actor.life.at_end.append(self._die)
        self._waiter = actor

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | str | None = None,
        partition: int = -1,
        on_delivery: Callable[[KafkaError | None, Any], object] | None = None,
        headers: Any = None,
    ) -> None:
        self._world.seam("produce")
        raw_key = key.encode() if isinstance(key, str) else key
        number = self._broker.partition_of(topic, raw_key) if partition < 0 else partition
        entry = Entry(raw_key, value, self._world.wall_ms(), tuple(headers or ()), self._transaction())
        self._queue.append(_Queued(topic, number, entry, on_delivery))
        self._send_soon()

    def _transaction(self) -> Transaction | None:
        return None

    def _send_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._world.after(self._world.random.random() * 0.004, self._send)

    def _send(self) -> None:
        self._is_due = False
        if self._actor.is_over:
            return
        if self._actor.is_frozen or self._broker.is_away:
            self._is_due = True
            self._world.at(
                max(self._actor.life.frozen_until, self._broker.away_until, self._world.now) + 0.01, self._send
            )
            return
        self._deliver(len(self._queue))
        self._world.wake(self._waiter)

    def _deliver(self, count: int) -> None:
        sent, self._queue = self._queue[:count], self._queue[count:]
        for queued in sent:
            place = queued.topic, queued.partition
            # `paywarden topics create` makes topics with LogAppendTime. Payments and outcomes have their producers'.
            queued.entry.time_ms, queued.entry.is_stamped = self._world.wall_ms("broker"), True
            offset = self._broker.append(place, queued.entry)
            self._delivered(queued)
            if not self._only_failures and queued.on_delivery is not None:
                self._reports.append(partial(queued.on_delivery, None, Message(place, offset, queued.entry)))
            self._world.note(f"{queued.topic}/{queued.partition} gets {offset}")

    def _delivered(self, queued: _Queued) -> None:
        """A hook for transactions."""

    def _die(self) -> None:
        """The process has ended. Records that were on the way arrive all the same."""
        if self._queue and not self._broker.is_away and self._world.random.random() < 0.5:
            self._deliver(self._world.random.randrange(len(self._queue) + 1))
        self._queue.clear()

    def poll(self, timeout: float = 0) -> int:
        self._world.seam("poll")
        if timeout:
            self._world.sleep(timeout)
        self._report()
        return 0

    def _report(self) -> None:
        reports, self._reports = self._reports, []
        for report in reports:
            report()

    def flush(self, timeout: float) -> int:
        self._world.seam("flush")
        assert self._world.current is not None
        self._waiter = self._world.current
        deadline = self._world.now + timeout
        while self._queue and self._world.now < deadline:
            self._send_soon()
            self._world.sleep(deadline - self._world.now)
        self._report()
        return len(self._queue)

    def __len__(self) -> int:
        return len(self._queue)


class TransactionalProducer(SimulatedProducer):
    """A producer of transactions."""

    def __init__(self, broker: Broker, actor: Actor, transactional_id: str, timeout_ms: int) -> None:
        super().__init__(broker, actor)
        self.transactional_id, self._timeout_s = transactional_id, timeout_ms / 1000
        self.transaction: Transaction | None = None
        self.is_fenced = self._must_abort = False

    def init_transactions(self, timeout: float) -> None:
        self._world.seam("init transactions")
        if self._broker.is_away or not self._broker.begin_epoch(self):
            self._wait_and_fail(timeout)

    def begin_transaction(self) -> None:
        self._world.seam("begin transaction")
        self._check()
        transaction = self.transaction = Transaction(self.transactional_id)
        self._must_abort = self._world.random.random() < self._broker.abort_share

        def give_up() -> None:
            if transaction.state == "open":
                self._world.note("transaction timed out")
                self.is_fenced = True
                self._broker.end_transaction(transaction, "aborted")

        self._world.after(self._timeout_s, give_up)

    def _transaction(self) -> Transaction | None:
        return self.transaction

    def _deliver(self, count: int) -> None:
        if self.is_fenced or self.transaction is None or self.transaction.state != "open":
            self._queue.clear()
            return
        super()._deliver(count)

    def _delivered(self, queued: _Queued) -> None:
        assert self.transaction is not None
        self.transaction.places.add((queued.topic, queued.partition))

    def commit_transaction(self, timeout: float) -> None:
        world = self._world
        world.seam("commit transaction")
        self._check()
        transaction = self.transaction
        assert transaction is not None
        if transaction.state == "open":
            if self._broker.is_away or self.flush(timeout):
                self._wait_and_fail(timeout)
            self._check()
            if self._must_abort:
                self._must_abort = False
                world.faults["transaction_aborted"] += 1
                raise kafka_failure(KafkaError._INCONSISTENT, txn_requires_abort=True)
            in_doubt = world.random.random() < self._broker.doubt_share
            if in_doubt and world.random.random() < 0.5:
                self._wait_and_fail(timeout)
            self._broker.end_transaction(transaction, "committed")
            world.seam("transaction is committed")
            if in_doubt:
                self._wait_and_fail(timeout)
        assert transaction.outcome == "committed", transaction

    def abort_transaction(self, timeout: float) -> None:
        self._world.seam("abort transaction")
        self._check()
        if self._broker.is_away:
            self._wait_and_fail(timeout)
        self._queue.clear()
        if self.transaction is not None:
            self._broker.end_transaction(self.transaction, "aborted")

    def _check(self) -> None:
        if self.is_fenced:
            raise kafka_failure(KafkaError._FENCED, fatal=True)

    def _wait_and_fail(self, timeout: float) -> None:
        self._world.pause(timeout)
        raise kafka_failure(KafkaError._TIMED_OUT, retriable=True)
