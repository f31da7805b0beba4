"""A store that is away or slow, on a real Kafka: the stream stops with bounded memory and goes on without a loss."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from paywarden.streams.kafka.client import KafkaSettings
from tests.services.product.deployment import Deployment
from tests.services.product.processes import get, is_ready, samples, wait_until
from tests.standin.aerospike_server import Fault, StandIn
from tests.worlds.stream.topics import (
    Topics,
    assert_profiles_equal,
    batch_profiles,
    lag,
    read_aerospike,
    read_changelog,
    small_world,
    wait_until_worked_in,
)

GROUP = "stream"


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def deployment(tmp_path: Path, settings: KafkaSettings, server: StandIn) -> Iterator[Deployment]:
    address, prefix = settings.bootstrap, settings.topic_prefix
    with Deployment(tmp_path, address, prefix, stream_batch_max=200, aerospike=server.address) as made:
        made.create_topics()
        yield made


def counted(target: str, name: str) -> float:
    """Returns a counter of /metrics, summed over all its labels."""
    return sum(value for key, value in samples(target).items() if key[0] == name)


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def assert_all_is_worked_in(
    settings: KafkaSettings, server: StandIn, group: str, payments: pa.Table, nothing: pa.Table
) -> None:
    wait_until_worked_in(settings, group)
    stored = read_aerospike(server.address)
    assert_profiles_equal(stored, batch_profiles(payments, nothing))
    wait_until(lambda: read_changelog(settings) == stored, "the changelog equals the store")


def test_a_store_lost_under_load_stops_the_stream_without_a_loss(
    deployment: Deployment, settings: KafkaSettings, server: StandIn
) -> None:
    payments, outcomes = small_world()
    rows, group = payments.to_pylist(), f"{settings.topic_prefix}{GROUP}"
    stream = deployment.start("stream")
    target = stream.first_line()
    readiness = f"{target}/readyz"
    topics = Topics(settings)
    topics.send_payments(rows[:300])
    wait_until_worked_in(settings, group)
    wait_until(lambda: is_ready(target), "ready")
    before_mb = resident_mb(stream.pid)
    server.stop()
    topics.send_payments(rows[300:])
    wait_until(lambda: b"the store does not take batches: Aerospike at" in get(readiness)[2], "it lacks the store")
    assert get(readiness)[0] == 503
    behind = lag(settings, group)
    assert behind == len(rows) - 300
    for _ in range(3):
        topics.send_payments(rows[:300])  # duplicates of the first 300
    time.sleep(3)
    assert lag(settings, group) == behind + 900
    assert get(readiness)[0] == 503
    assert resident_mb(stream.pid) < before_mb + 150
    server.start()
    wait_until(lambda: is_ready(target), "ready again")
    assert_all_is_worked_in(settings, server, group, payments, outcomes.slice(0, 0))
    assert counted(target, "paywarden_stream_duplicates_total") == 900
    assert stream.stop() == 0


def test_a_slow_store_causes_no_retries_and_no_rebalance(
    deployment: Deployment, settings: KafkaSettings, server: StandIn
) -> None:
    payments, outcomes = small_world()
    part = payments.slice(0, 800)
    deployment.configure("aerospike", "total_timeout_ms = 60000\n")
    deployment.configure_internally("aerospike", socket_timeout_ms=30000)
    stream = deployment.start("stream")
    target = stream.first_line()
    wait_until(lambda: is_ready(target), "ready")
    # Shorter than the timeout of one call, longer in all than a session allows.
    server.faults.add(Fault.delay(0.3), times=40)
    Topics(settings).send_payments(part.to_pylist())
    assert_all_is_worked_in(settings, server, f"{settings.topic_prefix}{GROUP}", part, outcomes.slice(0, 0))
    assert counted(target, "paywarden_stream_store_retries_total") == 0
    assert counted(target, "paywarden_stream_abandoned_batches_total") == 0
    assert stream.stop() == 0
    log = stream.log.read_text(encoding="utf-8")
    assert "rebalance" not in log
    assert "not committed" not in log
