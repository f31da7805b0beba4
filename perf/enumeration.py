"""Enumeration: how early is a burst of tries seen, and how often does an `episode` feature alarm for nothing?

Measured, in worlds of the kind "shop" whose seeds nobody tuned on:
- `approved_before_stop_p50`: the median number of payments of an enumeration that pass before the first one at which
  an episode is on, for its merchant, device, network or BIN at its merchant. An enumeration that is never seen counts
  all of its payments. `seen_share` of the enumerations are seen, `seen_share_NAME` by one feature.
- `false_alarms_per_month`: episodes of all features together, in which nobody tried numbers and no device farm bought,
  in 30 days of 10,000 merchants. `false_alarms` is their number, `merchant_months` the merchants times months seen.
- `flash_sale_alarms`: flash sales during which the merchant has such an episode, of `flash_sales`.
Used for: the default `alarm` of `episode` (features/catalogue/entity_words/episodes.py).

    python -m perf.enumeration [--seeds 101,102] [--cards N] [--days D] [--json FILE]
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from paywarden.features.catalogue.attributes import amount, card_id, declined, ip
from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.catalogue.fields import Payment, bin_number, network
from paywarden.features.datasets.fraud_patterns import DAY_MS, HOUR_MS
from paywarden.features.datasets.shop_situations import SITUATIONS
from paywarden.features.datasets.shop_world import simulate_shop
from paywarden.features.history.entity_columns import entity_column
from paywarden.features.history.history import history_of_tables
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.models.metrics.episodes import IS_ON, are_without, entity_times, episodes_of, runs_of
from perf.tools.measuring import arguments_of, finish

MERCHANTS, MONTH_DAYS = 10_000, 30
_BURSTS = ("enumeration", "device_farm")
# An alarm up to this long after a try is not false: the window still holds it.
_REACH_MS = HOUR_MS

IS_SMALL = amount < 3_00
merchant = Entity("merchant", key="merchant_id")
device = Entity("device", key="device_id")
net = Entity("network", key="ip_network")
bin_merchant = Entity("bin_merchant", key=("card_bin", "merchant_id"))
# Shops differ in how small their usual payments are; devices and networks hardly do.
_OF_MERCHANT = ((IS_SMALL, 0.02, 5), (declined, 0.02, 50))
_OF_OTHERS = ((IS_SMALL, 0.02, 50), (declined, 0.02, 50))

CATALOGUE = Catalogue(
    entities=(merchant, device, net, bin_merchant),
    features=(
        merchant.episode("merchant_episode", "1h", of=_OF_MERCHANT),
        device.episode("device_episode", "1h", of=_OF_OTHERS, many=(card_id, 1.5)),
        net.episode("network_episode", "1h", of=_OF_OTHERS),
        bin_merchant.episode("bin_merchant_episode", "1h", of=_OF_MERCHANT),
    ),
    payment=Payment(bin_number("card_bin", 1), network("ip_network", 2, of=ip)),
)


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--seeds", {"default": "101,102,103,104", "help": "of the worlds, with commas between"}),
        ("--cards", {"type": int, "default": 30_000, "help": "of each world; it has one merchant for twelve"}),
        ("--days", {"type": int, "default": 37, "help": "of each world; the first week is not counted"}),
    )
    counts: Counter[str] = Counter()
    passed: list[int] = []
    for seed in map(int, arguments.seeds.split(",")):
        passed += measure(counts, seed, arguments.cards, arguments.days)
    months = counts["merchant_days"] / MONTH_DAYS
    enumerations = max(1, len(passed))
    figures: dict[str, float] = {
        "approved_before_stop_p50": float(np.median(passed)) if passed else float("nan"),
        "approved_before_stop_p90": float(np.quantile(passed, 0.9)) if passed else float("nan"),
        "enumerations": len(passed),
        "seen_share": counts["seen"] / enumerations,
        **{f"seen_share_{name}": counts[f"seen_{name}"] / enumerations for name in CATALOGUE.names},
        "false_alarms_per_month": counts["false_alarms"] * MERCHANTS / max(1, months),
        "false_alarms": counts["false_alarms"],
        **{f"false_alarms_{name}": counts[f"false_alarms_{name}"] for name in CATALOGUE.names},
        "merchant_months": months,
        "payments": counts["payments"],
        "flash_sales": counts["flash_sales"],
        "flash_sale_alarms": counts["flash_sale_alarms"],
    }
    finish(figures, arguments.json)


def measure(counts: Counter[str], seed: int, cards: int, days: int) -> list[int]:
    """Add a world to the counts; return for each enumeration the payments before the first one that was stopped."""
    made = simulate_shop(cards=cards, days=days, seed=seed)
    history = history_of_tables(made.payments, made.outcomes, CATALOGUE.payment.fields)
    situation = np.array([SITUATIONS.index(text) for text in made.truth["situation"].to_pylist()], dtype=np.int8)
    engine = FeatureEngine(CATALOGUE)
    values = np.concatenate([c.vectors for c in PointInTimeReplay(history, engine, load_rates()).chunks()])
    time_ms = history.event_time_ms
    start_ms = int(time_ms[0]) + 7 * DAY_MS
    counted = time_ms >= start_ms
    is_try = np.isin(situation, [SITUATIONS.index(name) for name in _BURSTS])
    counts["payments"] += int(counted.sum())
    shops = history.merchant.codes
    counts["merchant_days"] += len(np.unique(shops[counted])) * (days - 7)
    nobody, nothing = np.zeros(len(time_ms), dtype=np.bool_), np.zeros(len(time_ms), dtype=np.int64)
    for place, (name, entity) in enumerate(zip(CATALOGUE.names, CATALOGUE.entities, strict=True)):
        codes = entity_column(history, entity.name, entity.keys).codes
        found = episodes_of(codes, time_ms, values[:, place], nobody, nothing)
        of_entity = is_try & (codes >= 0)
        tries = entity_times(codes[of_entity], time_ms[of_entity])
        is_false = are_without(tries, found.entity, found.begin_ms - _REACH_MS, found.end_ms)
        is_false &= found.begin_ms >= start_ms
        counts[f"false_alarms_{name}"] += int(is_false.sum())
        counts["false_alarms"] += int(is_false.sum())
        if name == "merchant_episode":
            spans = np.stack((found.entity, found.begin_ms, found.end_ms))[:, is_false]
            counts.update(_flash_sales(shops, time_ms, situation, spans, counted))
    return _enumerations(counts, shops, time_ms, situation, values >= IS_ON, counted)


def _runs(shops: NDArray[np.integer], time_ms: NDArray[np.int64], rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return rows by shop, cut where two hours pass without one."""
    rows, first = runs_of(shops, time_ms, rows)
    return np.split(rows, first[1:]) if len(rows) else []


