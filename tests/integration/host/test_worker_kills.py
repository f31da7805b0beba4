"""Scoring workers and the companion are killed at random under load: every answered payment has one decision.

Meanwhile a stream changes profiles, and the mirror follows. It is small: pages that a dead reader holds would fill it.

PAYWARDEN_KILLS=1000 runs the whole test, about twenty minutes. --log-cli-level=info shows each kill.
"""

from __future__ import annotations

import http.client
import itertools
import logging
import os
import random
import shutil
import threading
import time
import urllib.request
from contextlib import closing
from urllib.parse import urlsplit

import psutil
import pytest
from confluent_kafka import TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from paywarden.schemas.avro import Decoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.state.mirror_file import MirrorSettings, MirrorView
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.reading import consume, make_consumer
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import PaywardenProcess, wait_until
from tests.services.servers.kafka import KafkaServer
from tests.worlds.small import small_world
from tests.worlds.stream.topics import Topics, read_store, wait_until_worked_in
from tests.worlds.stream.topics import small_world as simulated

_log = logging.getLogger(__name__)

KILLS = int(os.environ.get("PAYWARDEN_KILLS", "40"))
WORKERS, CLIENTS = 2, 4
# One kill in this many hits the companion, which takes seconds to restart.
COMPANION_EVERY = 20
MIRROR_MB = 16
PROTOBUF = "application/x-protobuf"
# Callers pay without a pause around each kill, so that it cuts off calls in all their stages. Between kills they pause:
# two cores of calls would prove no more.
AROUND_A_KILL_S, PAUSE_S = 0.1, 0.05
# A caller gets these while another worker decides the payment or the server is overloaded. The caller asks again.
AGAIN = (429, 503, 504)

Decided = tuple[str, float, str]

pytestmark = pytest.mark.timeout(900 + 3 * KILLS)


class Client(threading.Thread):
    """Pays, and repeats a request with the same id until it is answered; sometimes once more after that.

    It pauses before each payment, unless `hurry` is set.
    """

    def __init__(self, target: str, number: int, hurry: threading.Event) -> None:
        super().__init__()
        self._address, self._number, self._hurry = urlsplit(target).netloc, number, hurry
        self._rng = random.Random(number)
        self._connection: http.client.HTTPConnection | None = None
        self._stopped = threading.Event()
        self.answers: dict[str, set[Decided]] = {}
        self.repeats = self.broken = 0

    def run(self) -> None:
        count = 0
        while not self._stopped.is_set():
            count += 1
            self._hurry.wait(PAUSE_S)
            self._pay(f"client-{self._number}-{count}")
            if self._rng.random() < 0.2:
                self._pay(f"client-{self._number}-{max(1, count - self._rng.randrange(50))}")
            # Two clients send requests for one payment at about the same time.
            self._pay(f"shared-{int(time.time() * 20)}")
        self._disconnect()

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def _pay(self, payment_id: str) -> None:
        request = ScoreRequest(
            payment_id=payment_id,
            event_time_ms=time.time_ns() // 1_000_000,
            card_id="card-1",
            merchant_id="merchant-1",
            amount_minor=100 + len(payment_id),
            currency="EUR",
        ).SerializeToString()
        deadline = time.monotonic() + PATIENCE_S
        while (body := self._ask(request)) is None:
            self.repeats += 1
            assert time.monotonic() < deadline, "no answer"
        response = ScoreResponse.FromString(body)
        assert response.payment_id == payment_id
        decided = (response.decision_id, response.score, response.action)
        self.answers.setdefault(payment_id, set()).add(decided)

    def _ask(self, request: bytes) -> bytes | None:
        """Returns the answer, or None if the caller must ask again."""
        try:
            if self._connection is None or self._rng.random() < 0.1:
                self._disconnect()
                self._connection = http.client.HTTPConnection(self._address, timeout=2)
            self._connection.request("POST", "/v1/score", request, {"Content-Type": PROTOBUF})
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            self.broken += 1
            self._disconnect()
            time.sleep(0.005)
            return None
        if answer.status in AGAIN:
            time.sleep(0.01)
            return None
        assert answer.status == 200, (answer.status, body)
        return body

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Payments(threading.Thread):
    """Sends payments to the topic, so that the stream changes profiles and the companion the mirror."""

    def __init__(self, settings: KafkaSettings) -> None:
        super().__init__()
        self._topics, self._rows = Topics(settings), simulated()[0].to_pylist()[:400]
        self._stopped = threading.Event()

    def run(self) -> None:
        for number in itertools.count():
            for first in range(0, len(self._rows), 20):
                if self._stopped.wait(0.1):
                    return
                rows = self._rows[first : first + 20]
                self._topics.send_payments({**row, "payment_id": f"{number}-{row['payment_id']}"} for row in rows)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


