"""Amounts are written as people write them."""

from __future__ import annotations

import math

import pytest

from paywarden.features.profiles.money import load_rates
from paywarden.ops.console.rendering import Currencies


def test_amounts_have_the_digits_of_their_currency() -> None:
    """1,656 yen were shown as 16.56."""
    rates = load_rates()
    currencies = Currencies(rates.reference_currency, tuple(rates.minor_digits.items()))
    assert currencies.text(165_600, "JPY") == "165,600 JPY"
    assert currencies.text(165_600, "USD") == "1,656.00 USD"
    assert currencies.text(-165_600) == "-1,656.00 EUR"


@pytest.mark.parametrize("amount", [None, math.nan, math.inf])
def test_an_amount_that_is_not_known_is_a_dash(amount: float | None) -> None:
    assert Currencies("EUR").text(amount) == "–"
    assert Currencies(digits=(("KWD", 3),)).text(1_234, "KWD") == "1.234 KWD"
