"""The process of `paywarden stream` on a real Kafka: health, metrics, agents, signals, and a broker that goes away."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

from paywarden.streams.kafka.client import KafkaSettings
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
# Small, so that a busy machine sees the first commit long before the last.
_BATCH = 10


def started(deployment: Deployment, cwd: Path = ROOT, *, afresh: bool = False) -> tuple[PaywardenProcess, str]:
    """Returns a ready stream and its address."""
    stream = deployment.start("stream", cwd=cwd, afresh=afresh)
    address = stream.first_line()
    assert address.startswith("http://127.0.0.1:"), stream.log.read_text(encoding="utf-8")
    wait_until(lambda: is_ready(address), "the stream is ready", every_s=0.05)
    return stream, address


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
                assert log.splitlines()[-1].startswith("paywarden: the stream did not stop within ")
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
        with Deployment(tmp_path, kafka.bootstrap, topic_prefix, stream_batch_max=_BATCH) as deployment:
            deployment.create_topics()
            deployment.configure_internally("stream", flush_timeout_s=2)
            topics = Topics(settings)
            topics.send_payments(world[0].to_pylist())
            stream = deployment.start("stream")
            wait_until_left(settings, group, len(world[0]) - 1, "a batch is committed")
            # It has read on meanwhile: a batch is in its hands, or the next one waits in its client.
            stream.process.send_signal(signal.SIGSTOP)
            assert lag(settings, group) > 2 * _BATCH
            kafka.stop()
            stream.process.send_signal(signal.SIGCONT)
            assert stream.process.wait(timeout=PATIENCE_S) == 1
            last = stream.log.read_text(encoding="utf-8").splitlines()[-1]
            assert re.fullmatch(r"paywarden: Kafka did not take \d+ records in 2 s", last), last
            kafka.restart()
            # Its supervisor starts it again.
            deployment.configure_internally("stream", batch_max=2000)
            again = deployment.start("stream")
            wait_until_worked_in(settings, group, "payments")
            topics.send_outcomes(world[1].to_pylist())
            wait_until_worked_in(settings, group, "outcomes")
            assert again.stop() == 0
            stored = read_store(deployment.store)
            assert_profiles_equal(stored, batch_profiles(*world))
            assert read_changelog(settings) == stored
            assert read_topic(settings, "dead-letters") == []
