"""Later records of a payment: what is resent, what has changed, and a decline that comes after its payment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import declined, device_id, flag_code, row_of
from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.schemas.proto.store_pb2 import PaymentRecord
from paywarden.streams.profiles import events as batch
from paywarden.streams.profiles.events import Joined, OutcomeEvent, RecordLayout, record_key
from paywarden.streams.profiles.payment_columns import PaymentEvent, Position
from tests.unit.features.kernel.profiles import Change, label, payment, profile, row
from tests.worlds.stream.joined import apply
from tests.worlds.stream.packed import without_sources

NOON_MS = 1_530_446_400_000
KEYS = (b"card:c", b"merchant:m")
FIELDS = {"card_id": "c", "merchant_id": "m", "device_id": "d"}
card, merchant = Entity("card", key="card_id"), Entity("merchant", key="merchant_id")
FLAGS = (None, False, True)
LAYOUT = RecordLayout(counts_labels=True)


@cache
def engine() -> FeatureEngine:
    """Everything that a decline may change, and nothing that cannot be taken back."""
    features = [
        card.count("count", "1d"),
        card.count("declined", "1d", where=declined),
        card.count("not_declined", "1d", where=declined == False),  # noqa: E712
        card.count("said", "1d", where=declined != True),  # noqa: E712
        card.share("share", "7d", of=declined),
        card.amount_sum("sum", "7d", where=declined == False),  # noqa: E712
        card.amount_std("std", "7d", where=declined == False),  # noqa: E712
        card.amount_max("largest", "7d", where=declined),
        card.amount_min("smallest", "7d", where=declined),
        card.distinct("devices", device_id, "7d", where=declined),
        card.is_new("is_new", device_id),
        merchant.fraud_count("frauds", "7d", delay="1d", where=declined),
        merchant.fraud_share("fraud_share", "7d", delay="1d", where=declined == False),  # noqa: E712
        merchant.fraud_share("all_frauds", "7d", delay="1d"),
        merchant.fraud_share("labelled", "7d", delay="1d", where=declined, labelled_only=True),
    ]
    return FeatureEngine(Catalogue((card, merchant), tuple(features)))


def record(offset: int, flag: bool | None, *, amount: int = 1000, source: int = 0, **fields: object) -> PaymentEvent:
    said = row_of({**FIELDS, "declined": flag, **fields}, event_time_ms=NOON_MS, amount=amount, amount_minor=amount)
    return PaymentEvent(Position(source, offset), "p", said, KEYS)


class Store:
    """The records of payments and the profiles of a stream."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.profiles: dict[bytes, bytes] = {}
        self.later: dict[str, int] = {}

    def take(self, *events: PaymentEvent | OutcomeEvent, is_killed: bool = False) -> Joined:
        """Work in a batch. If the worker is killed between its two writes, the same batch comes again."""
        for is_last in (False, True) if is_killed else (True,):
            payments = [event for event in events if isinstance(event, PaymentEvent)]
            outcomes = [event for event in events if isinstance(event, OutcomeEvent)]
            joined = batch.join(payments, outcomes, self.records, 2, LAYOUT)
            self.records |= joined.records
            if is_last:
                self.profiles |= apply(joined, self.profiles, engine()).profiles
        return joined

    def plain(self) -> dict[bytes, bytes]:
        """Returns the profiles without the offsets that they contain."""
        return {key: without_sources(state) for key, state in self.profiles.items()}


def known_from_the_start(flag: bool | None, labels: Sequence[bool]) -> dict[bytes, bytes]:
    """Returns the profiles of a payment whose only record said this, and of its outcomes."""
    store = Store()
    store.take(record(0, flag))
    for offset, is_fraud in enumerate(labels):
        store.take(OutcomeEvent(Position(1, offset), "p", is_fraud))
    return store.plain()


def kinds(joined: Joined) -> dict[str, int]:
    return {kind: count for kind, count in joined.later.items() if count}


def test_the_same_payment_again_is_resent() -> None:
    store = Store()
    store.take(record(0, None))
    before = dict(store.profiles)
    joined = store.take(record(1, None), record(0, None, source=2))
    assert (kinds(joined), joined.duplicates) == ({"resent": 2}, 2)
    assert store.profiles == before


@pytest.mark.parametrize(
    "changed",
    [{"amount": 999}, {"merchant_id": "m2"}, {"device_id": None}, {"channel": "ecom"}, {"country": "DE"}],
    ids=str,
)
def test_a_later_record_that_differs_is_counted_apart_and_changes_nothing(changed: dict[str, object]) -> None:
    store = Store()
    store.take(record(0, None))
    before = dict(store.profiles), dict(store.records)
    joined = store.take(record(1, None, **changed))  # type: ignore[arg-type]
    assert (kinds(joined), joined.duplicates) == ({"changed": 1}, 1)
    assert (store.profiles, store.records) == before


