"""A simulated client for questions about topics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition

from tests.simulation.cluster.broker import Broker
from tests.simulation.cluster.logs import Place, kafka_failure
from tests.simulation.world import Actor, World


class _Answer:
    """A future of the administrative client."""

    def __init__(self, world: World, due: float, result: Callable[[], Any]) -> None:
        self._world, self._due, self._result = world, due, result

    def done(self) -> bool:
        return self._world.now >= self._due

    def result(self, timeout: float | None = None) -> Any:
        del timeout
        while not self.done():
            self._world.sleep(self._due - self._world.now)
        return self._result()


class SimulatedAdmin:
    """The questions of `AdminClient` about topics and where their partitions end."""

    def __init__(self, broker: Broker, actor: Actor) -> None:
        self._broker, self._actor, self._world = broker, actor, broker.world

    def list_topics(self, topic: str | None = None, timeout: float = 1.0) -> SimpleNamespace:
        self._world.seam("list topics")
        if self._broker.is_away:
            self._world.pause(min(timeout, self._broker.answer_s))
            raise kafka_failure(KafkaError._TRANSPORT)
        names = [topic] if topic is not None else sorted(self._broker.topics)
        return SimpleNamespace(
            cluster_id="simulated",
            topics={
                name: SimpleNamespace(error=None, partitions=dict.fromkeys(range(len(self._broker.topics[name].logs))))
                for name in names
                if name in self._broker.topics
            },
        )

    def describe_topics(self, collection: Any, **_: object) -> dict[str, _Answer]:
        """Ids of topics. `collection` is a TopicCollection or names."""
        self._world.seam("describe topics")
        names = list(getattr(collection, "topic_names", collection))
        return {name: self._answer(partial(self._described, name)) for name in names}

    def _described(self, name: str) -> SimpleNamespace:
        topic = self._broker.topics.get(name)
        if topic is None:
            raise kafka_failure(KafkaError.UNKNOWN_TOPIC_OR_PART)
        partitions = [SimpleNamespace(id=number) for number in range(len(topic.logs))]
        return SimpleNamespace(name=name, topic_id=topic.name_of_id, partitions=partitions)

    def list_offsets(
        self,
        wanted: Iterable[TopicPartition],
        isolation_level: IsolationLevel = IsolationLevel.READ_COMMITTED,
        **_: object,
    ) -> dict[TopicPartition, _Answer]:
        self._world.seam("list offsets")
        is_stable = isolation_level == IsolationLevel.READ_COMMITTED
        return {place: self._answer(partial(self._end, (place.topic, place.partition), is_stable)) for place in wanted}

    def _end(self, place: Place, is_stable: bool) -> SimpleNamespace:
        log = self._broker.log(place)
        return SimpleNamespace(offset=log.stable_end(log.begin) if is_stable else log.end)

    def _answer(self, result: Callable[[], Any]) -> _Answer:
        if self._broker.is_away:

            def fail() -> Any:
                raise kafka_failure(KafkaError._TIMED_OUT)

            return _Answer(self._world, self._world.now + self._broker.answer_s, fail)
        # The broker answers as of the question, and the answer takes a moment.
        try:
            answer, error = result(), None
        except KafkaException as failure:
            answer, error = None, failure

        def give() -> Any:
            if error is not None:
                raise error
            return answer

        return _Answer(self._world, self._world.now + 0.002, give)