def _flash_sales(
    shops: NDArray[np.integer],
    time_ms: NDArray[np.int64],
    situation: NDArray[np.int8],
    spans: NDArray[np.int64],
    counted: NDArray[np.bool_],
) -> dict[str, int]:
    """Count the flash sales, and those with one of these spans of a shop: (shop, begin, end)."""
    rows = np.flatnonzero((situation == SITUATIONS.index("flash_sale")) & counted)
    runs = [run for run in _runs(shops, time_ms, rows) if len(run) >= 10]
    shop, begin_ms, end_ms = spans
    alarms = [
        bool(((shop == shops[run[0]]) & (begin_ms <= time_ms[run[-1]]) & (end_ms >= time_ms[run[0]])).any())
        for run in runs
    ]
    return {"flash_sales": len(runs), "flash_sale_alarms": sum(alarms)}


def _enumerations(
    counts: Counter[str],
    shops: NDArray[np.integer],
    time_ms: NDArray[np.int64],
    situation: NDArray[np.int8],
    is_on: NDArray[np.bool_],
    counted: NDArray[np.bool_],
) -> list[int]:
    passed = []
    rows = np.flatnonzero((situation == SITUATIONS.index("enumeration")) & counted)
    for run in _runs(shops, time_ms, rows):
        on = is_on[run]
        seen = on.any(axis=1)
        passed.append(int(seen.argmax()) if seen.any() else len(run))
        counts["seen"] += int(seen.any())
        for place, name in enumerate(CATALOGUE.names):
            counts[f"seen_{name}"] += int(on[:, place].any())
    return passed


if __name__ == "__main__":
    main()
