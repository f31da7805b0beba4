"""Erase a card beside a running stream and companion, on a real Kafka: from store, changelog and mirror."""

from __future__ import annotations

from contextlib import closing

from confluent_kafka import Consumer, Producer, TopicPartition

from paywarden.features.datasets.simulator import simulate
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.profile_view import first_payment_ms
from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.scoring.state.mirror_file import MirrorSettings, MirrorView, has_mirror
from paywarden.streams.kafka.admin import end_offsets, partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.kafka.reading import consume, make_consumer
from paywarden.streams.maintenance.entity_erasure import Forgotten, KafkaChangelog, forget
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import wait_until
from tests.worlds.stream.topics import Topics, read_last, wait_until_worked_in

PLAN = FeatureEngine().plan


def read_store(deployment: Deployment) -> dict[bytes, bytes]:
    """Returns every profile and payment record, or nothing before the stream has made the store."""
    if not (deployment.store / "data.mdb").exists():
        return {}
    with closing(LmdbStore.from_settings(LmdbSettings(path=str(deployment.store)), readonly=True)) as store:
        return {key: value for name in (*PLAN.entity_names, "payment") for key, value in store.scan(name)}


def profiles_among(stored: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in stored.items() if not name.startswith(b"payment:")}


def run_forget(deployment: Deployment, settings: KafkaSettings, key: bytes) -> Forgotten:
    store = LmdbStore.from_settings(LmdbSettings(path=str(deployment.store)))
    with closing(KafkaChangelog(settings)) as changelog, closing(store):
        return forget(key, plan=PLAN, store=store, changelog=changelog)


def test_a_forgotten_card_is_nowhere_and_other_cards_are_untouched(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    rows = simulate(cards=20, days=5, seed=3)[0].to_pylist()
    card_id = rows[0]["card_id"]
    key = f"card:{card_id}".encode()
    topics = Topics(settings)
    topics.send_payments(rows)
    stream = deployment.start("stream")
    wait_until(lambda: len(read_store(deployment)) > 0, "there is a store", every_s=0.1)
    companion = deployment.start("companion")
    mirror = opened_mirror(deployment)

    wait_until_worked_in(settings, f"{settings.topic_prefix}stream", "payments")
    before = read_store(deployment)
    everything = profiles_among(before)
    wait_until(lambda: mirror.read(everything) == everything, "the companion has all profiles", every_s=0.2)
    own = {name for name, value in before.items() if name.startswith(b"payment:") and card_id.encode() in value}
    assert own == {f"payment:{row['payment_id']}".encode() for row in rows if row["card_id"] == card_id}

    done = run_forget(deployment, settings, key)

    assert (done.profiles, done.payment_records, done.has_begun_anew) == (1, len(own), False)
    after = read_store(deployment)
    assert after == {name: value for name, value in before.items() if name not in {key, *own}}
    changelog = read_last(settings)
    assert changelog.pop(key) is None
    profiles = profiles_among(after)
    assert changelog == profiles
    wait_until(lambda: mirror.read([key]) == {key: None}, "the mirror has forgotten the card")
    assert mirror.read(profiles) == profiles
    for process in (stream, companion):
        assert card_id not in process.log.read_text(encoding="utf-8")

    later_ms = rows[-1]["event_time_ms"] + 1000
    topics.send_payments([{**rows[0], "payment_id": "afterwards", "event_time_ms": later_ms}])
    wait_until(lambda: key in read_store(deployment), "the card is back", every_s=0.1)
    state = read_store(deployment)[key]
    assert first_payment_ms(state) == later_ms
    wait_until(lambda: mirror.read([key]) == {key: state}, "the mirror has the new profile")
    mirror.close()
    assert stream.stop() == 0
    assert companion.stop() == 0


def test_a_new_mirror_never_has_a_card_that_was_forgotten_before(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    """The mirror is filled from the changelog alone, from its beginning: states, then the tombstone."""
    rows = simulate(cards=20, days=5, seed=3)[0].to_pylist()
    key = f"card:{rows[0]['card_id']}".encode()
    Topics(settings).send_payments(rows)
    stream = deployment.start("stream")
    wait_until_worked_in(settings, f"{settings.topic_prefix}stream", "payments")
    assert stream.stop() == 0
    run_forget(deployment, settings, key)
    deployment.configure("companion", "fill_from_store = false\n")
    companion = deployment.start("companion")
    mirror = opened_mirror(deployment)
    profiles = profiles_among(read_store(deployment))
    ends = {partition: end for partition, end in _ends(settings).items() if end > 0}
    wait_until(lambda: ends.items() <= mirror.positions().items(), "the mirror has read the changelog to its end")
    assert mirror.read([key]) == {key: None}
    assert mirror.read(profiles) == profiles
    mirror.close()
    assert companion.stop() == 0


def opened_mirror(deployment: Deployment) -> MirrorView:
    """Returns the mirror, once the companion has made it."""
    settings = MirrorSettings(path=str(deployment.mirror), size_mb=256)
    wait_until(lambda: has_mirror(settings), "the companion has made a mirror", every_s=0.1)
    return MirrorView(settings)


def _ends(settings: KafkaSettings) -> dict[int, int]:
    consumer: Consumer = make_consumer(settings, group_id="reader")
    ends = end_offsets(consumer, settings.topic("profiles"), partitions_of(settings, "profiles"))
    consumer.close()
    return ends


def test_a_tombstone_goes_to_the_partition_of_its_keys_states(deployment: Deployment, settings: KafkaSettings) -> None:
    """Otherwise one partition would keep the state for ever, beside the tombstone in another."""
    del deployment
    keys = [f"card:{number}".encode() for number in range(50)]
    producer: Producer = make_producer(settings, linger_ms=0)
    for key in keys:
        producer.produce(settings.topic("profiles"), b"a state", key=key)
    assert producer.flush(PATIENCE_S) == 0
    with closing(KafkaChangelog(settings)) as changelog:
        changelog.erase(keys)
    partitions: dict[bytes, list[tuple[int, bool]]] = {}
    consumer: Consumer = make_consumer(settings, group_id="reader")
    topic = settings.topic("profiles")
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions_of(settings, "profiles")])
    while sum(map(len, partitions.values())) < 2 * len(keys):
        for record in consume(consumer, 1000, 0.5).records:
            assert record.key is not None
            partitions.setdefault(record.key, []).append((record.partition, record.value is None))
    consumer.close()
    for (first, first_is_tombstone), (second, second_is_tombstone) in partitions.values():
        assert first == second
        assert (first_is_tombstone, second_is_tombstone) == (False, True)
