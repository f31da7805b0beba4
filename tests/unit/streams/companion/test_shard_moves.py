"""Moving shards while the changelog goes on: what a mirror calls complete has the bits of one that holds everything."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.schemas.errors import StoreUnavailable
from paywarden.scoring.state.mirror_file import MirrorSettings, MirrorUnavailable
from paywarden.scoring.state.shards import CardShards, HeldShards, ShardSettings
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.companion.shard_moves import CopyInterrupted, HostShards, ShardMoves, States

COUNT = 8
CARDS = CardShards(COUNT, b"a route key of the tests", {"card": 1, "card_merchant": 2})
KEYS = [b"card:%d" % number for number in range(24)] + [b"card_merchant:%d\x1fm" % number for number in range(8)]
EVERYWHERE = [b"merchant:m", b"device:d"]
HOSTS = ("a", "b", "c", "d", "e")
SHARD_OF = dict(zip(*CARDS.of_keys(KEYS), strict=True))


class World:
    """A store and a changelog that a stream writes, and the mirror of host "a", which follows."""

    def __init__(self, mirror: MirrorWriter, random_: random.Random) -> None:
        self.mirror, self.random = mirror, random_
        self.store: dict[bytes, bytes] = {}
        # Records in the stream's store but not yet on the changelog; the changelog; how far it is applied.
        self.unsent: list[tuple[bytes, bytes | None]] = []
        self.log: list[tuple[bytes, bytes | None]] = []
        self.read_to = 0
        self.everything: dict[bytes, bytes] = {}
        self.versions = itertools.count()
        self.now = 0.0
        # Raised by the copy after this number of parts.
        self.failure: tuple[int, Exception] | None = None
        self.is_full = False
        mirror.clear()
        self.join(HOSTS[:3])

    def join(self, hosts: tuple[str, ...]) -> None:
        """The companion starts with these hosts."""
        shards = HostShards(ShardSettings(COUNT, "a", hosts, copies=2), CARDS)
        self.wanted = shards.wanted
        self.moves = ShardMoves(
            self.mirror,
            shards,
            copies=lambda: self.copies(),
            put=self._put,
            read_to=lambda: {0: self.read_to},
            ends=lambda: {0: len(self.log)},
            clock=self._clock,
        )

    def _clock(self) -> float:
        self.now += 0.02
        return self.now

    def _put(self, states: States) -> None:
        if self.is_full:
            raise MirrorUnavailable("no room")
        self.mirror.apply(states, {})

    def copies(self) -> Iterator[States]:
        # Read ahead, as pages of a scan are. What the store has, the changelog has as well, and it may not be applied.
        self.send(len(self.unsent))
        keys = sorted(KEYS)
        parts = [{key: self.store[key] for key in keys[at : at + 3] if key in self.store} for at in range(0, 32, 3)]
        for number, part in enumerate(parts):
            if self.failure is not None and number == self.failure[0]:
                _, error = self.failure
                self.failure = None
                raise error
            yield part

    def write(self, count: int) -> None:
        for _ in range(count):
            key = self.random.choice(KEYS + EVERYWHERE)
            state = None if self.random.random() < 0.2 else b"%d" % next(self.versions)
            if state is None:
                self.store.pop(key, None)
            else:
                self.store[key] = state
            self.unsent.append((key, state))

    def send(self, count: int) -> None:
        self.log += self.unsent[:count]
        del self.unsent[:count]

    def apply(self, count: int) -> None:
        batch = self.log[self.read_to : self.read_to + count]
        skipped = self.moves.skipped([key for key, _ in batch])
        taken = {key: state for key, state in batch if key not in skipped}
        self.mirror.apply(taken, {0: self.read_to + len(batch)})
        self.moves.applied(taken)
        for key, state in batch:
            if state is None:
                self.everything.pop(key, None)
            else:
                self.everything[key] = state
        self.read_to += len(batch)

    def advance(self) -> None:
        self.now += 3
        try:
            self.moves.advance()
        except MirrorUnavailable:
            self.is_full = False

    def work(self, rounds: int) -> None:
        """Do what the companion's loop does, while the stream goes on."""
        for _ in range(rounds):
            self.write(2)
            self.send(2)
            self.apply(self.random.randrange(4))
            self.advance()
            self.check()

    def check(self) -> None:
        """Profiles that the mirror's note calls complete equal, to the bit, those of a mirror that holds everything."""
        note = self.mirror.shards()
        complete = frozenset(range(COUNT)) if note is None else note.complete
        held = [key for key in KEYS if SHARD_OF[key] in complete] + EVERYWHERE
        assert self.mirror.read(held) == {key: self.everything.get(key) for key in held}

    def settle(self) -> None:
        self.send(len(self.unsent))
        for _ in range(200):
            self.apply(10)
            self.advance()
            self.check()
            if self.moves.is_settled:
                break
        self.apply(len(self.log))
        assert self.mirror.shards() in (None, HeldShards(CARDS.digest, self.wanted, is_clean=True))
        assert self.moves.missing == 0
        own = {key: state for key, state in self.everything.items() if SHARD_OF.get(key, -1) in {-1, *self.wanted}}
        found = self.mirror.read(KEYS + EVERYWHERE)
        assert {key: state for key, state in found.items() if state is not None} == own


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirrorWriter]:
    opened = MirrorWriter(MirrorSettings(path=str(tmp_path_factory.mktemp("mirror")), size_mb=16))
    yield opened
    opened.close()