def test_a_decline_that_comes_later_counts_as_if_it_had_come_first() -> None:
    store = Store()
    store.take(record(0, False))
    assert store.plain() == known_from_the_start(False, [])
    joined = store.take(record(1, True))
    assert (kinds(joined), joined.duplicates) == ({"declined": 1}, 0)
    assert store.plain() == known_from_the_start(True, [])
    # When it comes again, in the same record and in others, it counts once.
    for again in (record(1, True), record(2, True), record(3, False), record(0, False)):
        store.take(again)
        assert store.plain() == known_from_the_start(True, [])


def test_a_decline_before_its_approval_stays() -> None:
    store = Store()
    store.take(record(0, True))
    assert kinds(store.take(record(1, False))) == {"changed": 1}
    assert store.plain() == known_from_the_start(True, [])


def test_a_decline_with_another_amount_counts_with_the_first_one() -> None:
    store = Store()
    store.take(record(0, None))
    assert kinds(store.take(record(1, True, amount=5))) == {"declined": 1, "changed": 1}
    assert store.plain() == known_from_the_start(True, [])


def test_a_decline_finds_a_record_that_the_code_before_wrote() -> None:
    store = Store()
    store.take(record(0, None))
    kept = PaymentRecord.FromString(store.records[record_key("p")])
    # It knew no decline, and stored 13 attributes.
    assert not kept.declined_changes
    assert len(kept.attributes) == kernel.CODE_COUNT
    store.take(record(1, True))
    assert store.plain() == known_from_the_start(True, [])


STATEMENTS = st.lists(
    st.one_of(
        st.tuples(st.just("payment"), st.sampled_from(FLAGS), st.sampled_from([0, 2])),
        st.tuples(st.just("outcome"), st.booleans(), st.just(1)),
    ),
    max_size=8,
)


@settings(max_examples=75, deadline=None)
@given(
    first=st.sampled_from(FLAGS), said=STATEMENTS, cuts=st.sets(st.integers(0, 9)), killed=st.sets(st.integers(0, 9))
)
def test_in_any_order_and_with_any_crash_each_statement_counts_once(
    first: bool | None, said: list[tuple[str, bool | None, int]], cuts: set[int], killed: set[int]
) -> None:
    store, waiting = Store(), []
    for offset, (what, value, source) in enumerate([("payment", first, 0), *said]):
        waiting.append(
            record(offset, value, source=source)
            if what == "payment"
            else OutcomeEvent(Position(source, offset), "p", bool(value))
        )
        # Within a batch payments come before outcomes, as a batch reads payments and outcomes of one time.
        if offset in cuts or offset == len(said):
            store.take(*waiting, is_killed=offset in killed)
            waiting = []
    flags = [first, *(value for what, value, _ in said if what == "payment")]
    strongest = max(flags, key=lambda flag: 0 if flag is None else flag_code(flag))
    labels = [bool(value) for what, value, _ in said if what == "outcome"]
    assert store.plain() == known_from_the_start(strongest, labels)


def decline(before: bool | None, after: bool, *, is_fraud: bool) -> Change:
    """Returns a decline of a payment that has a label."""
    weight = (0 if before is None else flag_code(before)) | (2 + is_fraud) << kernel.DECLINE_BITS
    return Change(kernel.DECLINE, row(NOON_MS, 1000, **{**FIELDS, "declined": after}), weight)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), entity=st.sampled_from(["card", "merchant"]), is_fraud=st.booleans())
def test_the_profile_is_the_same_in_whatever_order_it_hears(data: st.DataObject, entity: str, is_fraud: bool) -> None:
    # Events of different partitions reach a profile in any order: a decline even before its payment.
    paid = payment(NOON_MS, 1000, **FIELDS, declined=False)  # type: ignore[arg-type]
    weight = kernel.FIRST_LABEL + is_fraud
    first = label(NOON_MS, weight, amount=1000, **FIELDS, declined=False)  # type: ignore[arg-type]
    others = [payment(NOON_MS + HOUR_MS, 70, **FIELDS), payment(NOON_MS + 3 * DAY_MS, 70, **FIELDS)]  # type: ignore[arg-type]
    changes = [paid, first, decline(False, True, is_fraud=is_fraud), *others]
    wanted = [
        payment(NOON_MS, 1000, **FIELDS, declined=True),  # type: ignore[arg-type]
        label(NOON_MS, weight, amount=1000, **FIELDS, declined=True),  # type: ignore[arg-type]
        *others,
    ]
    assert profile(engine(), entity, data.draw(st.permutations(changes))) == profile(engine(), entity, wanted)


def test_a_decline_that_is_too_late_for_its_tiles_is_counted_as_late() -> None:
    store = Store()
    store.take(record(0, False))
    later = record(1, False)._replace(
        payment_id="q",
        attributes=row_of(FIELDS, event_time_ms=NOON_MS + 30 * DAY_MS, amount=1, amount_minor=1),
    )
    store.take(later)
    joined = batch.join([record(2, True)], [], store.records, 2)
    # Once for the card, once for the merchant, whose share of frauds asks whether payments were declined.
    assert apply(joined, store.profiles, engine()).late == 2
