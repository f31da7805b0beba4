"""`paywarden doctor` on a real Kafka."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)

from paywarden.features.stores.profile_sets import ProfileSets
from paywarden.ops import wiring
from paywarden.ops.doctor.kafka import check_kafka
from paywarden.schemas.avro import TOPICS
from paywarden.schemas.settings import Source, read_source
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topic_names import repartition_topic
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import wait_until
from tests.services.servers.kafka import KafkaServer


@pytest.fixture
def source(deployment: Deployment) -> Source:
    return read_source(str(deployment.config))


def seen(source: Source) -> list[str]:
    return [f"{result.state} {result}" for result in check_kafka(source)]


def alter(settings: KafkaSettings, topic: str, setting: str, value: str) -> None:
    entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, settings.topic(topic), incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": settings.bootstrap})
    (done,) = admin.incremental_alter_configs([resource]).values()
    done.result()


def test_topics_as_they_are_created_are_right(source: Source) -> None:
    assert seen(source)[1:] == [f"ok {len(TOPICS) + 5} topics have the settings that they need, and all their copies"]


def test_each_setting_that_loses_or_misdates_records_is_told(source: Source, settings: KafkaSettings) -> None:
    alter(settings, "profiles", "cleanup.policy", "delete")
    alter(settings, "decisions", "retention.ms", "1000")
    alter(settings, "payments", "message.timestamp.type", "CreateTime")
    # More than is needed is no fault.
    alter(settings, "outcomes", "retention.ms", "-1")
    # Another moment passes until a broker tells its new settings.
    wait_until(lambda: len(seen(source)) == 4, "the doctor sees all three")
    producer = Producer({"bootstrap.servers": settings.bootstrap})

    def comes_from_the_future() -> bool:
        producer.produce(settings.topic("payments"), b"", timestamp=int(time.time() * 1000) + 3_600_000)
        assert producer.flush(PATIENCE_S) == 0
        return len(seen(source)) == 5

    wait_until(comes_from_the_future, "a producer's time is in a record", every_s=0.2)
    _, *found = seen(source)
    prefix = settings.topic_prefix
    assert [line.split(",")[0] for line in found[:3]] == [
        f"warning {prefix}payments has message.timestamp.type=CreateTime",
        f"error {prefix}profiles has cleanup.policy=delete",
        f"warning {prefix}decisions has retention.ms=1000",
    ]
    assert found[3].startswith("warning the newest payment reached Kafka 3")


def test_rights_that_this_user_lacks_are_told_for_each_topic(tmp_path: Path) -> None:
    """On a broker of its own, since one with an authorizer refuses what others of these tests do."""
    rules = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with (
        KafkaServer(tmp_path / "kafka", rules) as kafka,
        Deployment(tmp_path, kafka.bootstrap, "acl-") as deployment,
    ):
        deployment.create_topics()
        source = read_source(str(deployment.config))
        assert [line.split()[0] for line in seen(source)] == ["ok", "ok"]
        # Where a topic has a rule, nobody has a right that no rule gives.
        rules_of_topics = [
            *(_rule(f"acl-{topic}", AclOperation.ALL, AclPermissionType.ALLOW) for topic in ("decisions", "payments")),
            _rule("acl-decisions", AclOperation.WRITE, AclPermissionType.DENY),
            _rule("acl-payments", AclOperation.READ, AclPermissionType.DENY),
            _rule("acl-payments", AclOperation.WRITE, AclPermissionType.DENY),
            _rule("acl-outcomes", AclOperation.DESCRIBE, AclPermissionType.DENY),
        ]
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        for done in admin.create_acls(rules_of_topics).values():
            done.result()
        wait_until(lambda: len(seen(source)) == 4, "the broker tells the rights")
        fix = "give this user the right to describe its topics"
        assert sorted(seen(source)[1:]) == [
            "error Kafka does not describe acl-outcomes "
            f"(Broker: Topic authorization failed): look at the brokers, and {fix}",
            "error acl-decisions: this user may not write: give it these rights",
            "error acl-payments: this user may not read and not write: give it these rights",
        ]


def _rule(topic: str, operation: AclOperation, permission: AclPermissionType) -> AclBinding:
    everybody = ("User:ANONYMOUS", "*")
    return AclBinding(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, *everybody, operation, permission)


def test_the_topics_of_a_rebuilt_set_are_looked_for(
    source: Source, deployment: Deployment, settings: KafkaSettings
) -> None:
    """The set's stream ends without them, as on a new cluster where `topics create` made the others."""
    with closing(ProfileSets(wiring.set_stores(source).open_register())) as sets:
        sets.create("b2", now_ms=0)
        sets.finish_swap(sets.begin_swap(sets.read(), "b2"))
    _, missing = seen(source)
    names = [settings.topic(repartition_topic(entity, "b2")) for entity in ("card", "merchant", "device")]
    assert missing == f"error topics do not exist: {', '.join(names)}: run `paywarden topics create --live-set`"
    assert deployment.run("topics", "create", "--live-set").returncode == 0
    assert [line.split()[0] for line in seen(source)] == ["ok", "ok"]