JOIN = st.sets(st.sampled_from(HOSTS[1:]), min_size=1).map(lambda others: ("a", *sorted(others)))
STEP = st.one_of(
    st.tuples(st.sampled_from(["write", "send", "apply", "work"]), st.integers(1, 12)),
    st.just(("advance", 0)),
    st.tuples(st.just("join"), JOIN),
    st.tuples(st.sampled_from(["lose_store", "swap"]), st.integers(0, 5)),
    st.just(("fill", 0)),
)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), steps=st.lists(STEP, max_size=60))
def test_profiles_have_the_bits_of_a_whole_mirror_after_any_joins_and_leaves(
    mirror: MirrorWriter, seed: int, steps: list[tuple[str, object]]
) -> None:
    world = World(mirror, random.Random(seed))
    for step, argument in steps:
        if step == "join":
            world.join(argument)  # type: ignore[arg-type]
        elif step == "lose_store":
            world.failure = (argument, StoreUnavailable("away"))  # type: ignore[assignment]
        elif step == "swap":
            world.failure = (argument, CopyInterrupted("another set"))  # type: ignore[assignment]
        elif step == "fill":
            world.is_full = True
        elif step == "advance":
            world.advance()
        else:
            getattr(world, step)(argument)
        world.check()
    world.write(40)
    world.send(40)
    world.join(world.random.choice([HOSTS[:1], HOSTS[:2], HOSTS[:4]]))
    world.work(40)
    world.settle()


def test_a_card_that_is_forgotten_during_the_copy_stays_forgotten(mirror: MirrorWriter) -> None:
    world = World(mirror, random.Random(1))
    world.settle()
    world.join(("a", "b", "c", "d"))
    world.settle()
    world.join(("a",))
    # The last of the copy, so that it is not written before the tombstone comes.
    gained = max(key for key in KEYS if SHARD_OF[key] not in world.mirror.shards().complete)  # type: ignore[union-attr]
    world.store[gained] = b"to be forgotten"
    assert gained > b"card:8"
    parts = list(world.copies())
    world.copies = lambda: iter(parts)  # type: ignore[method-assign]
    while world.moves._touched is None:
        world.now += 3
        next(world.moves._steps)
    # The copy was read before the tombstone comes, and is written after it.
    del world.store[gained]
    world.log.append((gained, None))
    world.apply(1)
    world.settle()
    assert world.mirror.read([gained]) == {gained: None}
