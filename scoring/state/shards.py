"""Assigns cards to hosts: shards of cards, and a ranking of the hosts for each shard.

    card c-17 ── HMAC under the route key ──► route 5d3a91c2…   the client sends it, the gateway routes by it
    route     ── first 32 bits % count    ──► shard 1475
    shard     ── a hash with each host    ──► scoring-3, scoring-1, scoring-2 …   the first `copies` hold it

1. A shard's order of hosts is by rendezvous hashing (Thaler and Ravishankar 1998): each host has a weight for each
   shard, and the highest comes first. If a host goes, only its own shards move, and each to its next host.
2. The gateway sends a card to the first host of its order that is well. The second holds the card as well, so it takes
   over with a warm mirror.
3. While hosts change, `next_hosts` names the hosts to come. A mirror then holds its present and its future shards.
4. The mirror notes which shards are complete in it (`HeldShards`). Workers flag the cards of all others.

Nothing of this is used while `[shards] count` is 0: then each mirror holds every profile.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from paywarden.features.profiles.keys import SEPARATOR
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.key_files import read_hex_key

COUNT_MAX = 16_384
"""The most shards. A gateway's configuration and a mirror's note hold a few bytes for each."""

ROUTE_BITS_DIGITS = 8
"""The hexadecimal digits of a route that decide about the shard: 32 bits."""
_FIRST_WORD = struct.Struct(">I")
_BLOCK_BYTES = 64  # of SHA-256

CARD_FIELD = "card_id"
_ROUTE_KEY_BYTES_MIN = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEPARATOR = SEPARATOR.encode()


@dataclass(frozen=True)
class ShardSettings:
    """The settings `[shards]`. Companion and serve of all hosts have the same, but for `host`."""

    # Shards of cards, the same number as in gateway.toml. 0: each host's mirror holds every profile.
    count: int = 0
    # The name of this host, as in `hosts`.
    host: str = ""
    # The names of all scoring hosts, as in gateway.toml.
    hosts: tuple[str, ...] = ()
    # While hosts change: the names of the hosts to come. A mirror then holds its shards of both lists.
    next_hosts: tuple[str, ...] = ()
    # How many hosts hold each card.
    copies: int = 2
    # The entities that are held by card. Each must be identified by card_id, or by card_id and further fields.
    entities: tuple[str, ...] = ("card",)
    # A file of hex digits: the route key of the clients.
    route_key_file: str = ""

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if not 0 <= self.count <= COUNT_MAX:
            raise Misconfigured(f"[shards] count: wanted 0 to {COUNT_MAX}, got {self.count}")
        if self.copies < 1:
            raise Misconfigured(f"[shards] copies: wanted at least 1, got {self.copies}")
        for setting, names in (("hosts", self.hosts), ("next_hosts", self.next_hosts)):
            for name in names:
                if _NAME.fullmatch(name) is None:
                    raise Misconfigured(f"[shards] {setting}: wanted letters, digits, . _ -, got {name!r}")
            if len(set(names)) != len(names):
                raise Misconfigured(f"[shards] {setting}: wanted each host once, got {', '.join(names)}")
        if self.count and not self.hosts:
            raise Misconfigured("[shards] hosts: wanted the names of all scoring hosts, got none")

    @property
    def digest(self) -> str:
        """16 hex digits that are equal where two hosts agree on which host holds which shard."""
        said = (self.count, self.copies, sorted(self.hosts), sorted(self.next_hosts), sorted(self.entities))
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def wanted(self) -> frozenset[int]:
        """Returns the shards that this host's mirror is to hold. Raises Misconfigured if `host` is not in the lists."""
        if self.host not in (*self.hosts, *self.next_hosts):
            raise Misconfigured(f"[shards] host: wanted one of {', '.join(self.hosts)}, got {self.host!r}")
        found = held_by(self.host, self.count, self.hosts, self.copies)
        return found | held_by(self.host, self.count, self.next_hosts, self.copies)


def shard_of_route(route: str, count: int) -> int:
    """Returns the shard of a card by its route, 32 hexadecimal digits."""
    return int(route[:ROUTE_BITS_DIGITS], 16) % count