class Killer:
    """Waits until all workers are there, then kills one of them, sometimes the companion. Callers hurry meanwhile."""

    def __init__(
        self, deployment: Deployment, serve: PaywardenProcess, companion: PaywardenProcess, hurry: threading.Event
    ) -> None:
        self._deployment, self._companion, self._hurry = deployment, companion, hurry
        self._parent = psutil.Process(serve.pid)
        self._rng = random.Random(7)
        self.kills = 0

    def kill_one(self) -> None:
        # The admin process is killed at times, too.
        wait_until(lambda: len(self._parent.children()) == WORKERS + 1, "the workers are there")
        time.sleep(self._rng.uniform(0.1, 1.2))
        self._hurry.set()
        time.sleep(AROUND_A_KILL_S)
        self._kill()
        time.sleep(AROUND_A_KILL_S)
        self._hurry.clear()

    def _kill(self) -> None:
        self.kills += 1
        if self.kills % COMPANION_EVERY == 0:
            self._companion.kill()
            self._companion = self._deployment.start("companion")
            return
        self._rng.choice(self._parent.children()).kill()


@pytest.fixture
def deployment(deployment: Deployment) -> Deployment:
    deployment.configure("companion", "fill_from_store = false\n")
    # Small segments, so that some are finished, shipped and kept while retries ask for decisions in them.
    deployment.configure_internally("outbox", segment_bytes=100_000)
    # Room for all payments of the window. A payment without a place is decided again when it is retried.
    config = deployment.config.read_text(encoding="utf-8")
    config = config.replace("payments_max = 100000", f"payments_max = {200_000 + 4_000 * KILLS}")
    config = config.replace("size_mb = 256", f"size_mb = {MIRROR_MB}")
    deployment.config.write_text(config, encoding="utf-8")
    shutil.copytree(small_world.trained_bundle(), deployment.bundle)
    return deployment


def not_remembered(target: str) -> dict[str, float]:
    """Returns how many decisions found no place in the table, by reason."""
    wait_until(lambda: listens(target), "a worker answers")
    with urllib.request.urlopen(f"{target}/metrics", timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    counts = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    return {reason: counts[f"paywarden_answered_{reason}_total"] for reason in ("full", "collisions")}


def listens(target: str) -> bool:
    """Returns whether the worker listens: the last kill is a moment ago."""
    try:
        with urllib.request.urlopen(f"{target}/livez", timeout=PATIENCE_S) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def decisions_on_topic(settings: KafkaSettings, wanted: set[str]) -> dict[str, list[Decided]]:
    """Returns decisions by payment, once each of the `wanted` payments has one and no more come."""
    consumer = make_consumer(settings, group_id="unused")
    consumer.assign(
        [TopicPartition(settings.topic("decisions"), number, 0) for number in partitions_of(settings, "decisions")]
    )
    decoder = Decoder("decisions", LocalSchemaIds())
    found: dict[str, list[Decided]] = {}

    def more() -> int:
        records = consume(consumer, 10_000, 0.2).records
        for record in records:
            assert record.value is not None
            row = decoder.decode(record.value)
            found.setdefault(row["payment_id"], []).append((row["decision_id"], row["score"], row["action"]))
        return len(records)

    wait_until(lambda: more() >= 0 and wanted <= found.keys(), "every decision is on the topic")
    quiet_until = time.monotonic() + 3
    while time.monotonic() < quiet_until:
        if more():
            quiet_until = time.monotonic() + 3
    consumer.close()
    return found


def test_every_answered_payment_has_exactly_one_decision_after_kills(
    deployment: Deployment, kafka: KafkaServer, topic_prefix: str
) -> None:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix)
    stream = deployment.start("stream")
    companion = deployment.start("companion")
    serve = deployment.start("serve", "--workers", str(WORKERS))
    target = serve.first_line()
    hurry = threading.Event()
    clients, payments = [Client(target, number, hurry) for number in range(CLIENTS)], Payments(settings)
    threads: tuple[Client | Payments, ...] = (*clients, payments)
    for thread in threads:
        thread.start()
    killer = Killer(deployment, serve, companion, hurry)
    began = time.monotonic()
    try:
        while killer.kills < KILLS:
            killer.kill_one()
            assert all(client.is_alive() for client in clients), "a client has ended by itself"
    finally:
        for thread in threads:
            thread.stop()
    took_s = time.monotonic() - began
    assert not_remembered(target) == {"full": 0.0, "collisions": 0.0}

    answered: dict[str, set[Decided]] = {}
    for client in clients:
        for payment_id, decided in client.answers.items():
            answered.setdefault(payment_id, set()).update(decided)
    on_topic = decisions_on_topic(settings, set(answered))
    _log.info(
        "%d kills in %.0f s; %d payments answered, %d decided; %d requests broken, %d asked again",
        *(killer.kills, took_s, len(answered), len(on_topic)),
        *(sum(client.broken for client in clients), sum(client.repeats for client in clients)),
    )
    assert not {payment_id: decided for payment_id, decided in on_topic.items() if len(decided) != 1}
    assert not {payment_id for payment_id, decided in answered.items() if decided != set(on_topic[payment_id])}
    # The test would prove nothing if no caller had been cut off.
    assert sum(client.broken for client in clients) > KILLS / 2
    assert len(answered) > 10 * KILLS
    wait_until_worked_in(settings, f"{topic_prefix}stream")
    assert stream.stop() == 0
    stored = read_store(deployment.store)
    assert len(stored) > 50
    with closing(MirrorView(MirrorSettings(path=str(deployment.mirror), size_mb=MIRROR_MB))) as mirror:
        wait_until(lambda: mirror.read(stored) == stored, "the mirror is the store", every_s=0.1)
