"""Profiles rebuilt from the topics beside the live ones, and swapped in, on a real Kafka with real processes."""

from __future__ import annotations

import pyarrow as pa

from paywarden.features.catalogue.loading import load_catalogue
from paywarden.features.history.history import history_of_tables
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.lmdb import LmdbSettings
from paywarden.features.stores.lmdb_sets import LmdbSets
from paywarden.features.stores.profile_sets import ProfileSets
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topic_names import repartition_topic
from tests.services.product.deployment import Deployment
from tests.services.product.processes import wait_until
from tests.worlds.stream.topics import (
    ENTITIES,
    Topics,
    assert_profiles_equal,
    batch_profiles,
    read_changelog,
    read_store,
    small_world,
    wait_until_worked_in,
)


def send(topics: Topics, payments: pa.Table, outcomes: pa.Table | None = None) -> None:
    topics.send_payments(payments.to_pylist())
    topics.send_outcomes(outcomes.to_pylist() if outcomes is not None else [])


def sets_of(deployment: Deployment) -> LmdbSets:
    return LmdbSets(LmdbSettings(path=str(deployment.store)))


def live_name(deployment: Deployment) -> str:
    sets = ProfileSets(sets_of(deployment).open_register())
    name = sets.read().name
    sets.close()
    return name


def read_set(deployment: Deployment, name: str) -> dict[bytes, bytes]:
    store = sets_of(deployment).open(name, readonly=True)
    found = {key: value for entity in ENTITIES for key, value in store.scan(entity)}
    store.close()
    return found


def spoil(deployment: Deployment) -> None:
    """Spoil the store as a bug would: one card has another's profile, and a card that never paid has one."""
    stored = read_store(deployment.store)
    cards = sorted(key for key in stored if key.startswith(b"card:"))
    store = sets_of(deployment).open("")
    store.write({cards[0]: stored[cards[1]], b"card:ghost": stored[cards[1]]}, ttl_s=0)
    store.close()


def test_a_rebuild_beside_the_live_stream_equals_the_topics(deployment: Deployment, settings: KafkaSettings) -> None:
    payments, outcomes = small_world()
    third = len(payments) // 3
    group = f"{settings.topic_prefix}stream"
    topics = Topics(settings)
    send(topics, payments.slice(0, third))
    stream = deployment.start("stream")
    wait_until_worked_in(settings, group)
    assert stream.stop() == 0
    spoil(deployment)
    stream = deployment.start("stream")
    # The changelog holds that card's profile, too.
    encoder = Encoder("profiles", LocalSchemaIds().id_of("profiles"))
    ghost = encoder.encode({"entity": "card", "state": b"\2ghost", "written_time_ms": 1})
    topics.send_bytes("profiles", ghost, b"card:ghost")
    send(topics, payments.slice(third, third))
    done = deployment.run("admin", "rebuild", "--from-beginning")
    assert done.returncode == 0, done.stderr
    name = done.stdout.strip()
    assert live_name(deployment) == name
    send(topics, payments.slice(2 * third), outcomes)
    wait_until_worked_in(settings, f"{group}-{name}", profile_set=name)
    assert stream.stop() == 0
    rebuilt = read_set(deployment, name)
    assert_profiles_equal(rebuilt, batch_profiles(payments, outcomes))
    assert read_changelog(settings) == rebuilt
    # The old set stays until the operator drops it.
    assert b"card:ghost" in read_set(deployment, "")
    dropped = deployment.run("admin", "profile-sets", "--drop", "first")
    assert dropped.returncode == 0, dropped.stderr


GROWN = """\
from paywarden.features.catalogue.attributes import card_id, ip
from paywarden.features.catalogue.catalogue import CATALOGUE as PACKAGED
from paywarden.features.catalogue.catalogue import card
from paywarden.features.catalogue.entity import Catalogue, Entity

address = Entity("address", key="ip")
CATALOGUE = Catalogue(
    (*PACKAGED.entities, address),
    (
        *PACKAGED.features,
        card.is_new("card_new_address", ip),
        address.count("address_count_7d", "7d"),
        address.distinct("address_cards_7d", card_id, "7d"),
    ),
)
"""


