"""Every way to a payment's features gives the bits of the obvious way: at once, one by one, in batches, replayed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.catalogue import CATALOGUE
from features.declare import DAY_MS, HOUR_MS, MINUTE_MS, Catalogue, Entity, Feature, ratio, request
from features.engine import FeatureEngine
from features.history import History, history_of_tables
from features.money import AMOUNT_MINOR_MAX, RateTable
from features.passage import Passage
from streams import batch
from streams.batch import OutcomeEvent, PaymentEvent, Position
from tests.parity.naive_features import (
    Known,
    Outcome,
    Payment,
    differing,
    naive_history,
    naive_vector,
    same_bits,
)
from tests.unit.features.profiles import Change, label, payment, profile, vector

# A Sunday at midnight, so that edges of every hop are among the moments below.
START_MS = 1_530_403_200_000
RATES = RateTable({"EUR": [(0, 1_000_000)]})
ENTITIES = ("card", "merchant", "device")


@dataclass(frozen=True)
class World:
    """Payments in order of time; outcomes in the order they became known."""

    payments: list[Payment]
    outcomes: list[Outcome]


@cache
def engine() -> FeatureEngine:
    return FeatureEngine()


def moments(span_ms: int) -> st.SearchStrategy[int]:
    """Times in a span, often on the edge of a tile or a millisecond beside it."""
    anywhere = st.integers(0, span_ms)
    edges = st.builds(
        lambda hop_ms, tile, beside: min(max(0, tile % (span_ms // hop_ms + 1) * hop_ms + beside), span_ms),
        st.sampled_from([MINUTE_MS, HOUR_MS, 6 * HOUR_MS, DAY_MS]),
        st.integers(0, 10_000),
        st.integers(-1, 1),
    )
    return st.one_of(anywhere, edges).map(lambda offset_ms: START_MS + offset_ms)


AMOUNTS = st.one_of(st.integers(0, 50_000), st.sampled_from([0, 2**24 + 1, AMOUNT_MINOR_MAX]))
# Label delays on both sides of the catalogue's seven days.
DELAYS_MS = st.one_of(st.integers(0, 20 * DAY_MS), st.sampled_from([0, 1, 7 * DAY_MS - 1, 7 * DAY_MS, 7 * DAY_MS + 1]))


@st.composite
def worlds(draw: st.DrawFn, payments_max: int = 30) -> World:
    span_ms = draw(st.sampled_from([2 * HOUR_MS, 2 * DAY_MS, 45 * DAY_MS, 90 * DAY_MS]))
    ids = st.fixed_dictionaries(
        {
            "card": st.sampled_from(["c1", "c2"]),
            "merchant": st.sampled_from(["m1", "m1", "m2"]),
            "device": st.sampled_from([None, "d1", "d2"]),
        }
    )
    payments = draw(st.lists(st.builds(Payment, moments(span_ms), AMOUNTS, ids), min_size=1, max_size=payments_max))
    payments.sort(key=lambda p: p.time_ms)
    said = draw(
        st.lists(st.tuples(st.integers(0, len(payments) - 1), DELAYS_MS, st.booleans()), max_size=payments_max // 2)
    )
    outcomes = [Outcome(row, payments[row].time_ms + delay_ms, is_fraud) for row, delay_ms, is_fraud in said]
    return World(payments, sorted(outcomes, key=lambda o: o.time_ms))


def history_of(world: World) -> History:
    payments = world.payments
    count = len(payments)
    nothing = pa.nulls(count, pa.string())
    table = pa.table(
        {
            "payment_id": [f"p{row}" for row in range(count)],
            "event_time_ms": pa.array([p.time_ms for p in payments], pa.int64()),
            "amount_minor": pa.array([p.amount for p in payments], pa.int64()),
            **{f"{entity}_id": pa.array([p.ids[entity] for p in payments], pa.string()) for entity in ENTITIES},
            "currency": ["EUR"] * count,
            **dict.fromkeys(["ip", "mcc", "country", "channel"], nothing),
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


def passed(world: World, of: FeatureEngine, rows: int = 1000) -> tuple[NDArray[np.float32], dict[str, bytes]]:
    """(vectors, final profiles by `entity:id`) as training and replay get them."""
    history = history_of(world)
    passage = Passage(history, of, RATES)
    vectors = np.concatenate([chunk.vectors for chunk in passage.chunks(rows=rows)])
    passage.finish()
    profiles = {
        f"{entity}:{identity}": state
        for entity, states in zip(of.plan.entity_names, passage.profiles, strict=True)
        for identity, state in zip(getattr(history, entity).names.to_pylist(), states, strict=True)
        if state is not None
    }
    return vectors, profiles


def weights(outcomes: Sequence[Outcome]) -> list[int]:
    """What each outcome changes about its payment's label."""
    said: dict[int, bool] = {}
    changes = []
    for outcome in outcomes:
        changes.append(outcome.is_fraud - said.get(outcome.payment, False))
        said[outcome.payment] = outcome.is_fraud
    return changes


