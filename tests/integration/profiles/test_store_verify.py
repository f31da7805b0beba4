"""`paywarden admin store verify` on a real Kafka: a store gets lost writes back from the changelog."""

from __future__ import annotations

from contextlib import closing
from copy import deepcopy
from pathlib import Path

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.stores.aerospike.sets import AerospikeSets
from paywarden.features.stores.aerospike.store import AerospikeSettings
from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.features.stores.profile_sets import FIRST
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.standin.aerospike_server import StandIn
from tests.unit.features.kernel.profiles import payment, profile

DAY_S = 86_400
START_MS = 1_780_000_000_000


def state(*offsets: int) -> bytes:
    """Returns a card's profile that contains these offsets of source 1."""
    payments = [payment(START_MS + offset, 100, source=1, offset=offset) for offset in offsets]
    return profile(FeatureEngine(), "card", payments)


def send(settings: KafkaSettings, states: dict[bytes, bytes]) -> None:
    ids = LocalSchemaIds()
    encoder, producer = Encoder("profiles", ids.id_of("profiles")), make_producer(settings, linger_ms=0)
    for key, value in states.items():
        fields = {"entity": "card", "state": value, "written_time_ms": START_MS, "complete_to_time_ms": None}
        producer.produce(settings.topic("profiles"), encoder.encode(fields | {"arrived_time_ms": None}), key=key)
    assert producer.flush(PATIENCE_S) == 0


def test_lost_profiles_are_found_and_written_back(deployment: Deployment, settings: KafkaSettings) -> None:
    cards = {b"card:%d" % number: state(1, 2) for number in range(20)}
    send(settings, cards)
    lost = {b"card:3": state(1), b"card:7": None}
    lmdb = LmdbSettings(path=str(deployment.store))
    with closing(LmdbStore.from_settings(lmdb)) as store:
        kept = {key: lost.get(key, value) for key, value in cards.items()}
        store.write({key: value for key, value in kept.items() if value is not None}, ttl_s=DAY_S)

    found = deployment.run("admin", "store", "verify")
    assert found.returncode == 1
    assert "lost       2 card" in found.stdout
    assert "--repair" in found.stdout

    assert deployment.run("admin", "store", "verify", "--repair").returncode == 0
    assert "lost       none" in deployment.run("admin", "store", "verify").stdout
    with closing(LmdbStore.from_settings(lmdb, readonly=True)) as store:
        assert dict(store.scan("card")) == cards


def test_an_aerospike_cluster_restored_from_an_older_copy_is_whole_again(
    tmp_path: Path, settings: KafkaSettings, standin: StandIn
) -> None:
    """The copy and its way back stand for `asbackup` and `asrestore`: all records as they were at one moment."""
    older, cards = ({b"card:%d" % n: state(*offsets) for n in range(10)} for offsets in ((1,), (1, 2)))
    cards[b"card:new"] = state(3)
    sets = AerospikeSets(AerospikeSettings(hosts=(standin.address,), namespace=standin.namespace), ("card",))
    with (
        Deployment(tmp_path, settings.bootstrap, settings.topic_prefix, aerospike=standin.address) as deployment,
        closing(sets.open(FIRST)) as store,
    ):
        deployment.create_topics()
        store.write(older, ttl_s=DAY_S)
        copy = deepcopy(standin.records.by_digest)
        store.write(cards, ttl_s=DAY_S)
        send(settings, cards)

        standin.records.by_digest.clear()
        assert dict(store.scan("card")) == {}
        standin.records.by_digest.update(copy)
        assert dict(store.scan("card")) == older

        assert "lost       11 card" in deployment.run("admin", "store", "verify").stdout
        assert deployment.run("admin", "store", "verify", "--repair").returncode == 0
        assert dict(store.scan("card")) == cards
