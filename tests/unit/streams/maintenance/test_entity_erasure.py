"""Erasing removes everything of the entity and nothing else, while a stream worker writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.keys import SEPARATOR, entity_key
from paywarden.features.stores.base import ProfileStore
from paywarden.features.stores.lmdb import LmdbStore
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.errors import BrokerUnavailable, TemporaryFailure
from paywarden.schemas.proto.store_pb2 import PaymentRecord
from paywarden.streams.maintenance.backfill import Backfill
from paywarden.streams.maintenance.entity_erasure import ROUNDS_MAX, SETTLE_S, Forgotten, forget
from paywarden.streams.profiles.events import record_key
from tests.unit.features.kernel.profiles import label, payment, profile
from tests.worlds.small import small_world

card = Entity("card", key="card_id")
merchant = Entity("merchant", key="merchant_id")
pair = Entity("card_merchant", key=("card_id", "merchant_id"))
CATALOGUE = Catalogue(
    (card, merchant, pair),
    (card.count("cards", "1h"), merchant.count("merchants", "1h"), pair.count("pairs", "1h")),
)
ENGINE = FeatureEngine(CATALOGUE)
NOW_MS = 1_700_000_000_000
LONG = "M" * 500


class MemoryChangelog:
    """An ErasureChangelog in a dictionary: the last state of each key, None for a tombstone."""

    def __init__(self) -> None:
        self.last: dict[bytes, bytes | None] = {}
        self.sent: list[bytes] = []
        self._erased: set[bytes] = set()
        self.breaks_at = 0

    def erase(self, keys: Sequence[bytes]) -> None:
        self.breaks_at -= 1
        if self.breaks_at == 0:
            raise BrokerUnavailable("away")
        self._erased.update(keys)
        self.sent += keys
        self.last.update(dict.fromkeys(keys))

    def came_back(self) -> set[bytes]:
        return {key for key in self._erased if self.last[key] is not None}


class World:
    """The store after some payments, each a (card, merchant), a minute apart."""

    def __init__(self, store: ProfileStore, payments: Sequence[tuple[str, str]] = ()) -> None:
        self.store, self.changelog = store, MemoryChangelog()
        self.slept_s: list[float] = []
        for number, (card_id, merchant_id) in enumerate(payments):
            self.pay(f"p{number}", card_id, merchant_id, NOW_MS + number * 60_000)

    def pay(self, payment_id: str, card_id: str, merchant_id: str, time_ms: int) -> None:
        """Apply a payment like the stream, in a batch of its own."""
        ids = {"card": [card_id], "merchant": [merchant_id], "card_merchant": [card_id, merchant_id]}
        keys = [entity_key(entity, parts) for entity, parts in ids.items()]
        record = PaymentRecord(source=0, offset=time_ms, keys=[key.decode() for key in keys])
        self.write(record_key(payment_id), record.SerializeToString())
        for entity, key in zip(ids, keys, strict=True):
            (state,) = self.store.read([key])
            self.write(key, profile(ENGINE, entity, [payment(time_ms, 100)], state))

    def write(self, key: bytes, value: bytes) -> None:
        self.store.write({key: value}, ttl_s=0)
        if not key.startswith(b"payment:"):
            self.changelog.last[key] = value

    def contents(self) -> dict[bytes, bytes]:
        names = (*ENGINE.plan.entity_names, "payment")
        return {key: value for name in names for key, value in self.store.scan(name)}

    @property
    def others(self) -> list[ProfileStore]:
        """The stores of further profile sets."""
        return []

    def forget(self, key: bytes, *, meanwhile: Callable[[int], object] = lambda _: None) -> Forgotten:
        """`forget` calls `meanwhile` with the number of the round, right before it looks again."""

        def sleep(seconds: float) -> None:
            self.slept_s.append(seconds)
            meanwhile(len(self.slept_s))

        return forget(
            key, plan=ENGINE.plan, store=self.store, others=self.others, changelog=self.changelog, sleep=sleep
        )


@pytest.fixture(params=["memory", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProfileStore]:
    opened: ProfileStore = MemoryStore() if request.param == "memory" else LmdbStore(tmp_path, fsync=False)
    yield opened
    opened.close()


PAYMENTS = [("C1", "M1"), ("C1", "M2"), ("C2", "M1"), ("C1", "M1"), ("C10", "M1"), ("XC1", "M1")]
PAIR = f"card_merchant:C1{SEPARATOR}M1".encode()


def test_forgetting_a_card_removes_all_of_it_and_nothing_else(store: ProfileStore) -> None:
    world = World(store, PAYMENTS)
    before = world.contents()
    erased = {b"card:C1", PAIR, f"card_merchant:C1{SEPARATOR}M2".encode()}
    erased |= {record_key(f"p{number}") for number in (0, 1, 3)}
    assert erased <= before.keys()
    done = world.forget(b"card:C1")
    assert world.contents() == {key: value for key, value in before.items() if key not in erased}
    assert (done.profiles, done.payment_records, done.rounds, done.has_begun_anew) == (3, 3, 1, False)


def test_a_second_tombstone_follows_the_deletion() -> None:
    """A new mirror reads the store before the deletion and follows the changelog from behind the first tombstone."""
    world = World(MemoryStore(), PAYMENTS)
    stored_at: list[bool] = []

    class Watching(MemoryChangelog):
        def erase(self, keys: Sequence[bytes]) -> None:
            stored_at.append(any(state is not None for state in world.store.read(keys)))
            super().erase(keys)

    world.changelog = Watching()
    world.forget(b"merchant:M2")
    assert stored_at == [True, False, True, False]


def test_forgetting_a_merchant_erases_its_combinations(store: ProfileStore) -> None:
    world = World(store, PAYMENTS)
    done = world.forget(b"merchant:M2")
    assert (done.profiles, done.payment_records) == (2, 1)
    assert store.read([b"merchant:M2", f"card_merchant:C1{SEPARATOR}M2".encode(), record_key("p1")]) == [None] * 3
    assert None not in store.read([b"card:C1", PAIR])


def test_forgetting_a_combination_keeps_its_parts(store: ProfileStore) -> None:
    world = World(store, PAYMENTS)
    done = world.forget(PAIR)
    assert (done.profiles, done.payment_records) == (1, 2)
    assert set(world.changelog.sent) == {PAIR}
    assert None not in store.read([b"card:C1", b"merchant:M1", record_key("p1"), record_key("p2")])


def test_a_combination_with_a_digest_key_is_found_by_its_payments(store: ProfileStore) -> None:
    world = World(store, [("C1", LONG), ("C2", LONG)])
    mine, other = entity_key("card_merchant", ["C1", LONG]), entity_key("card_merchant", ["C2", LONG])
    assert SEPARATOR.encode() not in mine
    done = world.forget(b"card:C1")
    assert done.profiles == 2
    assert store.read([mine]) == [None]
    assert store.read([other]) != [None]
    assert mine in world.changelog.sent


def test_a_second_call_erases_what_a_broker_outage_left() -> None:
    """Whichever tombstone the broker refused, the store must still hold what leads to the rest."""
    digested = entity_key("card_merchant", ["C1", LONG])
    wanted: dict[bytes, bytes] | None = None
    for broken_at in range(1, 7):
        world = World(MemoryStore(), [*PAYMENTS, ("C1", LONG)])
        # Older than all payment records: only its own key says whose profile it is.
        world.pay("old", "C1", "M9", NOW_MS)
        world.store.delete([record_key("old")])
        assert world.store.read([digested]) != [None]
        world.changelog.breaks_at = broken_at
        with pytest.raises(BrokerUnavailable):
            world.forget(b"card:C1")
        world.forget(b"card:C1")
        wanted = wanted or world.contents()
        assert world.contents() == wanted
        assert digested not in wanted
        assert {key for key, state in world.changelog.last.items() if state is not None} == {
            key for key in wanted if not key.startswith(b"payment:")
        }


def test_another_kind_of_entity_with_the_same_id_is_erased_too() -> None:
    payer = Entity("payer", key="card_id")
    engine = FeatureEngine(Catalogue((card, payer), (card.count("cards", "1h"), payer.count("payers", "1d"))))
    store, changelog = MemoryStore(), MemoryChangelog()
    names = [f"{entity}:{identity}".encode() for identity in ("C1", "C2") for entity in ("card", "payer")]
    store.write(dict.fromkeys(names, b"state"), ttl_s=0)
    forget(b"card:C1", plan=engine.plan, store=store, changelog=changelog, sleep=lambda _: None)
    assert store.read(names) == [None, None, b"state", b"state"]
    assert set(changelog.sent) == {b"card:C1", b"payer:C1"}


def test_an_unknown_entity_still_gets_a_tombstone(store: ProfileStore) -> None:
    world = World(store, PAYMENTS)
    before = world.contents()
    done = world.forget(b"card:C3")
    assert (done.profiles, done.payment_records, done.rounds) == (0, 0, 1)
    assert set(world.changelog.sent) == {b"card:C3"}
    assert world.contents() == before


def test_an_unreadable_profile_is_erased(store: ProfileStore) -> None:
    world = World(store, PAYMENTS)
    world.write(b"card:C1", b"\x07of another time")
    assert world.forget(b"card:C1").profiles == 3
    assert store.read([b"card:C1"]) == [None]


def test_forgetting_reports_the_progress_of_its_scan() -> None:
    world = World(MemoryStore(), PAYMENTS)
    seen: list[tuple[int, int | None]] = []
    forget(
        b"card:C1",
        plan=ENGINE.plan,
        store=world.store,
        changelog=world.changelog,
        progress=lambda count, expected: seen.append((count, expected)),
        sleep=lambda _: None,
    )
    assert seen == [(0, 6), (6, 6)]


# With a stream worker at work


def test_a_profile_written_back_by_a_batch_in_flight_is_erased_again() -> None:
    """The worker read the profile before the erasure, and writes it back with one more payment."""
    world = World(MemoryStore(), PAYMENTS)
    before = world.contents()

    def write_back(number: int) -> None:
        if number == 1:
            world.write(b"card:C1", profile(ENGINE, "card", [payment(NOW_MS + 999_999, 1)], before[b"card:C1"]))
            world.write(record_key("p99"), PaymentRecord(keys=["card:C1", "merchant:M1"]).SerializeToString())

    done = world.forget(b"card:C1", meanwhile=write_back)
    assert (done.profiles, done.payment_records, done.rounds, done.has_begun_anew) == (3, 4, 2, False)
    assert world.store.read([b"card:C1", record_key("p99")]) == [None, None]
    assert world.changelog.last[b"card:C1"] is None
    assert world.slept_s == [SETTLE_S, SETTLE_S]


def writing_back(world: World, key: bytes, place: str, rounds: int = 1) -> Callable[[int], object]:
    """Returns a worker that writes the present state back in each of the first `rounds`, where `place` says."""
    (state,) = world.store.read([key])
    assert state is not None

    def write_back(number: int) -> None:
        if number <= rounds and place != "changelog":
            world.store.write({key: state}, ttl_s=0)
        if number <= rounds and place != "store":
            world.changelog.last[key] = state

    return write_back


# The changelog alone: the worker wrote the store before the erasure, and the changelog after it.
@pytest.mark.parametrize(("key", "place"), [(b"card:C1", "store"), (b"card:C1", "changelog"), (PAIR, "both")])
def test_a_profile_or_combination_back_in_any_place_is_erased_again(key: bytes, place: str) -> None:
    world = World(MemoryStore(), PAYMENTS)
    assert world.forget(b"card:C1", meanwhile=writing_back(world, key, place)).rounds == 2
    assert world.store.read([key]) == [world.changelog.last[key]] == [None]


def test_a_label_of_a_payment_not_yet_erased_is_removed() -> None:
    world = World(MemoryStore(), PAYMENTS)

    def work_in_an_outcome(number: int) -> None:
        if number == 1:
            world.write(b"card:C1", profile(ENGINE, "card", [label(NOW_MS, 1)]))

    done = world.forget(b"card:C1", meanwhile=work_in_an_outcome)
    assert (done.rounds, done.has_begun_anew) == (2, False)


def test_a_profile_of_new_payments_stays_and_is_reported() -> None:
    world = World(MemoryStore(), PAYMENTS)

    def pay(number: int) -> None:
        world.pay(f"later{number}", "C1", "M1", NOW_MS + 10_000_000 + number)

    done = world.forget(b"card:C1", meanwhile=pay)
    assert done.rounds == ROUNDS_MAX
    assert done.has_begun_anew
    (state,) = world.store.read([b"card:C1"])
    assert state == profile(ENGINE, "card", [payment(NOW_MS + 10_000_000 + ROUNDS_MAX, 100)])


@pytest.mark.parametrize(
    ("state", "place", "words"),
    [
        (None, "both", f"wrote the erased profile back, {ROUNDS_MAX} times"),
        (None, "changelog", "stop the stream"),
        (b"\x07of another time", "both", "wrote the erased profile back"),
    ],
)
def test_an_old_state_written_back_for_ever_is_an_error_without_the_card(
    state: bytes | None, place: str, words: str
) -> None:
    """`state`: an unreadable profile of the card; None for its profile of old payments."""
    world = World(MemoryStore(), PAYMENTS)
    if state is not None:
        world.write(b"card:C1", state)
    with pytest.raises(TemporaryFailure, match=words) as failed:
        world.forget(b"card:C1", meanwhile=writing_back(world, b"card:C1", place, rounds=ROUNDS_MAX))
    assert "C1" not in str(failed.value)


def test_an_unknown_entity_may_begin_with_its_first_payments() -> None:
    world = World(MemoryStore())
    done = world.forget(b"card:C1", meanwhile=lambda number: world.pay(f"p{number}", "C1", "M1", NOW_MS))
    assert done.has_begun_anew
    assert world.store.read([b"card:C1"]) != [None]


def test_an_unfinished_backfill_is_reported() -> None:
    store = MemoryStore()
    job = Backfill(
        small_world.history(),
        store,
        engine=small_world.engine(),
        rates=small_world.rates(),
        outcome_days=1,
    )
    job.compute()
    plan, changelog = small_world.engine().plan, MemoryChangelog()

    def unfinished() -> bool:
        done = forget(b"card:C1", plan=plan, store=store, changelog=changelog, sleep=lambda _: None)
        return done.backfill_is_unfinished

    found: list[bool] = [unfinished()]
    job.write(lambda _: found.append(unfinished()))
    found.append(unfinished())
    assert found == [False, *[True] * (len(found) - 2), False]
    assert len(found) > 3


# Further profile sets


class Sets(World):
    """The live set and another set, which got the same payments and may get more."""

    def __init__(self, live: Sequence[tuple[str, str]], other: Sequence[tuple[str, str]]) -> None:
        super().__init__(MemoryStore(), live)
        self.other = World(MemoryStore(), other)

    @property
    def others(self) -> list[ProfileStore]:
        return [self.other.store]


def test_a_card_is_erased_from_every_profile_set() -> None:
    world = Sets(PAYMENTS, [*PAYMENTS, ("C1", "M3")])
    before = world.other.contents()
    done = world.forget(b"card:C1")
    assert not any(b"C1" in key.replace(b"C10", b"").replace(b"XC1", b"") for key in world.other.contents())
    assert before.keys() - world.other.contents().keys() == {
        *(b"card:C1", PAIR, *(f"card_merchant:C1{SEPARATOR}{m}".encode() for m in ("M2", "M3"))),
        *(record_key(f"p{number}") for number in (0, 1, 3, 6)),
    }
    assert world.store.read([b"card:C1"]) == [None]
    assert (done.profiles, done.payment_records, done.rounds) == (3 + 4, 3 + 4, 1)
    assert not done.has_begun_anew


def test_a_profile_only_in_another_set_gets_a_tombstone() -> None:
    """The key may be on the changelog from the time when that set was live, or from a swap in progress."""
    world = Sets(PAYMENTS, [("C1", "M3")])
    world.forget(b"card:C1")
    assert f"card_merchant:C1{SEPARATOR}M3".encode() in world.changelog.sent


def test_a_key_that_one_set_links_to_the_card_is_erased_in_all() -> None:
    digested = entity_key("card_merchant", ["C1", LONG])
    for knowing in ("live", "other"):
        world = Sets([("C1", LONG)], [("C1", LONG)])
        (world.other if knowing == "live" else world).store.delete([record_key("p0")])
        world.forget(b"card:C1")
        assert world.store.read([digested]) == world.other.store.read([digested]) == [None]


def test_a_profile_written_back_by_a_rebuild_is_erased_again() -> None:
    world = Sets(PAYMENTS, PAYMENTS)
    done = world.forget(b"card:C1", meanwhile=writing_back(world.other, b"card:C1", "store"))
    assert (done.rounds, done.has_begun_anew) == (2, False)
    assert world.other.store.read([b"card:C1"]) == [None]


def test_no_tombstone_of_another_set_follows_a_new_live_profile() -> None:
    """Mirrors would lose a profile that the store has."""

    class Slow(MemoryStore):
        """A set that gets a payment during the erasure of its card."""

        def delete(self, keys: Sequence[bytes]) -> None:
            super().delete(keys)
            if b"card:C1" in keys:
                world.pay(f"later{len(world.slept_s)}", "C1", "M1", NOW_MS + 10_000_000 + len(world.slept_s))

    world = Sets(PAYMENTS, [])
    world.other = World(Slow(), PAYMENTS)
    world.forget(b"card:C1")
    for key in (b"card:C1", PAIR):
        assert [world.changelog.last[key]] == world.store.read([key])


def test_new_payments_in_the_live_set_are_no_error_of_another_set() -> None:
    world = Sets(PAYMENTS, PAYMENTS)
    done = world.forget(
        b"card:C1", meanwhile=lambda number: world.pay(f"later{number}", "C1", "M1", NOW_MS + 10_000_000 + number)
    )
    assert done.has_begun_anew
    assert world.other.store.read([b"card:C1"]) == [None]


def test_a_rebuild_that_reaches_later_payments_is_no_error() -> None:
    world = Sets(PAYMENTS, PAYMENTS)
    done = world.forget(
        b"card:C1", meanwhile=lambda number: world.other.pay(f"later{number}", "C1", "M1", NOW_MS + 10_000_000 + number)
    )
    assert done.rounds == ROUNDS_MAX
    # The key is not in the live set.
    assert not done.has_begun_anew