def heard(world: World) -> list[tuple[Payment, int | None, Change]]:
    """Everything that happens, in order: the payment, its row if it is made now, and what its entities hear."""
    made = [(p.time_ms, 0, (p, row, payment(p.time_ms, p.amount))) for row, p in enumerate(world.payments)]
    told = [
        (o.time_ms, 1, (p := world.payments[o.payment], None, label(p.time_ms, weight)))
        for o, weight in zip(world.outcomes, weights(world.outcomes), strict=True)
    ]
    return [what for *_, what in sorted([*made, *told], key=lambda event: event[:2])]


def streamed(world: World, of: FeatureEngine) -> tuple[NDArray[np.float32], dict[str, bytes]]:
    """The same as `passed`, one event at a time: each vector from packed profiles, then each profile by its event."""
    profiles: dict[str, bytes] = {}
    vectors = []
    for p, row, change in heard(world):
        keys = {entity: f"{entity}:{p.ids[entity]}" for entity in ENTITIES if p.ids[entity] is not None}
        if row is not None:
            states = {entity: profiles.get(key) for entity, key in keys.items()}
            vectors.append(vector(of, p.time_ms, p.amount, states))
        if change.weight != 0:
            for entity, key in keys.items():
                profiles[key] = profile(of, entity, [change], profiles.get(key))
    return np.array(vectors), profiles


def assert_same(got: NDArray[np.float32], wanted: NDArray[np.float32], catalogue: Catalogue = CATALOGUE) -> None:
    assert got.shape == wanted.shape
    assert list(differing(catalogue, got, wanted)) == []


BUSY_EDGE = World(
    [
        Payment(START_MS + offset_ms, amount, {"card": "c1", "merchant": "m1", "device": None})
        for offset_ms, amount in [(0, 7), (1, 0), (HOUR_MS - 1, 5), (HOUR_MS, 5), (DAY_MS, 9), (31 * DAY_MS, 1)]
    ],
    [Outcome(0, START_MS + DAY_MS, True), Outcome(0, START_MS + 31 * DAY_MS, False)],
)


@settings(max_examples=200)
@given(world=worlds(), rows=st.sampled_from([1, 2, 3, 7, 1000]))
@example(world=BUSY_EDGE, rows=1000)
def test_a_passage_in_chunks_of_any_size_gives_the_naive_vectors(world: World, rows: int) -> None:
    vectors, _ = passed(world, engine(), rows)
    assert_same(vectors, naive_history(CATALOGUE, world.payments, world.outcomes))


def test_a_busy_world_gives_the_naive_vectors() -> None:
    # More payments in a tile, and tiles in a table, than generated examples have.
    chance = random.Random(3)
    payments = [
        Payment(
            START_MS + int(chance.random() ** 2 * 80 * DAY_MS),
            chance.choice([0, 99, 1250, 10**6, AMOUNT_MINOR_MAX]),
            {"card": f"c{chance.randrange(2)}", "merchant": "m", "device": chance.choice([None, "d"])},
        )
        for _ in range(250)
    ]
    payments.sort(key=lambda p: p.time_ms)
    outcomes = [
        Outcome(row, p.time_ms + chance.randrange(14 * DAY_MS), chance.random() < 0.5)
        for row, p in enumerate(payments)
        for _ in range(2)
    ]
    world = World(payments, sorted(outcomes, key=lambda o: o.time_ms))
    wanted = naive_history(CATALOGUE, world.payments, world.outcomes)
    assert_same(passed(world, engine(), rows=100)[0], wanted)
    assert_same(streamed(world, engine())[0], wanted)


