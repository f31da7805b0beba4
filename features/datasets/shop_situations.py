"""Payments of the made world "shop": in which situations people and fraudsters pay, and how likely each is a fraud.

    usual             people buy: at home, for others as gifts, on holidays, with new telephones, as guests
    flash_sale        many people at one shop within an hour: it looks like enumeration, and is not
    enumeration       card testing: numbers of one issuer, tiny amounts, one network, mostly declined
    take_over         another's account: a new device, an unknown recipient far away, higher amounts
    skimmed           a stolen card number: a guest with another mailbox, often the wrong country
    compromised_shop  nothing to see: two fifths of the payments at a shop are fraud, for some weeks
    first_party       the customer pays, and disputes it later
    device_farm       accounts of this week, all from one device, buy vouchers and telephones

The label is drawn last. All that a payment shows is drawn before, from its situation, and gives the log-odds of fraud.
No model can therefore rank payments better, on average, than these probabilities (models/backtest/known_truth.py).

Example: a take-over of three times the shop's price, whose 3-D Secure check failed, has log-odds of
1.6 + 0.8 x ln 3 + 1.2 = 3.7, a probability of 0.98. The same payment of a holder at home has 0.002.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paywarden.features.datasets.fraud_patterns import DAY_MS, ECOM, HOUR_MS, MINUTE_MS, NONE, AnyInts, FloatArray
from paywarden.features.datasets.shop_people import (
    ALL_DOMAINS,
    DISPOSABLE_DOMAINS,
    DOMAINS,
    FAVOURITES,
    FOOD,
    PHONE,
    PRODUCTS,
    SHOP_CATEGORIES,
    TICKET,
    VOUCHER,
    Int8s,
    Int32s,
    Int64s,
    ShopWorld,
    places_in,
)
from paywarden.features.datasets.simulated_columns import COUNTRIES, draw_times_of_day

SITUATIONS = (
    "usual",
    "flash_sale",
    "enumeration",
    "take_over",
    "skimmed",
    "compromised_shop",
    "first_party",
    "device_farm",
)
"""The position of a situation is its number in `ShopPayments.situation`."""
SECURE = ("none", "frictionless", "challenged", "failed")
"""Results of the 3-D Secure check."""
FRAUD_SHARE = 0.012
"""The share of payments in situations of fraud. A small world needs more than reality's 0.05 to 0.3 % to learn."""
BUDGET = {"enumeration": 0.25, "take_over": 0.25, "skimmed": 0.2, "compromised_shop": 0.12, "device_farm": 0.12}
"""Each situation's share of those. First-party fraud comes on top: the purchases of disputing customers."""

_PAYMENTS_PER_ACCOUNT = 1.5
_KM_PER_DEGREE = 111.2
_FAR_KM = 300
_SECURE_USUALLY = (0.2, 0.6, 0.19, 0.01)
_SECURE_TESTED = (0.9, 0.05, 0.0, 0.05)
_SECURE_STOLEN = (0.35, 0.25, 0.1, 0.3)
_DECLINED_USUALLY, _DECLINED_TESTED, _DECLINED_STOLEN = 0.02, 0.6, 0.15
# The types of the columns of ShopPayments that hold whole numbers.
_TYPES = (
    {"time_ms": np.int64}
    | dict.fromkeys(
        ("card", "card_bin", "payer", "shop", "device", "network", "host", "items", "recipient", "mailbox"), np.int32
    )
    | dict.fromkeys(("product", "billing_country", "domain", "secure", "situation"), np.int8)
)


