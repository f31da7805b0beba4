"""The process of `paywarden stream` on a real Kafka: health, metrics, agents, signals, and a broker that goes away."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from pathlib import Path

from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import ROOT, PaywardenProcess, get, is_ready, samples, wait_until
from tests.services.servers.kafka import QUICK_RETURN, KafkaServer, produce
from tests.worlds.stream.topics import (
    Topics,
    assert_profiles_equal,
    batch_profiles,
    lag,
    letter,
    read_changelog,
    read_store,
    read_topic,
    small_world,
    wait_until_left,
    wait_until_worked_in,
)

AWAY_S = 10


def started(deployment: Deployment, cwd: Path = ROOT, *, afresh: bool = False) -> tuple[PaywardenProcess, str]:
    """Returns a ready stream and its address."""
    stream = deployment.start("stream", cwd=cwd, afresh=afresh)
    address = stream.first_line()
    assert address.startswith("http://127.0.0.1:"), stream.log.read_text(encoding="utf-8")
    wait_until(lambda: is_ready(address), "the stream is ready", every_s=0.05)
    return stream, address


def test_it_serves_health_and_metrics_and_nothing_else(deployment: Deployment) -> None:
    stream, address = started(deployment)
    assert get(f"{address}/livez")[::2] == (200, b'{"live": true}')
    assert json.loads(get(f"{address}/readyz")[2]) == {"ready": True, "missing": []}
    assert ("process_resident_memory_bytes",) in samples(address)
    faust_pages = (
        "/",
        "/graph/",
        "/graph",
        "/router/",
        "/router/topics",
        "/table/",
        "/table",
        "/performance/",
        "/docs",
    )
    for path in (*faust_pages, "/stats", "/readyz/", "/metrics/"):
        assert get(f"{address}{path}")[0] == 404, path
    status, headers, _ = get(f"{address}/readyz", "OPTIONS")
    assert status == 405
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert stream.stop() == 0


def test_dead_letters_of_the_cluster_are_counted_by_topic_and_field(
    deployment: Deployment, kafka: KafkaServer, topic_prefix: str
) -> None:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix)
    values: list[tuple[bytes | None, bytes | None]] = [
        (b"k", letter(settings, "payments", "currency: is not known", 1_000)),
        (b"k", letter(settings, "payments", "currency: is not known", 3_000)),
        (b"k", letter(settings, "payments", "wrong magic byte: wanted 0, got 1", 2_000)),
        (b"k", letter(settings, "outcomes", "payment_id: outcome of a payment that is not known", 2_000)),
        (b"k", letter(KafkaSettings(topic_prefix="x-"), "elsewhere", "card_id: no", 2_000)),
        (b"k", b"not avro"),
        (None, b""),
        (b"k", None),
    ]
    # Another producer wrote these, before the first worker ever ran.
    produce(kafka.bootstrap, settings.topic("dead-letters"), values)
    stream, address = started(deployment)
    name = "paywarden_dead_letters_total"
    wanted = {
        (name, "payments", "currency"): 2.0,
        (name, "payments", "record"): 1.0,
        (name, "outcomes", "payment_id"): 1.0,
        (name, "other", "record"): 1.0,
        ("paywarden_dead_letters_undecodable_total",): 3.0,
        ("paywarden_dead_letter_newest_timestamp_seconds",): 3.0,
    }

    def counted() -> dict[tuple[str, ...], float]:
        return {
            key: value
            for key, value in samples(address).items()
            if key[0].startswith("paywarden_dead") and not key[0].endswith("_created")
        }

    wait_until(lambda: counted() == wanted, "all letters are counted")
    assert stream.stop() == 0
    # Letters that were counted and committed are not counted again.
    again, address = started(deployment)
    produce(kafka.bootstrap, settings.topic("dead-letters"), [(b"k", letter(settings, "outcomes", "odd", 4_000))])
    wait_until(lambda: (name, "outcomes", "record") in samples(address), "the new letter is counted")
    assert {key[1:]: value for key, value in counted().items() if key[0] == name} == {("outcomes", "record"): 1.0}
    assert again.stop() == 0
    for process in (stream, again):
        assert "secret" not in process.log.read_text(encoding="utf-8")


def test_one_signal_stops_it_in_order_and_its_folder_stays_clean(deployment: Deployment) -> None:
    where = deployment.folder / "where"
    where.mkdir()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Processes of their own, which show the very end of Python, too.
        stream, _ = started(deployment, where, afresh=True)
        stream.process.send_signal(number)
        assert stream.process.wait(timeout=PATIENCE_S) == 0
        log = stream.log.read_text(encoding="utf-8")
        assert "Traceback" not in log
        assert "rror" not in log
        assert stream.process.stdout is not None
        assert stream.process.stdout.read() == ""
    assert list(where.iterdir()) == []


def test_a_signal_during_the_start_stops_it_too(deployment: Deployment) -> None:
    stream = deployment.start("stream")
    stream.first_line()
    stream.process.send_signal(signal.SIGTERM)
    assert stream.process.wait(timeout=PATIENCE_S) == 0
    assert "Traceback" not in stream.log.read_text(encoding="utf-8")


def test_with_json_every_line_of_the_log_is_json(deployment: Deployment) -> None:
    stream = PaywardenProcess(deployment.folder, deployment.config, "--log", "json", "stream")
    deployment.running.append(stream)
    address = stream.first_line()
    wait_until(lambda: is_ready(address), "the stream is ready", every_s=0.05)
    assert stream.stop() == 0
    for line in stream.log.read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["message"]


def test_kafka_away_longer_than_the_sessions_ends_and_loses_nothing(tmp_path: Path, topic_prefix: str) -> None:
    name = "paywarden_dead_letters_total"
    with KafkaServer(tmp_path / "kafka", QUICK_RETURN) as kafka:
        settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix)
        letters = settings.topic("dead-letters")
        with Deployment(tmp_path, kafka.bootstrap, topic_prefix) as deployment:
            deployment.create_topics()
            stream, address = started(deployment)
            produce(kafka.bootstrap, letters, [(b"k", letter(settings, "payments", "card_id: odd", 1))])
            wait_until(lambda: samples(address).get((name, "payments", "card_id")) == 1, "a letter is counted")
            kafka.stop()
            # The configured session is 6 s.
            time.sleep(AWAY_S)
            assert get(f"{address}/livez")[0] == 200
            kafka.restart()
            produce(kafka.bootstrap, letters, [(b"k", letter(settings, "payments", "card_id: odd", 1))])
            wait_until(lambda: samples(address).get((name, "payments", "card_id"), 0) >= 2, "the next one is counted")
            assert stream.process.poll() is None
            # The counter is 1: the first letter was committed before, or a process that has not counted it reads it
            # again.
            time.sleep(1)
            assert samples(address)[name, "payments", "card_id"] == 2
            kafka.stop()
            time.sleep(1)
            code = stream.stop()
            log = stream.log.read_text(encoding="utf-8")
            # The stop waits for records that were on their way when Kafka went. If its time runs out, the exit code is
            # 1.
            if code != 0:
                assert code == 1
                assert log.splitlines()[-1].startswith("paywarden: the pipeline did not stop within ")
            assert "Traceback" not in log
            # A minute without Kafka must not bury the rest of the log. (FAIL is librdkafka's word.)
            assert len([line for line in log.splitlines() if " FAIL " not in line]) < 100


def test_kafka_away_longer_than_a_flush_may_take_with_payments_in_flight_loses_nothing(
    tmp_path: Path, topic_prefix: str
) -> None:
    """The batch is in the store then, and neither its events nor its offsets are on Kafka."""
    world = small_world()
    with KafkaServer(tmp_path / "kafka", QUICK_RETURN) as kafka:
        settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix)
        group = f"{topic_prefix}stream"
        with Deployment(tmp_path, kafka.bootstrap, topic_prefix, stream_batch_max=50) as deployment:
            deployment.create_topics()
            deployment.configure_internally("stream", flush_timeout_s=2)
            topics = Topics(settings)
            topics.send_payments(world[0].to_pylist())
            stream = deployment.start("stream")
            wait_until_left(settings, group, len(world[0]) - 1, "a batch is committed")
            # It has read on meanwhile, and stands in the middle of a batch.
            stream.process.send_signal(signal.SIGSTOP)
            assert lag(settings, group) > 0
            kafka.stop()
            stream.process.send_signal(signal.SIGCONT)
            assert stream.process.wait(timeout=PATIENCE_S) == 1
            last = stream.log.read_text(encoding="utf-8").splitlines()[-1]
            assert re.fullmatch(r"paywarden: Kafka did not take \d+ records in 2 s", last), last
            kafka.restart()
            # Its supervisor starts it again.
            again = deployment.start("stream")
            wait_until_worked_in(settings, group, "payments")
            topics.send_outcomes(world[1].to_pylist())
            wait_until_worked_in(settings, group, "outcomes")
            assert again.stop() == 0
            stored = read_store(deployment.store)
            assert_profiles_equal(stored, batch_profiles(*world))
            assert read_changelog(settings) == stored
            assert read_topic(settings, "dead-letters") == []


def test_it_runs_on_the_embedded_broker_of_the_demonstration(tmp_path: Path) -> None:
    broker = EmbeddedBroker()
    try:
        settings = KafkaSettings(bootstrap=broker.bootstrap)
        with Deployment(tmp_path, broker.bootstrap, "") as deployment:
            stream, address = started(deployment)
            produce(broker.bootstrap, "dead-letters", [(b"k", letter(settings, "payments", "card_id: odd", 1))])
            wait_until(lambda: ("paywarden_dead_letters_total", "payments", "card_id") in samples(address), "counted")
            assert stream.stop() == 0
            assert "Traceback" not in stream.log.read_text(encoding="utf-8")
    finally:
        broker.close()


def test_a_port_that_is_taken_is_one_line_and_exit_code_1(deployment: Deployment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        deployment.configure("stream", f"http_port = {port}\n")
        stream = deployment.start("stream")
        assert stream.process.wait(timeout=PATIENCE_S) == 1
    lines = stream.log.read_text(encoding="utf-8").splitlines()
    assert lines[-1].startswith(f"paywarden: [stream] http_host, http_port: cannot listen on 127.0.0.1:{port}: ")
    assert not [line for line in lines if "Traceback" in line]
