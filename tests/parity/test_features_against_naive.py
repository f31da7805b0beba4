"""Every path to a payment's features gives the bits of the plain path: at once, one by one, in batches, replayed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.features.catalogue.attributes import ATTRIBUTES
from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS, MINUTE_MS
from paywarden.features.history.history import History, history_of_tables
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.keys import entity_key
from paywarden.features.profiles.plan import Plan, compile_plan
from paywarden.streams.profiles import events as batch
from paywarden.streams.profiles.events import OutcomeEvent, RecordLayout
from paywarden.streams.profiles.payment_columns import PaymentEvent, Position
from tests.parity.comparison import differing, same_bits
from tests.parity.features_worlds import (
    DECLARED,
    RATES,
    SPANS_MS,
    START_MS,
    Heard,
    Outcome,
    Payment,
    Said,
    World,
    catalogue,
    catalogue_of,
    catalogues,
    change_of,
    engine,
    every_word,
    own_fields_words,
    payment_of,
    worlds,
)
from tests.parity.plain import plain_vectors
from tests.unit.features.kernel.profiles import apply, bound_vector, profile, row, vector, vectors
from tests.worlds.stream import joined as together
from tests.worlds.stream.packed import sources_of, without_sources

Vectors = NDArray[np.float32]
_FIELD_NAMES = [one.name for one in ATTRIBUTES if one.name not in ("event_time_ms", "amount", "amount_minor")]


# Three paths through a world.


def history_of(world: World) -> History:
    payments = world.payments
    numbers = {"utc_offset_minutes": pa.int64(), "declined": pa.bool_()}
    table = pa.table(
        {
            "payment_id": pa.array([f"p{row}" for row in range(len(payments))], pa.string()),
            "event_time_ms": pa.array([p.time_ms for p in payments], pa.int64()),
            "amount_minor": pa.array([p.amount_minor for p in payments], pa.int64()),
            **{
                name: pa.array([p.fields.get(name) for p in payments], numbers.get(name, pa.string()))
                for name in _FIELD_NAMES
            },
        }
    )
    outcomes = pa.table(
        {
            "payment_id": pa.array([f"p{o.payment}" for o in world.outcomes], pa.string()),
            "outcome_time_ms": pa.array([o.time_ms for o in world.outcomes], pa.int64()),
            "label": pa.array(["fraud" if o.is_fraud else "genuine" for o in world.outcomes], pa.string()),
            "source": pa.nulls(len(world.outcomes), pa.string()),
        }
    )
    return history_of_tables(table, outcomes)


def passed(world: World, of: FeatureEngine, rows: int = 1000) -> tuple[Vectors, dict[bytes, bytes]]:
    """Returns (vectors, final profiles by store key) as training and replay compute them."""
    passage = PointInTimeReplay(history_of(world), of, RATES)
    chunks = [chunk.vectors for chunk in passage.chunks(rows=rows)]
    passage.finish()
    profiles = {
        key: state
        for column, states in zip(passage.entities, passage.profiles, strict=True)
        for key, state in zip(column.store_keys(), states, strict=True)
        if state is not None
    }
    return np.concatenate(chunks), profiles


def keys_of(plan: Plan, payment: Payment) -> dict[str, bytes]:
    """Returns the store key of each entity that the payment has, by the entity's name."""
    ids = {
        name: [payment.fields.get(key) for key in keys]
        for name, keys in zip(plan.entity_names, plan.entity_keys, strict=True)
    }
    return {name: entity_key(name, list(map(str, wanted))) for name, wanted in ids.items() if None not in wanted}


def row_of(payment: Payment) -> tuple[int, ...]:
    return row(payment.time_ms, payment.amount, **payment.fields, amount_minor=payment.amount_minor)


def streamed(heard: Sequence[Heard], of: FeatureEngine) -> tuple[Vectors, dict[bytes, bytes]]:
    """Returns the same as `passed`, event by event: each vector from packed profiles, then each profile's update."""
    profiles: dict[bytes, bytes] = {}
    rows = []
    for event in heard:
        keys = keys_of(of.plan, event.payment)
        if event.weight is None:
            states = {entity: profiles.get(key) for entity, key in keys.items()}
            rows.append(vectors(of, [row_of(event.payment)], [states])[0])
            assert same_bits(bound_vector(of, row_of(event.payment), states), rows[-1])
        for entity, key in keys.items():
            profiles[key] = profile(of, entity, [change_of(event)], profiles.get(key))
    return np.array(rows, dtype=np.float32).reshape(len(rows), of.plan.feature_count), profiles


def assert_same(got: Vectors, wanted: Vectors, of: FeatureEngine | None = None) -> None:
    assert got.shape == wanted.shape
    assert list(differing((of or engine()).plan.names, got, wanted)) == []


