"""Checks of Kafka and the schema registry: the broker, our topics, their settings and copies, our rights, the clock."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AdminClient,
    ConfigResource,
    OffsetSpec,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

from paywarden.ops import wiring
from paywarden.ops.doctor.results import ERROR, OK, SKIPPED, WARNING, CheckResult
from paywarden.schemas.addresses import host_and_port
from paywarden.schemas.avro import TOPICS, subject
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured, PaywardenError, StoreUnavailable
from paywarden.schemas.file_state import open_regular
from paywarden.schemas.settings import Source
from paywarden.streams.kafka.admin import (
    CONNECT_TIMEOUT_S,
    CORRECT_ADDRESS,
    ask_end_offsets,
    make_admin,
    require_broker,
    retry_until_leader,
    unreached_brokers,
)
from paywarden.streams.kafka.client import REACH_TIMEOUT_S, KafkaSettings, reason_of
from paywarden.streams.kafka.schemas.registry import RegistrySettings, registered_subjects
from paywarden.streams.kafka.topic_identity import embedded_cluster
from paywarden.streams.kafka.topics import TopicSettings, in_sync_replicas, wanted_topics

_CREATE = "run `paywarden topics create`"
_CREATE_LIVE = "run `paywarden topics create --live-set`"
_NOT_TOLD = "look at the brokers, and give this user the right to describe its topics"
_ADD_PARTITIONS = (
    "before the first record, delete it and run `paywarden topics create`; later, see *More partitions* in "
    "docs/operate/upgrade.md"
)
# Clocks of a cluster are rarely nearer to each other than this.
_CLOCK_MS_MAX = 2_000
# The rights that our processes need, between them, on each topic.
_NEWEST = OffsetSpec.max_timestamp()  # type: ignore[no-untyped-call]
_RIGHTS = ("DESCRIBE", "READ", "WRITE")
_SHOWN_MAX = 5
_REGISTRY_TRIES = 3


def check_kafka(source: Source) -> Iterator[CheckResult]:
    """Yields results about the cluster and each topic. Raises BrokerUnavailable, Misconfigured."""
    kafka, settings = wiring.kafka_settings(source), source.section("topics", TopicSettings)
    if unread := list(_unread_files(kafka)):
        yield from unread
        return
    try:
        require_broker(kafka)
    except BrokerUnavailable as error:
        yield CheckResult("kafka", ERROR, str(error), "; ".join(_why_away(kafka)))
        return
    admin = make_admin(kafka)
    if embedded_cluster(admin):
        yield CheckResult(
            "kafka", OK, f"the embedded broker answers at {kafka.bootstrap}: it has no settings of topics"
        )
        return
    away, brokers = unreached_brokers(admin)
    yield CheckResult("kafka", OK, f"{brokers} broker{'s' if brokers > 1 else ''} at {kafka.bootstrap}")
    if away:
        yield from (CheckResult("kafka", ERROR, seen, CORRECT_ADDRESS) for seen in away)
        if len(away) == brokers:
            return
    live, unknown = _live_set(source)
    yield from unknown
    entities = wiring.entity_names(source)
    wanted = wanted_topics(kafka, settings, entities, live)
    described, refused = _described(admin, [topic.topic for topic in wanted])
    missing = [topic.topic for topic in wanted if topic.topic not in described and topic.topic not in refused]
    if missing:
        # Those of a set that a rebuild has made are created for that set alone.
        of_first = {topic.topic for topic in wanted_topics(kafka, settings, entities)}
        fix = _CREATE if of_first.issuperset(missing) else _CREATE_LIVE
        yield CheckResult("kafka", ERROR, f"topics do not exist: {_listed(missing)}", fix)
    for reason in dict.fromkeys(refused.values()):
        names = [name for name, its_reason in refused.items() if its_reason == reason]
        yield CheckResult("kafka", ERROR, f"Kafka does not describe {_listed(names)} ({reason})", _NOT_TOLD)
    configs = _configs(admin, list(described))
    found = [
        result
        for topic in wanted
        if topic.topic in described
        for result in _topic_results(topic, described[topic.topic], configs.get(topic.topic, {}), brokers)
    ]
    yield from found
    if not missing and not refused and not found:
        yield CheckResult("kafka", OK, f"{len(wanted)} topics have the settings that they need, and all their copies")
    if kafka.topic("payments") in described:
        yield from _clock(admin, kafka, len(described[kafka.topic("payments")].partitions))


def _live_set(source: Source) -> tuple[str, list[CheckResult]]:
    """Returns the name of the live profile set, whose repartition topics the stream needs, and what hides it."""
    try:
        # A store in memory has the first set alone.
        return "" if wiring.store_kind(source) == "memory" else wiring.live_set(source).name, []
    except StoreUnavailable as error:
        seen = (
            f"the store does not say which profile set is live, so its repartition topics are not looked for: {error}"
        )
        return "", [CheckResult("kafka", SKIPPED, seen)]


def _unread_files(kafka: KafkaSettings) -> Iterator[CheckResult]:
    """Yields an error for each file of certificates and keys that cannot be read; the client names none."""
    for name in ("ssl_ca_location", "ssl_certificate_location", "ssl_key_location"):
        path = getattr(kafka, name)
        # "probe" looks for the system's authorities.
        if not path or path == "probe" or (name == "ssl_ca_location" and os.path.isdir(path)):
            continue
        try:
            open_regular(path).close()
        except OSError as error:
            yield CheckResult(
                "kafka", ERROR, f"[kafka] {name}: cannot read {path}: {error.strerror}", "give the right path"
            )


def _why_away(kafka: KafkaSettings) -> Iterator[str]:
    """Yields the fault of each address of `bootstrap`, as far as a plain connection shows it."""
    for address in kafka.bootstrap.split(","):
        place = host_and_port(address.strip().rpartition("://")[2])
        if place is None:
            yield f"[kafka] bootstrap: {address.strip()!r} is not host:port"
            continue
        host, port = place
        try:
            socket.create_connection(place, timeout=CONNECT_TIMEOUT_S).close()
        except (socket.gaierror, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no name of a host"
            yield f"no address is known for {host} ({reason}): correct [kafka] bootstrap, or DNS"
        except OSError as error:
            yield f"{host}:{port} takes no connection ({error.strerror or error}): is a broker there?"
        else:
            yield (
                f"{host}:{port} takes connections, and does not speak {kafka.security_protocol} with us: look at "
                "[kafka] security_protocol, the SASL settings and the broker's log"
            )


def _described(admin: AdminClient, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns descriptions of the topics that exist, and the errors of the others, both by name."""
    described, refused = {}, {}
    answers = admin.describe_topics(
        TopicCollection(list(names)), include_authorized_operations=True, request_timeout=REACH_TIMEOUT_S
    )
    for name, answer in answers.items():
        try:
            described[name] = answer.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                refused[name] = reason_of(error)
    return described, refused


