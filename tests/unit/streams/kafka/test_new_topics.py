"""A topic is created by the controller, and the broker that is asked about it knows it a moment later."""

from __future__ import annotations

import socket
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from paywarden.schemas.errors import BrokerUnavailable, Misconfigured
from paywarden.streams.kafka import topics
from paywarden.streams.kafka.admin import partitions_in, wait_until_known
from paywarden.streams.kafka.client import KafkaSettings

KNOWN = SimpleNamespace(error=None, partitions={0: None, 1: None})
NO_LEADER = SimpleNamespace(error=KafkaError(KafkaError.LEADER_NOT_AVAILABLE), partitions={})
UNKNOWN = SimpleNamespace(error=KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART), partitions={})


def answering(*answers: dict[str, Any]) -> AdminClient:
    """A client that gives these answers in turn, and the last one from then on."""
    left = list(answers)

    def list_topics(topic: str = "", timeout: float = 0.0) -> SimpleNamespace:
        del topic, timeout
        return SimpleNamespace(topics=left.pop(0) if len(left) > 1 else left[0])

    return cast(AdminClient, SimpleNamespace(list_topics=list_topics))


@pytest.mark.parametrize("early", [{}, {"a": UNKNOWN}, {"a": NO_LEADER}], ids=["absent", "unknown", "no-leader"])
def test_a_created_topic_is_waited_for(early: dict[str, Any]) -> None:
    admin = answering(early, {"a": KNOWN})
    wait_until_known(admin, ["a"])
    assert partitions_in(admin, KafkaSettings(), "a") == [0, 1]


def test_a_created_topic_that_the_broker_never_lists_is_named() -> None:
    with pytest.raises(BrokerUnavailable, match="created topic b, and does not list it 0 s later"):
        wait_until_known(answering({"a": KNOWN}), ["a", "b"], timeout_s=0.0)


def test_a_topic_between_two_leaders_exists() -> None:
    assert partitions_in(answering({"a": NO_LEADER}, {"a": KNOWN}), KafkaSettings(), "a") == [0, 1]


@pytest.mark.parametrize("answer", [{}, {"a": UNKNOWN}], ids=["absent", "unknown"])
def test_a_topic_that_does_not_exist_is_said_at_once(answer: dict[str, Any]) -> None:
    with pytest.raises(Misconfigured, match="topic a does not exist"):
        partitions_in(answering(answer), KafkaSettings(), "a")


def cluster(*places: tuple[str, int]) -> AdminClient:
    """A client of brokers that say that they are at these places, and which creates no topic in time."""
    brokers = {number: SimpleNamespace(host=host, port=port) for number, (host, port) in enumerate(places)}

    def create(new: list[NewTopic], **_: object) -> dict[str, Future[None]]:
        answers = {topic.topic: Future[None]() for topic in new}
        for answer in answers.values():
            answer.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT)))
        return answers

    def listed(**_: object) -> SimpleNamespace:
        return SimpleNamespace(brokers=brokers, cluster_id="c")

    return cast(AdminClient, SimpleNamespace(list_topics=listed, create_topics=create))


def test_a_broker_that_says_a_wrong_address_is_named_when_topics_are_created(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients go there. After a quarter of a minute the error said that no broker answers at `bootstrap`."""
    with socket.create_server(("127.0.0.1", 0)) as broker:
        well, away = ("127.0.0.1", broker.getsockname()[1]), ("no..such.broker", 9092)
        for places in ((away,), (well, away)):
            monkeypatch.setattr(topics, "make_admin", lambda _, places=places: cluster(*places))
            with pytest.raises(BrokerUnavailable) as caught:
                topics.create_topics(KafkaSettings(bootstrap="kafka-1:9092"), topics.TopicSettings(), [])
            line = str(caught.value)
            assert line.startswith(
                "Kafka answers at kafka-1:9092, but a broker says that it is at no..such.broker:9092,"
            )
            assert line.endswith("correct advertised.listeners of that broker, or DNS and the way to it")
            assert str(well[1]) not in line
        monkeypatch.setattr(topics, "make_admin", lambda _: cluster(well))
        with pytest.raises(BrokerUnavailable, match="no Kafka broker answers at kafka-1:9092"):
            topics.create_topics(KafkaSettings(bootstrap="kafka-1:9092"), topics.TopicSettings(), [])
