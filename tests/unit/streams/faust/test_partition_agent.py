"""An agent's batches without Kafka: what is given to it, what it works in, and what it leaves to others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from paywarden.streams.faust.codec import Undecodable
from paywarden.streams.faust.consumer import HoldingConsumer, RecordBatch
from paywarden.streams.faust.partition_agent import AgentSource, Pace, PartitionAgent, _Partition


class Work:
    """Notes the offsets that it gets."""

    is_ahead = has_news = False

    def __init__(self) -> None:
        self.added: list[int] = []
        self.skipped: list[int] = []

    def __len__(self) -> int:
        return len(self.added)

    def add(self, offset: int, _: Mapping[str, Any]) -> None:
        self.added.append(offset)

    def skip(self, offset: int) -> None:
        self.skipped.append(offset)


class Codec:
    """Reads `b"bad"` as undecodable, and every other value as an empty record."""

    def read(self, value: bytes) -> Any:
        return Undecodable("bad") if value == b"bad" else {}

    async def record(self, value: Any) -> Any:
        return value


class Agent(PartitionAgent):
    """An agent of partition 0."""

    def __init__(self, *, unsaved_max: int = 10_000) -> None:
        self.held: set[TP] = set()
        consumer = SimpleNamespace(hold=self.held.update, release=self.held.difference_update)
        app: Any = SimpleNamespace(consumer=consumer)
        codec: Any = Codec()
        self.undecodable = 0
        metrics: Any = SimpleNamespace(undecodable=SimpleNamespace(inc=self._count))
        pace = Pace(1000, 500, unsaved_max, 1.0)
        source = AgentSource("decisions", "d")
        super().__init__(app, source, codec=codec, takers=(), pace=pace, metrics=metrics, now_ms=lambda: 0)
        self.work: Any = Work()
        works: list[Any] = [self.work]
        self._partitions = {0: _Partition(works)}

    def _count(self) -> None:
        self.undecodable += 1

    async def given(self, *batches: RecordBatch) -> None:
        """Work in these batches."""
        nothing: Any = None
        reading = asyncio.create_task(self._read(nothing))
        for batch in batches:
            await self.give(batch)
        while self._worked_in < self._given:
            await asyncio.sleep(0)
        reading.cancel()


def batch(first: int, count: int, *, partition: int = 0, assignment: int = 0, value: bytes = b"") -> RecordBatch:
    records = [SimpleNamespace(offset=offset, value=value) for offset in range(first, first + count)]
    return RecordBatch(partition, records, assignment)


def test_records_are_worked_in_in_their_order() -> None:
    agent = Agent()
    asyncio.run(agent.given(batch(0, 700), batch(700, 1), batch(701, 299)))
    assert agent.work.added == list(range(1000))
    assert agent.unsaved == 1000
    assert agent._save_due.is_set()


def test_records_of_an_assignment_that_has_ended_are_left_to_the_next_owner() -> None:
    """Their first ones may not be saved: working in only the later ones would lose these."""
    agent = Agent()
    agent.assignment = 1
    asyncio.run(agent.given(batch(0, 3), batch(3, 2, assignment=1)))
    assert agent.work.added == [3, 4]


def test_a_batch_during_which_its_partition_is_revoked_is_left_half_done() -> None:
    agent = Agent()
    add = agent.work.add

    def add_and_revoke(offset: int, record: Mapping[str, Any]) -> None:
        add(offset, record)
        if offset == 249:
            # While the loop turns between two parts of the batch.
            asyncio.get_running_loop().call_soon(revoke)

    def revoke() -> None:
        agent.assignment += 1
        agent._partitions = {0: _Partition([agent.work])}

    agent.work.add = add_and_revoke
    asyncio.run(agent.given(batch(0, 600)))
    assert agent.work.added == list(range(250))


def test_a_record_that_cannot_be_read_is_counted_and_passed() -> None:
    agent = Agent()
    asyncio.run(agent.given(batch(0, 2), batch(2, 1, value=b"bad"), batch(3, 1)))
    assert (agent.work.added, agent.work.skipped, agent.undecodable) == ([0, 1, 3], [2], 1)


def test_an_agent_with_too_much_unsaved_holds_its_partitions() -> None:
    agent = Agent(unsaved_max=600)
    asyncio.run(agent.given(batch(0, 550)))
    assert agent.held == set()
    asyncio.run(agent.given(batch(550, 100)))
    assert agent.held == {TP("decisions", 0)}


def test_no_more_is_fetched_while_many_records_wait() -> None:
    async def gives() -> bool:
        agent = Agent()
        await agent.give(batch(0, 9000))
        giving = asyncio.create_task(agent.give(batch(9000, 1)))
        await asyncio.sleep(0)
        waited = not giving.done()
        nothing: Any = None
        reading = asyncio.create_task(agent._read(nothing))
        await giving
        reading.cancel()
        return waited

    assert asyncio.run(gives())


def test_records_that_come_before_their_partition_is_taken_over_are_noted() -> None:
    """The agent goes back to them when it has the partition: otherwise it would go on behind them."""
    agent = Agent()
    asyncio.run(agent.given(batch(0, 3, partition=5), batch(3, 2, partition=5)))
    assert agent._missed == {5}
    agent._drop_all()
    assert agent._missed == set()


@pytest.mark.parametrize("flow_active", [True, False])
def test_a_fetch_gives_batches_to_their_reader_and_the_rest_to_faust(flow_active: bool) -> None:
    async def fetched() -> tuple[Any, list[RecordBatch]]:
        given: list[RecordBatch] = []

        async def give(batch: RecordBatch) -> None:
            given.append(batch)

        reader = SimpleNamespace(assignment=7, give=give)

        async def fetch(*_: Any) -> dict[TP, list[str]]:
            # The partitions are assigned again while the fetch is under way.
            reader.assignment = 8
            return {TP("decisions", 3): ["a", "b"], TP("other", 0): ["c"]}

        transport = SimpleNamespace(batch_readers={"decisions": reader})
        consumer: Any = SimpleNamespace(transport=transport, _fetch=fetch, flow_active=flow_active)
        return await HoldingConsumer._getmany(consumer, None, 1.0), given

    wanted = [RecordBatch(3, ["a", "b"], 8)] if flow_active else []
    assert asyncio.run(fetched()) == ({TP("other", 0): ["c"]}, wanted)
