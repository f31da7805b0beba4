"""Tell a topic from another one of the same name, by the id that its cluster gave it when it was made (KIP-516).

    topic payments   id nKpDTVrsRo-MnxKRDDJ8pA     offsets 0 … 98,112
    delete it, make it again
    topic payments   id kR9dfB3xTd2bXtVn0wsCVw     offsets 0 …          the same name, the same offsets, other records

Brokers before Kafka 2.8 give no ids. Then the id is `""`, and nothing can be said about the topic. The embedded broker
gives none either, and forgets its topics when it ends: there the id of the cluster stands for each topic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, Uuid
from confluent_kafka.admin import AdminClient

from paywarden.schemas.errors import BrokerUnavailable, Misconfigured
from paywarden.streams.kafka.client import REACH_TIMEOUT_S, reason_of
from paywarden.streams.kafka.topic_names import missing_topic

ASK_EVERY_S = 10.0
_AGAIN_S = 0.1
_NO_ID = str(Uuid(0, 0))
# librdkafka's mock cluster calls itself so. It has no controller to ask.
_EMBEDDED = "mockCluster"
# A broker that cannot answer the question has no ids.
_NOT_THERE = frozenset({KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION})
_MISSING = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.UNKNOWN_TOPIC_ID})


def topic_ids(admin: AdminClient, topics: Iterable[str]) -> dict[str, str]:
    """Returns the id of each topic by its full name; "" if the cluster gives none.

    Raises BrokerUnavailable, or Misconfigured for a topic that does not exist.
    """
    names = list(topics)
    if embedded := embedded_cluster(admin):
        return dict.fromkeys(names, embedded)
    deadline = time.monotonic() + REACH_TIMEOUT_S
    while True:
        try:
            return _ids_of(_ask(admin, names))
        except Misconfigured:
            # A broker may not know a topic yet that was just made.
            if time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN_S)


def embedded_cluster(admin: AdminClient) -> str:
    """Returns the id of the cluster if it is the embedded broker, else "". Raises BrokerUnavailable."""
    try:
        cluster = admin.list_topics(timeout=REACH_TIMEOUT_S).cluster_id or ""
    except KafkaException as error:
        raise BrokerUnavailable(f"no Kafka broker answers: {reason_of(error)}") from error
    return cluster if cluster.startswith(_EMBEDDED) else ""


class IdentityWatch:
    """Asks for the ids of some topics again and again, without blocking on the answer. Not thread-safe."""

    def __init__(
        self,
        admin: AdminClient,
        topics: Iterable[str],
        clock: Callable[[], float] = time.monotonic,
        ask_every_s: float = ASK_EVERY_S,
    ) -> None:
        self._admin, self._topics, self._clock, self._ask_every_s = admin, tuple(topics), clock, ask_every_s
        self._asked: dict[str, Future[Any]] = {}
        self._ask_at = clock() + ask_every_s
        self._missed = False

    def look(self) -> dict[str, str] | None:
        """Returns the ids by topic, or None if no new answer has come.

        Raises Misconfigured for a topic that is missing twice in a row: a broker that has just started may not know it.
        """
        ids = None
        if self._asked and all(answer.done() for answer in self._asked.values()):
            asked, self._asked = self._asked, {}
            ids = self._take(asked)
        if not self._asked and self._clock() >= self._ask_at:
            self._asked = _ask(self._admin, self._topics)
            self._ask_at = self._clock() + self._ask_every_s
        return ids

    def _take(self, asked: Mapping[str, Future[Any]]) -> dict[str, str] | None:
        try:
            ids = _ids_of(asked)
        except BrokerUnavailable:
            # Others notice that Kafka is away.
            return None
        except Misconfigured:
            if self._missed:
                raise
            self._missed = True
            return None
        self._missed = False
        return ids


def _ask(admin: AdminClient, topics: Iterable[str]) -> dict[str, Future[Any]]:
    return dict(admin.describe_topics(TopicCollection(list(topics)), request_timeout=REACH_TIMEOUT_S))


def _ids_of(answers: Mapping[str, Future[Any]]) -> dict[str, str]:
    ids = {}
    for topic, answer in answers.items():
        try:
            found = str(answer.result().topic_id)
        except KafkaException as error:
            code = error.args[0].code()
            if code in _MISSING:
                raise Misconfigured(missing_topic(topic)) from error
            if code not in _NOT_THERE:
                raise BrokerUnavailable(f"Kafka does not say which topic {topic} is: {reason_of(error)}") from error
            found = _NO_ID
        # As Kafka's own tools show it: base64 for URLs.
        ids[topic] = "" if found == _NO_ID else found.replace("+", "-").replace("/", "_")
    return ids
