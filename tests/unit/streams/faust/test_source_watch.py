"""The agents' topics without Kafka: what is compared, and which offsets are stored and committed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from paywarden.features.stores.memory import MemoryStore
from paywarden.streams.faust.partition_agent import AgentSource, Pace, PartitionAgent, _Partition
from paywarden.streams.faust.source_watch import SourceWatch
from paywarden.streams.kafka.source_register import BESIDE_SOURCES_KEY, SourceChanged, SourceRegister, base_of
from tests.fakes.kafka import FakeBroker, clients_of

DECISIONS = ("decisions", 0)


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def watch_of(broker: FakeBroker, store: MemoryStore) -> SourceWatch:
    return SourceWatch(clients_of(broker), store, ("decisions", "outcomes"))


def test_another_topic_ends_a_start_and_a_running_app(broker: FakeBroker, store: MemoryStore) -> None:
    watch = watch_of(broker, store)
    assert watch.bases == {"decisions": 0, "outcomes": 0}
    asyncio.run(watch.compare())
    broker.topic_ids["outcomes"] = "another"
    with pytest.raises(SourceChanged, match=r"^topic outcomes: it was deleted"):
        asyncio.run(watch.compare())
    with pytest.raises(SourceChanged, match=r"^topic outcomes: it was deleted"):
        watch_of(broker, store)


def test_an_accepted_topic_has_the_base_of_its_generation(broker: FakeBroker, store: MemoryStore) -> None:
    watch_of(broker, store)
    register = SourceRegister(store, BESIDE_SOURCES_KEY, {"outcomes": "outcomes"})
    broker.topic_ids["outcomes"] = "another"
    register.accept({"outcomes": "another"})
    assert watch_of(broker, store).bases == {"decisions": 0, "outcomes": base_of(1)}


def test_a_topic_that_ends_before_what_is_saved_ends_this_and_every_later_app(
    broker: FakeBroker, store: MemoryStore
) -> None:
    for _ in range(10):
        broker.append(DECISIONS)
    watch = watch_of(broker, store)
    watch.follow("decisions", lambda: {0: 10})
    asyncio.run(watch.compare())
    del broker.records[DECISIONS][4:]
    with pytest.raises(SourceChanged, match="partition 0 was read to offset 10 and ends at 4"):
        asyncio.run(watch.compare())
    for _ in range(20):
        broker.append(DECISIONS)
    with pytest.raises(SourceChanged, match="partition 0 was read to offset 10 and ends at 4"):
        watch_of(broker, store)


def test_an_agent_stores_offsets_with_the_base_and_commits_kafkas_own() -> None:
    committed: list[dict[TP, int]] = []

    async def commit(offsets: dict[TP, int]) -> bool:
        committed.append(offsets)
        return True

    app: Any = SimpleNamespace(consumer=SimpleNamespace(commit_offsets=commit))
    nothing: Any = None
    agent = PartitionAgent(
        app,
        AgentSource("decisions", "decisions", base_of(1)),
        codec=nothing,
        takers=(),
        pace=Pace(1000, 1, 1, 1.0),
        metrics=nothing,
        now_ms=nothing,
    )
    works: list[Any] = [SimpleNamespace(next_offset=offset) for offset in (base_of(1) + 7, 980)]
    agent._partitions = {number: _Partition([work]) for number, work in enumerate(works)}
    # The second one has nothing of the new topic yet.
    assert agent.positions() == {0: 7, 1: 0}
    asyncio.run(agent._commit())
    assert committed == [{TP("decisions", 0): 7}]
