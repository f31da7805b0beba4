"""The real broker under the other integration tests, and our records through it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.cimpl import NewTopic

from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from tests.patience import PATIENCE_S
from tests.services import fetch
from tests.services.fetch import ServiceMissing
from tests.services.ports import free_port
from tests.services.servers.java import JavaProcess, StartFailed
from tests.services.servers.kafka import QUICK_COMPACTION, QUICK_RETURN, KafkaServer, consume, produce

IDS = LocalSchemaIds()


def payment(number: int) -> dict[str, object]:
    return {
        "payment_id": f"p-{number}",
        "event_time_ms": 1_700_000_000_000 + number,
        "card_id": f"c-{number % 7}",
        "merchant_id": "m-1",
        "device_id": None,
        "ip": None,
        "amount_minor": number,
        "currency": "EUR",
        "mcc": None,
        "country": None,
        "channel": "pos",
        "utc_offset_minutes": None,
        "declined": None,
    }


def value_of(message: Message) -> bytes:
    value = message.value()
    assert value is not None
    return bytes(value)


def gone(pid: int) -> bool:
    """Returns whether no process has this pid. A zombie, which its parent has not reaped yet, counts as gone."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_our_records_go_through_a_real_broker(kafka: KafkaServer, topic_prefix: str) -> None:
    topic = f"{topic_prefix}payments"
    kafka.create_topics(NewTopic(topic, num_partitions=3, replication_factor=1))
    encoder, decoder = Encoder("payments", IDS.id_of("payments")), Decoder("payments", IDS)
    payments = [payment(number) for number in range(500)]
    sent = produce(kafka.bootstrap, topic, [(str(p["card_id"]), encoder.encode(p)) for p in payments])
    assert sent == 500
    read = [decoder.decode(value_of(message)) for message in consume(kafka.bootstrap, topic, 500)]
    assert sorted(read, key=lambda p: int(p["amount_minor"])) == payments


def test_a_card_keeps_its_partition_and_its_order(kafka: KafkaServer, topic_prefix: str) -> None:
    topic = f"{topic_prefix}order"
    kafka.create_topics(NewTopic(topic, num_partitions=3, replication_factor=1))
    produce(kafka.bootstrap, topic, [(f"c-{n % 7}", str(n).encode()) for n in range(210)])
    seen: dict[bytes, list[tuple[int | None, int]]] = {}
    for message in consume(kafka.bootstrap, topic, 210):
        key = message.key()
        assert isinstance(key, bytes)
        seen.setdefault(key, []).append((message.partition(), int(value_of(message))))
    assert len(seen) == 7
    for places in seen.values():
        assert len({partition for partition, _ in places}) == 1
        assert [number for _, number in places] == sorted(number for _, number in places)


def test_reading_more_records_than_there_are_is_an_error(kafka: KafkaServer, topic_prefix: str) -> None:
    topic = f"{topic_prefix}few"
    kafka.create_topics(NewTopic(topic, num_partitions=1, replication_factor=1))
    produce(kafka.bootstrap, topic, [(None, b"one")])
    # On a busy machine the first one may be late, too.
    with pytest.raises(TimeoutError, match=r"[01] of 2 records"):
        consume(kafka.bootstrap, topic, 2, timeout_s=5.0)


def test_a_topic_is_not_created_by_using_it(kafka: KafkaServer, topic_prefix: str) -> None:
    with pytest.raises(RuntimeError, match=r"UNKNOWN_TOPIC|Unknown topic"):
        produce(kafka.bootstrap, f"{topic_prefix}absent", [(None, b"x")])


def test_a_killed_broker_restarts_with_every_acknowledged_record(tmp_path: Path) -> None:
    with KafkaServer(tmp_path, QUICK_RETURN) as server:
        server.create_topics(NewTopic("decisions", num_partitions=2, replication_factor=1))
        acknowledged: set[bytes] = set()

        def delivered(error: object, message: Message) -> None:
            if error is None:
                acknowledged.add(value_of(message))

        producer = Producer(
            {
                "bootstrap.servers": server.bootstrap,
                "acks": "all",
                "enable.idempotence": True,
                "log_level": 0,
            }
        )
        address, pid = server.bootstrap, server.pid
        for number in range(2_000):
            producer.produce("decisions", key=str(number), value=str(number).encode(), on_delivery=delivered)
            producer.poll(0)
            # Kill the broker while some records are acknowledged and others are on their way.
            if number == 1_000:
                assert producer.flush(PATIENCE_S) == 0
            if number == 1_500:
                server.kill()
        assert gone(pid)
        assert not server.running
        before = len(acknowledged)
        assert 1_001 <= before < 2_000
        server.restart()
        assert server.bootstrap == address
        assert producer.flush(PATIENCE_S) == 0
        assert acknowledged == {str(number).encode() for number in range(2_000)}
        read = [value_of(message) for message in consume(server.bootstrap, "decisions", 2_000)]
        assert sorted(read) == sorted(acknowledged)


