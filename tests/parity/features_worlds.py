"""Random worlds in which features are compared: a catalogue with every word, payments with and without each field.

`Said` describes a feature of a random catalogue; its attributes, places and conditions are read by their names.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

from hypothesis import strategies as st

from paywarden.features.catalogue import attributes, fields
from paywarden.features.catalogue import entity as declare
from paywarden.features.catalogue.attributes import DeclaredRow
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from paywarden.features.kernel import FIRST_LABEL, UNKNOWN_AMOUNT
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.schemas.payment_fields import AMOUNT_MINOR_MAX, PaymentFields
from tests.unit.features.kernel.profiles import Change, label, payment

# A Sunday at midnight, so that the times below lie on the edges of every hop.
START_MS = 1_530_403_200_000
# Small amounts of several currencies: halves that must be rounded, and a currency above the reference.
RATES = RateTable({"EUR": [(0, 1_000_000)], "USD": [(0, 500_000)], "JPY": [(0, 610_000)], "KWD": [(0, 3_000_000)]})

# Fields that a project declares.
OWN_FIELDS: dict[str, attributes.Attribute] = {
    one.name: one
    for one in (
        fields.decimal("basket_kg", 2, unit="kg", least=-5, most=500, decimals=3),
        fields.integer("items", 3, unit="pieces", least=-(2**42), most=2**42),
        fields.time("opened", 5),
        fields.money("tip", 6),
        fields.text("product", 7),
        fields.text("billed_to", 8, personal=True),
        fields.text("shipped_to", 9, personal=True),
        fields.country("ship_country", 10),
    )
}
OWN_PLACES = {"home": fields.coordinates("home", 11), "shop": fields.coordinates("shop", 14)}
OWN_PAYMENT = fields.Payment(*OWN_FIELDS.values(), *OWN_PLACES.values())

DECLARED = types.SimpleNamespace(
    Entity=declare.Entity,
    request=declare.request,
    ratio=declare.ratio,
    difference=declare.difference,
    product_of=declare.product_of,
    Catalogue=declare.Catalogue,
    PAYMENT=OWN_PAYMENT,
    **OWN_FIELDS,
    **OWN_PLACES,
    **{attribute.name: attribute for attribute in attributes.ATTRIBUTES},
    hour=attributes.hour,
    weekday=attributes.weekday,
)
"""The language in which a catalogue is read."""

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<": operator.lt,
    "&": operator.and_,
    "|": operator.or_,
}


@dataclass(frozen=True)
class Payment:
    """`amount` is in minor units of the reference currency, and below 0 it is not known.

    `fields` is by name; a missing field is absent or None.
    """

    time_ms: int
    amount: int
    amount_minor: int
    fields: Mapping[str, object]


@dataclass(frozen=True)
class Heard:
    """One arrival: a new payment (`weight` None), or a change of its label, as `kernel.update` has it."""

    payment: Payment
    weight: int | None = None


@dataclass(frozen=True)
class Named:
    """An attribute, or coordinates, among the arguments of a word."""

    name: str


@dataclass(frozen=True)
class Condition:
    """A condition among the arguments of a word."""

    field: str
    operator: str
    value: object


@dataclass(frozen=True)
class Joined:
    """Conditions joined by `&` or `|`; one alone is the opposite of itself."""

    operator: str
    parts: tuple[object, ...]


def every_word(words: Any) -> Any:
    """Declare every word of the language, with several windows, hops, delays, half-lives and conditions each."""
    card = words.Entity("card", key="card_id")
    merchant = words.Entity("merchant", key="merchant_id")
    device = words.Entity("device", key="device_id")
    pair = words.Entity("pair", key=("card_id", "merchant_id"))
    request = words.request
    is_large = words.amount >= 220_00
    is_remote = words.channel == "ecom"
    return words.Catalogue(
        entities=(card, merchant, device, pair),
        features=(
            request.amount("amount"),
            request.hour("hour"),
            request.night("night"),
            request.weekend("weekend"),
            request.weekday("weekday"),
            request.round_zeros("round_zeros"),
            request.below_limit("below_limit", (50_00, 100_00, 500_00)),
            request.holds("is_large", is_large),
            request.holds("is_remote", is_remote),
            request.holds("is_declined", words.declined),
            request.holds("is_abroad", words.country != "DE"),
            request.holds("is_cheap_at_home", words.amount_minor < 10_00),
            request.holds("is_remote_night", is_remote & (words.hour < 7)),
            request.holds("is_odd", ~is_large | (words.weekday >= 5) & ~(words.declined | is_remote)),
            request.category("channel_category", words.channel, ("pos", "ecom")),
            request.category("mcc_category", words.mcc, ("9999", "5411", "0000")),
            request.category("country_category", words.country, ("FR", "DE")),
            card.count("count_1m", "1m"),
            card.count("count_10m", "10m"),
            card.count("count_1h_this", "1h", including_this=True),
            card.count("count_1d", "1d"),
            card.count("count_1d_declined", "1d", where=words.declined),
            card.count("count_1d_not_declined", "1d", where=words.declined == False),  # noqa: E712
            card.count("count_7d_delayed", "7d", delay="1d"),
            card.count("count_30d_large", "30d", where=is_large),
            card.rate("rate_1h", "1h"),
            card.rate("rate_1d_small", "1d", where=words.amount < 50_00, hop="2h"),
            card.share("share_1d_remote", "1d", of=is_remote),
            card.share("share_7d_home", "7d", of=words.country == "DE"),
            card.share("share_7d_abroad", "7d", of=words.country != "DE", delay="1d"),
            card.count_decayed("decayed_6h", "6h", "7d"),
            card.count_decayed("decayed_5m_remote", "5m", "1h", where=is_remote),
            card.count(
                "count_7d_odd", "7d", where=(is_remote & is_large) | ~(words.declined | (words.country == "DE"))
            ),
            card.amount_sum("sum_7d_night", "7d", where=(words.hour >= 22) | (words.hour < 6)),
            card.share("share_7d_weekend", "7d", of=words.weekday >= 5),
            card.count_trend("trend", "1h", "7d"),
            card.count_trend("trend_long", "1d", "30d"),
            card.distinct("distinct_merchants", words.merchant_id, "1d"),
            card.distinct("distinct_merchants_7d", words.merchant_id, "7d", bits=128),
            card.distinct("distinct_mccs_large", words.mcc, "30d", where=is_large, bits=256),
            card.distinct("distinct_countries", words.country, "1d", hop="4h"),
            card.entropy("entropy_mcc", words.mcc, "7d"),
            card.entropy("entropy_country", words.country, "1d", buckets=2),
            card.top_share("top_mcc", words.mcc, "7d"),
            card.top_share("top_merchant", words.merchant_id, "30d", buckets=32),
            card.amount_sum("sum_1h", "1h"),
            card.amount_sum("sum_1d_not_remote", "1d", where=words.channel != "ecom"),
            card.amount_mean("mean_1d", "1d"),
            card.amount_mean("mean_7d_this", "7d", including_this=True),
            card.amount_mean("mean_30d_declined", "30d", where=words.declined),
            card.amount_std("std_7d", "7d"),
            card.amount_std("std_1d_remote", "1d", where=is_remote),
            card.amount_zscore("zscore_7d", "7d"),
            card.amount_zscore("zscore_30d_home", "30d", where=words.country == "DE"),
            card.amount_max("max_1h", "1h"),
            card.amount_max("max_7d", "7d"),
            card.amount_max("max_30d_usd", "30d", where=words.currency == "USD"),
            card.amount_min("min_1d", "1d"),
            card.amount_min("min_7d", "7d"),
            card.amount_min("min_7d_remote", "7d", where=is_remote),
            card.amount_decayed("amount_decayed", "12h", "7d"),
            words.ratio("to_mean", "amount", "mean_1d"),
            words.ratio("of_ratio", "to_mean", "night"),
            words.difference("above_mean", "amount", "mean_1d"),
            words.product_of("mean_times_rate", "mean_1d", "rate_1h"),
            card.count("count_ever", "ever"),
            card.count("count_ever_large", "ever", where=is_large),
            card.count("count_400d", "400d", hop="5d"),
            card.share("share_ever_remote", "ever", of=is_remote, delay="1d"),
            card.amount_sum("sum_ever", "ever"),
            card.amount_mean("mean_ever", "ever", including_this=True),
            card.amount_max("max_ever", "ever"),
            card.amount_min("min_365d", "365d"),
            card.distinct("distinct_ever", words.merchant_id, "ever"),
            card.median("median", of=words.amount),
            card.quantile("quantile_same", of=words.amount, share=0.95, last=8, same=words.merchant_id),
            merchant.count_same("same_country", words.country, last=5),
            card.seconds_since_last("since_last"),
            card.seconds_since_first("since_first"),
            card.last_amount("last_amount"),
            card.is_new("new_country", words.country),
            card.is_new("new_merchant", words.merchant_id, among=2),
            card.seconds_since_same("since_merchant", words.merchant_id, among=2),
            card.seconds_since_same("since_device", words.device_id, among=3),
            card.travel_kmh("travel"),
            card.travel_kmh("travel_short", among=1),
            merchant.count("merchant_count_90d", "90d"),
            merchant.fraud_count("frauds_7d", "7d", delay="1d"),
            merchant.fraud_count("frauds_30d_remote", "30d", delay="7d", where=is_remote),
            merchant.fraud_share("fraud_share_1d", "1d", delay="7d"),
            merchant.fraud_share("fraud_share_7d_large", "7d", delay="12h", where=is_large),
            merchant.fraud_share("fraud_share_labelled", "7d", delay="1d", labelled_only=True),
            merchant.fraud_share("share_labelled_ever", "ever", delay="2d", where=words.declined, labelled_only=True),
            merchant.fraud_share_smoothed(
                "smoothed_labelled", "1d", delay="6h", prior=0.02, prior_weight=3, labelled_only=True
            ),
            merchant.fraud_share_decayed("fraud_share_decayed", "1d", "7d", delay="1d"),
            merchant.seconds_since_fraud("since_fraud", "7d", delay="1d"),
            merchant.seconds_since_first_fraud("since_first_fraud", "30d", delay="1d"),
            merchant.seconds_since_genuine("since_genuine", "7d", delay="1d"),
            merchant.seconds_since_genuine("since_genuine_1d", "1d", delay="6h", hop="1h"),
            merchant.fraud_streak("streak", "7d", delay="1d"),
            merchant.fraud_streak("streak_1d", "1d", delay="6h", hop="1h"),
            merchant.fraud_streak_seconds("streak_seconds", "7d", delay="1d"),
            merchant.fraud_streak_seconds("streak_seconds_1d", "1d", delay="6h", hop="1h"),
            merchant.fraud_streak_amount_mean("streak_mean", "7d", delay="1d"),
            merchant.fraud_streak_amount_mean("streak_mean_1d", "1d", delay="6h", hop="1h"),
            merchant.fraud_share_smoothed("fraud_share_smoothed", "7d", delay="1d", prior=0.013, prior_weight=50),
            merchant.fraud_share_smoothed("fraud_share_smoothed_large", "1d", prior=0, prior_weight=1, where=is_large),
            merchant.fraud_share_smoothed(
                "fraud_share_learnt", "ever", delay="2d", hop="12h", prior="fraud_share_1d", prior_weight=9
            ),
            merchant.fraud_count("frauds_30d_odd", "30d", delay="7d", where=words.declined | ~(is_remote & is_large)),
            merchant.fraud_count("frauds_ever", "ever", delay="1d"),
            merchant.fraud_share("fraud_share_ever", "ever", delay="7d", where=is_remote),
            merchant.fraud_amount_sum("fraud_sum_7d", "7d", delay="1d"),
            merchant.fraud_amount_mean("fraud_mean_7d", "7d", delay="1d", where=is_remote),
            merchant.fraud_amount_mean("fraud_mean_ever", "ever", delay="1d"),
            merchant.fraud_amount_zscore("fraud_zscore_30d", "30d", delay="1d"),
            card.fraud_count("card_frauds", "7d"),
            card.seconds_since_fraud("card_since_fraud", "30d", hop="1d"),
            device.fraud_share("device_fraud_share", "7d"),
            card.difference_to_last("amount_difference", of=words.amount),
            card.last_value("amount_before", of=words.amount),
            *card.last("before", 3, of=(words.amount, words.mcc, words.merchant_id)),
            *merchant.last("merchant_before", 1),
            *device.last("device_before", 2, of=(words.country,)),
            request.equal("same_texts", words.device_id, words.ip),
            merchant.distinct("distinct_cards", words.card_id, "1h"),
            merchant.episode(
                "merchant_episode", "1h", of=((words.amount < 50_00, 0.1, 3), (words.declined, 0.02, 50)), alarm=2
            ),
            device.episode("device_episode", "1d", of=((words.declined, 0.02, 10),), many=(words.card_id, 1), alarm=1),
            merchant.is_new("merchant_new_device", words.device_id, among=1),
            device.count("device_count_2h", "2h", hop="15m"),
            device.seconds_since_first("device_since_first"),
            device.distinct("device_cards", words.card_id, "7d"),
            pair.count("pair_count_30d", "30d"),
            pair.amount_mean("pair_mean_7d", "7d"),
            pair.seconds_since_last("pair_since_last"),
            words.ratio("pair_to_mean", "amount", "pair_mean_7d"),
        ),
        label_delay="2d",
    )


def own_fields_words(words: Any) -> Any:
    """Declare every word for fields of a project's own, and conditions on them."""
    card = words.Entity("card", key="card_id")
    product = words.Entity("product", key="product")
    request = words.request
    kg, opened, tip = words.basket_kg, words.opened, words.tip
    is_heavy = kg >= 2.5
    return words.Catalogue(
        entities=(card, product),
        features=(
            request.number("kg", kg),
            request.number("items", words.items),
            request.number("tip", tip),
            request.seconds_since("account_age", opened),
            request.seconds_since("account_age_2d", opened, most="2d"),
            request.equal("to_the_payer", words.billed_to, words.shipped_to),
            request.equal("same_country", words.country, words.ship_country),
            request.distance_km("from_home", words.home, words.shop),
            card.count("heavy_7d", "7d", where=is_heavy),
            card.sum("kg_sum_1d", "1d", of=kg),
            card.sum("tip_sum_7d", "7d", of=tip, where=words.product == "book"),
            card.sum("amount_sum_7d", "7d", of=words.amount),
            card.mean("kg_mean_7d", "7d", of=kg),
            card.mean("age_mean_30d", "30d", of=opened),
            card.mean("amount_mean_7d", "7d", of=words.amount),
            card.std("kg_std_7d", "7d", of=kg, where=kg < 400),
            card.std("items_std_30d", "30d", of=words.items),
            product.std("age_std_30d", "30d", of=opened),
            product.std("amount_std_30d", "30d", of=words.amount),
            product.zscore("kg_zscore_30d", "30d", of=kg),
            product.zscore("age_zscore_30d", "30d", of=opened),
            product.zscore("amount_zscore_30d", "30d", of=words.amount),
            card.max("kg_max_1d", "1d", of=kg),
            card.max("age_max_7d", "7d", of=opened),
            card.max("amount_max_7d", "7d", of=words.amount),
            card.min("kg_min_1h", "1h", of=kg),
            card.min("kg_min_30d", "30d", of=kg, where=words.declined),
            card.min("amount_min_7d", "7d", of=words.amount),
            card.sum_decayed("kg_decayed", "6h", "7d", of=kg),
            card.sum_decayed("amount_decayed", "6h", "7d", of=words.amount),
            card.last_value("kg_before", of=kg),
            card.last_value("age_before", of=opened),
            card.difference_to_last("kg_difference", of=kg),
            card.difference_to_last("tip_difference", of=tip),
            card.distance_to_last_km("jump_km", words.shop),
            card.speed_kmh("jump_kmh", words.shop),
            *card.last("before", 3, of=(kg, words.product, opened, words.amount, words.ship_country)),
            *product.last("product_before", 1, of=(words.shipped_to, words.shop.latitude)),
            product.distinct("recipients_7d", words.shipped_to, "7d"),
            product.fraud_share_smoothed("product_fraud", "7d", delay="1d", prior=0.01, prior_weight=20),
            words.ratio("kg_to_mean", "kg", "kg_mean_7d"),
        ),
        payment=words.PAYMENT,
    )


