from __future__ import annotations

from concurrent.futures import Future
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicCollection, Uuid

from paywarden.schemas.errors import BrokerUnavailable, Misconfigured
from paywarden.streams.kafka.admin import make_admin
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.topic_identity import IdentityWatch, topic_ids


class Admin:
    """Answers with an id or an error code, at once or when `answer` is called."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    def list_topics(self, **_: object) -> SimpleNamespace:
        return SimpleNamespace(cluster_id="a-cluster")

    def describe_topics(self, topics: TopicCollection, **_: object) -> dict[str, Future[Any]]:
        self.asked += 1
        answers: dict[str, Future[Any]] = {topic: Future() for topic in topics.topic_names}
        for answer in answers.values():
            if isinstance(self.answer, int):
                answer.set_exception(KafkaException(KafkaError(self.answer)))
            else:
                answer.set_result(SimpleNamespace(topic_id=self.answer))
        return answers


def ids(answer: Any) -> str:
    admin: Any = Admin(answer)
    return topic_ids(admin, ["payments"])["payments"]


def test_an_id_is_shown_as_kafkas_tools_show_it() -> None:
    assert ids("lcp6VFGVRu+9/7NezKhu/g") == "lcp6VFGVRu-9_7NezKhu_g"


def test_a_cluster_without_ids_says_nothing() -> None:
    assert ids(Uuid(0, 0)) == ids(KafkaError.UNSUPPORTED_VERSION) == ""


def test_a_missing_topic_and_a_silent_broker_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paywarden.streams.kafka.topic_identity.REACH_TIMEOUT_S", 0.0)
    with pytest.raises(Misconfigured, match="topic payments does not exist"):
        ids(KafkaError.UNKNOWN_TOPIC_OR_PART)
    with pytest.raises(BrokerUnavailable):
        ids(KafkaError._TIMED_OUT)


def test_the_embedded_brokers_topics_are_new_with_each_broker() -> None:
    # Both at once: librdkafka makes the id of the place in memory, which the next broker may get from one that ended.
    with closing(EmbeddedBroker()) as one, closing(EmbeddedBroker()) as other:
        found = [
            topic_ids(make_admin(KafkaSettings(bootstrap=broker.bootstrap)), ["payments"])["payments"]
            for broker in (one, other)
        ]
    assert found[0] != found[1]
    assert all(found)


def test_a_watch_asks_at_its_pace_and_ends_only_for_a_topic_missing_twice() -> None:
    admin, now = Admin("one"), [0.0]
    fake: Any = admin
    watch = IdentityWatch(fake, ["payments"], clock=lambda: now[0], ask_every_s=10.0)
    assert watch.look() is None
    assert admin.asked == 0
    now[0] = 10.0
    assert watch.look() is None
    assert watch.look() == {"payments": "one"}
    assert watch.look() is None
    admin.answer = KafkaError.UNKNOWN_TOPIC_OR_PART
    now[0] = 20.0
    assert watch.look() is None
    now[0] = 30.0
    # A broker that has just started may not know its topics yet. The next question is asked at once.
    assert watch.look() is None
    with pytest.raises(Misconfigured, match="does not exist"):
        watch.look()
    admin.answer = KafkaError._TRANSPORT
    now[0] = 40.0
    assert watch.look() is None
    assert watch.look() is None
