"""Stream workers that are killed and join count decisions on a real Kafka: the store counts each decision once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paywarden.features.stores.base import ProfileStore
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.drift.drift_counts import MINUTE_MS, Binnings
from paywarden.streams.drift.drift_state import FIVE_MS, Adder, merged, read_heads
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_transactional_producer
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import PaywardenProcess, is_ready, samples, wait_until
from tests.standin.aerospike_server import StandIn
from tests.worlds.drift.drifting import decision

PARTITIONS = 4
ADDER = Adder(Binnings({}))
# An hour ago, so that blocks can be complete.
START_MS = time.time_ns() // 1_000_000 // FIVE_MS * FIVE_MS - 12 * FIVE_MS
END_MS = START_MS + 13 * FIVE_MS


@pytest.fixture
def deployment(tmp_path: Path, settings: KafkaSettings, standin: StandIn) -> Iterator[Deployment]:
    address, prefix = settings.bootstrap, settings.topic_prefix
    with Deployment(tmp_path, address, prefix, aerospike=standin.address) as deployed:
        deployed.configure("drift", "grace_ms = 1000\n")
        deployed.configure_internally("drift", save_every_ms=200, save_decisions=500)
        deployed.create_topics()
        yield deployed


class Decisions:
    """Sends decisions in transactions, as companions do, and keeps those that it has committed."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings, self._topic = settings, settings.topic("decisions")
        ids = LocalSchemaIds()
        self._encoder = Encoder("decisions", ids.id_of("decisions"))
        self._producer = make_transactional_producer(
            settings, f"{settings.topic_prefix}tx", linger_ms=0, transaction_timeout_ms=600_000
        )
        self._producer.init_transactions(PATIENCE_S)
        self.committed = 0
        self.minutes: Counter[int] = Counter()
        self._number = 0

    @contextmanager
    def left_open(self) -> Iterator[None]:
        """A stranger's transaction on each partition, which is aborted when the block ends."""
        stranger = make_transactional_producer(
            self._settings, f"{self._topic}-stranger", linger_ms=0, transaction_timeout_ms=600_000
        )
        stranger.init_transactions(PATIENCE_S)
        stranger.begin_transaction()
        for partition in range(PARTITIONS):
            stranger.produce(self._topic, b"never committed", partition=partition)
        assert stranger.flush(PATIENCE_S) == 0
        yield
        stranger.abort_transaction(PATIENCE_S)

    def send(self, count: int, *, aborted: bool = False, odd: int = 0, version: str = "m1") -> None:
        self._producer.begin_transaction()
        for _ in range(count):
            decided_ms = START_MS + self._number * 7_919 % (10 * FIVE_MS)
            value = self._encoder.encode(decision(self._number, decided_ms, version=version))
            self._producer.produce(self._topic, value, partition=self._number % PARTITIONS)
            self._number += 1
            if not aborted:
                self.minutes[decided_ms // MINUTE_MS * MINUTE_MS] += 1
                self.committed += 1
        for _ in range(odd):
            self._producer.produce(self._topic, b"no decision", partition=1)
        self._producer.flush(PATIENCE_S)
        if aborted:
            self._producer.abort_transaction(PATIENCE_S)
        else:
            self._producer.commit_transaction(PATIENCE_S)


def counted_decisions(store: ProfileStore) -> int:
    return sum(head.progress.totals.decisions for head in read_heads(store, range(PARTITIONS)).values())


def by_minute(store: ProfileStore, minutes: Counter[int]) -> Counter[int]:
    """Return what the tiles hold of each minute."""
    heads = read_heads(store, range(PARTITIONS))
    found: Counter[int] = Counter()
    for start_ms in minutes:
        for counts in merged(store, heads, start_ms, start_ms + MINUTE_MS, ADDER, tile_ms=MINUTE_MS).values():
            found[start_ms] += int(counts.payments[0])
    return found


def total(store: ProfileStore) -> tuple[int, int]:
    """Return the payments and scores in all tiles of five minutes."""
    sums = merged(store, read_heads(store, range(PARTITIONS)), START_MS, END_MS, ADDER)
    return sum(int(one.payments[0]) for one in sums.values()), sum(int(one.scores[0].sum()) for one in sums.values())


def started(deployment: Deployment) -> tuple[PaywardenProcess, str]:
    stream = deployment.start("stream")
    return stream, stream.first_line()


def test_decisions_behind_an_open_transaction_hold_blocks_up_and_say_so(
    deployment: Deployment, settings: KafkaSettings, store: ProfileStore
) -> None:
    """A reader stands where the transaction begins, and took that for the end: blocks were evaluated without them."""
    decisions = Decisions(settings)
    decisions.send(400)
    stream, address = started(deployment)
    wait_until(lambda: counted_decisions(store) == 400, "the first decisions are counted")
    gauge = ("paywarden_open_transaction_seconds", settings.topic("decisions"))
    with decisions.left_open():
        held_ms = time.time_ns() // 1_000_000
        decisions.send(400)
        # Heads say every 15 s up to when all is read.
        wait_until(lambda: samples(address).get(gauge, 0) > 20, "the metric says that the topic is held up", every_s=1)
        assert counted_decisions(store) == 400
        assert all(head.quiet_ms < held_ms for head in read_heads(store, range(PARTITIONS)).values())
    wait_until(lambda: counted_decisions(store) == 800, "those behind it are counted")
    wait_until(lambda: gauge not in samples(address), "the metric says that it has ended", every_s=1)
    assert stream.stop() == 0
    log = stream.log.read_text(encoding="utf-8")
    assert f"an open transaction of a producer holds up {settings.topic('decisions')}/0" in log
    assert "the open transaction has ended" in log


def test_counts_equal_the_topic_after_a_kill_and_a_rebalance(
    deployment: Deployment, settings: KafkaSettings, store: ProfileStore
) -> None:
    decisions = Decisions(settings)
    decisions.send(4000)
    decisions.send(300, aborted=True)
    decisions.send(2000, odd=3)
    first, _ = started(deployment)
    wait_until(lambda: counted_decisions(store) > 1000, "the first worker counts")
    first.kill()
    second, address = started(deployment)
    wait_until(lambda: is_ready(address), "the second worker is ready")
    wait_until(lambda: counted_decisions(store) > 4500, "the second worker counts")
    decisions.send(1500)
    third, other = started(deployment)
    wait_until(lambda: is_ready(other), "the third worker is ready")
    for _ in range(20):
        decisions.send(150)
        time.sleep(0.1)
    second.kill()
    decisions.send(700)
    wait_until(lambda: counted_decisions(store) >= decisions.committed, "all decisions are counted")
    # A new owner reads some decisions again, and they are still counted once.
    assert third.stop() == 0
    last, address = started(deployment)
    wait_until(lambda: is_ready(address), "the last worker is ready")
    decisions.send(40)
    wait_until(lambda: counted_decisions(store) >= decisions.committed, "the last ones are counted")
    time.sleep(1)
    assert counted_decisions(store) == decisions.committed
    assert total(store) == (decisions.committed, decisions.committed)
    assert by_minute(store, decisions.minutes) == decisions.minutes
    assert last.stop() == 0
    for process in (first, second, third, last):
        assert "Traceback" not in process.log.read_text(encoding="utf-8")
