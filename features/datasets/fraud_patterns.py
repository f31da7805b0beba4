"""Six patterns of fraud, each drawn as episodes in a simulated world.

    card_testing          one device tries stolen numbers: a burst of tiny amounts each, hours later a big one
    account_takeover      a new device spends high, at merchants the card never used, for a day or two
    compromised_merchant  a terminal: most payments of its customers there are fraud, for some weeks
    stolen_card           the card itself: many payments in a few hours, often abroad
    bust_out              the holder's own spending rises slowly for four weeks, then nothing is paid back
    device_farm           one device, dozens of cards, one or two payments each

A seventh is off by default, since only counts of the last seconds show it:

    enumeration           a customer's ordinary payment, and a dozen more like it within seconds

The world holds the columns of cards and merchants that the patterns need. Amounts are EUR cents here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000

ECOM, POS, ATM = 0, 1, 2
"""Kinds of merchant."""
NONE = -1

PATTERNS = (
    "genuine",
    "card_testing",
    "account_takeover",
    "compromised_merchant",
    "stolen_card",
    "bust_out",
    "device_farm",
)
"""The position of a pattern is its number in `SimulatedPayments.pattern`."""
ENUMERATION = len(PATTERNS)
"""The number of enumerations, which are in no world unless they are asked for."""

FRAUD_SHARE = 0.01
"""The share of frauds among all payments. In reality it is 0.05 to 0.3 %; a small simulation needs more to learn."""
BUDGET = {
    "card_testing": 0.2,
    "account_takeover": 0.2,
    "compromised_merchant": 0.25,
    "stolen_card": 0.15,
    "bust_out": 0.1,
    "device_farm": 0.1,
}
"""Each pattern's share of the fraudulent payments, on average."""

ENUMERATION_SHARE = 0.01
"""The payments of enumerations, where they are on, as a share of the genuine ones."""
ENUMERATION_MS = 3000
"""How long an enumeration takes."""

COMPROMISE_MS_MAX = 28 * DAY_MS
BUST_OUT_MS = 28 * DAY_MS

AnyInts = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cards:
    """One element per card."""

    country: npt.NDArray[np.int8]
    spending: FloatArray
    """Factor on prices, about 1."""
    home_ip: npt.NDArray[np.int32]
    device: npt.NDArray[np.int32]
    """The card holder's own."""


@dataclass(frozen=True)
class Merchants:
    """One element per merchant, those of one kind and country side by side: group = kind * countries + country."""

    kind: npt.NDArray[np.int8]
    country: npt.NDArray[np.int8]
    mcc: npt.NDArray[np.int8]
    price: FloatArray
    """A usual amount, EUR cents."""
    rising_popularity: FloatArray
    """Ascending: group g's shares, summed up, lie in (g, g + 1]."""
    country_count: int

    def draw(self, rng: np.random.Generator, kind: AnyInts, country: AnyInts) -> npt.NDArray[np.int32]:
        """Returns a merchant of the kind and country for each element. Popular merchants are drawn more often."""
        group = kind.astype(np.int64) * self.country_count + country
        place = np.searchsorted(self.rising_popularity, group + rng.random(group.shape), side="right")
        return np.minimum(place, len(self.kind) - 1).astype(np.int32)


@dataclass(frozen=True)
class SimulatedWorld:
    """Cards and merchants between two moments."""

    cards: Cards
    merchants: Merchants
    start_ms: int
    end_ms: int


