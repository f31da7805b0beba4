"""The word for episodes: what it gives, when it is quiet, and what it refuses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from paywarden.features.catalogue.attributes import amount, card_id, declined
from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.catalogue.entity_words.episodes import ALARM, is_episode
from paywarden.features.catalogue.expressions import Feature
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS, MINUTE_MS
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.schemas.errors import Misconfigured
from tests.unit.features.kernel.profiles import Change, payment, profile

NOON_MS = 1_764_000_000_000
merchant, device = Entity("merchant", key="merchant_id"), Entity("device", key="device_id")
IS_SMALL = amount < 3_00
MARKS = ((IS_SMALL, 0.02, 5), (declined, 0.02, 50))
EPISODE = merchant.episode("merchant_episode", "1h", of=MARKS)


def seen(feature: Feature, entity: Entity, now_ms: int, before: list[Change]) -> float:
    """The feature's value as a payment sees it after others."""
    of = FeatureEngine(Catalogue((entity,), (feature,)))
    state = profile(of, entity.name, before) if before else None
    presence = np.array([1 if state is None else 2], dtype=np.uint8)
    states = np.frombuffer(bytearray(state or b""), dtype=np.uint8)
    out = np.empty((1, 1), dtype=np.float32)
    now = payment(now_ms, 20_00, merchant_id="m", device_id="d", card_id="now")
    of.fill_vectors(np.array([now.row], dtype=np.int64), presence, states, np.array([0, len(states)]), out)
    return float(out[0, 0])


def usual(until_ms: int, *, minor: int = 40_00, days: int = 7) -> list[Change]:
    """Payments of a quiet merchant, 24 a day."""
    return [paid(until_ms - hour * HOUR_MS, minor, f"c{hour}") for hour in range(24 * days, 1, -1)]


def paid(time_ms: int, minor: int, card: str, *, is_declined: bool = False) -> Change:
    return payment(time_ms, minor, merchant_id="m", device_id="d", card_id=card, declined=is_declined)


def burst(until_ms: int, count: int, minor: int, *, is_declined: bool = False) -> list[Change]:
    """Payments of as many cards in the last half hour."""
    gap_ms = 30 * MINUTE_MS // count
    places = range(count, 0, -1)
    return [paid(until_ms - place * gap_ms, minor, f"x{place}", is_declined=is_declined) for place in places]


def test_a_burst_of_small_tries_is_an_episode_within_eight() -> None:
    before = usual(NOON_MS)
    values = [seen(EPISODE, merchant, NOON_MS, before + burst(NOON_MS, count, 99)) for count in (1, 8)]
    assert values[0] < 1 <= values[1]


def test_a_burst_of_declines_is_an_episode_whatever_its_amounts() -> None:
    before = usual(NOON_MS) + burst(NOON_MS, 10, 40_00, is_declined=True)
    assert seen(EPISODE, merchant, NOON_MS, before) >= 1


def test_a_flash_sale_is_quiet_however_large() -> None:
    sale = burst(NOON_MS, 500, 24_00)
    assert seen(EPISODE, merchant, NOON_MS, usual(NOON_MS) + sale) == 0


def test_a_new_merchant_of_small_things_is_quiet() -> None:
    of_small = merchant.episode("merchant_episode", "1h", of=((IS_SMALL, 0.02, 3),))
    assert seen(of_small, merchant, NOON_MS, burst(NOON_MS, 30, 99)) < 1


def test_an_episode_without_end_becomes_the_usual_and_ends() -> None:
    endless = [paid(NOON_MS + minute * MINUTE_MS, 99, f"x{minute}") for minute in range(0, 8 * 24 * 60, 15)]
    early, late = NOON_MS + 4 * HOUR_MS, NOON_MS + 8 * DAY_MS
    known = [change for change in endless if change.row[0] < early]
    assert seen(EPISODE, merchant, early, usual(NOON_MS) + known) >= 1
    assert seen(EPISODE, merchant, late, usual(NOON_MS) + endless) < 1


def test_many_cards_on_one_device_are_evidence() -> None:
    of_many = device.episode("device_episode", "1h", of=((declined, 0.02, 50),), many=(card_id, 1.5))
    cards = burst(NOON_MS, 20, 40_00)
    assert seen(of_many, device, NOON_MS, cards) >= 1
    one_card = [paid(NOON_MS - place * MINUTE_MS, 40_00, "c") for place in range(20, 0, -1)]
    assert seen(of_many, device, NOON_MS, one_card) < 1


def test_the_order_of_payments_makes_no_difference() -> None:
    before = usual(NOON_MS, days=2) + burst(NOON_MS, 6, 99)
    values = {seen(EPISODE, merchant, NOON_MS, list(order)) for order in (before, reversed(before))}
    assert len(values) == 1


def test_the_evidence_is_that_of_a_beta_binomial() -> None:
    one_mark = merchant.episode("merchant_episode", "1h", of=((IS_SMALL, 0.02, 50),), alarm=1)

    def log_chance(count: int, total: int, a: float, b: float) -> float:
        ways = math.log(math.comb(total, count))
        marked = sum(math.log(a + i) for i in range(count)) + sum(math.log(b + i) for i in range(total - count))
        return ways + marked - sum(math.log(a + b + i) for i in range(total))

    for small, large in itertools.product((1, 3, 9), (0, 2, 20)):
        before = burst(NOON_MS, small, 99) + burst(NOON_MS, large, 40_00) if large else burst(NOON_MS, small, 99)
        total = small + large
        wanted = log_chance(0, total, 1, 49) - log_chance(small, total, 1, 49)
        assert seen(one_mark, merchant, NOON_MS, before) == pytest.approx(wanted, abs=1e-3)


def test_only_the_word_episode_makes_an_episode() -> None:
    assert is_episode(EPISODE)
    assert not is_episode(merchant.count("merchant_count", "1h"))
    assert "from 1 on" in EPISODE.meaning
    assert ALARM > 1


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"of": ()}, "`of` must list 1 to 4 marks"),
        ({"of": (IS_SMALL,)}, "a mark is (condition, usual share, weight)"),
        ({"of": ((amount, 0.02, 5),)}, "a condition is a flag"),
        ({"of": ((IS_SMALL, 0, 5),)}, "usual share must be from"),
        ({"of": ((IS_SMALL, 0.02, 0),)}, "weight must be from"),
        ({"of": MARKS, "many": (card_id, 0)}, "`many` must be"),
        ({"of": MARKS, "many": (amount, 2)}, "values can be told apart"),
        ({"of": MARKS, "alarm": 0}, "`alarm` must be from"),
        ({"of": MARKS, "usual": "1h"}, "`usual` must be longer"),
    ],
)
def test_an_episode_that_cannot_be_is_refused(arguments: dict[str, object], wanted: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        merchant.episode("merchant_episode", "1h", **arguments)  # type: ignore[arg-type]
    assert wanted in str(refused.value)
    assert "'merchant_episode'" in str(refused.value)