ENTITY_KEYS = {
    "card": ("card_id",),
    "merchant": ("merchant_id",),
    "device": ("device_id",),
    "pair": ("card_id", "merchant_id"),
}
OWN_ENTITY_KEYS = {"product": ("product",), "route": ("billed_to", "shipped_to")}


@cache
def catalogue() -> declare.Catalogue:
    """Returns the catalogue of `every_word`."""
    return cast(declare.Catalogue, every_word(DECLARED))


@cache
def engine() -> FeatureEngine:
    """Returns the compiled engine of `every_word`."""
    return FeatureEngine(catalogue())


def identity(entity: str, of: Payment) -> tuple[object, ...] | None:
    """Returns the entity of a kind that a payment has, or None."""
    ids = tuple(of.fields.get(key) for key in ENTITY_KEYS[entity])
    return None if None in ids else ids


def declared_row(fields: PaymentFields) -> DeclaredRow | None:
    """Returns what fills the columns of declared fields, with the rates of the worlds."""
    if not fields.declared:
        return None

    # No rate changes with time.
    return DeclaredRow(fields, lambda minor, payment: RATES.convert(minor, str(payment["currency"]), START_MS))


def change_of(event: Heard, *, source: int = -1, offset: int = 0, declared: DeclaredRow | None = None) -> Change:
    """Returns the event as one entity sees it."""
    of = event.payment
    fields: dict[str, Any] = {**of.fields, "amount_minor": of.amount_minor, "declared": declared}
    if event.weight is None:
        return payment(of.time_ms, of.amount, source=source, offset=offset, **fields)
    return label(of.time_ms, event.weight, amount=of.amount, source=source, offset=offset, **fields)


