"""Simulates a realistic stream of labelled payments, for `paywarden simulate`, the demo's history and tests.

All work is done in arrays. Each step has its own random stream, so a change in one step leaves the draws of the others
unchanged:

    1. Draw a world: merchants with a category, a country, a price and a popularity (Zipf); cards with a home, a
       spending level, an activity, favourite merchants, devices of their own and of their household, a journey.
    2. Draw each card's genuine payments: a Poisson number, times of day by channel in local time, some of them
       minutes after another one, mostly at favourite merchants, abroad while the holder travels.
    3. Add fraud of six kinds (fraud_patterns.py), about 1 % of all payments.
    4. Draw when each outcome becomes known, and who reports it.

Every payment has an outcome. A fraud is reported by a chargeback (median five days, at most sixty), by the issuer (a
day and a half) or by an analyst (hours). Any other payment counts as genuine after a little more than a week without a
report; nobody reports it, so its source is null. A few genuine payments are reported by mistake and corrected to
genuine days later. Outcomes later than the simulated span are kept: `split_at` separates the part that is known by a
given time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paywarden.features.datasets.fraud_patterns import (
    ATM,
    DAY_MS,
    ECOM,
    MINUTE_MS,
    NONE,
    POS,
    AnyInts,
    Cards,
    FloatArray,
    Merchants,
    SimulatedPayments,
    SimulatedWorld,
    commit_fraud,
)
from paywarden.features.datasets.simulated_columns import (
    COUNTRIES,
    addresses,
    draw_countries,
    draw_times_of_day,
    ids,
    minor_amounts,
    named,
    outcomes_table,
    span_of,
)
from paywarden.features.datasets.simulated_columns import (
    DEFAULT_START_MS as DEFAULT_START_MS,
)
from paywarden.features.datasets.simulated_columns import (
    split_at as split_at,
)
from paywarden.features.history.history import numbered_ids

PAYMENTS_PER_DAY = 1.8
"""The average for a card."""
CARDS_PER_MERCHANT = 4
MERCHANTS_MIN = 120
"""Enough for several merchants of each kind in each country."""
FAVOURITES = 8
DECLINED_SHARES = 0.12, 0.02
"""The shares of declined frauds and genuine payments. Issuers decline a few of all, and more of suspicious ones."""


@dataclass(frozen=True)
class Category:
    """A merchant category (ISO 18245), the usual amount in EUR cents, and how common it is."""

    mcc: str
    kind: int
    eur_cents: float
    share: float


CATEGORIES = (
    Category("5411", POS, 2_800, 0.28),  # groceries
    Category("5812", POS, 3_200, 0.22),  # restaurants
    Category("5541", POS, 5_500, 0.1),  # fuel
    Category("5912", POS, 1_800, 0.1),  # pharmacies
    Category("4111", POS, 450, 0.12),  # local transport
    Category("5651", POS, 6_000, 0.1),  # clothing
    Category("5732", POS, 13_000, 0.04),  # electronics
    Category("7011", POS, 17_000, 0.04),  # hotels
    Category("5999", ECOM, 3_500, 0.3),  # everything else
    Category("5815", ECOM, 900, 0.18),  # books, films, music
    Category("5816", ECOM, 1_500, 0.12),  # games
    Category("5691", ECOM, 6_500, 0.15),  # clothing
    Category("5732", ECOM, 15_000, 0.1),  # electronics
    Category("4814", ECOM, 2_500, 0.08),  # telephone
    Category("4511", ECOM, 24_000, 0.07),  # airlines
    Category("6011", ATM, 9_000, 1.0),  # cash machines
)

CHANNELS = ("ecom", "pos", "contactless", "atm")
CONTACTLESS_LIMIT_EUR_CENTS = 5_000


def simulate(
    *, cards: int, days: int, seed: int, end_time_ms: int | None = None, with_enumeration: bool = False
) -> tuple[pa.Table, pa.Table]:
    """Returns (payments, outcomes) of `days` days, sorted by time, as `paywarden.features.history.history` needs them.

    The span ends at `end_time_ms` (exclusive), or starts on DEFAULT_START_MS if that is not given. The same
    arguments give the same tables. To go on past a moment, simulate more days and use `split_at`.

    `with_enumeration`: also bursts of fraud that show in counts alone (fraud_patterns.py).
    """
    start_ms, end_ms = span_of(cards=cards, days=days, seed=seed, end_time_ms=end_time_ms)
    world, payments = simulate_columns(
        cards=cards, seed=seed, start_ms=start_ms, end_ms=end_ms, with_enumeration=with_enumeration
    )
    payment_id = numbered_ids("p", np.arange(len(payments)), width=10)
    rng_amounts, rng_outcomes, rng_declines = _random_streams(seed)[4:7]
    payment_table = _payments_table(rng_amounts, rng_declines, world, payments, payment_id)
    return payment_table, outcomes_table(rng_outcomes, payments.time_ms, payments.is_fraud, payment_id)


def simulate_columns(
    *, cards: int, seed: int, start_ms: int, end_ms: int, with_enumeration: bool = False
) -> tuple[SimulatedWorld, SimulatedPayments]:
    """Returns the payments as codes, sorted by time, each with its pattern and its fraud flag; and their world."""
    rng_merchants, rng_cards, rng_genuine, rng_fraud = _random_streams(seed)[:4]
    merchants = _draw_merchants(rng_merchants, max(MERCHANTS_MIN, cards // CARDS_PER_MERCHANT))
    population = _draw_population(rng_cards, merchants, cards, start_ms, end_ms)
    world = SimulatedWorld(cards=population.cards, merchants=merchants, start_ms=start_ms, end_ms=end_ms)
    genuine = _draw_genuine(rng_genuine, world, population)
    payments = commit_fraud(rng_fraud, world, genuine, with_enumeration=with_enumeration)
    return world, payments.take(np.argsort(payments.time_ms, kind="stable"))


@dataclass(frozen=True)
class _Population:
    """Cards with the properties that only their genuine payments use. One element, or row, per card."""

    cards: Cards
    payments_per_day: FloatArray
    kind_shares: FloatArray
    """Shape (card_count, 3): the shares of ecom, pos and atm, summed up."""
    favourites: npt.NDArray[np.int32]
    """Shape (card_count, 3, FAVOURITES): merchants by kind, dearest first."""
    active_from_ms: npt.NDArray[np.int64]
    new_device_ms: npt.NDArray[np.int64]
    household_device: npt.NDArray[np.int32]
    mobile_ip: npt.NDArray[np.int32]
    journey_from_ms: npt.NDArray[np.int64]
    journey_to_ms: npt.NDArray[np.int64]
    journey_country: npt.NDArray[np.int8]


def _random_streams(seed: int) -> list[np.random.Generator]:
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(7)]


def _draw_merchants(rng: np.random.Generator, count: int) -> Merchants:
    countries, kinds = len(COUNTRIES), 3
    # First some of every kind everywhere, then by share: a third sell online, a few are cash machines.
    everywhere = np.arange(3 * kinds * countries) % (kinds * countries)
    more = count - len(everywhere)
    kind = rng.choice(kinds, more, p=[0.33, 0.6, 0.07])
    group = np.sort(np.concatenate((everywhere, kind * countries + draw_countries(rng, more))))
    kind, country = np.divmod(group, countries)
    category = np.empty(count, dtype=np.int8)
    for each in range(kinds):
        choices = [index for index, entry in enumerate(CATEGORIES) if entry.kind == each]
        share = np.array([CATEGORIES[index].share for index in choices])
        rows = np.flatnonzero(kind == each)
        category[rows] = rng.choice(choices, len(rows), p=share / share.sum())
    usual = np.array([entry.eur_cents for entry in CATEGORIES])[category]
    return Merchants(
        kind=kind.astype(np.int8),
        country=country.astype(np.int8),
        mcc=category,
        price=usual * rng.lognormal(0, 0.35, count),
        rising_popularity=_rising_popularity(group),
        country_count=countries,
    )


def _rising_popularity(group: AnyInts) -> FloatArray:
    """Zipf within each group of a sorted column: the r-th merchant of a group has a weight of 1 / r."""
    groups, starts, sizes = np.unique(group, return_index=True, return_counts=True)
    rank = np.arange(len(group)) - np.repeat(starts, sizes)
    shares = [np.cumsum(1.0 / (1 + rank[start : start + size])) for start, size in zip(starts, sizes, strict=True)]
    return np.concatenate([number + share / share[-1] for number, share in zip(groups, shares, strict=True)])


def _draw_population(
    rng: np.random.Generator, merchants: Merchants, count: int, start_ms: int, end_ms: int
) -> _Population:
    # About three cards in two households: a household is where cards meet on one device and one address.
    household = np.sort(rng.integers(0, max(1, 2 * count // 3), count)).astype(np.int32)
    homes = int(household[-1]) + 1
    country = draw_countries(rng, homes)[household].astype(np.int8)
    span_ms = end_ms - start_ms
    journey_from_ms = start_ms + (rng.uniform(-0.2, 1, count) * max(span_ms, 60 * DAY_MS)).astype(np.int64)
    ecom, atm = rng.beta(2, 3, count), rng.uniform(0.01, 0.07, count)
    online, cash = ecom * (1 - atm), atm
    return _Population(
        cards=Cards(
            country=country,
            spending=rng.lognormal(0, 0.45, count),
            home_ip=household,
            device=np.arange(count, dtype=np.int32),
        ),
        payments_per_day=rng.gamma(1.6, PAYMENTS_PER_DAY / 1.6, count),
        kind_shares=np.cumsum(np.column_stack((online, 1 - online - cash, cash)), axis=1),
        favourites=_draw_favourites(rng, merchants, country),
        # One card in ten is issued within the span, a telephone lasts two years.
        active_from_ms=start_ms + (np.maximum(0, rng.uniform(-9, 1, count)) * span_ms).astype(np.int64),
        new_device_ms=start_ms + (rng.random(count) * 730 * DAY_MS).astype(np.int64),
        household_device=2 * count + household,
        mobile_ip=(homes + rng.integers(0, 1 + count // 20, count)).astype(np.int32),
        journey_from_ms=journey_from_ms,
        journey_to_ms=journey_from_ms + (rng.uniform(3, 14, count) * DAY_MS).astype(np.int64),
        journey_country=draw_countries(rng, count).astype(np.int8),
    )


def _draw_favourites(
    rng: np.random.Generator, merchants: Merchants, home: npt.NDArray[np.int8]
) -> npt.NDArray[np.int32]:
    shape = (len(home), FAVOURITES)
    home_country = np.broadcast_to(home[:, np.newaxis], shape)
    # Online, one favourite in four sells from another country.
    abroad = draw_countries(rng, len(home) * FAVOURITES).reshape(shape)
    shop_country = np.where(rng.random(shape) < 0.25, abroad, home_country)
    by_kind = [
        merchants.draw(rng, np.full(shape, kind), shop_country if kind == ECOM else home_country)
        for kind in (ECOM, POS, ATM)
    ]
    return np.stack(by_kind, axis=1)


def _draw_genuine(rng: np.random.Generator, world: SimulatedWorld, population: _Population) -> SimulatedPayments:
    first_day, last_day = world.start_ms // DAY_MS, (world.end_ms - 1) // DAY_MS
    day_count = last_day - first_day + 1
    card = np.repeat(
        np.arange(len(population.payments_per_day), dtype=np.int32),
        rng.poisson(population.payments_per_day * day_count),
    )
    kind = _draw_kinds(rng, population.kind_shares[card])
    day = first_day + rng.integers(0, day_count, len(card))
    time_ms = day * DAY_MS + draw_times_of_day(rng, kind, world.cards.country[card])
    time_ms = _bring_some_together(rng, card, time_ms)
    # No card is active before the span starts.
    is_lived = (time_ms >= population.active_from_ms[card]) & (time_ms < world.end_ms)
    card, kind, time_ms = card[is_lived], kind[is_lived], time_ms[is_lived]
    merchant = _choose_merchants(rng, world, population, card, kind, time_ms)
    device, ip = _choose_devices(rng, population, card, kind, time_ms)
    level = world.cards.spending[card] ** 0.7
    return SimulatedPayments(
        time_ms=time_ms,
        card=card,
        merchant=merchant,
        device=device,
        ip=ip,
        eur_cents=world.merchants.price[merchant] * level * rng.lognormal(0, 0.5, len(card)),
        is_fraud=np.zeros(len(card), dtype=np.bool_),
        pattern=np.zeros(len(card), dtype=np.int8),
    )


def _draw_kinds(rng: np.random.Generator, rising_shares: FloatArray) -> npt.NDArray[np.int8]:
    chance = rng.random(len(rising_shares))
    return ((chance >= rising_shares[:, 0]).astype(np.int8) + (chance >= rising_shares[:, 1])).astype(np.int8)


def _bring_some_together(
    rng: np.random.Generator, card: npt.NDArray[np.int32], time_ms: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Move one payment in eight to some minutes after another of the same card: people run errands."""
    follows = rng.random(len(card)) < 0.125
    follows[:1] = False
    follows[1:] &= card[1:] == card[:-1]
    row = np.flatnonzero(follows)
    together = time_ms.copy()
    together[row] = time_ms[row - 1] + (rng.lognormal(np.log(14), 0.8, len(row)) * MINUTE_MS).astype(np.int64)
    return together