@dataclass(frozen=True)
class SimulatedPayments:
    """One element per payment, in any order. Codes are indices into the world; -1 means no value."""

    time_ms: npt.NDArray[np.int64]
    card: npt.NDArray[np.int32]
    merchant: npt.NDArray[np.int32]
    device: npt.NDArray[np.int32]
    ip: npt.NDArray[np.int32]
    eur_cents: FloatArray
    is_fraud: npt.NDArray[np.bool_]
    pattern: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.time_ms)

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> SimulatedPayments:
        """Returns only these rows, in this order."""
        return SimulatedPayments(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @staticmethod
    def joined(parts: list[SimulatedPayments]) -> SimulatedPayments:
        """Returns the payments of all parts, one part after the other."""
        columns = fields(SimulatedPayments)
        return SimulatedPayments(**{c.name: np.concatenate([getattr(part, c.name) for part in parts]) for c in columns})


def commit_fraud(
    rng: np.random.Generator, world: SimulatedWorld, genuine: SimulatedPayments, *, with_enumeration: bool = False
) -> SimulatedPayments:
    """Returns the genuine and the fraudulent payments, unordered, all within the world's span.

    Fraudsters' devices and addresses are numbered on from the highest ones of the world.
    """
    fraud_count = len(genuine) * FRAUD_SHARE
    parts = [_compromise_merchants(rng, world, genuine, fraud_count * BUDGET["compromised_merchant"])]
    first_device = 1 + max(int(genuine.device.max(initial=NONE)), int(world.cards.device.max()))
    first_ip = 1 + max(int(genuine.ip.max(initial=NONE)), int(world.cards.home_ip.max()))
    for name, attack in ATTACKS.items():
        part = attack(rng, world, fraud_count * BUDGET[name])
        part = replace(part, pattern=np.full(len(part), PATTERNS.index(name), dtype=np.int8))
        attackers = 1 + int(part.device.max(initial=NONE))
        parts.append(_as_seen(world, part, first_device, first_ip))
        first_device, first_ip = first_device + attackers, first_ip + attackers
    if with_enumeration:
        # Drawn last, so that everything else is the same without it.
        parts.append(_enumerate(rng, world, genuine, len(genuine) * ENUMERATION_SHARE))
    together = SimulatedPayments.joined(parts)
    return together.take((together.time_ms >= world.start_ms) & (together.time_ms < world.end_ms))


def _card_testing(rng: np.random.Generator, world: SimulatedWorld, budget: float) -> SimulatedPayments:
    campaigns = _episodes(rng, budget, mean_size=7.5 * 4.5)
    campaign = np.repeat(np.arange(campaigns), rng.integers(4, 12, campaigns))
    card = _any_cards(rng, world, len(campaign))
    start_ms = _any_times(rng, world, campaigns)[campaign] + _within(rng, 2 * HOUR_MS, len(campaign))
    shop = _any_shops(rng, world, campaigns)[campaign]
    tested = np.repeat(np.arange(len(campaign)), rng.integers(2, 6, len(campaign)))
    tests = _drafts(
        time_ms=start_ms[tested] + _within(rng, 8 * MINUTE_MS, len(tested)),
        card=card[tested],
        merchant=shop[tested],
        eur_cents=rng.uniform(30, 250, len(tested)),
        attacker=campaign[tested],
    )
    big_ones = _drafts(
        time_ms=start_ms + 20 * MINUTE_MS + _within(rng, 6 * HOUR_MS, len(campaign)),
        card=card,
        merchant=_any_shops(rng, world, len(campaign)),
        eur_cents=rng.uniform(15_000, 70_000, len(campaign)),
        attacker=campaign,
    )
    return SimulatedPayments.joined([tests, big_ones])


def _account_takeover(rng: np.random.Generator, world: SimulatedWorld, budget: float) -> SimulatedPayments:
    takeovers = _episodes(rng, budget, mean_size=5.5)
    attacker = np.repeat(np.arange(takeovers), rng.integers(3, 9, takeovers))
    card = _any_cards(rng, world, takeovers)[attacker]
    return _drafts(
        time_ms=_any_times(rng, world, takeovers)[attacker] + _within(rng, 36 * HOUR_MS, len(attacker)),
        card=card,
        merchant=_any_shops(rng, world, len(attacker)),
        eur_cents=world.cards.spending[card] * rng.lognormal(np.log(14_000), 0.6, len(attacker)),
        attacker=attacker,
    )


def _stolen_card(rng: np.random.Generator, world: SimulatedWorld, budget: float) -> SimulatedPayments:
    thefts = _episodes(rng, budget, mean_size=7)
    theft = np.repeat(np.arange(thefts), rng.integers(4, 11, thefts))
    stolen = _any_cards(rng, world, thefts)
    abroad = rng.integers(0, world.merchants.country_count, thefts)
    country = np.where(rng.random(thefts) < 0.5, abroad, world.cards.country[stolen])
    kind = np.where(rng.random(len(theft)) < 0.8, POS, ATM)
    shop_cents = np.where(
        rng.random(len(theft)) < 0.5,
        rng.uniform(2_000, 5_000, len(theft)),  # contactless, under the limit that asks for a PIN
        rng.lognormal(np.log(9_000), 0.7, len(theft)),
    )
    return _drafts(
        time_ms=_any_times(rng, world, thefts)[theft] + _within(rng, 5 * HOUR_MS, len(theft)),
        card=stolen[theft],
        merchant=world.merchants.draw(rng, kind, country[theft]),
        eur_cents=np.where(kind == ATM, rng.uniform(20_000, 50_000, len(theft)), shop_cents),
        attacker=np.full(len(theft), NONE),
    )


def _bust_out(rng: np.random.Generator, world: SimulatedWorld, budget: float) -> SimulatedPayments:
    payments_each, fraud_from = 20, 0.6
    # Some began before the span. Without them, its first weeks would contain no fraud of this kind.
    span_ms = world.end_ms - world.start_ms
    begun_budget = budget * (span_ms + BUST_OUT_MS) / span_ms
    holders = _episodes(rng, begun_budget, mean_size=payments_each * (1 - fraud_from))
    holder = np.repeat(np.arange(holders), payments_each)
    card = _any_cards(rng, world, holders)[holder]
    start_ms = rng.integers(world.start_ms - BUST_OUT_MS, world.end_ms, holders)
    progress = rng.random(len(holder))
    kind = np.where(rng.random(len(holder)) < 0.5, ECOM, POS)
    rising = world.cards.spending[card] * 3_000 * (1 + 9 * progress)
    drafts = _drafts(
        time_ms=start_ms[holder] + (progress * BUST_OUT_MS).astype(np.int64),
        card=card,
        merchant=world.merchants.draw(rng, kind, world.cards.country[card]),
        eur_cents=rising * rng.lognormal(0, 0.3, len(holder)),
        attacker=np.full(len(holder), NONE),
    )
    return replace(drafts, is_fraud=progress >= fraud_from)


def _device_farm(rng: np.random.Generator, world: SimulatedWorld, budget: float) -> SimulatedPayments:
    farms = _episodes(rng, budget, mean_size=27 * 1.5)
    farm_of_card = np.repeat(np.arange(farms), rng.integers(15, 40, farms))
    used = np.repeat(np.arange(len(farm_of_card)), rng.integers(1, 3, len(farm_of_card)))
    card = _any_cards(rng, world, len(farm_of_card))[used]
    farm = farm_of_card[used]
    shops = _any_shops(rng, world, 3 * farms)
    return _drafts(
        time_ms=_any_times(rng, world, farms)[farm] + _within(rng, 2 * DAY_MS, len(farm)),
        card=card,
        merchant=shops[3 * farm + rng.integers(0, 3, len(farm))],
        eur_cents=rng.lognormal(np.log(4_000), 0.5, len(farm)),
        attacker=farm,
    )


ATTACKS: dict[str, Callable[[np.random.Generator, SimulatedWorld, float], SimulatedPayments]] = {
    "card_testing": _card_testing,
    "account_takeover": _account_takeover,
    "stolen_card": _stolen_card,
    "bust_out": _bust_out,
    "device_farm": _device_farm,
}
"""Patterns that add payments. `device` of a draft is the attacker's number, 0 up, or -1 for the card's holder."""


def _compromise_merchants(
    rng: np.random.Generator, world: SimulatedWorld, genuine: SimulatedPayments, budget: float
) -> SimulatedPayments:
    """Turn payments at some terminals into fraud, two to four weeks each, until the budget is used up."""
    by_merchant = np.argsort(genuine.merchant, kind="stable")
    merchant_ids = np.arange(len(world.merchants.kind) + 1)
    bounds = np.searchsorted(genuine.merchant[by_merchant], merchant_ids)
    # Leave out the busiest terminals, whose fraud would be found within hours.
    busy = np.quantile(np.diff(bounds), 0.9)
    is_target = (world.merchants.kind == POS) & (np.diff(bounds) > 0) & (np.diff(bounds) <= busy)
    is_fraud, left = genuine.is_fraud.copy(), int(budget + rng.random())
    for target in rng.permutation(np.flatnonzero(is_target)):
        start_ms = rng.uniform(world.start_ms - COMPROMISE_MS_MAX, world.end_ms)
        end_ms = start_ms + rng.uniform(COMPROMISE_MS_MAX / 2, COMPROMISE_MS_MAX)
        rows = by_merchant[bounds[target] : bounds[target + 1]]
        inside = rows[(genuine.time_ms[rows] >= start_ms) & (genuine.time_ms[rows] < end_ms)]
        # The fraud of the last terminal ends when the budget is used up.
        caught = inside[rng.random(len(inside)) < 0.7][:left]
        is_fraud[caught] = True
        left -= len(caught)
        if left == 0:
            break
    pattern = np.where(is_fraud, PATTERNS.index("compromised_merchant"), genuine.pattern).astype(np.int8)
    return replace(genuine, is_fraud=is_fraud, pattern=pattern)


def _enumerate(
    rng: np.random.Generator, world: SimulatedWorld, genuine: SimulatedPayments, budget: float
) -> SimulatedPayments:
    """Returns payments that are each like the genuine one before them, in all but their number."""
    online = np.flatnonzero(world.merchants.kind[genuine.merchant] == ECOM)
    bursts = _episodes(rng, budget, mean_size=11.5)
    like = rng.choice(online, bursts)[np.repeat(np.arange(bursts), rng.integers(8, 16, bursts))]
    after_ms = 1 + _within(rng, ENUMERATION_MS, len(like))
    prices = world.merchants.price[genuine.merchant[like]] * world.cards.spending[genuine.card[like]]
    return replace(
        genuine.take(like),
        time_ms=genuine.time_ms[like] + after_ms,
        eur_cents=prices * rng.lognormal(0, 0.35, len(like)),
        is_fraud=np.ones(len(like), dtype=np.bool_),
        pattern=np.full(len(like), ENUMERATION, dtype=np.int8),
    )


def _as_seen(world: SimulatedWorld, drafts: SimulatedPayments, first_device: int, first_ip: int) -> SimulatedPayments:
    """Replace attackers' numbers by devices and addresses. Payments at a terminal have neither."""
    attacker = drafts.device
    is_holder, is_online = attacker == NONE, world.merchants.kind[drafts.merchant] == ECOM
    device = np.where(is_holder, world.cards.device[drafts.card], first_device + attacker)
    ip = np.where(is_holder, world.cards.home_ip[drafts.card], first_ip + attacker)
    return replace(
        drafts,
        device=np.where(is_online, device, NONE).astype(np.int32),
        ip=np.where(is_online, ip, NONE).astype(np.int32),
    )


def _drafts(
    *, time_ms: AnyInts, card: AnyInts, merchant: AnyInts, eur_cents: FloatArray, attacker: AnyInts
) -> SimulatedPayments:
    return SimulatedPayments(
        time_ms=time_ms.astype(np.int64),
        card=card.astype(np.int32),
        merchant=merchant.astype(np.int32),
        device=attacker.astype(np.int32),
        ip=attacker.astype(np.int32),
        eur_cents=eur_cents,
        is_fraud=np.ones(len(card), dtype=np.bool_),
        pattern=np.zeros(len(card), dtype=np.int8),
    )


def _episodes(rng: np.random.Generator, budget: float, *, mean_size: float) -> int:
    """Returns how many episodes make up the budget on average, also if that is less than one."""
    return int(budget / mean_size + rng.random())


def _any_cards(rng: np.random.Generator, world: SimulatedWorld, count: int) -> npt.NDArray[np.int64]:
    return rng.integers(0, len(world.cards.country), count)


def _any_times(rng: np.random.Generator, world: SimulatedWorld, count: int) -> npt.NDArray[np.int64]:
    return rng.integers(world.start_ms, world.end_ms, count)


def _any_shops(rng: np.random.Generator, world: SimulatedWorld, count: int) -> npt.NDArray[np.int32]:
    """Returns online merchants of any country."""
    country = rng.integers(0, world.merchants.country_count, count)
    return world.merchants.draw(rng, np.full(count, ECOM), country)


def _within(rng: np.random.Generator, span_ms: int, count: int) -> npt.NDArray[np.int64]:
    return rng.integers(0, span_ms, count)