def own_changes(entity: str, ids: tuple[object, ...], heard: Sequence[Heard]) -> list[Change]:
    """Returns the events of one entity, out of all events."""
    return [change_of(event) for event in heard if identity(entity, event.payment) == ids]


# Payments.

MERCHANTS = ("m1", "m2", "m3", "m4")
COUNTRIES = ("DE", "FR", "US", "NZ", "ZZ")
# A day holds the longest windows, an hour the shortest. Steps of days make the tables drop old tiles.
SPANS_MS = (2 * MINUTE_MS, 2 * HOUR_MS, 2 * DAY_MS, 10 * DAY_MS, 100 * DAY_MS)
_HOPS_MS = (15 * SECOND_MS, MINUTE_MS, HOUR_MS, 6 * HOUR_MS, DAY_MS)


def moments(span_ms: int) -> st.SearchStrategy[int]:
    """Draws times in a span, often on the edge of a tile or a millisecond beside it."""
    anywhere = st.integers(0, span_ms)
    edges = st.builds(
        lambda hop_ms, tile, beside: min(max(0, tile % (span_ms // hop_ms + 1) * hop_ms + beside), span_ms),
        st.sampled_from(_HOPS_MS),
        st.integers(0, 10_000),
        st.integers(-1, 1),
    )
    return st.one_of(anywhere, edges).map(lambda offset_ms: START_MS + offset_ms)


AMOUNTS = st.one_of(
    st.integers(0, 50_000),
    st.sampled_from([0, 1, 100, 999, 10_00, 50_00, 99_00, 220_00, 2**24 + 1, AMOUNT_MINOR_MAX // 3]),
)


def _or_none(values: Sequence[str]) -> st.SearchStrategy[str | None]:
    return st.sampled_from([None, *values])


FIELDS = st.fixed_dictionaries(
    {
        "card_id": st.sampled_from(["c1", "c1", "c2"]),
        "merchant_id": st.sampled_from(MERCHANTS),
        "device_id": _or_none(["d1", "d2"]),
        "ip": _or_none(["10.0.0.1"]),
        # The naira has no rate.
        "currency": st.sampled_from([*sorted(RATES.currencies), "NGN"]),
        "mcc": _or_none(["5411", "5812", "4829", "7995"]),
        "country": _or_none(COUNTRIES),
        "channel": _or_none(["ecom", "pos"]),
        "utc_offset_minutes": st.one_of(st.none(), st.sampled_from([0, -720, 840, 330]), st.integers(-1439, 1439)),
        "declined": st.sampled_from([None, False, True]),
    }
)


_DEGREES = st.one_of(st.none(), st.sampled_from([0.0, 52.52, -33.8688, 90.0, 89.999999]), st.integers(-90, 90))
OWN = st.fixed_dictionaries(
    {
        # Few values and few payments: often two payments of a millisecond have some of them alike.
        "basket_kg": st.one_of(st.none(), st.sampled_from([0, 2.5, 2.499, -5, 500]), st.integers(0, 5)),
        "items": st.sampled_from([None, 0, 1, 7, -3, 10**12, -(2**42), 2**42]),
        "opened": st.sampled_from([None, START_MS - 400 * DAY_MS, START_MS - 1, START_MS + 40 * DAY_MS]),
        "tip": st.one_of(st.none(), AMOUNTS),
        "product": _or_none(["book", "phone"]),
        "billed_to": _or_none(["Ann", "Bob"]),
        "shipped_to": _or_none(["Ann", "Bob", "Cid"]),
        "ship_country": _or_none(COUNTRIES),
        **dict.fromkeys(("home_latitude", "home_longitude", "shop_latitude", "shop_longitude"), _DEGREES),
    }
)


def _payment(time_ms: int, amount_minor: int, fields: dict[str, Any]) -> Payment:
    amount = RATES.convert(amount_minor, fields["currency"], time_ms)
    return Payment(time_ms, UNKNOWN_AMOUNT if amount is None else amount, amount_minor, fields)


def payments_in(span_ms: int, fields: st.SearchStrategy[dict[str, Any]] = FIELDS) -> st.SearchStrategy[Payment]:
    """Draws payments with and without each attribute, in several currencies."""
    return st.builds(_payment, moments(span_ms), AMOUNTS, fields)


def payment_of(time_ms: int, amount_minor: int = 100, **fields: object) -> Payment:
    """Returns a payment by hand: of a card at a merchant, in euros, unless the fields say otherwise."""
    return _payment(time_ms, amount_minor, {"card_id": "c1", "merchant_id": "m1", "currency": "EUR", **fields})


# Histories: payments in order of event time, outcomes in the order in which they become known.


@dataclass(frozen=True)
class Outcome:
    """`payment` is the payment's index in the list of payments."""

    payment: int
    time_ms: int
    is_fraud: bool


@dataclass(frozen=True)
class World:
    """Payments in order of time; outcomes in the order in which they became known."""

    payments: list[Payment]
    outcomes: list[Outcome]

    def heard(self) -> list[Heard]:
        """Returns all events in the order of arrival. A payment comes before an outcome of its millisecond."""
        said: dict[int, bool] = {}
        events: list[tuple[int, int, Heard]] = [(p.time_ms, 0, Heard(p)) for p in self.payments]
        for outcome in self.outcomes:
            weight = outcome.is_fraud - said.get(outcome.payment, False)
            weight += FIRST_LABEL * (outcome.payment not in said)
            said[outcome.payment] = outcome.is_fraud
            if weight != 0:
                events.append((outcome.time_ms, 1, Heard(self.payments[outcome.payment], weight)))
        return [event for *_, event in sorted(events, key=lambda event: event[:2])]


# Label delays, shorter and longer than the catalogue's.
_DELAYS_MS = st.one_of(
    st.integers(0, 20 * DAY_MS),
    st.sampled_from([0, 1, HOUR_MS, DAY_MS - 1, DAY_MS, DAY_MS + 1, 7 * DAY_MS - 1, 7 * DAY_MS]),
)


@st.composite
def worlds(draw: st.DrawFn, payments_max: int = 12, fields: st.SearchStrategy[dict[str, Any]] = FIELDS) -> World:
    """Draws histories of two cards at a few merchants, with repeated and corrected outcomes."""
    span_ms = draw(st.sampled_from(SPANS_MS))
    payments = draw(st.lists(payments_in(span_ms, fields), min_size=1, max_size=payments_max))
    payments.sort(key=lambda p: p.time_ms)
    said = draw(
        st.lists(st.tuples(st.integers(0, len(payments) - 1), _DELAYS_MS, st.booleans()), max_size=payments_max)
    )
    outcomes = [Outcome(row, payments[row].time_ms + delay_ms, is_fraud) for row, delay_ms, is_fraud in said]
    return World(payments, sorted(outcomes, key=lambda o: o.time_ms))


# Random catalogues.


@dataclass(frozen=True)
class OfEntity:
    """An entity among the arguments of a word."""

    name: str


@dataclass(frozen=True)
class Said:
    """One feature of a catalogue."""

    name: str
    entity: str
    word: str
    arguments: tuple[object, ...]
    options: tuple[tuple[str, object], ...]

    @property
    def options_by_name(self) -> dict[str, object]:
        return dict(self.options)

    def read(self, words: Any, entities: dict[str, Any]) -> Any:
        options = {name: _read(words, option) for name, option in self.options}
        arguments = [
            entities[argument.name] if isinstance(argument, OfEntity) else _read(words, argument)
            for argument in self.arguments
        ]
        return getattr(entities[self.entity], self.word)(self.name, *arguments, **options)


def _read(words: Any, argument: object) -> Any:
    if isinstance(argument, tuple):
        return tuple(_read(words, one) for one in argument)
    if isinstance(argument, Named):
        return getattr(words, argument.name)
    if isinstance(argument, Joined):
        parts = [_read(words, part) for part in argument.parts]
        return functools.reduce(OPERATORS[argument.operator], parts) if len(parts) > 1 else ~parts[0]
    if isinstance(argument, Condition):
        return OPERATORS[argument.operator](getattr(words, argument.field), argument.value)
    return argument


def catalogue_of(said: Sequence[Said], *, is_own: bool = False) -> declare.Catalogue:
    """Returns the catalogue; `is_own`: with a project's fields."""
    words = DECLARED
    keys_of = ENTITY_KEYS | OWN_ENTITY_KEYS if is_own else ENTITY_KEYS
    entities = {name: words.Entity(name, key=keys[0] if len(keys) == 1 else keys) for name, keys in keys_of.items()}
    features = [words.request.amount("amount")]
    for feature in said:
        made = feature.read(words, entities)
        features += made if isinstance(made, tuple) else [made]
    features.append(words.ratio("ratio", "amount", features[-1].name))
    features.append(words.difference("made_minus", "amount", features[-2].name))
    features.append(words.product_of("made_times", "ratio", features[-3].name))
    payment = OWN_PAYMENT if is_own else fields.NO_FIELDS
    return declare.Catalogue(tuple(entities.values()), tuple(features), payment)


def _with_joined(conditions: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    parts = st.lists(conditions, min_size=1, max_size=2).map(tuple)
    inner = st.one_of(conditions, st.builds(Joined, st.sampled_from("&|"), parts))
    return st.one_of(conditions, inner, st.builds(Joined, st.sampled_from("&|"), st.tuples(inner, inner)))


_CONDITIONS = _with_joined(
    st.one_of(
        st.builds(Condition, st.just("hour"), st.sampled_from(["==", "!=", ">=", "<"]), st.integers(0, 23)),
        st.builds(Condition, st.just("weekday"), st.sampled_from(["==", "!=", ">=", "<"]), st.integers(0, 6)),
        st.builds(Condition, st.sampled_from(["amount", "amount_minor"]), st.sampled_from([">=", "<", "=="]), AMOUNTS),
        st.builds(Condition, st.just("country"), st.sampled_from(["==", "!="]), st.sampled_from(["DE", "NZ"])),
        st.builds(Condition, st.just("channel"), st.sampled_from(["==", "!="]), st.sampled_from(["ecom", "pos"])),
        st.builds(Condition, st.just("declined"), st.sampled_from(["==", "!="]), st.booleans()),
        st.just(Named("declined")),
    )
)
_COUNTED = st.sampled_from([Named(name) for name in ("merchant_id", "card_id", "mcc", "country", "ip")])
_OWN_CONDITIONS = _with_joined(
    st.one_of(
        _CONDITIONS,
        st.builds(Condition, st.just("basket_kg"), st.sampled_from([">=", "<", "=="]), st.sampled_from([0, 2.5, 5])),
        st.builds(Condition, st.just("product"), st.sampled_from(["==", "!="]), st.just("book")),
    )
)
_OWN_COUNTED = st.sampled_from([Named(name) for name in ("product", "shipped_to", "ship_country", "mcc")])
_NUMBERS = st.just(Named("amount"))
_OWN_NUMBERS = st.sampled_from([Named(name) for name in ("amount", "basket_kg", "items", "opened", "tip")])
_PLACES = st.sampled_from([Named(name) for name in OWN_PLACES])
# Hops that a window may have, as number and unit. Some windows are long.
_CHOSEN_HOPS = st.sampled_from([(15, "s"), (5, "m"), (1, "h"), (6, "h"), (1, "d")])
LABEL_WORDS = (
    "fraud_count",
    "fraud_share",
    "fraud_share_decayed",
    "seconds_since_fraud",
    "seconds_since_first_fraud",
    "seconds_since_genuine",
    "fraud_streak",
    "fraud_streak_seconds",
    "fraud_streak_amount_mean",
    "fraud_share_smoothed",
    "fraud_amount_sum",
    "fraud_amount_mean",
    "fraud_amount_zscore",
)
# Words that take windows beyond 90 days, and "ever".
_LONG_WORDS = (
    *("count", "share", "amount_sum", "amount_mean", "amount_max", "amount_min", "distinct", "fraud_count"),
    *("fraud_share", "fraud_share_smoothed", "fraud_amount_sum", "fraud_amount_mean"),
)
_NUMBER_WORDS = ("sum", "mean", "std", "zscore", "max", "min", "sum_decayed")
# Words that add numbers up: of numbers with close bounds alone.
SUMMING_WORDS = ("sum", "mean", "std", "zscore", "sum_decayed")
_LAST_WORDS = ("last_value", "difference_to_last")
_JOURNEY_WORDS = ("distance_to_last_km", "speed_kmh")
_MEMORY_WORDS = ("is_new", "seconds_since_same")
_PLAIN_WORDS = ("seconds_since_last", "seconds_since_first", "last_amount")
# Words for a time since something, which a bound may end.
_SINCE_WORDS = ("seconds_since_last", "seconds_since_first", "seconds_since_same", "last")
# Words that take a condition.
_ASKING_WORDS = (
    *("count", "rate", "amount_sum", "amount_mean", "amount_std", "amount_zscore", "amount_max", "amount_min"),
    *("distinct", "count_decayed", "fraud_count", "fraud_share", "fraud_share_smoothed"),
    *("fraud_amount_sum", "fraud_amount_mean", "fraud_amount_zscore", *_NUMBER_WORDS),
)
_WORDS = (
    *_ASKING_WORDS,
    "share",
    "entropy",
    "top_share",
    "amount_decayed",
    "count_trend",
    *LABEL_WORDS,
    *_MEMORY_WORDS,
    *_PLAIN_WORDS,
    *_NUMBER_WORDS,
    *_LAST_WORDS,
)


@st.composite
def _said(draw: st.DrawFn, name: str, is_own: bool) -> Said:
    counted, numbers, conditions = (
        (_OWN_COUNTED, _OWN_NUMBERS, _OWN_CONDITIONS) if is_own else (_COUNTED, _NUMBERS, _CONDITIONS)
    )
    rare = ("travel_kmh", "last", "episode", "median", "quantile", "count_same", *(_JOURNEY_WORDS if is_own else ()))
    word = draw(st.sampled_from([*_NUMBER_WORDS, *_LAST_WORDS, *rare] if is_own else [*dict.fromkeys(_WORDS), *rare]))
    entity = draw(st.sampled_from(sorted(ENTITY_KEYS | OWN_ENTITY_KEYS if is_own else ENTITY_KEYS)))
    most: tuple[tuple[str, object], ...] = ()
    if word in _SINCE_WORDS and draw(st.booleans()):
        most = (("most", draw(st.sampled_from(["1s", "10m", "1h", "2d"]))),)
    if word in _PLAIN_WORDS:
        return Said(name, entity, word, (), most)
    if word in _JOURNEY_WORDS:
        return Said(name, entity, word, (draw(_PLACES),), ())
    if word == "last":
        of = draw(st.lists(st.one_of(counted, numbers), max_size=3, unique=True))
        return Said(name, entity, word, (draw(st.integers(1, 3)),), (("of", tuple(of)), *most))
    if word == "count_same":
        return Said(name, entity, word, (draw(counted),), (("last", draw(st.integers(1, 9))),))
    if word in ("median", "quantile"):
        asked = {"of": draw(numbers), "last": draw(st.integers(1, 9)), "same": draw(st.one_of(st.none(), counted))}
        if word == "quantile":
            asked["share"] = draw(st.sampled_from([0.001, 0.25, 0.9, 0.333]))
        return Said(name, entity, word, (), tuple(asked.items()))
    if word in _LAST_WORDS:
        return Said(name, entity, word, (), (("of", draw(numbers)),))
    if word in _MEMORY_WORDS or word == "travel_kmh":
        among = (("among", draw(st.integers(1, 3))),)
        return Said(name, entity, word, () if word == "travel_kmh" else (draw(counted),), (*among, *most))
    if word == "count_trend":
        return Said(name, entity, word, draw(st.sampled_from([("10m", "1h"), ("1h", "1d"), ("1d", "30d")])), ())
    if word == "episode":
        marks: st.SearchStrategy[tuple[object, ...]] = st.tuples(
            conditions, st.sampled_from([0.02, 0.4, 0.99]), st.sampled_from([0.5, 3, 50])
        )
        listed = draw(st.lists(marks, min_size=1, max_size=3))
        many = (("many", (draw(counted), 1.5)),) if draw(st.booleans()) else ()
        return Said(name, entity, word, (draw(st.sampled_from(["10m", "1h", "6h"])),), (("of", tuple(listed)), *many))
    number, unit = draw(_CHOSEN_HOPS)
    arguments: list[object] = [f"{number * draw(st.integers(4, 8))}{unit}"]
    options: dict[str, object] = {"hop": f"{number}{unit}"}
    if word in ("distinct", "entropy", "top_share"):
        arguments.insert(0, draw(counted))
    if word == "distinct":
        options["bits"] = draw(st.sampled_from([64, 128, 256]))
    elif word in ("entropy", "top_share"):
        options["buckets"] = draw(st.sampled_from([2, 8, 32]))
    if word.endswith("_decayed"):
        arguments.insert(0, draw(st.sampled_from(["30s", "20m", "7h", "3d"])))
    if word in LABEL_WORDS or (word == "count" and draw(st.booleans())):
        options["delay"] = f"{number * draw(st.integers(1, 3))}{unit}"
    if word in _LONG_WORDS and draw(st.booleans()):
        arguments[-1] = "ever" if draw(st.booleans()) else f"{number * 480}{unit}"
        if arguments[-1] == "ever" and "delay" not in options:
            del options["hop"]
    if word in ("fraud_share", "fraud_share_smoothed"):
        options["labelled_only"] = draw(st.booleans())
    if word == "fraud_share_smoothed":
        options |= {"prior": draw(st.sampled_from([0, 0.013, 1, "amount"])), "prior_weight": draw(st.integers(1, 50))}
    if word in _NUMBER_WORDS:
        options["of"] = draw(numbers)
    if word == "share":
        options["of"] = draw(conditions)
    elif word in _ASKING_WORDS and draw(st.booleans()):
        options["where"] = draw(conditions)
    elif word in ("count", "amount_mean"):
        options["including_this"] = draw(st.booleans())
    return Said(name, entity, word, tuple(arguments), tuple(options.items()))


# Words whose features are of an entity's own earlier payments, whatever the payment that is scored.
_ASKABLE = frozenset(_WORDS) - {
    *("amount_zscore", "fraud_amount_zscore", "zscore", "difference_to_last"),
    *_MEMORY_WORDS,
}


@st.composite
def two_hops(
    draw: st.DrawFn, entities: Mapping[str, tuple[str, ...]], said: Sequence[Said], hops_max: int = 4
) -> list[Said]:
    """Draws features two hops away, and the features of neighbours that they ask for. `said` are other features.

    `entities` are the key fields by name. Without a neighbour that has one field with identities, there are none.
    """
    alone = [name for name, keys in entities.items() if len(keys) == 1 and keys[0] not in ("mcc", "currency")]
    pairs = [(source, target) for source in entities for target in alone if entities[target][0] not in entities[source]]
    if not pairs:
        return []
    asked: list[Said] = []
    hops: list[Said] = []
    for number in range(draw(st.integers(1, hops_max))):
        source, target = draw(st.sampled_from(pairs))
        known = [one for one in (*said, *asked) if one.entity == target and _can_be_asked(one)]
        if not known or draw(st.booleans()):
            usual = Said(f"neighbours{number}", target, "count", (draw(st.sampled_from(["1h", "2d", "30d"])),), ())
            fitting = [one for one in (draw(_said(f"neighbours{number}", False)),) if _can_be_asked(one)]
            known = [replace(one, entity=target) for one in (*fitting, usual)][:1]
            asked += known
        word = draw(st.sampled_from(["largest_of_last", "mean_of_last"]))
        arguments = (OfEntity(target), draw(st.sampled_from(known)).name, draw(st.integers(1, 3)))
        hops.append(Said(f"hop{number}", source, word, arguments, ()))
    return [*asked, *hops]


def _can_be_asked(said: Said) -> bool:
    options = said.options_by_name
    return said.word in _ASKABLE and not options.get("including_this") and options.get("prior") != "amount"


@st.composite
def catalogues(draw: st.DrawFn, features_max: int = 6, *, is_own: bool = False) -> list[Said]:
    """Draws catalogues that combine words, hops, delays, conditions and entities at random.

    `is_own`: words for numbers and latest payments alone, of the fields of a project.
    """
    return [draw(_said(f"f{number}", is_own)) for number in range(draw(st.integers(1, features_max)))]
