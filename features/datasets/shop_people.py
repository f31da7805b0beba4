"""The people and shops of the made world "shop": customers with cards, homes, devices and mailboxes, and online shops.

A customer has one card or several. Some customers share a device, as a household does. Neighbours share a network.
A few customers say afterwards that they never bought what they bought: first-party fraud.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paywarden.features.datasets.fraud_patterns import DAY_MS, AnyInts, FloatArray
from paywarden.features.datasets.simulated_columns import COUNTRIES, draw_countries

Int8s = npt.NDArray[np.int8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

PRODUCTS = ("book", "clothing", "food", "phone", "ticket", "voucher")
BOOK, CLOTHING, FOOD, PHONE, TICKET, VOUCHER = range(len(PRODUCTS))
"""Products, as places in PRODUCTS. Tickets and vouchers are delivered nowhere."""

DOMAINS = ("post.example", "mail.example", "inbox.example", "home.example", "work.example")
DISPOSABLE_DOMAINS = ("throwaway.example", "tenminutes.example", "nobody.example")
"""Domains of mailboxes that last for minutes: their places follow those of DOMAINS."""
ALL_DOMAINS = DOMAINS + DISPOSABLE_DOMAINS

CARDS_PER_CUSTOMER = 1.4
CARDS_PER_SHOP = 12
SHOPS_MIN = 60
FAVOURITES = 5
PAYMENTS_PER_DAY = 0.5
"""The average for a card."""
DISPUTING_SHARE = 0.012
"""The share of customers who dispute their purchases."""
ACCOUNTS_PER_FARM = 12
"""How many made-up accounts pay from one device."""
_HOUSEHOLD_SHARE = 0.15
_NEIGHBOURS = 8
"""Customers that share a network."""
_BINS = 48
# The middle of each country of COUNTRIES, in degrees: people live around it.
_CENTRES = np.array(
    [(51.2, 10.4), (46.6, 2.4), (52.6, -1.5), (39.8, -98.6), (52.2, 5.6), (60.1, 15.5), (52.1, 19.4), (36.2, 138.2)]
)
_SPREAD_DEGREES = 1.2


@dataclass(frozen=True)
class ShopCategory:
    """A kind of shop: its merchant category code, its product, the usual amount in EUR cents, its share."""

    mcc: str
    product: int
    eur_cents: float
    share: float


SHOP_CATEGORIES = (
    ShopCategory("5942", BOOK, 1_900, 0.22),
    ShopCategory("5651", CLOTHING, 6_000, 0.25),
    ShopCategory("5411", FOOD, 4_500, 0.23),
    ShopCategory("5732", PHONE, 16_000, 0.1),
    ShopCategory("7922", TICKET, 7_500, 0.12),
    ShopCategory("5816", VOUCHER, 3_000, 0.08),
)


@dataclass(frozen=True)
class Customers:
    """One element per customer. The last ones are made up by fraudsters; they have no home of their own."""

    country: Int8s
    latitude: FloatArray
    longitude: FloatArray
    opened_ms: Int64s
    domain: Int8s
    network: Int32s
    device: Int32s
    """The household's where customers share one, else the customer's own."""
    new_device_ms: Int64s
    """When the customer changes to a device of number `device` + customers."""
    spending: FloatArray
    """Factor on amounts, about 1."""
    disputes: npt.NDArray[np.bool_]
    away_from_ms: Int64s
    away_to_ms: Int64s
    away_latitude: FloatArray
    away_longitude: FloatArray

    def __len__(self) -> int:
        return len(self.country)


@dataclass(frozen=True)
class ShopCards:
    """One element per card. Cards of made-up customers come last, one for each."""

    customer: Int32s
    bin: Int32s
    payments_per_day: FloatArray
    favourites: Int32s
    """Shape (cards, FAVOURITES): shops, dearest first."""

    def __len__(self) -> int:
        return len(self.customer)


@dataclass(frozen=True)
class Shops:
    """One element per online shop."""

    category: Int8s
    country: Int8s
    price: FloatArray
    """A usual amount, EUR cents."""
    rising_popularity: FloatArray
    """The shares of the traffic, summed up, by Zipf's law: the last one is 1."""

    def draw(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> Int32s:
        """Returns shops. Popular ones are drawn more often."""
        place = np.searchsorted(self.rising_popularity, rng.random(shape), side="right")
        return np.minimum(place, len(self.category) - 1).astype(np.int32)


@dataclass(frozen=True)
class ShopWorld:
    """The customers, cards and shops between two moments."""

    customers: Customers
    cards: ShopCards
    shops: Shops
    farm: Int32s
    """For each made-up account, the number of its farm: a device from which many accounts pay."""
    farm_from_ms: Int64s
    """When each farm begins to pay. Its accounts were opened in the days before."""
    start_ms: int
    end_ms: int

    @property
    def made_up(self) -> int:
        """How many customers and cards are fraudsters' accounts. They come last."""
        return len(self.farm)

    @property
    def own_cards(self) -> int:
        """How many cards real customers have. They come first."""
        return len(self.cards) - self.made_up


def draw_world(
    rng_shops: np.random.Generator,
    rng_people: np.random.Generator,
    *,
    cards: int,
    made_up: int,
    start_ms: int,
    end_ms: int,
) -> ShopWorld:
    """Returns a world with `cards` cards of real customers, and `made_up` customers with a card each besides."""
    shops = _draw_shops(rng_shops, max(SHOPS_MIN, cards // CARDS_PER_SHOP))
    customers = _draw_customers(rng_people, max(1, int(cards / CARDS_PER_CUSTOMER)), made_up, start_ms, end_ms)
    real = len(customers) - made_up
    farm = (np.arange(made_up) // ACCOUNTS_PER_FARM).astype(np.int32)
    farm_from_ms = rng_people.integers(start_ms, end_ms, 1 + made_up // ACCOUNTS_PER_FARM)
    customers.opened_ms[real:] = farm_from_ms[farm] - (rng_people.random(made_up) * 3 * DAY_MS).astype(np.int64)
    # Every customer has a card; the rest belong to anyone.
    customer = np.concatenate((np.arange(real), rng_people.integers(0, real, cards - real)))
    owners = np.concatenate((customer, np.arange(real, len(customers))))
    return ShopWorld(
        customers=customers,
        cards=ShopCards(
            customer=owners.astype(np.int32),
            # An issuer has cards of one country.
            bin=(customers.country[owners] + len(COUNTRIES) * rng_people.integers(0, _BINS // 8, len(owners))).astype(
                np.int32
            ),
            payments_per_day=rng_people.gamma(1.6, PAYMENTS_PER_DAY / 1.6, len(owners)),
            favourites=shops.draw(rng_people, (len(owners), FAVOURITES)),
        ),
        shops=shops,
        farm=farm,
        farm_from_ms=farm_from_ms,
        start_ms=start_ms,
        end_ms=end_ms,
    )


def places_in(rng: np.random.Generator, country: AnyInts) -> tuple[FloatArray, FloatArray]:
    """Returns latitudes and longitudes where people of these countries may live, shape (countries,) each."""
    middle = _CENTRES[country]
    return (
        middle[:, 0] + _SPREAD_DEGREES * rng.standard_normal(len(country)),
        middle[:, 1] + _SPREAD_DEGREES * rng.standard_normal(len(country)),
    )


def _draw_shops(rng: np.random.Generator, count: int) -> Shops:
    share = np.array([entry.share for entry in SHOP_CATEGORIES])
    # First two of each category, then by share.
    category = np.concatenate(
        (np.arange(2 * len(share)) % len(share), rng.choice(len(share), count - 2 * len(share), p=share / share.sum()))
    )
    rng.shuffle(category)
    rising = np.cumsum(1.0 / (3.0 + np.arange(count)))
    usual = np.array([entry.eur_cents for entry in SHOP_CATEGORIES])[category]
    return Shops(
        category=category.astype(np.int8),
        country=draw_countries(rng, count).astype(np.int8),
        price=usual * rng.lognormal(0, 0.25, count),
        rising_popularity=rising / rising[-1],
    )


def _draw_customers(rng: np.random.Generator, real: int, made_up: int, start_ms: int, end_ms: int) -> Customers:
    count, span_ms = real + made_up, end_ms - start_ms
    country = draw_countries(rng, count).astype(np.int8)
    latitude, longitude = places_in(rng, country)
    away_latitude, away_longitude = places_in(rng, draw_countries(rng, count))
    opened_ms = start_ms - (rng.random(count) * 1500 * DAY_MS).astype(np.int64)
    is_new = rng.random(count) < 0.12
    opened_ms[is_new] = start_ms + (rng.random(int(is_new.sum())) * span_ms).astype(np.int64)
    domain = np.minimum(rng.geometric(0.35, count) - 1, len(DOMAINS) - 1).astype(np.int8)
    is_disposable = rng.random(count) < 0.01
    is_disposable[real:] = rng.random(made_up) < 0.7
    domain[is_disposable] = len(DOMAINS) + rng.integers(0, len(DISPOSABLE_DOMAINS), int(is_disposable.sum()))
    device = np.arange(count, dtype=np.int32)
    shares = (rng.random(count) < _HOUSEHOLD_SHARE) & (device > 0)
    device[shares] -= 1
    away_from_ms = start_ms + (rng.uniform(-0.2, 1, count) * max(span_ms, 60 * DAY_MS)).astype(np.int64)
    return Customers(
        country=country,
        latitude=latitude,
        longitude=longitude,
        opened_ms=opened_ms,
        domain=domain,
        network=(np.arange(count) // _NEIGHBOURS).astype(np.int32),
        device=device,
        new_device_ms=start_ms + (rng.random(count) * 500 * DAY_MS).astype(np.int64),
        spending=rng.lognormal(0, 0.35, count),
        disputes=rng.random(count) < DISPUTING_SHARE,
        away_from_ms=away_from_ms,
        away_to_ms=away_from_ms + (rng.uniform(3, 14, count) * DAY_MS).astype(np.int64),
        away_latitude=away_latitude,
        away_longitude=away_longitude,
    )
