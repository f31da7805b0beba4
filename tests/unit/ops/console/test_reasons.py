"""Reasons in a person's words come from the declaration of the features and the training payments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paywarden.features.profiles.feature_docs import ListedFeature, listed_features
from paywarden.models.drift.reference import Reference, load_reference
from paywarden.ops import wiring
from paywarden.ops.console.reasons import reason_of, usual_value
from paywarden.ops.console.rendering import ENGLISH, LOCALE, Currencies, locale_of
from paywarden.schemas.settings import Source
from tests.worlds.small import small_world

EURO = Currencies("EUR")


@pytest.fixture(scope="module")
def listed() -> dict[str, ListedFeature]:
    return {one.name: one for one in listed_features(wiring.catalogue(Source({}, {})))}


@pytest.fixture(scope="module")
def reference() -> Reference:
    found = load_reference(small_world.trained_bundle())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("card_count_1h", 110, "110 payments of this card in the last hour; usually 0"),
        ("merchant_count_30d", 1, "1 payment of this merchant in the last 30 days; usually 68"),
        (
            "amount_to_merchant_mean_30d",
            9.6042,
            "9.6 times the mean amount of this merchant's payments in the last 30 days; usually 0.83",
        ),
        (
            "card_amount_sum_1h",
            5950479.69,
            "Sum of the amounts of this card's payments in the last hour: 59,504.80 EUR; usually 0.00 EUR",
        ),
        ("card_seconds_since_last", math.nan, "Time since this card's last payment: not known (first payment of"),
        ("card_new_country", 1, "Country is not among the latest 8 different values of this card; so in 5.12 % of"),
        ("card_new_country", 0, "Not the case: country is not among"),
        ("device_count_1h", 4, "4 payments of this device in the last hour; usually not known"),
        ("device_cards_30d", 3, "3 different cards among this device's payments in the last 30 days"),
    ],
)
def test_a_reason_says_value_meaning_and_usual_value(
    name: str, value: float, said: str, listed: dict[str, ListedFeature], reference: Reference
) -> None:
    shown = EURO.reason(reason_of(name, value, listed, reference))
    assert shown.startswith(said)


def test_every_declared_feature_has_a_reason_without_names_of_code(
    listed: dict[str, ListedFeature], reference: Reference
) -> None:
    for name in listed:
        for value in (0.0, 1.0, 2.5, -3e38, math.inf, math.nan):
            shown = EURO.reason(reason_of(name, value, listed, reference))
            assert not [word for word in shown.split() if "_" in word], shown
            assert "{}" not in shown


def test_the_usual_value_is_the_training_payments_median(reference: Reference) -> None:
    bins = reference.binning.feature_edges
    for place, name in enumerate(reference.feature_names):
        usual = usual_value(reference, name)
        counts = reference.counts.features[0, place]
        known = counts[: bins.shape[1] + 1]
        if usual is None or math.isnan(usual):
            assert counts.sum() > 2 * known.sum()
            continue
        below = known[: int(np.searchsorted(bins[place], np.float32(usual), side="right")) + 1].sum()
        assert below >= known.sum() / 2, name
    assert usual_value(reference, "unheard") is None


@pytest.mark.parametrize(
    ("languages", "said"),
    [("de-DE,de;q=0.9", "59.504,80 EUR"), ("fr", "59\u202f504,80 EUR"), ("en", "59,504.80 EUR"), ("*", "59,504.80 EUR"),
     ("hi-IN", "59,504.80 EUR"), ("<script>,,;q=x", "59,504.80 EUR")],
)  # fmt: skip
def test_money_is_written_as_the_person_is_used_to(languages: str, said: str) -> None:
    token = LOCALE.set(locale_of(languages))
    try:
        assert EURO.text(5_950_480) == said
        assert EURO.text(-5) in ("-0.05 EUR", "-0,05 EUR")
        # Yen have no minor unit, dinars have three digits.
        assert EURO.text(1234, "JPY")[0] == "1"
        assert EURO.text(1234, "KWD")[-7:-4] == "234"
    finally:
        LOCALE.reset(token)
    assert LOCALE.get() == ENGLISH