def _choose_merchants(
    rng: np.random.Generator,
    world: SimulatedWorld,
    population: _Population,
    card: npt.NDArray[np.int32],
    kind: npt.NDArray[np.int8],
    time_ms: npt.NDArray[np.int64],
) -> npt.NDArray[np.int32]:
    # Half of the payments to favourites go to the first two.
    place = np.minimum(rng.geometric(0.3, len(card)) - 1, FAVOURITES - 1)
    favourite = population.favourites[card, kind, place]
    is_away = (time_ms >= population.journey_from_ms[card]) & (time_ms < population.journey_to_ms[card])
    country = np.where(is_away & (kind != ECOM), population.journey_country[card], world.cards.country[card])
    abroad = draw_countries(rng, len(card))
    country = np.where((kind == ECOM) & (rng.random(len(card)) < 0.25), abroad, country)
    is_new = (rng.random(len(card)) < 0.25) | (is_away & (kind != ECOM))
    return np.where(is_new, world.merchants.draw(rng, kind, country), favourite)


def _choose_devices(
    rng: np.random.Generator,
    population: _Population,
    card: npt.NDArray[np.int32],
    kind: npt.NDArray[np.int8],
    time_ms: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """(device, ip): the household's, or the holder's own, which is replaced once; none at a terminal."""
    cards = len(population.payments_per_day)
    own = population.cards.device[card] + cards * (time_ms >= population.new_device_ms[card])
    is_household = rng.random(len(card)) < 0.25
    device = np.where(is_household, population.household_device[card], own)
    is_mobile = ~is_household & (rng.random(len(card)) < 0.4)
    ip = np.where(is_mobile, population.mobile_ip[card], population.cards.home_ip[card])
    is_online = kind == ECOM
    return np.where(is_online, device, NONE).astype(np.int32), np.where(is_online, ip, NONE).astype(np.int32)


def _payments_table(
    rng: np.random.Generator,
    rng_declines: np.random.Generator,
    world: SimulatedWorld,
    payments: SimulatedPayments,
    payment_id: pa.Array,
) -> pa.Table:
    country = world.merchants.country[payments.merchant]
    kind = world.merchants.kind[payments.merchant]
    is_touched = (payments.eur_cents < CONTACTLESS_LIMIT_EUR_CENTS) & (rng.random(len(payments)) < 0.8)
    channel = np.array([CHANNELS.index("ecom"), CHANNELS.index("pos"), CHANNELS.index("atm")])[kind]
    channel = np.where((kind == POS) & is_touched, CHANNELS.index("contactless"), channel)
    currencies = sorted({entry.currency for entry in COUNTRIES})
    currency_of_country = np.array([currencies.index(entry.currency) for entry in COUNTRIES])
    return pa.table(
        {
            "payment_id": payment_id,
            "event_time_ms": payments.time_ms,
            "card_id": ids("card-", payments.card, width=6),
            "merchant_id": ids("merchant-", payments.merchant, width=5),
            "device_id": ids("device-", payments.device, width=7),
            "ip": addresses(payments.ip),
            "amount_minor": minor_amounts(payments.eur_cents, country, kind),
            "currency": named(currency_of_country[country], currencies),
            "mcc": named(world.merchants.mcc[payments.merchant], [entry.mcc for entry in CATEGORIES]),
            "country": named(country, [entry.code for entry in COUNTRIES]),
            "channel": named(channel, CHANNELS),
            "utc_offset_minutes": _utc_offset_minutes(world, payments, country, kind),
            "declined": rng_declines.random(len(payments)) < np.where(payments.is_fraud, *DECLINED_SHARES),
        }
    )


def _utc_offset_minutes(
    world: SimulatedWorld, payments: SimulatedPayments, country: npt.NDArray[np.int8], kind: npt.NDArray[np.int8]
) -> npt.NDArray[np.int32]:
    """The payer's clock: at a terminal the merchant's, online the card holder's."""
    where = np.where(kind == ECOM, world.cards.country[payments.card], country)
    return np.array([60 * entry.utc_offset_hours for entry in COUNTRIES], dtype=np.int32)[where]
