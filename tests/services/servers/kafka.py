"""A real Apache Kafka for tests: one node in KRaft mode, broker and controller in one process."""

from __future__ import annotations

import base64
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.patience import PATIENCE_S
from tests.services.fetch import kafka_dir, tool
from tests.services.kafka_classes import small_jvm
from tests.services.made_once import made_once
from tests.services.ports import free_port
from tests.services.servers.java import JavaProcess, JavaService, StartFailed

# Files that differ between formatted folders.
_IDS = ("cluster.id=", "directory.id=")

# For benchmarks: what Kafka's own scripts set, with a heap for one small broker.
PRODUCTION_JVM = (
    *("-Xmx1g", "-Xms1g", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"),
    *("-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent", "-Djava.awt.headless=true"),
)

# For benchmarks: Kafka's own defaults where ours below differ, and cost something at rest.
PRODUCTION_BROKER: Mapping[str, str] = {
    "broker.heartbeat.interval.ms": "2000",
    "metadata.max.idle.interval.ms": "500",
    "num.network.threads": "3",
    "num.io.threads": "8",
}

# For tests that kill the broker: the old session must expire before the broker may register again.
QUICK_RETURN: Mapping[str, str] = {"broker.session.timeout.ms": "3000"}


class KafkaServer(JavaService):
    """One broker on 127.0.0.1, its data under `folder`; a context manager.

    `settings` override our lines of server.properties; `jvm`: options of Java, by default those of a small process.
    Using a topic does not create it: a test creates its topics.
    Only one thread at a time may use it. Any process may connect as a client.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None, jvm: Sequence[str] = ()) -> None:
        super().__init__(folder)
        self._settings, self._jvm = dict(settings or {}), tuple(jvm)

    @property
    def bootstrap(self) -> str:
        """The `host:port` for `bootstrap.servers`. It stays the same after a restart."""
        assert self._port, "the server has not been started"
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The pid of the running broker."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def data(self) -> Path:
        """The folder of the broker's logs, `TOPIC-PARTITION` each."""
        return self._folder / "data"

    @property
    def running(self) -> bool:
        """Whether the broker's process runs."""
        return self._process is not None and self._process.running

    def create_topics(self, *topics: NewTopic) -> None:
        """Create topics. Returns when each partition has a leader."""
        create_topics(self.bootstrap, *topics)

    def _prepare(self) -> None:
        self._format(free_port(), free_port())

    def _format(self, port: int, controller_port: int) -> None:
        self._port = port
        data = self.data
        if data.exists():
            shutil.rmtree(data)
        shutil.copytree(made_once("kafka-formatted", partial(self._format_once, port, controller_port)), data)
        identity = data / "meta.properties"
        lines = [line for line in identity.read_text(encoding="utf-8").splitlines() if not line.startswith(_IDS)]
        # Each broker is a cluster of its own, with a folder of its own.
        lines += [f"{name}{_new_id()}" for name in _IDS]
        identity.write_text("\n".join([*lines, ""]), encoding="utf-8")
        self._write_config(_properties(port, controller_port, data))

    def _format_once(self, port: int, controller_port: int, folder: Path) -> None:
        """Let Kafka's own tool format a folder, which takes two seconds: a run does it once, and brokers copy it."""
        folder.mkdir()
        self._write_config(_properties(port, controller_port, folder))
        # The cluster id may begin with a dash. Only the `=` form keeps the tool from reading it as an option.
        options = ["format", f"--cluster-id={_new_id()}", "--config", str(self._config)]
        done = subprocess.run(
            [tool("java"), *self._arguments("kafka.tools.StorageTool"), *options],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode != 0:
            raise StartFailed(f"Kafka's storage was not formatted: {(done.stdout + done.stderr).strip()}")

    def _write_config(self, properties: Mapping[str, str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{name}={value}\n" for name, value in {**properties, **self._settings}.items()]
        self._config.write_text("".join(lines), encoding="utf-8")

    def _run(self) -> None:
        self._starts += 1
        arguments = [*self._arguments("kafka.Kafka"), str(self._config)]
        log = self._folder / f"kafka-{self._starts}.log"
        process = JavaProcess(arguments, log=log, cwd=self._folder)
        self._process = process
        # Believe only this process's own log line: another broker may answer on a port that was taken.
        process.wait_until(
            lambda: b"Kafka Server started" in log.read_bytes() and _answers(self.bootstrap),
            what=f"Kafka on {self.bootstrap}",
        )

    @property
    def _config(self) -> Path:
        return self._folder / "server.properties"

    def _arguments(self, main_class: str) -> list[str]:
        logging = "-Dlog4j2.level=INFO"
        return [*(self._jvm or small_jvm()), logging, "-cp", f"{kafka_dir()}/*", main_class]


def _new_id() -> str:
    """Returns an id as Kafka makes them."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode("ascii")


def _properties(port: int, controller_port: int, data: Path) -> dict[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # A busy machine may stop for seconds. If the controller misses the broker for this long, its partitions have no
        # leader for a moment, and librdkafka may then lose some for good: see streams/kafka/stalls/stall_detector.py.
        "broker.heartbeat.interval.ms": "500",
        "broker.session.timeout.ms": "60000",
        # No record twice a second that says that nothing happens: a third of what an idle broker takes.
        "metadata.max.idle.interval.ms": "0",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "log.cleaner.dedupe.buffer.size": "16777216",
    }


def _answers(bootstrap: str) -> bool:
    # Without a log callback, librdkafka writes each refused connection to our standard error.
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        return bool(client.list_topics(timeout=10.0).brokers)
    except KafkaException:
        return False


def create_topics(bootstrap: str, *topics: NewTopic) -> None:
    """Create topics. Returns when each partition has a leader. An existing topic is an error."""
    client = AdminClient({"bootstrap.servers": bootstrap})
    for done in client.create_topics(list(topics), request_timeout=PATIENCE_S).values():
        done.result()
    deadline = time.monotonic() + PATIENCE_S
    wanted = {topic.topic: topic.num_partitions for topic in topics}
    while not _all_led(client, wanted):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no leader for every partition of {sorted(wanted)}")
        time.sleep(0.05)


def _all_led(client: AdminClient, wanted: Mapping[str, int]) -> bool:
    """Returns whether each of these topics has its partitions, and each of them a leader.

    The broker is asked about these topics only: a shared one may have thousands of others.
    """
    described = client.describe_topics(TopicCollection(list(wanted)), request_timeout=PATIENCE_S)
    for name, answer in described.items():
        try:
            partitions = answer.result().partitions
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return False
            raise
        if len(partitions) != wanted[name] or any(partition.leader is None for partition in partitions):
            return False
    return True


def produce(bootstrap: str, topic: str, records: Iterable[tuple[str | bytes | None, bytes | None]]) -> int:
    """Write (key, value) records. Returns their number once all are acknowledged; raises for one that was not."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "enable.idempotence": True,
            # A missing topic is a mistake in the test. Do not wait for it.
            "topic.metadata.propagation.max.ms": 2_000,
            # Show only errors: while a fresh broker's coordinator loads, the client asks again, and that is no error.
            "log_level": 3,
        }
    )
    refused: list[str] = []
    count = 0
    for key, value in records:
        producer.produce(
            topic,
            key=key,
            value=value,
            on_delivery=lambda error, _: refused.append(str(error)) if error is not None else None,
        )
        producer.poll(0)
        count += 1
    left = producer.flush(PATIENCE_S)
    if left or refused:
        raise RuntimeError(f"{left} of {count} records unacknowledged, refused: {refused[:3]}")
    return count


def consume(bootstrap: str, topic: str, count: int, *, timeout_s: float = PATIENCE_S) -> Sequence[Message]:
    """Returns the first `count` records of all partitions, from their beginnings, each partition in its order.

    Raises TimeoutError when there are fewer. Joins no group and commits nothing.
    """
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=timeout_s).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        return _read(consumer, count, timeout_s)
    finally:
        consumer.close()


def _read(consumer: Consumer, count: int, timeout_s: float) -> list[Message]:
    messages: list[Message] = []
    deadline = time.monotonic() + timeout_s
    while len(messages) < count:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"{len(messages)} of {count} records within {timeout_s:.0f} s")
        for message in consumer.consume(count - len(messages), timeout=min(left_s, 1.0)):
            error = message.error()
            if error is not None:
                raise KafkaException(error)
            messages.append(message)
    return messages