@settings(max_examples=150)
@given(world=worlds())
def test_one_event_at_a_time_gives_the_naive_vectors_and_the_profiles_of_a_passage(world: World) -> None:
    vectors, profiles = streamed(world, engine())
    assert_same(vectors, naive_history(CATALOGUE, world.payments, world.outcomes))
    assert profiles == passed(world, engine())[1]


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    """Catalogues in which hops, delays, measures and entities meet in ways the shipped one has not."""
    entities = {name: Entity(name, key=f"{name}_id") for name in ENTITIES}
    hops = {"1m": MINUTE_MS, "5m": 5 * MINUTE_MS, "1h": HOUR_MS, "6h": 6 * HOUR_MS, "1d": DAY_MS}
    features: list[Feature] = [request.amount("amount"), request.night("night")]
    for number in range(draw(st.integers(1, 10))):
        entity = entities[draw(st.sampled_from(ENTITIES))]
        name = f"f{number}"
        hop = draw(st.sampled_from(sorted(hops)))
        unit = hops[hop] // MINUTE_MS
        length, delay = (f"{unit * draw(st.integers(1, 6))}m" for _ in range(2))
        features.append(
            draw(
                st.sampled_from(
                    [
                        entity.count(name, length, hop=hop),
                        entity.count(name, length, hop=hop, delay=delay),
                        entity.amount_sum(name, length, hop=hop),
                        entity.amount_mean(name, length, hop=hop),
                        entity.amount_max(name, length, hop=hop),
                        entity.fraud_share(name, length, hop=hop, delay=delay),
                        entity.seconds_since_last(name),
                        entity.seconds_since_first(name),
                        ratio(name, "amount", features[-1].name),
                        ratio(name, features[-1].name, "night"),
                    ]
                )
            )
        )
    return Catalogue(tuple(entities.values()), features)


@settings(max_examples=150)
@given(catalogue=catalogues(), world=worlds())
def test_any_catalogue_gives_the_naive_vectors(catalogue: Catalogue, world: World) -> None:
    vectors, profiles = passed(world, FeatureEngine(catalogue))
    assert_same(vectors, naive_history(catalogue, world.payments, world.outcomes), catalogue)
    assert profiles == streamed(world, FeatureEngine(catalogue))[1]


@settings(max_examples=200)
@given(world=worlds(), data=st.data())
def test_profiles_do_not_depend_on_the_order_of_arrival(world: World, data: st.DataObject) -> None:
    # Any order at all: labels before their payments, and events that come weeks too late for some tables.
    _, profiles = passed(world, engine())
    for key, state in profiles.items():
        entity, identity = key.split(":")
        own = [change for p, _, change in heard(world) if p.ids[entity] == identity]
        assert profile(engine(), entity, data.draw(st.permutations(own))) == state


@settings(max_examples=150)
@given(world=worlds(), data=st.data(), later_ms=st.integers(0, 40 * DAY_MS))
def test_profiles_in_any_order_of_arrival_give_the_naive_vector_once_all_is_known(
    world: World, data: st.DataObject, later_ms: int
) -> None:
    ids = {"card": "c1", "merchant": "m1", "device": "d1"}
    states: dict[str, bytes | None] = {}
    for entity, identity in ids.items():
        own = [change for p, _, change in heard(world) if p.ids[entity] == identity]
        states[entity] = profile(engine(), entity, data.draw(st.permutations(own))) if own else None
    now = Payment(world.payments[-1].time_ms + later_ms, 100, ids)
    fraud = {outcome.payment: outcome.is_fraud for outcome in world.outcomes}
    known = [Known(p, fraud.get(row, False)) for row, p in enumerate(world.payments)]
    assert same_bits(vector(engine(), now.time_ms, now.amount, states), naive_vector(CATALOGUE, now, known))


@settings(max_examples=150)
@given(world=worlds(), data=st.data())
def test_splitting_the_events_anywhere_gives_the_same_profiles(world: World, data: st.DataObject) -> None:
    own = [change for p, _, change in heard(world) if p.ids["merchant"] == "m1"]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(own)), max_size=4)))
    state: bytes | None = None
    for first, last in zip([0, *cuts], [*cuts, len(own)], strict=True):
        if first < last:
            state = profile(engine(), "merchant", own[first:last], state)
    assert state == (profile(engine(), "merchant", own) if own else None)


Arrival = PaymentEvent | OutcomeEvent