def plainly(of: Catalogue, heard: Sequence[Heard]) -> Vectors:
    """Returns the vectors of the plain way."""
    plan = compile_plan(of)
    return plain_vectors(of, [(keys_of(plan, one.payment), row_of(one.payment), one.weight) for one in heard])


BUSY_EDGE = World(
    [
        payment_of(START_MS + offset_ms, amount, device_id="d1", country=country, channel="ecom")
        for offset_ms, amount, country in [
            (0, 7, "DE"),
            (1, 0, "FR"),
            (HOUR_MS - 1, 5, "FR"),
            (HOUR_MS, 5, None),
            (DAY_MS, 9, "DE"),
            (31 * DAY_MS, 1, "NZ"),
        ]
    ],
    [Outcome(0, START_MS + DAY_MS, True), Outcome(0, START_MS + 31 * DAY_MS, False)],
)


def test_the_catalogue_of_every_word_uses_every_word() -> None:
    entity_words = {name for name in dir(DECLARED.Entity) if not name.startswith("_")} - {
        "name",
        "key",
        "keys",
        "line",
    }
    request_words = {name for name in vars(DECLARED.request) if not name.startswith("_")}
    used: set[str] = set()

    class Listening:
        """Records which words a catalogue uses, and passes them on."""

        def __init__(self, to: object) -> None:
            self._to = to

        def __getattr__(self, word: str) -> object:
            used.add(word)
            return getattr(self._to, word)

    words = {**vars(DECLARED), "request": Listening(DECLARED.request)}
    words["Entity"] = lambda name, key: Listening(DECLARED.Entity(name, key))
    words["Catalogue"] = lambda **_: None
    every_word(type("Words", (), words))
    own_fields_words(type("Words", (), words))
    # tests/parity/test_two_hops.py has the words for neighbours.
    assert used | {"largest_of_last", "mean_of_last"} >= entity_words | request_words


@settings(max_examples=30)
@given(world=worlds(), rows=st.sampled_from([1, 2, 3, 7, 1000]))
@example(world=BUSY_EDGE, rows=1000)
def test_a_replay_event_by_event_gives_the_plain_bits(world: World, rows: int) -> None:
    heard = world.heard()
    at_once, profiles = passed(world, engine(), rows)
    one_by_one, same_profiles = streamed(heard, engine())
    assert_same(one_by_one, at_once)
    assert same_profiles == profiles
    assert_same(at_once, plainly(catalogue(), heard))


@settings(max_examples=30)
@given(world=worlds(), data=st.data())
def test_events_in_any_order_give_the_plain_vectors(world: World, data: st.DataObject) -> None:
    # Labels arrive before their payments too, and some events come weeks too late for some tables.
    heard = data.draw(st.permutations(world.heard()))
    assert_same(streamed(heard, engine())[0], plainly(catalogue(), heard))


def busy_world(seed: int, count: int, span_ms: int) -> World:
    """A world with more payments in a tile, and more tiles in a table, than the generated examples have."""
    chance = random.Random(seed)
    payments = [
        payment_of(
            START_MS + int(chance.random() ** 2 * span_ms),
            chance.choice([0, 99, 1250, 220_00, 10**6, chance.randrange(10**5), 10**11]),
            card_id=chance.choice(["c1", "c2"]),
            merchant_id=f"m{chance.randrange(40)}",
            device_id=chance.choice([None, "d1"]),
            currency=chance.choice(sorted(RATES.currencies)),
            country=chance.choice([None, "DE", "FR", "US", "JP"]),
            channel=chance.choice([None, "ecom", "pos"]),
            mcc=chance.choice([None, *(str(5000 + number) for number in range(30))]),
            declined=chance.choice([None, True, False]),
            utc_offset_minutes=chance.choice([None, 0, 60, -600]),
        )
        for _ in range(count)
    ]
    payments.sort(key=lambda p: p.time_ms)
    outcomes = [
        Outcome(place, p.time_ms + chance.randrange(14 * DAY_MS), chance.random() < 0.5)
        for place, p in enumerate(payments)
        for _ in range(2)
    ]
    return World(payments, sorted(outcomes, key=lambda o: o.time_ms))


@pytest.mark.parametrize("span_ms", SPANS_MS)
def test_a_busy_world_gives_the_plain_vectors(span_ms: int) -> None:
    world = busy_world(3, 250, span_ms)
    heard = world.heard()
    at_once, profiles = passed(world, engine(), rows=100)
    one_by_one, same_profiles = streamed(heard, engine())
    assert_same(one_by_one, at_once)
    assert same_profiles == profiles
    assert_same(at_once, plainly(catalogue(), heard))


@settings(max_examples=15)
@given(world=worlds(), data=st.data())
def test_the_shipped_catalogue_gives_the_plain_vectors(world: World, data: st.DataObject) -> None:
    of = FeatureEngine(CATALOGUE)
    heard = data.draw(st.one_of(st.just(world.heard()), st.permutations(world.heard())))
    assert_same(streamed(heard, of)[0], plainly(CATALOGUE, heard), of)


