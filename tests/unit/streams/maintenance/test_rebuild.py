"""Rebuilding without a broker: a swap given up, a stalled client. All: tests/integration/profiles/test_rebuild.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from paywarden.features.stores.memory import MemorySets
from paywarden.features.stores.profile_sets import ProfileSets
from paywarden.schemas.errors import BrokerUnavailable, TemporaryFailure
from paywarden.streams.maintenance.rebuild import Rebuild, RebuildOptions, RebuildParts
from paywarden.streams.profiles.stream_settings import StreamSettings
from tests.fakes.kafka import FakeAdmin, FakeBroker, clients_of


@pytest.fixture
def sets() -> ProfileSets:
    sets = ProfileSets(MemorySets().open_register())
    sets.create("b1", now_ms=1)
    sets.begin_swap(sets.read(), "b1")
    return sets


class GroupAdmin(FakeAdmin):
    """A cluster whose group has `member_counts` members, one count for each question; the last one stays."""

    def __init__(self, broker: FakeBroker, member_counts: list[int], log: list[str]) -> None:
        super().__init__(broker)
        self._member_counts, self._log = member_counts, log

    def describe_consumer_groups(self, groups: list[str], **_: object) -> dict[str, Future[Any]]:
        self._log += groups
        count = self._member_counts.pop(0) if len(self._member_counts) > 1 else self._member_counts[0]
        answer: Future[Any] = Future()
        answer.set_result(SimpleNamespace(members=[None] * count))
        return dict.fromkeys(groups, answer)


class LoggedChangelog:
    """Notes the keys that are published and erased."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def send(self, entity: str, states: Mapping[bytes, bytes], written_time_ms: int) -> None:
        del entity, written_time_ms
        self._log += [f"publish {key.decode()}" for key in states]

    def erase(self, keys: Iterable[bytes]) -> None:
        self._log += [f"erase {key.decode()}" for key in keys]


class Sent:
    """A sender whose broker has everything."""

    def flush(self, timeout_s: float) -> None: ...


class World:
    """A rebuild of profile set b1, and a log of what it asks and publishes."""

    def __init__(self, sets: ProfileSets, member_counts: list[int], *, patience_s: float = 30.0) -> None:
        self.log: list[str] = []
        self.broker = FakeBroker()
        self.pipeline = StalledPipeline()
        stores = MemorySets()
        stores.open("").write({b"card:live": b"1"}, ttl_s=60)
        stores.open("b1").write({b"card:new": b"1"}, ttl_s=60)
        changelog: Any = LoggedChangelog(self.log)
        pipeline: AbstractContextManager[Any] = nullcontext(self.pipeline)
        admin = GroupAdmin(self.broker, member_counts, self.log)
        self.rebuild = Rebuild(
            "b1",
            clients=clients_of(self.broker, sender=Sent(), admin=admin),
            settings=StreamSettings(group_id="g"),
            entities=["card"],
            sets=sets,
            stores=stores,
            parts=RebuildParts(open_pipeline=lambda _: pipeline, open_changelog=lambda _: changelog),
            options=RebuildOptions(replication=1, leave_patience_s=patience_s, look_every_s=0.001),
        )


def test_a_swap_is_given_up_only_when_the_live_workers_have_left(sets: ProfileSets) -> None:
    """The rebuild was killed right after the swap began: a worker may still write newer profiles than it publishes."""
    world = World(sets, [2, 1, 0])
    live = world.rebuild.abort()
    assert world.log == ["g", "g", "g", "publish card:live", "erase card:new"]
    assert (live.name, live.next) == ("", None)


def test_a_swap_goes_on_while_live_workers_stay_in_their_group(sets: ProfileSets) -> None:
    world = World(sets, [1], patience_s=0.01)
    with pytest.raises(TemporaryFailure, match="do not leave"):
        world.rebuild.abort()
    assert set(world.log) == {"g"}
    assert sets.read().next == "b1"


class StalledPipeline:
    """A worker whose client gives nothing any more."""

    has_left = False

    def join(self) -> None: ...

    def leave(self) -> None:
        self.has_left = True

    def uncommitted_count(self, ends: Mapping[str, Mapping[int, int]]) -> int:
        return sum(end for partitions in ends.values() for end in partitions.values())

    def step(self, stop: Event) -> None:
        assert not stop.is_set()
        raise BrokerUnavailable("Kafka's client has stalled on payments/2: the worker begins again")


def test_a_stalled_client_ends_a_rebuild_that_can_be_resumed(sets: ProfileSets) -> None:
    world = World(sets, [0])
    world.broker.append(("payments", 0))
    with pytest.raises(BrokerUnavailable, match=r"stalled on payments/2.*; go on with --resume b1"):
        world.rebuild.run(Event(), lambda _done, _total: None)
    assert world.pipeline.has_left
    assert sets.read().next == "b1"