def test_a_compacted_topic_keeps_the_newest_record_of_a_key(tmp_path: Path) -> None:
    with KafkaServer(tmp_path, QUICK_COMPACTION) as server:
        compacted = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
        server.create_topics(NewTopic("profiles", num_partitions=1, replication_factor=1, config=compacted))
        deadline = time.monotonic() + PATIENCE_S
        rounds = 0
        while True:
            rounds += 1
            # Each round closes the segment before it, which the cleaner may then touch.
            produce(server.bootstrap, "profiles", [("card:1", str(rounds).encode())])
            last = consume(server.bootstrap, "profiles", 1)[0].offset()
            if last is not None and last > 0:
                break
            assert time.monotonic() < deadline, "the cleaner did not run"
            time.sleep(0.2)


def test_a_taken_port_is_replaced_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = iter([port, free_port(), free_port(), free_port()])
        monkeypatch.setattr("tests.services.servers.kafka.free_port", lambda: next(ports))
        with KafkaServer(tmp_path) as server:
            assert not server.bootstrap.endswith(f":{port}")
            assert server.running
        assert not server.running


def test_the_broker_of_a_run_maps_the_classes_that_java_kept(kafka: KafkaServer) -> None:
    """Java goes on without a file that does not fit, and each start takes twice the CPU time."""
    config = str(kafka.folder / "server.properties")
    (broker,) = [one for one in psutil.process_iter(["cmdline"]) if config in (one.info["cmdline"] or ())[-1:]]
    assert any(mapped.path.endswith("/classes.jsa") for mapped in broker.memory_maps())


def test_a_broker_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"(?s)ended with status .*no\.such\.Reporter.*whole log: "):
        KafkaServer(tmp_path, {"metric.reporters": "no.such.Reporter"}).start()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_service_ends_with_the_process_that_started_it(how: signal.Signals | None, tmp_path: Path) -> None:
    source = tmp_path / "Sleep.java"
    source.write_text("class Sleep { public static void main(String[] a) throws Exception { Thread.sleep(600_000); } }")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.services.servers.java import JavaProcess\n"
        f"process = JavaProcess(['Sleep.java'], log=Path({str(tmp_path / 'log')!r}), cwd=Path({str(tmp_path)!r}))\n"
        "print(process.pid, flush=True)\n"
        "sys.stdin.readline()\n"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as run:
        assert run.stdout is not None
        assert run.stdin is not None
        pid = int(run.stdout.readline())
        assert not gone(pid)
        if how is None:
            run.stdin.write(b"\n")
            run.stdin.flush()
        else:
            run.send_signal(how)
        run.wait()
    deadline = time.monotonic() + PATIENCE_S
    while not gone(pid):
        assert time.monotonic() < deadline, "the process outlived its run"
        time.sleep(0.05)


def test_a_process_that_ends_during_its_start_is_reported_with_its_log(tmp_path: Path) -> None:
    process = JavaProcess(["NoSuchClass"], log=tmp_path / "log", cwd=tmp_path)
    with pytest.raises(StartFailed, match=r"(?s)the thing ended with status 1.*NoSuchClass"):
        process.wait_until(lambda: False, what="the thing")


def test_missing_java_and_maven_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceMissing, match=r"`java` is not on PATH: .* need a Java 17"):
        fetch.tool("java")
    monkeypatch.setenv("PAYWARDEN_SERVICES_DIR", str(tmp_path / "services"))
    with pytest.raises(ServiceMissing, match=r"`mvn` is not on PATH: .* need Apache Maven"):
        fetch.kafka_dir()
    assert list((tmp_path / "services").glob("kafka*")) == []


def test_a_service_that_was_fetched_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAYWARDEN_SERVICES_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    (tmp_path / fetch.KAFKA).mkdir()
    assert fetch.kafka_dir() == tmp_path / fetch.KAFKA