@settings(max_examples=50)
@given(said=catalogues(), world=worlds(8))
def test_any_catalogue_gives_the_plain_vectors(said: list[Said], world: World) -> None:
    of = FeatureEngine(catalogue_of(said))
    heard = world.heard()
    at_once, profiles = passed(world, of)
    one_by_one, same_profiles = streamed(heard, of)
    assert_same(one_by_one, at_once, of)
    assert same_profiles == profiles
    assert_same(at_once, plainly(catalogue_of(said), heard), of)


# Profiles do not depend on the order or the batches of their events.


def own_events(world: World, of: FeatureEngine) -> dict[tuple[str, bytes], list[Heard]]:
    own: dict[tuple[str, bytes], list[Heard]] = {}
    for event in world.heard():
        for entity, key in keys_of(of.plan, event.payment).items():
            own.setdefault((entity, key), []).append(event)
    return own


@settings(max_examples=60)
@given(world=worlds(20), data=st.data())
def test_profiles_do_not_depend_on_the_order_of_arrival(world: World, data: st.DataObject) -> None:
    _, profiles = passed(world, engine())
    for (entity, key), own in own_events(world, engine()).items():
        shuffled = data.draw(st.permutations(own))
        assert profile(engine(), entity, [change_of(event) for event in shuffled]) == profiles[key]


@settings(max_examples=20)
@given(world=worlds(), data=st.data(), later_ms=st.integers(0, 40 * DAY_MS))
def test_after_events_in_any_order_profiles_give_the_plain_vector(
    world: World, data: st.DataObject, later_ms: int
) -> None:
    heard = world.heard()
    now = replace(world.payments[-1], time_ms=world.payments[-1].time_ms + later_ms)
    states: dict[str, bytes | None] = dict.fromkeys(keys_of(engine().plan, now))
    for (entity, key), own in own_events(world, engine()).items():
        if keys_of(engine().plan, now).get(entity) == key:
            shuffled = data.draw(st.permutations(own))
            states[entity] = profile(engine(), entity, [change_of(event) for event in shuffled])
    found = vector(engine(), now.time_ms, now.amount, states, **now.fields, amount_minor=now.amount_minor)
    assert_same(found[None], plainly(catalogue(), [*heard, Heard(now)])[-1:])


@settings(max_examples=60)
@given(world=worlds(20), data=st.data())
def test_splitting_the_events_anywhere_gives_the_same_profiles(world: World, data: st.DataObject) -> None:
    for (entity, _), own in own_events(world, engine()).items():
        changes = [change_of(event) for event in own]
        cuts = sorted(data.draw(st.lists(st.integers(0, len(own)), max_size=4)))
        state: bytes | None = None
        for first, last in zip([0, *cuts], [*cuts, len(own)], strict=True):
            state = profile(engine(), entity, changes[first:last], state)
        assert state == profile(engine(), entity, changes)


# The stream.

Arrival = PaymentEvent | OutcomeEvent


LAYOUT = RecordLayout(counts_labels=True)


@dataclass
class Kept:
    """The content of a stream's store."""

    records: dict[bytes, bytes]
    profiles: dict[bytes, bytes]

    def work(self, arrivals: Sequence[Arrival], lost: Mapping[int, bool] | None = None) -> batch.ProfileUpdates:
        """Work in one batch. Profiles whose number is in `lost` are not written, as after a crash halfway."""
        joined = self.join(arrivals)
        applied = together.apply(joined, self.profiles, engine())
        self.records |= joined.records
        for number, (key, state) in enumerate(applied.profiles.items()):
            if not (lost or {}).get(number, False):
                self.profiles[key] = state
        return applied

    def join(self, arrivals: Sequence[Arrival]) -> batch.Joined:
        payments = [event for event in arrivals if isinstance(event, PaymentEvent)]
        outcomes = [event for event in arrivals if isinstance(event, OutcomeEvent)]
        return batch.join(payments, outcomes, self.records, engine().plan.entity_count, LAYOUT)

    def copy(self) -> Kept:
        return Kept(dict(self.records), dict(self.profiles))


def arrivals_of(world: World) -> list[Arrival]:
    """Returns the world's events as two topics of two partitions hold them, each key in its own partition."""
    offsets = dict.fromkeys(range(4), 0)

    def position(source: int) -> Position:
        offsets[source] += 1
        return Position(source, offsets[source] - 1)

    events: list[tuple[int, int, int]] = [(p.time_ms, 0, number) for number, p in enumerate(world.payments)]
    events += [(o.time_ms, 1, number) for number, o in enumerate(world.outcomes)]
    arrivals: list[Arrival] = []
    for _, kind, number in sorted(events):
        if kind == 0:
            p = world.payments[number]
            keys = tuple(keys_of(engine().plan, p).get(name, b"") for name in engine().plan.entity_names)
            source = 0 if p.fields["card_id"] == "c1" else 2
            arrivals.append(PaymentEvent(position(source), f"p{number}", row_of(p), keys))
        else:
            o = world.outcomes[number]
            arrivals.append(OutcomeEvent(position(1 + 2 * (o.payment % 2)), f"p{o.payment}", o.is_fraud))
    return arrivals