@lru_cache(maxsize=32)
def ranked_hosts(count: int, hosts: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Returns by shard all hosts, the owner of the shard first. The order of `hosts` does not matter."""
    return tuple(
        tuple(sorted(sorted(hosts), key=lambda host: _weight(shard, host), reverse=True)) for shard in range(count)
    )


def _weight(shard: int, host: str) -> bytes:
    return hashlib.blake2b(f"{host}/{shard}".encode(), digest_size=8).digest()


def held_by(host: str, count: int, hosts: Iterable[str], copies: int) -> frozenset[int]:
    """Returns the shards that a host holds; none if it is not one of `hosts`."""
    ranked = ranked_hosts(count, tuple(sorted(hosts)))
    return frozenset(shard for shard, order in enumerate(ranked) if host in order[:copies])


@dataclass(frozen=True)
class HeldShards:
    """The note in a mirror that says which shards it holds.

    `digest`: of the settings that make shards of cards (`CardShards.digest`). `complete`: the shards that are in the
    mirror as they would be in one that holds everything. It has nothing of other shards.
    """

    digest: str
    complete: frozenset[int]

    def to_bytes(self) -> bytes:
        """Returns the note as the mirror keeps it."""
        bits = np.zeros(max(self.complete, default=-1) + 1, dtype=bool)
        bits[list(self.complete)] = True
        return json.dumps([self.digest, np.packbits(bits).tobytes().hex()]).encode()

    @classmethod
    def from_bytes(cls, value: bytes) -> HeldShards:
        """Returns the note from the bytes of `to_bytes`. Raises ValueError for other bytes."""
        try:
            digest, bits = json.loads(value)
            held = np.flatnonzero(np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)))
        except (TypeError, RecursionError) as error:
            raise ValueError("it is no note about shards") from error
        if type(digest) is not str:
            raise ValueError("it is no note about shards")
        return cls(digest, frozenset(held.tolist()))


class CardShards:
    """Finds the shards of profiles by their keys."""

    def __init__(self, count: int, route_key: bytes, entities: Mapping[str, int]) -> None:
        """`entities`: the entities that are held by card, and how many fields identify each."""
        assert count > 0
        self.count = count
        self.entities = tuple(entities)
        self._kinds = [(f"{name}:".encode(), fields == 1) for name, fields in entities.items()]
        # An HMAC is one hash inside another. The key's part of both is made once: `hmac.digest` takes twice the time.
        padded = route_key if len(route_key) <= _BLOCK_BYTES else hashlib.sha256(route_key).digest()
        padded = padded.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded)).copy
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded)).copy
        said = json.dumps([count, sorted(entities)]).encode()
        self.digest = hashlib.sha256(b"paywarden shards" + said + route_key).hexdigest()[:16]
        """16 hex digits. Mirrors with equal ones have put equal cards into a shard. It reveals no key."""

    def of_card(self, card: bytes) -> int:
        """Returns the shard of a card by its id."""
        inner, outer = self._inner(), self._outer()
        inner.update(card)
        outer.update(inner.digest())
        return int(_FIRST_WORD.unpack_from(outer.digest())[0]) % self.count

    def unheld_rows(self, cards: Sequence[bytes], held: Sequence[bool]) -> list[int]:
        """Returns the places of the cards whose shard is not held. `held`: a flag for each shard."""
        of_card = self.of_card
        return [row for row, card in enumerate(cards) if not held[of_card(card)]]

    def of_keys(self, keys: Collection[bytes | None]) -> tuple[list[bytes], NDArray[np.int64]]:
        """Returns the keys of entities that are held by card, and the shard of each. All others are on every host."""
        found: list[bytes] = []
        cards: list[bytes] = []
        for prefix, is_card in self._kinds:
            begin = len(prefix)
            own = [key for key in keys if key and key.startswith(prefix)]
            if is_card:
                found += own
                cards += [key[begin:] for key in own]
                continue
            for key in own:
                card, separator, _ = key[begin:].partition(_SEPARATOR)
                # A digest stands in place of ids that are too long for a key: it names no card.
                if separator:
                    found.append(key)
                    cards.append(card)
        return found, np.array([self.of_card(card) for card in cards], dtype=np.int64)


def mask_of(shards: Iterable[int], count: int) -> NDArray[np.bool_]:
    """Returns whether each shard is one of these. Shape (count,)."""
    mask = np.zeros(count, dtype=bool)
    mask[list(shards)] = True
    return mask


def card_shards(
    settings: ShardSettings, keys_of: Mapping[str, Sequence[str]], looked_at: Mapping[str, str] = MappingProxyType({})
) -> CardShards | None:
    """Returns the shards of cards, or None where there are none. `keys_of`: the fields that identify each entity.

    `looked_at`: entities whose profiles a feature of other entities looks at, each with such a feature. Reads the route
    key. Raises Misconfigured.
    """
    if not settings.count:
        return None
    for name in settings.entities:
        fields = keys_of.get(name)
        if fields is None:
            raise Misconfigured(f"[shards] entities: wanted entities of the catalogue, got {name!r}")
        if fields[0] != CARD_FIELD:
            raise Misconfigured(
                f"[shards] entities: wanted entities whose first field is {CARD_FIELD}, got {name!r}, which has "
                f"{fields[0]}: hosts that do not hold it would need it"
            )
        if name in looked_at:
            raise Misconfigured(
                f"[shards] entities: wanted entities that no other entity's features look at, got {name!r}, which "
                f"{looked_at[name]!r} looks at: its neighbours may be on any host. Take it out of entities, or the "
                "feature out of the catalogue"
            )
    if not any(len(keys_of[name]) == 1 for name in settings.entities):
        raise Misconfigured(f"[shards] entities: wanted the entity that {CARD_FIELD} alone identifies among them")
    fields_of = {name: len(keys_of[name]) for name in settings.entities}
    return CardShards(settings.count, read_route_key(settings.route_key_file), fields_of)


def read_route_key(path: str) -> bytes:
    """Returns the key in a file of hex digits. Raises Misconfigured, without a word of the content."""
    if not path:
        raise Misconfigured("[shards] route_key_file: wanted a file with the route key of the clients, got none")
    key = read_hex_key("[shards] route_key_file", path)
    if len(key) < _ROUTE_KEY_BYTES_MIN:
        raise Misconfigured(f"[shards] route_key_file: {path} must hold at least {2 * _ROUTE_KEY_BYTES_MIN} hex digits")
    return key
