"""Measures: what tiles keep and windows make of it, and the conditions that choose the payments they are of."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.entity import CATEGORIES_MAX, request
from paywarden.features.profiles.money import _RATE_MAX, RATE_SCALE
from paywarden.schemas.payment_fields import AMOUNT_MINOR_MAX
from tests.unit.features.kernel.profiles import card, one, payment

# A Sunday at noon: the beginning of a tile of every hop but a day.
NOON_MS = 1_530_446_400_000
AMOUNT_MAX = AMOUNT_MINOR_MAX * _RATE_MAX // RATE_SCALE


# Conditions.


def test_each_of_the_longest_list_of_categories_has_its_place() -> None:
    # More than two bytes, in no order, so that a search has every branch to take.
    among = [f"{(7919 * place) % 10_000:04}" for place in range(CATEGORIES_MAX)]
    feature = request.category("x", attributes.mcc, among)
    for place in (*range(0, CATEGORIES_MAX, 273), CATEGORIES_MAX - 1):
        assert one(feature, payment(NOON_MS, 0, mcc=among[place]), []) == place
    assert one(feature, payment(NOON_MS, 0, mcc="other"), []) == CATEGORIES_MAX


# Measures.


def test_deviations_of_the_largest_amounts_there_can_be_do_not_overflow() -> None:
    changes = [payment(NOON_MS, AMOUNT_MAX - (number % 2) * AMOUNT_MAX // 2) for number in range(1000)]
    wanted = statistics.stdev(change.row[kernel.AMOUNT] for change in changes)
    assert one(card.amount_std("x", "1d"), payment(NOON_MS), changes) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("bits", [64, 128, 256, 512, 1024])
@pytest.mark.parametrize("load", [0.1, 0.5, 1.0])
def test_distinct_values_are_estimated_within_three_standard_errors(bits: int, load: float) -> None:
    count = int(bits * load)
    feature = card.distinct("x", attributes.merchant_id, "1d", bits=bits)
    error = (bits * (math.exp(count / bits) - count / bits - 1)) ** 0.5
    estimates = []
    for world in range(10):
        changes = [payment(NOON_MS, merchant_id=f"m{world}-{number}") for number in range(count)]
        estimates.append(one(feature, payment(NOON_MS), changes * 2))
    assert max(abs(estimate - count) for estimate in estimates) <= 3.5 * error
    assert abs(statistics.fmean(estimates) - count) <= 1.5 * error


@pytest.mark.parametrize("bits", [64, 1024])
def test_a_full_bitmap_gives_its_largest_estimate(bits: int) -> None:
    changes = [payment(NOON_MS, merchant_id=f"m{number}") for number in range(20 * bits)]
    feature = card.distinct("x", attributes.merchant_id, "1d", bits=bits)
    assert one(feature, payment(NOON_MS), changes) == np.float32(bits * math.log(bits))


@given(code=st.integers(-(2**63), 2**63 - 1))
def test_mix_is_the_finaliser_of_splitmix64_without_its_lowest_bit(code: int) -> None:
    mask = 2**64 - 1
    bits = (code + 0x9E3779B97F4A7C15) & mask
    bits = ((bits ^ bits >> 30) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ bits >> 27) * 0x94D049BB133111EB) & mask
    assert kernel.mix(code) == (bits ^ bits >> 31) >> 1
