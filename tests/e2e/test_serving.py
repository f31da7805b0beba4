"""The whole path with real processes on a real Kafka: the endpoint's features are those that replay computes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import TopicPartition

from paywarden.features.datasets.simulator import DEFAULT_START_MS, simulate, split_at
from paywarden.features.history.history import history_of_tables, write_history
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.models.metrics.evaluation import Days
from paywarden.models.training.table import LabelRules, training_table
from paywarden.models.training.training import train_bundle
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.ops.loadgen.traffic import requests_of
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest, ScoreBatchResponse, ScoreRequest, ScoreResponse
from paywarden.scoring.state.mirror_file import MirrorSettings, MirrorView
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.kafka.reading import consume, make_consumer
from paywarden.streams.maintenance.backfill import backfill
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import is_ready, post, run_paywarden, wait_until
from tests.worlds.stream.packed import sources_of

DAY_MS = 86_400_000
HISTORY_DAYS, LIVE_DAYS, CARDS = 30, 4, 500
LIVE_PAYMENTS = 800
PROTOBUF = "application/x-protobuf"


class World:
    """A simulated past in a store and the bundle trained on it, both in `folder`, and a live part to send."""

    def __init__(self, folder: Path) -> None:
        self.bundle, self.store = folder / "bundle", folder / "store"
        self.tables = simulate(cards=CARDS, days=HISTORY_DAYS + LIVE_DAYS, seed=11)
        past, live = split_at(*self.tables, DEFAULT_START_MS + HISTORY_DAYS * DAY_MS)
        self.live_payments = live[0].slice(0, LIVE_PAYMENTS)
        last_ms = self.live_payments["event_time_ms"][-1].as_py()
        self.live_outcomes = [row for row in live[1].to_pylist() if row["outcome_time_ms"] <= last_ms]
        engine, rates = FeatureEngine(), load_rates()
        history = history_of_tables(*past)
        first_day = DEFAULT_START_MS // DAY_MS
        window = Days(first_day + 7, first_day + HISTORY_DAYS - 8)
        table = training_table(history, window, engine=engine, rates=rates, labels=LabelRules(7))
        settings = TrainingSettings(trees=30, early_stopping_rounds=0, threads=1)
        train_bundle(table, window, self.bundle, engine=engine, settings=settings)
        store = LmdbStore.from_settings(LmdbSettings(path=str(self.store)))
        backfill(history, store, engine=engine, rates=rates, outcome_days=120)
        store.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def deployment(deployment: Deployment, world: World) -> Deployment:
    shutil.copytree(world.bundle, deployment.bundle)
    shutil.copytree(world.store, deployment.store)
    return deployment


def start_all(deployment: Deployment, *, serve_afresh: bool = False) -> str:
    """Start stream, companion and one worker. Returns the endpoint's address once it is ready."""
    deployment.start("stream")
    deployment.start("companion")
    target = deployment.start("serve", afresh=serve_afresh).first_line()
    wait_until(lambda: is_ready(target), "the worker is ready")
    return target


class LiveTopics:
    """Sends payments and outcomes, and waits until the mirror contains them."""

    def __init__(self, settings: KafkaSettings, deployment: Deployment) -> None:
        ids = LocalSchemaIds()
        self._settings = settings
        self._producer = make_producer(settings, linger_ms=0)
        self._payments = Encoder("payments", ids.id_of("payments"))
        self._outcomes = Encoder("outcomes", ids.id_of("outcomes"))
        self._mirror = MirrorView(MirrorSettings(path=str(deployment.mirror), size_mb=256))
        self._awaited: dict[tuple[bytes, int], int] = {}

    def send_payment(self, row: dict[str, Any]) -> None:
        keys = [f"{name}:{row[f'{name}_id']}".encode() for name in ("card", "merchant", "device") if row[f"{name}_id"]]
        value = self._payments.encode(row)
        self._produce("payments", value, row["card_id"], keys, 0)

    def send_outcome(self, row: dict[str, Any], keys: list[bytes]) -> None:
        self._produce("outcomes", self._outcomes.encode(row), row["payment_id"], keys, 1)

    def _produce(self, topic: str, value: bytes, key: str, profile_keys: list[bytes], kind: int) -> None:
        def on_delivery(error: Any, message: Any) -> None:
            assert error is None
            for profile_key in profile_keys:
                self._awaited[profile_key, 2 * message.partition() + kind] = message.offset()

        self._producer.produce(self._settings.topic(topic), value, key=key, on_delivery=on_delivery)

    def wait_for_mirror(self) -> None:
        """Wait until every profile of the sent events contains them."""
        assert self._producer.flush(PATIENCE_S) == 0
        wait_until(self._arrived, "the mirror contains what was sent", every_s=0.002)
        self._awaited.clear()

    def _arrived(self) -> bool:
        states = self._mirror.read({key for key, _ in self._awaited})
        return all(
            (state := states[key]) is not None and sources_of(state).get(source, -1) >= offset
            for (key, source), offset in self._awaited.items()
        )


