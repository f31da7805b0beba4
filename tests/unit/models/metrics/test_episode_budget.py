"""The alarm that a budget of false alarms gives, from a history."""

from __future__ import annotations

import math

import pytest

from paywarden.features.catalogue.catalogue import CATALOGUE as PACKAGED
from paywarden.features.datasets.shop_world import simulate_shop
from paywarden.features.history.history import History, history_of_tables
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.models.metrics.episode_budget import measure_budget, suggested_alarm
from paywarden.schemas.errors import Misconfigured
from perf.enumeration import CATALOGUE


def history() -> History:
    made = simulate_shop(cards=3_000, days=15, seed=4)
    return history_of_tables(made.payments, made.outcomes, CATALOGUE.payment.fields)


def test_the_suggested_alarm_keeps_the_budget_from_above() -> None:
    none = [0] * 57
    # With no false episode at all, three of them are the bound at the lowest alarm.
    assert suggested_alarm(none, 1.0) == pytest.approx(math.ceil(2 * (4 + math.log(3) / 0.5)) / 2)
    # A tail that does not fall is taken as it is.
    assert suggested_alarm([1000] * 16 + [0] * 41, 3.0) == 20
    assert suggested_alarm(none, 0.01) > suggested_alarm(none, 1.0)
    assert suggested_alarm([5] * 57, 1.0) > suggested_alarm(none, 1.0)


def test_a_history_says_what_each_feature_finds_and_which_alarm_to_take() -> None:
    budget = measure_budget(history(), CATALOGUE, FeatureEngine(CATALOGUE), load_rates())
    assert [one.name for one in budget.features] == list(CATALOGUE.names)
    merchant = budget.features[0]
    assert merchant.alarm == 20
    assert merchant.episodes >= 1
    assert merchant.with_fraud == merchant.episodes
    assert merchant.payments > merchant.episodes
    assert budget.false_a_month == 0
    assert 10 < budget.alarm < 40


def test_a_catalogue_without_an_episode_is_refused() -> None:
    with pytest.raises(Misconfigured, match="declares no `episode` feature"):
        measure_budget(history(), PACKAGED, FeatureEngine(PACKAGED), load_rates())
