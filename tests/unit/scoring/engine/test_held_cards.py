"""A scorer whose mirror holds a part of the cards: what it says about the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from paywarden.models.policy.policy import CARD_NOT_HELD
from paywarden.scoring.state.held_cards import HeldCards
from paywarden.scoring.state.shards import CardShards, HeldShards
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.unit.scoring.engine.test_scorer import NOW_MS, PLAN, Host, keys_of, requests, score_many
from tests.worlds.small.small_history import profiles

COUNT = 4
SHARDS = CardShards(COUNT, b"a route key of the tests", {"card": 1})


class ShardedHost(Host):
    """A host that may hold a part of the cards."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.options = replace(self.options, held_cards=HeldCards(SHARDS, PLAN.entity_keys, PLAN.entity_names))

    def note(self, held: HeldShards) -> None:
        writer = MirrorWriter(self.mirror)
        writer.note_shards(held)
        assert writer.shards() == held
        writer.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ShardedHost]:
    made = ShardedHost(tmp_path)
    made.fill({})
    yield made
    made.close()


def flags_by_card(host: ShardedHost) -> dict[str, set[str]]:
    found = requests()[:60]
    answers = score_many(host.scorer, found, NOW_MS)
    flags: dict[str, set[str]] = {}
    for request, answer in zip(found, answers, strict=True):
        flags.setdefault(request.card_id, set()).update(answer.flags)  # type: ignore[union-attr]
    return flags


def test_cards_of_other_hosts_are_flagged_whatever_the_mirror_has_of_them(host: ShardedHost) -> None:
    complete = frozenset({0, 2})
    # A profile that is left from an earlier table: it may be old.
    leftover = next(request for request in requests() if SHARDS.of_card(request.card_id.encode()) not in complete)
    key = keys_of(leftover)[0]
    assert key is not None
    host.fill({key: profiles()[key]})
    host.note(HeldShards(SHARDS.digest, complete))
    flags = flags_by_card(host)
    shards = {card: SHARDS.of_card(card.encode()) for card in flags}
    assert set(shards.values()) == {0, 1, 2, 3}
    for card, seen in flags.items():
        is_held = shards[card] in complete
        # A card that is not held may be known elsewhere, so nobody calls it unknown.
        assert ("unknown_card" in seen, CARD_NOT_HELD in seen) == (is_held, not is_held)
        assert "unknown_merchant" in seen
    assert host.counted()[CARD_NOT_HELD] > 0


def test_a_mirror_of_all_cards_flags_none_and_one_of_another_table_all(host: ShardedHost) -> None:
    assert not any(CARD_NOT_HELD in flags for flags in flags_by_card(host).values())
    host.close()
    host._scorer = None
    host.note(HeldShards("another table's", frozenset(range(3))))
    assert all(CARD_NOT_HELD in flags for flags in flags_by_card(host).values())