@dataclass(frozen=True)
class ShopPayments:
    """One element per payment, in any order. Codes are places in the world; -1 means no value."""

    time_ms: Int64s
    card: Int32s
    """From the world's number of cards on: card numbers that no customer has."""
    card_bin: Int32s
    payer: Int32s
    """The person of the billing address. From the world's number of customers on: people who do not exist."""
    is_guest: npt.NDArray[np.bool_]
    """The payment names no customer and no account."""
    shop: Int32s
    device: Int32s
    network: Int32s
    host: Int32s
    eur_cents: FloatArray
    product: Int8s
    items: Int32s
    is_gift: npt.NDArray[np.bool_]
    billing_country: Int8s
    recipient: Int32s
    """A person as in `payer`; -1 where nothing is delivered."""
    latitude: FloatArray
    longitude: FloatArray
    """Where to; NaN where nothing is delivered."""
    mailbox: Int32s
    domain: Int8s
    secure: Int8s
    declined_share: FloatArray
    log_odds: FloatArray
    """The log odds of fraud; NaN where the payment's own fields give them (`usual_log_odds`)."""
    situation: Int8s

    def __len__(self) -> int:
        return len(self.time_ms)

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> ShopPayments:
        """Returns only these rows, in this order."""
        return ShopPayments(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @staticmethod
    def joined(parts: list[ShopPayments]) -> ShopPayments:
        """Returns the payments of all parts, one part after the other."""
        columns = fields(ShopPayments)
        return ShopPayments(**{c.name: np.concatenate([getattr(part, c.name) for part in parts]) for c in columns})


def made_up_accounts(payments: float) -> int:
    """Returns how many accounts fraudsters open in a world with so large a number of payments."""
    return int(payments * FRAUD_SHARE * BUDGET["device_farm"] / _PAYMENTS_PER_ACCOUNT)


def draw_payments(rng_usual: np.random.Generator, rng_fraud: np.random.Generator, world: ShopWorld) -> ShopPayments:
    """Returns the payments of all situations, sorted by time, all within the world's span, with their log-odds."""
    usual = _usual(rng_usual, world)
    budget = len(usual) * FRAUD_SHARE
    parts = [_compromise_shops(rng_fraud, world, usual, budget * BUDGET["compromised_shop"])]
    parts.append(_flash_sales(rng_usual, world, budget))
    first = _Free(
        card=len(world.cards),
        person=len(world.customers),
        device=2 * len(world.customers),
        network=1 + int(world.customers.network[-1]),
    )
    for name, situation in _ATTACKS.items():
        part = situation(rng_fraud, world, budget * BUDGET[name], first)
        parts.append(replace(part, situation=np.full(len(part), SITUATIONS.index(name), dtype=np.int8)))
        first = first.after(part)
    together = ShopPayments.joined(parts)
    together = together.take((together.time_ms >= world.start_ms) & (together.time_ms < world.end_ms))
    together = together.take(np.argsort(together.time_ms, kind="stable"))
    shown = usual_log_odds(world, together)
    return replace(together, log_odds=np.where(np.isnan(together.log_odds), shown, together.log_odds))


def usual_log_odds(world: ShopWorld, payments: ShopPayments) -> FloatArray:
    """Returns the log-odds of fraud by what a payment shows, shape (payments,): -7.6 where nothing is odd."""
    payer = np.minimum(payments.payer, len(world.customers) - 1)
    age_ms = payments.time_ms - world.customers.opened_ms[payer]
    is_young = ~payments.is_guest & (age_ms < 14 * DAY_MS)
    odds = (
        -7.6
        + 0.9 * (payments.product == VOUCHER)
        + 0.6 * (payments.product == PHONE)
        + 1.3 * is_young
        + 0.5 * payments.is_guest
        + 1.8 * (payments.domain >= len(DOMAINS))
        + 0.8 * np.clip(log_price_ratio(world, payments), -1.0, 2.0)
        + 0.9 * (~payments.is_gift & (_km_from_home(world, payments) > _FAR_KM))
        + 2.0 * (payments.billing_country != world.customers.country[payer])
        + np.array([0.0, 0.0, -0.8, 1.2])[payments.secure]
    )
    return np.asarray(odds, dtype=np.float64)


def log_price_ratio(world: ShopWorld, payments: ShopPayments) -> FloatArray:
    """Returns the logarithm of each amount to the shop's usual one, shape (payments,)."""
    return np.log(payments.eur_cents / world.shops.price[payments.shop])


@dataclass(frozen=True)
class _Free:
    """The next free numbers of cards, persons, devices and networks."""

    card: int
    person: int
    device: int
    network: int

    def after(self, part: ShopPayments) -> _Free:
        return _Free(
            card=max(self.card, 1 + int(part.card.max(initial=NONE))),
            person=max(self.person, 1 + int(max(part.payer.max(initial=NONE), part.recipient.max(initial=NONE)))),
            device=max(self.device, 1 + int(part.device.max(initial=NONE))),
            network=max(self.network, 1 + int(part.network.max(initial=NONE))),
        )


# Payments of honest customers.


def _usual(rng: np.random.Generator, world: ShopWorld) -> ShopPayments:
    first_day, last_day = world.start_ms // DAY_MS, (world.end_ms - 1) // DAY_MS
    day_count = last_day - first_day + 1
    own = np.arange(world.own_cards)
    card = np.repeat(own, rng.poisson(world.cards.payments_per_day[own] * day_count))
    day = first_day + rng.integers(0, day_count, len(card))
    country = world.customers.country[world.cards.customer[card]]
    time_ms = day * DAY_MS + draw_times_of_day(rng, np.full(len(card), ECOM, dtype=np.int8), country)
    # No customer pays before the account was opened.
    is_open = time_ms >= world.customers.opened_ms[world.cards.customer[card]]
    card, time_ms = card[is_open], time_ms[is_open]
    place = np.minimum(rng.geometric(0.35, len(card)) - 1, FAVOURITES - 1)
    is_other = rng.random(len(card)) < 0.35
    shop = np.where(is_other, world.shops.draw(rng, len(card)), world.cards.favourites[card, place])
    bought = _as_its_holder(rng, world, time_ms, card, shop)
    disputes = world.customers.disputes[bought.payer]
    is_worth_it = np.isin(bought.product, (PHONE, TICKET, VOUCHER))
    disputed = np.where(is_worth_it, 0.2 + 0.8 * log_price_ratio(world, bought), -5.0)
    return replace(
        bought,
        log_odds=np.where(disputes, disputed, np.nan),
        situation=np.where(disputes, SITUATIONS.index("first_party"), 0).astype(np.int8),
    )


def _as_its_holder(
    rng: np.random.Generator, world: ShopWorld, time_ms: Int64s, card: AnyInts, shop: AnyInts
) -> ShopPayments:
    """Returns payments as the holders of the cards make them."""
    count, people = len(card), world.customers
    payer = world.cards.customer[card]
    product = _products(rng, world, shop)
    is_gift = rng.random(count) < 0.07
    friend = rng.integers(0, len(people) - world.made_up, count)
    recipient = np.where(is_gift, friend, payer)
    is_away = (time_ms >= people.away_from_ms[payer]) & (time_ms < people.away_to_ms[payer])
    near = 0.05 * rng.standard_normal((2, count))
    goes_away = is_away & ~is_gift
    latitude = np.where(goes_away, people.away_latitude[payer], people.latitude[recipient]) + near[0]
    longitude = np.where(goes_away, people.away_longitude[payer], people.longitude[recipient]) + near[1]
    device = people.device[payer] + len(people) * (time_ms >= people.new_device_ms[payer])
    is_mobile = rng.random(count) < 0.3
    # Mobile networks of a country have many customers.
    mobile = people.network[-1] - people.country[payer]
    elsewhere = rng.random(count) < 0.01
    wrong_country = rng.integers(0, len(COUNTRIES), count)
    return _payments(
        time_ms=time_ms,
        card=card,
        card_bin=world.cards.bin[card],
        payer=payer,
        is_guest=rng.random(count) < 0.12,
        shop=shop,
        device=device,
        network=np.where(is_mobile | is_away, mobile, people.network[payer]),
        host=np.where(is_mobile | is_away, rng.integers(0, 250, count), payer % 8),
        eur_cents=world.shops.price[shop] * people.spending[payer] * rng.lognormal(0, 0.45, count),
        product=product,
        items=_items(rng, product),
        is_gift=is_gift,
        billing_country=np.where(elsewhere, wrong_country, people.country[payer]),
        recipient=recipient,
        latitude=latitude,
        longitude=longitude,
        mailbox=payer,
        domain=people.domain[payer],
        secure=_secure(rng, _SECURE_USUALLY, count),
        declined_share=np.full(count, _DECLINED_USUALLY),
        log_odds=np.full(count, np.nan),
    )


def _flash_sales(rng: np.random.Generator, world: ShopWorld, payments: float) -> ShopPayments:
    """Returns sales at one shop: about as many payments as fraudsters make."""
    sales = _episodes(rng, payments, mean_size=40)
    sale = np.repeat(np.arange(sales), rng.integers(20, 61, sales))
    shop = world.shops.draw(rng, sales)[sale]
    time_ms = rng.integers(world.start_ms, world.end_ms, sales)[sale] + _within(rng, HOUR_MS, len(sale))
    card = rng.integers(0, world.own_cards, len(sale))
    is_open = time_ms >= world.customers.opened_ms[world.cards.customer[card]]
    bought = _as_its_holder(rng, world, time_ms[is_open], card[is_open], shop[is_open])
    return replace(
        bought,
        eur_cents=0.6 * bought.eur_cents,
        situation=np.full(len(bought), SITUATIONS.index("flash_sale"), dtype=np.int8),
    )


# Payments of fraudsters. Each function numbers devices, networks, people and cards on from `free`.


def _enumeration(rng: np.random.Generator, world: ShopWorld, budget: float, free: _Free) -> ShopPayments:
    campaigns = _episodes(rng, budget, mean_size=36)
    campaign = np.repeat(np.arange(campaigns), rng.integers(12, 61, campaigns))
    count = len(campaign)
    # One number in ten belongs to somebody.
    is_real = rng.random(count) < 0.1
    issuer = rng.integers(0, world.own_cards, campaigns)[campaign]
    card = np.where(is_real, rng.integers(0, world.own_cards, count), free.card + np.arange(count))
    minutes = rng.integers(5, 41, campaigns)[campaign]
    shop = world.shops.draw(rng, campaigns)[campaign]
    return _payments(
        time_ms=_any_times(rng, world, campaigns)[campaign]
        + (rng.random(count) * minutes * MINUTE_MS).astype(np.int64),
        card=card,
        card_bin=np.where(is_real, world.cards.bin[np.minimum(card, world.own_cards - 1)], world.cards.bin[issuer]),
        payer=free.person + np.arange(count),
        is_guest=np.ones(count, dtype=np.bool_),
        shop=shop,
        device=free.device + 3 * campaign + rng.integers(0, 3, count),
        network=free.network + campaign,
        host=rng.integers(0, 250, count),
        eur_cents=rng.uniform(30, 250, count),
        product=_products(rng, world, shop),
        items=np.ones(count),
        is_gift=np.zeros(count, dtype=np.bool_),
        billing_country=world.customers.country[world.cards.customer[issuer]],
        recipient=np.full(count, NONE),
        latitude=np.full(count, np.nan),
        longitude=np.full(count, np.nan),
        mailbox=free.person + np.arange(count),
        domain=_disposable(rng, count, 0.5),
        secure=_secure(rng, _SECURE_TESTED, count),
        declined_share=np.full(count, _DECLINED_TESTED),
        log_odds=np.full(count, 3.5),
    )


def _take_over(rng: np.random.Generator, world: ShopWorld, budget: float, free: _Free) -> ShopPayments:
    takeovers = _episodes(rng, budget, mean_size=5)
    takeover = np.repeat(np.arange(takeovers), rng.integers(3, 8, takeovers))
    count = len(takeover)
    card = rng.integers(0, world.own_cards, takeovers)[takeover]
    shop = _shops_of(rng, world, (PHONE, VOUCHER, TICKET), count)
    bought = _as_its_holder(rng, world, _any_times(rng, world, takeovers)[takeover], card, shop)
    # Two fraudsters out of three use the device and the drop of the one before.
    attacker = np.cumsum(rng.random(takeovers) < 0.4)[takeover] if takeovers else takeover
    latitude, longitude = places_in(rng, rng.integers(0, len(COUNTRIES), takeovers + 1))
    nothing = np.isin(bought.product, (TICKET, VOUCHER))
    bought = replace(
        bought,
        time_ms=bought.time_ms + _within(rng, 36 * HOUR_MS, count),
        is_guest=np.zeros(count, dtype=np.bool_),
        device=(free.device + attacker).astype(np.int32),
        network=(free.network + attacker).astype(np.int32),
        host=np.full(count, 7, dtype=np.int32),
        eur_cents=bought.eur_cents * rng.lognormal(np.log(2.5), 0.4, count),
        is_gift=np.zeros(count, dtype=np.bool_),
        recipient=np.where(nothing, NONE, free.person + attacker).astype(np.int32),
        latitude=np.where(nothing, np.nan, latitude[attacker]),
        longitude=np.where(nothing, np.nan, longitude[attacker]),
        secure=_secure(rng, _SECURE_STOLEN, count),
        declined_share=np.full(count, _DECLINED_STOLEN),
    )
    odds = 1.6 + 0.8 * log_price_ratio(world, bought) + np.array([0.0, 0.0, -1.2, 1.2])[bought.secure]
    return replace(bought, log_odds=odds)


def _skimmed(rng: np.random.Generator, world: ShopWorld, budget: float, free: _Free) -> ShopPayments:
    thefts = _episodes(rng, budget, mean_size=3)
    theft = np.repeat(np.arange(thefts), rng.integers(1, 6, thefts))
    count = len(theft)
    card = rng.integers(0, world.own_cards, thefts)[theft]
    bought = _as_its_holder(rng, world, _any_times(rng, world, thefts)[theft], card, world.shops.draw(rng, count))
    buyer = np.cumsum(rng.random(thefts) < 0.5)[theft] if thefts else theft
    is_wrong = rng.random(count) < 0.4
    latitude, longitude = places_in(rng, rng.integers(0, len(COUNTRIES), thefts + 1))
    nothing = np.isin(bought.product, (TICKET, VOUCHER))
    bought = replace(
        bought,
        time_ms=bought.time_ms + _within(rng, 12 * HOUR_MS, count),
        is_guest=np.ones(count, dtype=np.bool_),
        device=(free.device + buyer).astype(np.int32),
        network=(free.network + buyer // 4).astype(np.int32),
        host=(buyer % 250).astype(np.int32),
        eur_cents=bought.eur_cents * rng.lognormal(np.log(1.8), 0.4, count),
        is_gift=np.zeros(count, dtype=np.bool_),
        billing_country=np.where(is_wrong, rng.integers(0, len(COUNTRIES), count), bought.billing_country).astype(
            np.int8
        ),
        recipient=np.where(nothing, NONE, free.person + buyer).astype(np.int32),
        latitude=np.where(nothing, np.nan, latitude[buyer]),
        longitude=np.where(nothing, np.nan, longitude[buyer]),
        mailbox=(free.person + buyer).astype(np.int32),
        domain=_disposable(rng, thefts + 1, 0.4)[buyer],
        secure=_secure(rng, _SECURE_STOLEN, count),
        declined_share=np.full(count, _DECLINED_STOLEN),
    )
    odds = 0.4 + 0.8 * log_price_ratio(world, bought) + np.array([0.0, 0.0, -1.2, 1.2])[bought.secure]
    return replace(bought, log_odds=odds + 0.8 * (bought.domain >= len(DOMAINS)))


def _device_farm(rng: np.random.Generator, world: ShopWorld, _budget: float, free: _Free) -> ShopPayments:
    account = np.repeat(np.arange(world.made_up), rng.integers(1, 3, world.made_up))
    count, farm = len(account), world.farm[account]
    shop = _shops_of(rng, world, (PHONE, VOUCHER), count)
    time_ms = world.farm_from_ms[farm] + _within(rng, 2 * DAY_MS, count)
    bought = _as_its_holder(rng, world, time_ms, world.own_cards + account, shop)
    bought = replace(
        bought,
        is_guest=np.zeros(count, dtype=np.bool_),
        device=(free.device + farm).astype(np.int32),
        network=(free.network + farm).astype(np.int32),
        host=np.full(count, 9, dtype=np.int32),
        secure=_secure(rng, _SECURE_STOLEN, count),
        declined_share=np.full(count, _DECLINED_STOLEN),
    )
    return replace(bought, log_odds=1.8 + np.array([0.0, 0.0, -1.2, 1.2])[bought.secure])


_ATTACKS: dict[str, Callable[[np.random.Generator, ShopWorld, float, _Free], ShopPayments]] = {
    "enumeration": _enumeration,
    "take_over": _take_over,
    "skimmed": _skimmed,
    "device_farm": _device_farm,
}


def _compromise_shops(
    rng: np.random.Generator, world: ShopWorld, payments: ShopPayments, budget: float
) -> ShopPayments:
    """Make some of the payments at some shops fraud, for two to four weeks each, until the budget is used up."""
    by_shop = np.argsort(payments.shop, kind="stable")
    bounds = np.searchsorted(payments.shop[by_shop], np.arange(len(world.shops.category) + 1))
    # The busiest shops would use the budget up at once.
    busy = np.quantile(np.diff(bounds), 0.7)
    left, log_odds, situation = budget, payments.log_odds.copy(), payments.situation.copy()
    for shop in rng.permutation(np.flatnonzero(np.diff(bounds) <= busy)):
        start_ms = rng.uniform(world.start_ms - 14 * DAY_MS, world.end_ms)
        end_ms = start_ms + rng.uniform(14, 28) * DAY_MS
        rows = by_shop[bounds[shop] : bounds[shop + 1]]
        inside = rows[(payments.time_ms[rows] >= start_ms) & (payments.time_ms[rows] < end_ms)]
        log_odds[inside], situation[inside] = np.log(0.4 / 0.6), SITUATIONS.index("compromised_shop")
        left -= 0.4 * len(inside)
        if left <= 0:
            break
    return replace(payments, log_odds=log_odds, situation=situation)


def _payments(**columns: npt.NDArray[Any]) -> ShopPayments:
    """Returns the columns of ShopPayments but the situation, in their types. Tickets go nowhere, vouchers neither."""
    nothing = np.isin(columns["product"], (TICKET, VOUCHER))
    columns["recipient"] = np.where(nothing, NONE, columns["recipient"])
    for name in ("latitude", "longitude"):
        columns[name] = np.where(nothing, np.nan, columns[name])
    columns["situation"] = np.zeros(len(nothing))
    return ShopPayments(**{name: column.astype(_TYPES.get(name, column.dtype)) for name, column in columns.items()})


def _products(rng: np.random.Generator, world: ShopWorld, shop: AnyInts) -> Int8s:
    """Returns the products bought at these shops: nine times in ten the shop's main product."""
    own = np.array([entry.product for entry in SHOP_CATEGORIES], dtype=np.int8)[world.shops.category[shop]]
    other = rng.integers(0, len(PRODUCTS), len(shop))
    return np.where(rng.random(len(shop)) < 0.1, other, own).astype(np.int8)


def _items(rng: np.random.Generator, product: Int8s) -> Int32s:
    return np.where(product == FOOD, 1 + rng.poisson(8, len(product)), rng.geometric(0.7, len(product))).astype(
        np.int32
    )


def _shops_of(rng: np.random.Generator, world: ShopWorld, products: tuple[int, ...], count: int) -> Int32s:
    """Returns shops that sell these products."""
    sells = np.isin([entry.product for entry in SHOP_CATEGORIES], products)[world.shops.category]
    return rng.choice(np.flatnonzero(sells), count).astype(np.int32)


def _secure(rng: np.random.Generator, shares: tuple[float, ...], count: int) -> Int8s:
    return rng.choice(len(SECURE), count, p=shares).astype(np.int8)


def _disposable(rng: np.random.Generator, count: int, share: float) -> Int8s:
    """Returns domains, a given share of them disposable."""
    usual, other = rng.integers(0, len(DOMAINS), count), rng.integers(len(DOMAINS), len(ALL_DOMAINS), count)
    assert len(ALL_DOMAINS) == len(DOMAINS) + len(DISPOSABLE_DOMAINS)
    return np.where(rng.random(count) < share, other, usual).astype(np.int8)


def _km_from_home(world: ShopWorld, payments: ShopPayments) -> FloatArray:
    """Returns about how far from the payer's home a payment is delivered; 0 where nothing is, or nobody knows."""
    people = world.customers
    payer = np.minimum(payments.payer, len(people) - 1)
    north = payments.latitude - people.latitude[payer]
    east = (payments.longitude - people.longitude[payer]) * np.cos(np.radians(people.latitude[payer]))
    km = _KM_PER_DEGREE * np.hypot(north, east)
    return np.where(np.isnan(km) | (payments.payer >= len(people)), 0.0, km)


def _episodes(rng: np.random.Generator, budget: float, *, mean_size: float) -> int:
    """Returns a number of episodes whose expected size is the budget; it may be 0."""
    return int(budget / mean_size + rng.random())


def _any_times(rng: np.random.Generator, world: ShopWorld, count: int) -> Int64s:
    return rng.integers(world.start_ms, world.end_ms, count)


def _within(rng: np.random.Generator, span_ms: int, count: int) -> Int64s:
    return rng.integers(0, span_ms, count)
