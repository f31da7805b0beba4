"""Kill workers and broker, and break the store, on a real Kafka: at the end every profile equals the payments.

Three workers share a store. Payments come twice and out of order. Meanwhile:

- workers are killed and started again;
- the broker is killed and started again;
- the store loses connections, answers late, refuses, and reports that it is overloaded.

Each kill waits until a further part of the records is worked in, so on any machine it meets workers that are at work.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import pytest

from paywarden.features.datasets.simulator import simulate
from paywarden.streams.kafka.client import KafkaSettings
from tests.services.product.deployment import Deployment
from tests.services.product.processes import PaywardenProcess
from tests.services.servers.kafka import QUICK_RETURN, KafkaServer
from tests.standin.aerospike_server import Fault, StandIn
from tests.worlds.stream.topics import (
    Topics,
    assert_profiles_equal,
    batch_profiles,
    lag,
    read_aerospike,
    read_changelog,
    read_topic,
    wait_until_left,
    wait_until_worked_in,
)

# The number of payments, each with its outcome if it has one. Set it higher for a soak test.
CARDS = int(os.environ.get("PAYWARDEN_CHAOS_CARDS", "150"))
DAYS = 120
WORKERS = 3
DUPLICATE_SHARE = 0.05
# How many places a payment may come out of its order. A few come much later.
DISORDER = 3000
OVERLOAD, KEY_BUSY = 18, 14
SEED = 11

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[KafkaServer]:
    """A broker for this test alone, because the test kills it."""
    with KafkaServer(tmp_path / "kafka", QUICK_RETURN) as server:
        yield server


class Workers:
    """Stream workers that are killed at random, and a supervisor that restarts each worker that has ended."""

    def __init__(self, deployment: Deployment, rng: random.Random) -> None:
        self._deployment, self._rng, self._stop, self._lock = deployment, rng, Event(), Lock()
        self._running: list[PaywardenProcess] = [deployment.start("stream") for _ in range(WORKERS)]
        self.kills = self.starts = 0
        self._supervisor = Thread(target=self._supervise)
        self._supervisor.start()

    def kill_one(self) -> None:
        """Kill as a crash would: the worker finishes no batch and does not leave the group."""
        with self._lock:
            self._rng.choice(self._running).kill()
        self.kills += 1

    def stop(self) -> None:
        """Stop every worker in order, each after its batch."""
        self._end_supervision()
        assert [worker.stop() for worker in self._running] == [0] * WORKERS

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_supervision()

    def _end_supervision(self) -> None:
        self._stop.set()
        self._supervisor.join()

    def _supervise(self) -> None:
        while not self._stop.wait(0.2):
            with self._lock:
                for number, worker in enumerate(self._running):
                    if worker.process.poll() is not None:
                        self._running[number] = self._deployment.start("stream")
                        self.starts += 1


# At least this many messages succeed between two faults. On a slow machine, faults by the clock alone would leave no
# successful message.
WELL_MESSAGES = 10


class StoreFaults:
    """A thread that keeps injecting faults into the store."""

    def __init__(self, server: StandIn, rng: random.Random) -> None:
        self._server, self._rng, self._stop = server, rng, Event()
        self.faults = 0
        self._thread = Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> StoreFaults:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _run(self) -> None:
        kinds = (
            Fault.drop(),
            Fault.drop_answer(),
            Fault.drop_midway(),
            Fault.delay(0.3),
            Fault.refuse(OVERLOAD),
            Fault.refuse_records(OVERLOAD, frozenset({0, 3, 4})),
            Fault.refuse_records(KEY_BUSY, frozenset({1})),
            # Longer than the timeout of a call.
            Fault.delay(1.5),
        )
        due = 0
        while not self._stop.wait(self._rng.uniform(0.05, 0.4)):
            if self._server.done_count < due:
                continue
            self._server.faults.add(self._rng.choice(kinds), times=self._rng.choice((1, 1, 2, 5)))
            self.faults += 1
            due = self._server.done_count + WELL_MESSAGES

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self._server.faults.clear()


def disordered(payments: Sequence[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Returns payments in the order of Kafka: some twice, most a little out of order, a few long after."""
    places = []
    for number, row in enumerate(payments):
        places.append((number + rng.random() * DISORDER, row))
        if rng.random() < DUPLICATE_SHARE:
            places.append((number + rng.random() * 5 * DISORDER, row))
        if rng.random() < 0.001:
            places[-1] = (number + rng.random() * len(payments), row)
    return [row for _, row in sorted(places, key=lambda place: place[0])]


def test_every_profile_equals_its_payments_whatever_is_killed(tmp_path: Path, own_kafka: KafkaServer) -> None:
    rng = random.Random(SEED)
    world = simulate(cards=CARDS, days=DAYS, seed=SEED)
    payments, outcomes = (table.to_pylist() for table in world)
    arrivals = disordered(payments, rng)
    settings = KafkaSettings(bootstrap=own_kafka.bootstrap, topic_prefix="chaos-")
    with (
        StandIn() as server,
        Deployment(tmp_path, own_kafka.bootstrap, "chaos-", aerospike=server.address) as deployment,
    ):
        deployment.create_topics()
        topics, group = Topics(settings), "chaos-stream"
        half = len(arrivals) // 2
        with Workers(deployment, rng) as workers:
            with StoreFaults(server, rng) as faults:
                topics.send_payments(arrivals[:half])
                for share in (0.75, 0.5, 0.25):
                    wait_until_left(settings, group, round(share * half), "some payments are worked in", timeout_s=300)
                    workers.kill_one()
                # An outcome waits for its payment. The test would lose outcomes whose payments are still to come.
                topics.send_payments(arrivals[half:])
                topics.send_outcomes(outcomes)
                left = lag(settings, group)
                wait_until_left(settings, group, round(0.9 * left), "some more are worked in", timeout_s=300)
                own_kafka.kill()
                time.sleep(1)
                own_kafka.restart()
                for share in (0.7, 0.5, 0.3):
                    wait_until_left(settings, group, round(share * left), "some more are worked in", timeout_s=300)
                    workers.kill_one()
                assert lag(settings, group) > 0
            wait_until_worked_in(settings, group, timeout_s=900)
            workers.stop()
        assert workers.kills == 6 <= workers.starts
        assert faults.faults > 20
        stored = read_aerospike(server.address)
        assert_profiles_equal(stored, batch_profiles(*world))
        assert read_changelog(settings) == stored
        assert read_topic(settings, "dead-letters") == []