def score_batch(target: str, requests: list[ScoreRequest]) -> list[ScoreResponse]:
    body = ScoreBatchRequest(requests=requests).SerializeToString()
    status, answer = post(f"{target}/v1/score:batch", body, PROTOBUF)
    assert status == 200, answer
    return list(ScoreBatchResponse.FromString(answer).responses)


def read_decisions(settings: KafkaSettings, wanted: set[str]) -> list[dict[str, Any]]:
    """Returns all decisions on the topic, once the wanted ones (by decision_id) are there."""
    consumer = make_consumer(settings, group_id="decision-reader")
    topic = settings.topic("decisions")
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions_of(settings, "decisions")])
    decoder = Decoder("decisions", LocalSchemaIds())
    found: list[dict[str, Any]] = []

    def all_there() -> bool:
        for record in consume(consumer, 1000, 0.1).records:
            assert record.value is not None
            found.append(decoder.decode(record.value))
        return wanted <= {decision["decision_id"] for decision in found}

    wait_until(all_there, "the decisions are on the topic")
    consumer.close()
    return found


def waves(world: World) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Returns (outcomes, payments) of each wave: all that can be sent at once if each entity's events keep their order.

    A payment comes in a later wave than the payments before it that share an entity with it, and not before their
    outcomes. An outcome is known to the payments of its own wave.
    """
    payments = world.live_payments.to_pylist()
    keys_of = {row["payment_id"]: entity_keys(row) for row in world.tables[0].to_pylist()}
    # At the same millisecond, a replay also puts the payment first.
    events = [(row["event_time_ms"], 0, row) for row in payments]
    events += [(row["outcome_time_ms"], 1, row) for row in world.live_outcomes]
    found: dict[int, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    # The first wave that an entity's next event may be in.
    free: dict[bytes, int] = {}
    for _, kind, row in sorted(events, key=lambda event: event[:2]):
        keys = keys_of[row["payment_id"]]
        wave = max(free.get(key, 0) for key in keys)
        outcomes, scored = found.setdefault(wave, ([], []))
        (scored, outcomes)[kind].append(row)
        free.update(dict.fromkeys(keys, wave + (kind == 0)))
    # Outcomes after the last payment of their entities are in no vector.
    return [found[wave] for wave in range(1 + max(wave for wave, (_, scored) in found.items() if scored))]


def test_the_endpoints_vectors_equal_those_of_replay_to_the_last_bit(
    deployment: Deployment, world: World, settings: KafkaSettings, tmp_path: Path
) -> None:
    target = start_all(deployment)
    topics = LiveTopics(settings, deployment)
    keys_of = {row["payment_id"]: entity_keys(row) for row in world.tables[0].to_pylist()}
    fraud: dict[str, bool] = past_labels(world)
    responses: list[ScoreResponse] = []
    for outcomes, payments in waves(world):
        for outcome in outcomes:
            is_fraud = outcome["label"] == "fraud"
            # An outcome that changes nothing leaves no trace to wait for.
            changes = fraud.get(outcome["payment_id"], False) != is_fraud
            fraud[outcome["payment_id"]] = is_fraud
            topics.send_outcome(outcome, keys_of[outcome["payment_id"]] if changes else [])
        # For the payments of the wave before, too.
        topics.wait_for_mirror()
        table = pa.Table.from_pylist(payments, schema=world.live_payments.schema)
        responses += score_batch(target, requests_of(table, id_prefix=""))
        for row in payments:
            topics.send_payment(row)
    decisions = {d["payment_id"]: d for d in read_decisions(settings, {r.decision_id for r in responses})}
    assert len(decisions) == len(responses) == LIVE_PAYMENTS

    write_history(tmp_path / "data", *world.tables)
    replayed = run_paywarden(
        *("replay", "--data", str(tmp_path / "data"), "--bundle", str(deployment.bundle)),
        *("--vectors", "--out", str(tmp_path / "replay")),
    )
    assert replayed.returncode == 0, replayed.stderr
    wanted = {row["payment_id"]: row for row in pq.read_table(tmp_path / "replay" / "decisions.parquet").to_pylist()}
    names = FeatureEngine().plan.names
    for response in responses:
        decision, row = decisions[response.payment_id], wanted[response.payment_id]
        differing = [
            (name, got, expected)
            for name, got, expected in zip(
                names, np.frombuffer(decision["vector"], "<f4"), np.frombuffer(row["vector"], "<f4"), strict=True
            )
            if got.tobytes() != expected.tobytes()
        ]
        assert not differing
        assert decision["score"] == response.score == row["score"]
    # The test would prove nothing if the live part left no trace in the features.
    vectors = np.array([np.frombuffer(d["vector"], "<f4") for d in decisions.values()])
    assert np.nanmax(vectors[:, names.index("card_count_1d")]) >= 3
    assert np.nanmax(vectors[:, names.index("merchant_fraud_share_30d")]) > 0


def past_labels(world: World) -> dict[str, bool]:
    start_ms = DEFAULT_START_MS + HISTORY_DAYS * DAY_MS
    return {
        row["payment_id"]: row["label"] == "fraud"
        for row in world.tables[1].to_pylist()
        if row["outcome_time_ms"] < start_ms
    }


def entity_keys(row: dict[str, Any]) -> list[bytes]:
    return [f"{name}:{row[f'{name}_id']}".encode() for name in ("card", "merchant", "device") if row[f"{name}_id"]]


def test_a_scoring_process_has_no_kafka_aerospike_or_other_socket(deployment: Deployment, world: World) -> None:
    target = start_all(deployment, serve_afresh=True)
    requests = requests_of(world.live_payments.slice(0, 50), id_prefix="")
    score_batch(target, requests)
    parent = psutil.Process(deployment.running[-1].pid)
    processes = [parent, *parent.children(recursive=True)]
    assert len(processes) == 3
    # The second line is the address of gRPC, the third that of the admin process.
    serve = deployment.running[-1]
    scoring_ports = {port_of(target), port_of(serve.first_line())}
    admin_ports = {port_of(serve.first_line())}
    ports = scoring_ports | admin_ports
    for process in processes:
        mapped = {Path(region.path).name for region in process.memory_maps()}
        assert not [name for name in mapped if "rdkafka" in name or "aerospike" in name or "confluent" in name]
        connections = [c for c in process.net_connections("all") if c.family.name != "AF_UNIX"]
        # The parent's sockets reserve the ports without listening. The kernel does not list such sockets.
        assert all(connection.laddr.port in ports for connection in connections)
        assert all(not connection.raddr or connection.raddr.ip == "127.0.0.1" for connection in connections)
    listening = [
        {c.laddr.port for c in child.net_connections("all") if c.status == psutil.CONN_LISTEN}
        for child in processes[1:]
    ]
    assert scoring_ports in listening
    assert admin_ports in listening


def port_of(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


def test_kill_9_of_worker_and_companion_loses_no_answered_decision(
    deployment: Deployment, world: World, settings: KafkaSettings
) -> None:
    target = start_all(deployment)
    serve, companion = deployment.running[-1], deployment.running[-2]
    rows = iter(requests_of(world.live_payments, id_prefix=""))
    answered: set[str] = set()
    for round_number in range(6):
        for _ in range(20):
            response = score_or_none(target, next(rows))
            if response is not None:
                answered.add(response.decision_id)
        if round_number % 2:
            companion.kill()
            companion = deployment.start("companion")
        else:
            (worker,) = [
                child
                for child in psutil.Process(serve.pid).children()
                if port_of(target) in {connection.laddr.port for connection in child.net_connections("tcp")}
            ]
            worker.kill()
            wait_until(lambda: is_ready(target), "the worker is back")
    assert len(answered) >= 100
    decisions = read_decisions(settings, answered)
    counts: dict[str, int] = {}
    for decision in decisions:
        counts[decision["decision_id"]] = counts.get(decision["decision_id"], 0) + 1
    assert answered <= counts.keys()


def score_or_none(target: str, request: ScoreRequest) -> ScoreResponse | None:
    """Returns the answer, or None if the connection died with the worker."""
    try:
        status, body = post(f"{target}/v1/score", request.SerializeToString(), PROTOBUF)
    except OSError:
        return None
    assert status == 200, body
    return ScoreResponse.FromString(body)


def test_a_worker_is_not_ready_before_its_mirror_but_answers_by_policy(deployment: Deployment, world: World) -> None:
    target = deployment.start("serve").first_line()
    wait_until(lambda: answers(target), "the worker listens")
    assert not is_ready(target)
    (response,) = score_batch(target, requests_of(world.live_payments.slice(0, 1), id_prefix=""))
    assert response.flags == ["mirror_absent"]
    assert response.action in ("review", "decline")
    assert not response.HasField("profile_age_ms")
    deployment.start("companion")
    deployment.start("stream")
    wait_until(lambda: is_ready(target), "the worker is ready")
    (response,) = score_batch(target, requests_of(world.live_payments.slice(1, 1), id_prefix=""))
    assert "mirror_absent" not in response.flags
    assert response.HasField("profile_age_ms")


def answers(target: str) -> bool:
    try:
        post(f"{target}/v1/score", b"", PROTOBUF)
    except OSError:
        return False
    return True