def kept_after(arrivals: Sequence[Arrival]) -> Kept:
    kept = Kept({}, {})
    for arrival in arrivals:
        kept.work([arrival])
    return kept


@settings(max_examples=40)
@given(world=worlds(20), data=st.data())
def test_a_stream_in_batches_of_any_size_gives_a_replays_profiles(world: World, data: st.DataObject) -> None:
    arrivals = arrivals_of(world)
    kept, done = Kept({}, {}), 0
    while done < len(arrivals):
        size = data.draw(st.integers(1, len(arrivals)))
        kept.work(arrivals[done : done + size])
        done += size
    assert kept == kept_after(arrivals)
    _, profiles = passed(world, engine())
    assert {key: without_sources(state) for key, state in kept.profiles.items()} == profiles


@settings(max_examples=40)
@given(world=worlds(20), data=st.data())
def test_a_stream_that_crashes_and_repeats_batches_ends_the_same(world: World, data: st.DataObject) -> None:
    arrivals = arrivals_of(world)
    kept, done = Kept({}, {}), 0
    for _ in range(4):
        # The batch may begin well before the newest processed event, and some of its writes may be lost.
        first = data.draw(st.integers(0, done))
        last = data.draw(st.integers(first, len(arrivals)))
        lost = data.draw(st.dictionaries(st.integers(0, 8), st.booleans()))
        kept.work(arrivals[first:last], lost)
        # Offsets are committed only when the whole batch is written.
        done = max(done, last) if not any(lost.values()) else first
    kept.work(arrivals[done:])
    assert kept == kept_after(arrivals)


@settings(max_examples=40)
@given(world=worlds(20), data=st.data())
def test_repeated_events_change_nothing_and_count_as_not_applied(world: World, data: st.DataObject) -> None:
    arrivals = arrivals_of(world)
    kept = kept_after(arrivals)
    before = kept.copy()
    first = data.draw(st.integers(0, len(arrivals) - 1))
    again = arrivals[first : data.draw(st.integers(first + 1, len(arrivals)))]
    applied = kept.work(again)
    assert kept == before
    joined = before.join(again)
    assert applied.replayed == sum(len(events.keys) for events in joined.of_entities())
    assert applied.late == 0


@settings(max_examples=30)
@given(world=worlds(10), data=st.data())
def test_a_payment_sent_twice_counts_once(world: World, data: st.DataObject) -> None:
    arrivals = arrivals_of(world)
    kept = kept_after(arrivals)
    before = kept.copy()
    again = data.draw(st.sampled_from([event for event in arrivals if isinstance(event, PaymentEvent)]))
    # Another record of the same payment: its producer did not know that the first one had arrived.
    kept.work([again._replace(position=Position(again.position.source, 10_000))])
    assert kept == before


def test_a_profile_names_the_offsets_that_it_contains() -> None:
    kept = kept_after(arrivals_of(BUSY_EDGE))
    assert sources_of(kept.profiles[b"card:c1"]) == {0: 5, 1: 1}
    assert apply(engine(), "card", [], kept.profiles[b"card:c1"]).states == [kept.profiles[b"card:c1"]]


def test_events_a_minute_apart_and_out_of_order_are_all_counted() -> None:
    # The expected values are worked out by hand, so that this test does not rest on the plain features.
    heard = [
        Heard(payment_of(START_MS + minutes * MINUTE_MS, amount, country=country, declined=declined))
        for minutes, amount, country, declined in [
            (5, 1000, "DE", False),
            (0, 3000, "FR", True),
            (8, 2000, "DE", None),
        ]
    ]
    now = Heard(payment_of(START_MS + 9 * MINUTE_MS, 4000, country="US", declined=False))
    found = dict(zip(engine().plan.names, streamed([*heard, now], engine())[0][-1].tolist(), strict=True))
    assert found["count_10m"] == 3
    assert found["count_1d_declined"] == 1
    assert found["sum_1h"] == 6000
    assert found["std_7d"] == 1000
    assert found["zscore_7d"] == 2
    assert found["min_1d"] == 1000
    assert found["last_amount"] == 2000
    assert found["new_country"] == 1
    assert found["since_last"] == 60
    assert found["share_7d_home"] == np.float32(2 / 3)
    assert 400_000 < found["travel"] < 500_000
