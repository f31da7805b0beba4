"""Shards of cards: which host holds which, for any hosts, and how a mirror notes it."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.profiles.keys import entity_key
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.mirror_file import SHARDS, MirrorDamaged, MirrorSettings
from paywarden.scoring.state.shards import (
    CardShards,
    HeldShards,
    ShardSettings,
    card_shards,
    held_by,
    mask_of,
    ranked_hosts,
    shard_of_route,
)
from paywarden.streams.companion.mirror_writer import MirrorWriter

COUNT = 16
KEY = b"a route key of more than 16 bytes"
HOSTS = st.sets(st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True), min_size=1, max_size=8)
KEYS_OF = {entity.name: entity.keys for entity in CATALOGUE.entities}


@given(hosts=HOSTS, copies=st.integers(1, 4))
def test_every_shard_is_held_by_its_owner_and_the_next_hosts(hosts: set[str], copies: int) -> None:
    held = {host: held_by(host, COUNT, hosts, copies) for host in hosts}
    for shard, order in enumerate(ranked_hosts(COUNT, tuple(hosts))):
        assert sorted(order) == sorted(hosts)
        assert {host for host in hosts if shard in held[host]} == set(order[:copies])


@given(hosts=HOSTS.filter(lambda hosts: len(hosts) > 1), data=st.data())
def test_a_host_that_leaves_moves_only_its_own_shards(hosts: set[str], data: st.DataObject) -> None:
    leaving = data.draw(st.sampled_from(sorted(hosts)))
    before, after = ranked_hosts(COUNT, tuple(hosts)), ranked_hosts(COUNT, tuple(hosts - {leaving}))
    for old, new in zip(before, after, strict=True):
        # The next host of the order takes over, and it held the card already.
        assert new == tuple(host for host in old if host != leaving)


def test_shards_spread_evenly_over_hosts() -> None:
    hosts = tuple(f"scoring-{number}" for number in range(10))
    owned = [len(held_by(host, 4096, hosts, 1)) for host in hosts]
    assert sum(owned) == 4096
    assert max(owned) < 1.5 * 4096 / 10


@given(cards=st.lists(st.binary(max_size=200), max_size=20), key=st.binary(min_size=16, max_size=100))
def test_a_shard_is_that_of_the_route_which_clients_send(cards: list[bytes], key: bytes) -> None:
    routes = [hmac.new(key, card, hashlib.sha256).hexdigest()[:32] for card in cards]
    shards = CardShards(COUNT, key, {"card": 1})
    found = [shards.of_card(card) for card in cards]
    assert found == [shard_of_route(route, COUNT) for route in routes]
    held = mask_of(range(0, COUNT, 3), COUNT).tolist()
    for some in (cards, cards[:3]):
        assert shards.unheld_rows(some, held) == [row for row, shard in enumerate(found[: len(some)]) if shard % 3]


def test_a_combination_is_where_its_card_is() -> None:
    shards = CardShards(COUNT, KEY, {"card": 1, "card_merchant": 2})
    card = shards.of_card(b"C1")
    pair = entity_key("card_merchant", ["C1", "M7"])
    long_pair = entity_key("card_merchant", ["C1", "M" * 600])
    keys, found = shards.of_keys([b"card:C1", pair, long_pair, b"merchant:C1", b"\0progress", None])
    # A digest in place of a long id names no card, so every host holds it.
    assert dict(zip(keys, found.tolist(), strict=True)) == {b"card:C1": card, pair: card}


@given(complete=st.frozensets(st.integers(0, 500)))
def test_a_note_of_the_mirror_is_read_as_it_was_written(complete: frozenset[int]) -> None:
    held = HeldShards("0123456789abcdef", complete)
    assert HeldShards.from_bytes(held.to_bytes()) == held


def test_a_host_holds_its_shards_of_the_hosts_now_and_to_come() -> None:
    settings = ShardSettings(COUNT, "a", ("a", "b", "c"), ("a", "b", "c", "d"), copies=1)
    assert settings.wanted() == held_by("a", COUNT, "abc", 1) | held_by("a", COUNT, "abcd", 1)
    newcomer = ShardSettings(COUNT, "d", ("a", "b", "c"), ("a", "b", "c", "d"), copies=1)
    assert newcomer.wanted() == held_by("d", COUNT, "abcd", 1)
    assert newcomer.digest == settings.digest != ShardSettings(COUNT, "a", ("a", "b", "c")).digest


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"count": -1}, "count: wanted 0 to 16384, got -1"),
        ({"count": 8}, "hosts: wanted the names"),
        ({"count": 8, "hosts": ("a", "a"), "host": "a"}, "hosts: wanted each host once"),
        ({"hosts": ("a b",)}, "hosts: wanted letters, digits, . _ -, got 'a b'"),
        ({"copies": 0}, "copies: wanted at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(Misconfigured, match="shards") as error:
        ShardSettings(**settings)  # type: ignore[arg-type]
    assert told in str(error.value)


def test_a_host_that_nobody_lists_holds_nothing() -> None:
    with pytest.raises(Misconfigured, match=r"\[shards\] host: wanted one of a, b, got 'c'"):
        ShardSettings(8, "c", ("a", "b")).wanted()


def test_only_what_belongs_to_a_card_can_be_sharded(tmp_path: Path) -> None:
    key = tmp_path / "route-key"
    key.write_text(KEY.hex(), encoding="ascii")
    settings = ShardSettings(8, "a", ("a",), route_key_file=str(key))
    found = card_shards(settings, KEYS_OF)
    assert found is not None
    assert found.digest == CardShards(8, KEY, {"card": 1}).digest != CardShards(8, KEY + b"!", {"card": 1}).digest
    assert card_shards(ShardSettings(), KEYS_OF) is None
    for entities, told in (
        (("merchant",), "has merchant_id"),
        (("terminal",), "wanted entities of the catalogue, got 'terminal'"),
    ):
        with pytest.raises(Misconfigured, match=told):
            card_shards(ShardSettings(8, "a", ("a",), entities=entities), KEYS_OF)
    pairs_alone = ShardSettings(8, "a", ("a",), entities=("card_merchant",))
    with pytest.raises(Misconfigured, match="card_id alone"):
        card_shards(pairs_alone, {"card_merchant": ("card_id", "merchant_id")})
    with pytest.raises(Misconfigured) as refused:
        card_shards(settings, KEYS_OF, {"merchant": "worst_merchant", "card": "cards_devices"})
    assert str(refused.value) == (
        "[shards] entities: wanted entities that no other entity's features look at, got 'card', which 'cards_devices' "
        "looks at: its neighbours may be on any host. Take it out of entities, or the feature out of the catalogue"
    )
    assert card_shards(settings, KEYS_OF, {"merchant": "worst_merchant"}) is not None
    key.write_text("secret", encoding="ascii")
    with pytest.raises(Misconfigured, match="at least 32 hex digits") as error:
        card_shards(settings, KEYS_OF)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("note", [b"", b"7", b"[]", b"[" * 100_000, b'["a", "xyz"]', b'[1, "00"]', b"\xff"])
def test_a_damaged_note_makes_a_mirror_that_is_filled_anew_and_holds_no_card(tmp_path: Path, note: bytes) -> None:
    settings = MirrorSettings(path=str(tmp_path / "mirror"), size_mb=16)
    with closing(MirrorWriter(settings)) as writer:
        writer._write_note(SHARDS, note or b" ")
        with pytest.raises(MirrorDamaged, match="which cards it holds"):
            writer.shards()
        with closing(MirrorReader(settings, item_max=1, profile_bytes_max=64)) as reader:
            held = reader.shards()
            assert held is not None
            assert not held.complete
