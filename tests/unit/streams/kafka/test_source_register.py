from __future__ import annotations

import pytest

from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.kafka.source_register import (
    SOURCES_KEY,
    SourceChanged,
    SourceEntry,
    SourceRegister,
    base_of,
    split_offset,
)

NAMES = {"x-payments": "payments", "x-outcomes": "outcomes"}
IDS = {"x-payments": "p1", "x-outcomes": "o1"}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def register(store: MemoryStore) -> SourceRegister:
    return SourceRegister(store, SOURCES_KEY, NAMES)


def test_the_first_start_enters_the_topics_and_later_ones_compare(register: SourceRegister) -> None:
    assert register.read() == {}
    assert register.check(IDS) == {"x-payments": SourceEntry("p1"), "x-outcomes": SourceEntry("o1")}
    assert register.check(IDS) == register.read()


def test_another_id_is_refused_in_one_line_that_says_what_to_do(register: SourceRegister) -> None:
    register.check(IDS)
    with pytest.raises(SourceChanged) as refused:
        register.check(IDS | {"x-payments": "p2"})
    line = str(refused.value)
    assert line.startswith("topic x-payments: it was deleted and created again, or is on another cluster: its id is p2")
    assert "`paywarden admin source --accept payments`" in line
    assert "\n" not in line
    assert register.read()["x-payments"] == SourceEntry("p1")


def test_an_accepted_topic_is_read_in_its_next_generation(register: SourceRegister) -> None:
    register.check(IDS)
    register.accept({"x-payments": "p2"})
    found = register.check(IDS | {"x-payments": "p2"})
    assert found == {"x-payments": SourceEntry("p2", 1), "x-outcomes": SourceEntry("o1", 0)}
    with pytest.raises(SourceChanged):
        register.check(IDS)


def test_a_cut_is_remembered_until_the_topic_is_accepted(register: SourceRegister) -> None:
    register.check(IDS)
    register.note_cut("x-outcomes", "partition 3 was read to offset 9 and ends at 4")
    with pytest.raises(SourceChanged, match="lost records that were read already: partition 3 was read to offset 9"):
        register.check(IDS)
    register.accept({"x-outcomes": "o1"})
    assert register.check(IDS)["x-outcomes"] == SourceEntry("o1", 1)


def test_a_cluster_without_ids_is_not_compared_and_ids_are_entered_later(register: SourceRegister) -> None:
    register.check(dict.fromkeys(IDS, ""))
    register.check(IDS)
    register.check(dict.fromkeys(IDS, ""))
    with pytest.raises(SourceChanged):
        register.check(IDS | {"x-payments": "p2"})


def test_two_workers_that_start_at_once_enter_one_topic(store: MemoryStore, register: SourceRegister) -> None:
    """Between them the topic was created again: the second must not replace what the first has entered."""
    other = SourceRegister(store, SOURCES_KEY, NAMES)
    read = other.read

    def read_before_the_other_enters() -> dict[str, SourceEntry]:
        found = read()
        register.check(IDS)
        return found

    other.read = read_before_the_other_enters  # type: ignore[method-assign]
    other.check(IDS | {"x-payments": "p2"})
    assert register.read()["x-payments"].id == "p1"


def test_offsets_of_a_generation_are_above_all_earlier_ones() -> None:
    assert base_of(0) == 0
    assert base_of(1) > (1 << 47)
    assert base_of(2) > base_of(1) + (1 << 47)
    assert split_offset(base_of(3) + 17) == (3, 17)
    assert split_offset(1041) == (0, 1041)


def test_a_register_of_another_release_or_a_damaged_one_is_named(store: MemoryStore, register: SourceRegister) -> None:
    store.write({SOURCES_KEY: b'{"format": 9, "topics": {}}'}, ttl_s=0)
    with pytest.raises(Misconfigured, match="has format 9, this release reads 1"):
        register.read()
    store.write({SOURCES_KEY: b"no json"}, ttl_s=0)
    with pytest.raises(Misconfigured, match="it is damaged"):
        register.read()