def test_a_rebuild_fills_a_new_entity_and_feature_beside_live_traffic(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    payments, outcomes = small_world()
    half = len(payments) // 2
    group = f"{settings.topic_prefix}stream"
    topics = Topics(settings)
    send(topics, payments.slice(0, half))
    stream = deployment.start("stream")
    wait_until_worked_in(settings, group)
    assert stream.stop() == 0
    path = deployment.folder / "catalogue.py"
    path.write_text(GROWN, encoding="utf-8")
    deployment.configure("features", 'catalogue = "catalogue.py"\n')
    created = deployment.run("topics", "create")
    assert created.stdout.split() == [settings.topic(repartition_topic("address"))], created.stderr
    stream = deployment.start("stream")
    done = deployment.run("admin", "rebuild", "--from-beginning")
    assert done.returncode == 0, done.stderr
    name, entities = done.stdout.strip(), (*ENTITIES, "address")
    send(topics, payments.slice(half), outcomes)
    wait_until_worked_in(settings, f"{group}-{name}", profile_set=name, entities=entities)
    stream.stop()
    store = sets_of(deployment).open(name, readonly=True)
    rebuilt = {key: state for entity in entities for key, state in store.scan(entity)}
    store.close()
    wanted = replayed_profiles(FeatureEngine(load_catalogue(path)), payments, outcomes)
    assert sum(key.startswith(b"address:") for key in wanted) > 20
    assert_profiles_equal(rebuilt, wanted)


def replayed_profiles(engine: FeatureEngine, payments: pa.Table, outcomes: pa.Table) -> dict[bytes, bytes]:
    """Returns the profiles of every entity after a history."""
    replay = PointInTimeReplay(history_of_tables(payments, outcomes), engine, load_rates())
    for _ in replay.chunks():
        pass
    replay.finish()
    return {
        key: state
        for column, states in zip(replay.entities, replay.profiles, strict=True)
        for key, state in zip(column.store_keys(), states, strict=True)
        if state is not None
    }


def test_a_rebuild_killed_during_fill_or_swap_can_be_continued(deployment: Deployment, settings: KafkaSettings) -> None:
    payments, outcomes = small_world()
    send(Topics(settings), payments, outcomes)
    stream = deployment.start("stream")
    wait_until_worked_in(settings, f"{settings.topic_prefix}stream")
    first = deployment.start("admin", "rebuild", "--from-beginning")
    wait_until(lambda: (deployment.store.parent / f"{deployment.store.name}.sets").is_dir(), "the set is there")
    register = ProfileSets(sets_of(deployment).open_register())
    wait_until(lambda: len(register.register().sets) == 2, "the set is entered")
    (name,) = [one.name for one in register.register().sets if one.name]
    first.kill()
    second = deployment.start("admin", "rebuild", "--resume", name)
    wait_until(lambda: register.read().next == name, "the swap has begun", every_s=0.005)
    second.kill()
    # The workers wait without a limit; scoring does not wait.
    done = deployment.run("admin", "rebuild", "--resume", name)
    assert done.returncode == 0, done.stderr
    assert register.read().name == name
    register.close()
    assert stream.stop() == 0
    assert_profiles_equal(read_set(deployment, name), batch_profiles(payments, outcomes))
    assert read_changelog(settings) == read_set(deployment, name)


def test_partitions_are_added_only_when_all_records_are_worked_in(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    """Follow "More partitions" of docs/operate/upgrade.md, with a worker killed before it."""
    payments, outcomes = small_world()
    half = len(payments) // 2
    topics, group = Topics(settings), f"{settings.topic_prefix}stream"
    send(topics, payments.slice(0, half))
    stream = deployment.start("stream")
    wait_until(lambda: bool(read_changelog(settings)), "some are worked in", every_s=0.01)
    refused = deployment.run("topics", "create", "--repartition", "5")
    assert refused.returncode == 1
    assert "stop them" in refused.stderr
    stream.kill()
    wait_until(lambda: drain_or_refused(deployment), "the dead worker is missed", every_s=1.0)
    more = deployment.run("topics", "create", "--repartition", "5")
    assert more.returncode == 0, more.stderr
    # The broker's own copy of the metadata comes a moment later.
    wait_until(
        lambda: {len(partitions_of(settings, repartition_topic(entity))) for entity in ENTITIES} == {5}, "all have five"
    )
    stream = deployment.start("stream")
    send(topics, payments.slice(half), outcomes)
    wait_until_worked_in(settings, group)
    assert stream.stop() == 0
    stored = read_store(deployment.store)
    assert_profiles_equal(stored, batch_profiles(payments, outcomes))
    assert read_changelog(settings) == stored


def drain_or_refused(deployment: Deployment) -> bool:
    """Returns whether, after draining, no record is on its way and the group has no member. Changes nothing."""
    drained = deployment.run("stream", "--drain")
    assert drained.returncode == 0, drained.stderr
    asked = deployment.run("topics", "create", "--repartition", "3")
    return asked.returncode == 0