@dataclass
class Kept:
    """What a store holds for a stream."""

    records: dict[bytes, bytes]
    profiles: dict[bytes, bytes]

    def work(self, arrivals: Sequence[Arrival], lost: Mapping[int, bool] | None = None) -> batch.Applied:
        """One batch; of its profiles those are not written whose number is `lost`, as in a crash halfway."""
        payments = [event for event in arrivals if isinstance(event, PaymentEvent)]
        outcomes = [event for event in arrivals if isinstance(event, OutcomeEvent)]
        joined = batch.join(payments, outcomes, self.records, len(ENTITIES))
        applied = batch.apply(joined, self.profiles, engine())
        self.records |= joined.records
        for number, (key, state) in enumerate(applied.profiles.items()):
            if not (lost or {}).get(number, False):
                self.profiles[key] = state
        return applied


def arrivals_of(world: World) -> list[Arrival]:
    """The world's events as two topics of two partitions hold them, each key in its own partition."""
    offsets = dict.fromkeys(range(4), 0)

    def position(source: int) -> Position:
        offsets[source] += 1
        return Position(source, offsets[source] - 1)

    events: list[tuple[int, int, int]] = [(p.time_ms, 0, row) for row, p in enumerate(world.payments)]
    events += [(o.time_ms, 1, number) for number, o in enumerate(world.outcomes)]
    arrivals: list[Arrival] = []
    for _, kind, number in sorted(events):
        if kind == 0:
            p = world.payments[number]
            keys = tuple(f"{e}:{p.ids[e]}".encode() if p.ids[e] else b"" for e in ENTITIES)
            source = 0 if p.ids["card"] == "c1" else 2
            arrivals.append(PaymentEvent(position(source), f"p{number}", p.time_ms, p.amount, keys))
        else:
            o = world.outcomes[number]
            arrivals.append(OutcomeEvent(position(1 + 2 * (o.payment % 2)), f"p{o.payment}", o.is_fraud))
    return arrivals


def kept_after(arrivals: Sequence[Arrival]) -> Kept:
    kept = Kept({}, {})
    for arrival in arrivals:
        kept.work([arrival])
    return kept


@settings(max_examples=150)
@given(world=worlds(20), data=st.data())
def test_a_stream_that_crashes_and_repeats_batches_keeps_what_a_calm_one_keeps(
    world: World, data: st.DataObject
) -> None:
    arrivals = arrivals_of(world)
    kept, done = Kept({}, {}), 0
    for _ in range(4):
        # The batch may begin well before what is done already, and may be lost in part.
        first = data.draw(st.integers(0, done))
        last = data.draw(st.integers(first, len(arrivals)))
        lost = data.draw(st.dictionaries(st.integers(0, 8), st.booleans()))
        kept.work(arrivals[first:last], lost)
        # Offsets are committed only when all of a batch is written.
        done = max(done, last) if not any(lost.values()) else first
    kept.work(arrivals[done:])
    assert kept == kept_after(arrivals)


@settings(max_examples=100)
@given(world=worlds(20), data=st.data())
def test_a_replayed_suffix_changes_nothing_and_is_reported_as_not_applied(world: World, data: st.DataObject) -> None:
    arrivals = arrivals_of(world)
    kept = kept_after(arrivals)
    before = Kept(dict(kept.records), dict(kept.profiles))
    again = arrivals[data.draw(st.integers(0, len(arrivals) - 1)) :]
    applied = kept.work(again)
    assert kept == before
    joined = batch.join(
        [event for event in again if isinstance(event, PaymentEvent)],
        [event for event in again if isinstance(event, OutcomeEvent)],
        before.records,
        len(ENTITIES),
    )
    assert applied.replayed == sum(len(changes) for by_key in joined.changes for changes in by_key.values())


@settings(max_examples=50)
@given(world=worlds(10), data=st.data())
def test_a_payment_sent_twice_counts_once(world: World, data: st.DataObject) -> None:
    arrivals = arrivals_of(world)
    kept = kept_after(arrivals)
    before = Kept(dict(kept.records), dict(kept.profiles))
    again = data.draw(st.sampled_from([event for event in arrivals if isinstance(event, PaymentEvent)]))
    # Another record of the same payment: its producer did not know that the first one had arrived.
    kept.work([replace(again, position=Position(again.position.source, 10_000))])
    assert kept == before