def _configs(admin: AdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns the settings of topics by name; without those that we may not read."""
    if not names:
        return {}
    asked = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    configs = {}
    for resource, answer in admin.describe_configs(asked, request_timeout=REACH_TIMEOUT_S).items():
        try:
            configs[resource.name] = {name: entry.value for name, entry in answer.result().items()}
        except KafkaException:
            continue
    return configs


def _topic_results(topic: NewTopic, described: Any, config: Mapping[str, str], brokers: int) -> Iterator[CheckResult]:
    name = topic.topic
    copies = min(len(partition.replicas) for partition in described.partitions)
    no_leader = [partition.id for partition in described.partitions if partition.leader is None]
    behind = [partition.id for partition in described.partitions if len(partition.isr) < len(partition.replicas)]
    if no_leader:
        yield CheckResult(
            "kafka", ERROR, f"{name}: partitions {_listed(no_leader)} have no leader", "look at the brokers"
        )
    elif behind:
        yield CheckResult(
            "kafka", WARNING, f"{name}: partitions {_listed(behind)} lack copies", "look at the brokers that are down"
        )
    if copies == 1 and brokers > 1:
        yield CheckResult(
            "kafka",
            WARNING,
            f"{name} has one copy, and a broker that is lost takes acknowledged records with it",
            "give it three (kafka-reassign-partitions), and set [topics] replication = 3",
        )
    if topic.num_partitions == 1 and len(described.partitions) > 1:
        yield CheckResult(
            "kafka",
            ERROR,
            f"{name} has {len(described.partitions)} partitions, and its readers need one order over all records",
            "create it again with one partition",
        )
    if (has := len(described.partitions)) < topic.num_partitions:
        yield CheckResult(
            "kafka",
            WARNING,
            f"{name} has {has} partition{'s' if has > 1 else ''} where [topics] asks for {topic.num_partitions}, so "
            "fewer workers share its records",
            _ADD_PARTITIONS,
        )
    yield from _rights(name, described.authorized_operations)
    yield from _config_results(
        name, config, {**(topic.config or {}), "min.insync.replicas": str(in_sync_replicas(copies))}
    )


def _rights(name: str, operations: Iterable[AclOperation] | None) -> Iterator[CheckResult]:
    # Without an authorizer a broker tells none.
    has = {operation.name for operation in operations or ()}
    missing = [right for right in _RIGHTS if right not in has]
    if has and missing:
        yield CheckResult(
            "kafka", ERROR, f"{name}: this user may not {' and not '.join(missing).lower()}", "give it these rights"
        )


def _config_results(name: str, config: Mapping[str, str], wanted: Mapping[str, str]) -> Iterator[CheckResult]:
    change = f"kafka-configs --alter --entity-type topics --entity-name {name} --add-config "
    for setting, value in wanted.items():
        has = config.get(setting)
        if has is None or has == value or _is_enough(setting, has, value):
            continue
        level = ERROR if setting in ("cleanup.policy", "max.message.bytes") else WARNING
        yield CheckResult("kafka", level, f"{name} has {setting}={has}, {_WHY[setting]}", f"{change}{setting}={value}")


_WHY = {
    "cleanup.policy": "so records that are needed are erased, or pile up for ever",
    "max.message.bytes": "so the dead letter of a large record would be refused",
    "retention.ms": "so records are erased sooner than [topics] says",
    "min.insync.replicas": "so an acknowledged record may be on one broker only",
    "message.timestamp.type": "so ages and watermarks go by the clocks of producers",
    "delete.retention.ms": "so a mirror that was away longer keeps erased profiles",
    "min.cleanable.dirty.ratio": "so it is compacted late, and is long to read",
    "segment.bytes": "so it is compacted late, and is long to read",
    "segment.ms": "so it is compacted late, and is long to read",
}


def _is_enough(setting: str, has: str, wanted: str) -> bool:
    if setting == "cleanup.policy":
        return set(has.split(",")) == set(wanted.split(","))
    try:
        number, least = float(has), float(wanted)
    except ValueError:
        return False
    if setting in ("min.cleanable.dirty.ratio", "segment.bytes", "segment.ms"):
        return number <= least
    # -1 keeps records for ever.
    return number >= least or (setting == "retention.ms" and number < 0)


def _clock(admin: AdminClient, kafka: KafkaSettings, partitions: int) -> Iterator[CheckResult]:
    """Yields a warning if the newest payment is from the future: one of the two clocks is wrong."""
    topic = kafka.topic("payments")

    def newest() -> int:
        answers = ask_end_offsets(admin, ((topic, number) for number in range(partitions)), spec=_NEWEST)
        return max(int(answer.result().timestamp) for answer in answers.values())

    newest_ms = retry_until_leader(newest, "when the newest payment arrived")
    ahead_ms = newest_ms - time.time_ns() // 1_000_000
    if ahead_ms > _CLOCK_MS_MAX:
        yield CheckResult(
            "kafka",
            WARNING,
            f"the newest payment reached Kafka {ahead_ms / 1000:.0f} s from now",
            "set the clocks of the brokers and of this host (NTP)",
        )


def _listed(names: Sequence[object]) -> str:
    shown = ", ".join(str(name) for name in names[:_SHOWN_MAX])
    return shown if len(names) <= _SHOWN_MAX else f"{shown} and {len(names) - _SHOWN_MAX} more"


def check_registry(source: Source) -> Iterator[CheckResult]:
    """Yields results about the schema registry. Registers nothing. Raises Misconfigured, TemporaryFailure."""
    settings, kafka = source.section("registry", RegistrySettings), wiring.kafka_settings(source)
    if not settings.url:
        yield CheckResult("registry", SKIPPED, "[registry] url is empty: ids are fingerprints of the schemas")
        return
    known = _subjects_in_time(settings)
    missing = [name for topic in TOPICS if (name := subject(kafka.topic(topic))) not in known]
    if not missing:
        yield CheckResult("registry", OK, f"{settings.url} has the schemas of all {len(TOPICS)} topics")
    elif settings.auto_register:
        yield CheckResult(
            "registry", OK, f"{settings.url} answers; {len(missing)} schemas are registered at the first start"
        )
    else:
        yield CheckResult(
            "registry",
            ERROR,
            f"{settings.url} lacks {_listed(missing)}",
            "register the schemas that `paywarden admin schemas` prints, or set [registry] auto_register = true",
        )


def _subjects_in_time(settings: RegistrySettings) -> frozenset[str]:
    """Like `registered_subjects`, which waits for ever for an answer that comes a byte at a time."""
    met: list[frozenset[str] | PaywardenError] = []

    def ask() -> None:
        try:
            met.append(registered_subjects(settings))
        except PaywardenError as error:
            met.append(error)

    # The client asks three times, each of its addresses.
    limit_s = (_REGISTRY_TRIES * settings.timeout_ms / 1000 + CONNECT_TIMEOUT_S) * (settings.url.count(",") + 1)
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(limit_s)
    if not met:
        raise Misconfigured(
            f"schema registry {settings.url} has not answered in full within {limit_s:.0f} s: look at the registry, "
            "and at the proxies before it"
        )
    if isinstance(met[0], PaywardenError):
        raise met[0]
    return met[0]
