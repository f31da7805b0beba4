"""What of a rebuild needs no broker; the whole of it is in tests/integration/test_rebuild.py."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from threading import Event
from typing import Any

import pytest

from paywarden.features.stores.memory import MemorySets
from paywarden.features.stores.profile_sets import ProfileSets
from paywarden.schemas.errors import BrokerUnavailable, TemporaryFailure
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.maintenance import rebuild
from paywarden.streams.maintenance.rebuild import Rebuild
from paywarden.streams.profiles.pipeline import StreamSettings


@pytest.fixture
def sets() -> ProfileSets:
    sets = ProfileSets(MemorySets().open_register())
    sets.create("b1", now_ms=1)
    sets.begin_swap(sets.read(), "b1")
    return sets


def a_rebuild(
    monkeypatch: pytest.MonkeyPatch,
    sets: ProfileSets,
    members: list[int],
    log: list[Any],
    patience_s: float,
    open_pipeline: Any = None,
) -> Rebuild:
    """One whose live group has so many members each time it is asked, the last number for ever."""

    def members_of(_: object, group: str) -> int:
        log.append(group)
        return members.pop(0) if len(members) > 1 else members[0]

    def publish(_: Rebuild, name: str, *, instead_of: str) -> None:
        log.append((name, instead_of))

    monkeypatch.setattr(rebuild, "members_of", members_of)
    monkeypatch.setattr(rebuild, "make_admin", lambda _: None)
    monkeypatch.setattr(rebuild, "_LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(Rebuild, "_publish", publish)
    anything: Any = None
    return Rebuild(
        "b1",
        kafka=KafkaSettings(),
        settings=StreamSettings(group_id="g"),
        entities=["card"],
        sets=sets,
        stores=MemorySets(),
        open_pipeline=open_pipeline,
        open_changelog=anything,
        replication=1,
        leave_patience_s=patience_s,
    )


def test_a_swap_is_given_up_only_when_the_live_workers_have_left(
    monkeypatch: pytest.MonkeyPatch, sets: ProfileSets
) -> None:
    """Killed right after the swap began: a worker may still be at a batch, newer than what would be published."""
    log: list[Any] = []
    live = a_rebuild(monkeypatch, sets, [2, 1, 0], log, 30).abort()
    assert log == ["g", "g", "g", ("", "b1")]
    assert (live.name, live.next) == ("", None)


def test_a_swap_whose_live_workers_do_not_leave_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch, sets: ProfileSets
) -> None:
    log: list[Any] = []
    with pytest.raises(TemporaryFailure, match="do not leave"):
        a_rebuild(monkeypatch, sets, [1], log, 0.01).abort()
    assert ("", "b1") not in log
    assert sets.read().next == "b1"


class StalledPipeline:
    """Its client gives nothing any more."""

    def __init__(self) -> None:
        self.stalled: list[tuple[str, int]] = []
        self.has_left = False

    def join(self) -> None: ...

    def leave(self) -> None:
        self.has_left = True

    def uncommitted_count(self, ends: Mapping[str, Mapping[int, int]]) -> int:
        return len(ends)

    def step(self, stop: Event) -> None:
        assert not stop.is_set()
        self.stalled = [("payments", 2)]


def test_a_client_that_has_stalled_ends_a_rebuild_which_can_be_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, sets: ProfileSets
) -> None:
    pipeline: Any = StalledPipeline()
    one = a_rebuild(monkeypatch, sets, [0], [], patience_s=1.0, open_pipeline=lambda _: nullcontext(pipeline))
    monkeypatch.setattr(Rebuild, "_ends", lambda _, topics: {topic: {0: 1} for topic in topics})
    with pytest.raises(BrokerUnavailable, match=r"stalled on payments/2: go on with --resume b1"):
        one.run(Event(), lambda _done, _total: None)
    assert pipeline.has_left
    assert sets.read().next == "b1"
