"""How reports write numbers for people, and what their templates are given: cells of tables, plots with a caption.

The templates in models/replay/report/templates have the words. The style sheet uses the colours of M. Okabe and K. Ito,
"Color universal design" (2008), which people with any colour vision can tell apart. Every difference in colour is also
a difference in words, dashes or position.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from paywarden.features.profiles.money import REFERENCE_MINOR_DIGITS
from paywarden.models.replay.report.plots import Drawing

_MINOR_PER_UNIT = 10**REFERENCE_MINOR_DIGITS
NO_NUMBER = "–"
PAST = {"approve": "approved", "review": "reviewed", "decline": "declined"}
"""The participle of each action: a payment is approved, reviewed or declined."""


class TableCell(NamedTuple):
    """A cell of a table, with the style sheet's classes in `style`."""

    text: str
    style: str


class Figure(NamedTuple):
    """A plot with a title above it and a caption below."""

    title: str
    drawing: Drawing
    caption: str


def whole(number: float) -> str:
    """Return a number like 1,234,567."""
    return f"{number:,.0f}"


def decimal(number: float, digits: int = 3) -> str:
    return f"{number:.{digits}f}" if math.isfinite(number) else NO_NUMBER


def percent(share: float, digits: int = 1) -> str:
    """Return a share like 12.3%. Shares below 1 % get at least two digits, and below 0.1 % at least three."""
    if not math.isfinite(share):
        return NO_NUMBER
    if share and abs(share) < 0.001:
        digits = max(digits, 3)
    elif share and abs(share) < 0.01:
        digits = max(digits, 2)
    return f"{100 * share:.{digits}f}%"


def fixed_percent(share: float, digits: int = 1) -> str:
    """Return a share with exactly `digits` digits, for columns of a table."""
    return f"{100 * share:.{digits}f}%" if math.isfinite(share) else NO_NUMBER


def count_of(number: int, noun: str) -> str:
    """Return a text like "1 payment" or "2 payments"."""
    return f"{whole(number)} {noun}" if number == 1 else f"{whole(number)} {noun}s"


def money(amount_minor: float, currency: str, *, is_signed: bool = False) -> str:
    """Return whole units of the reference currency, like EUR 1,234. With `is_signed`, a gain has a plus sign."""
    text = amount(amount_minor, is_signed=is_signed)
    return f"{currency} {text}" if currency else text


def amount(amount_minor: float, *, is_signed: bool = False, digits: int = 0) -> str:
    """Return an amount without its currency, for tables that name the currency in a head."""
    units = amount_minor / _MINOR_PER_UNIT
    text = f"{abs(units):,.{digits}f}"
    if not text.strip("0.,"):
        return text
    return f"−{text}" if units < 0 else f"+{text}" if is_signed else text


def short_amount(amount_minor: float) -> str:
    """Return an amount for a plot's axis, like 1.2M, 340k or 12."""
    units = amount_minor / _MINOR_PER_UNIT
    for size, letter in ((1e9, "bn"), (1e6, "M"), (1e3, "k")):
        if abs(units) >= size:
            return f"{units / size:g}{letter}".replace("-", "−")
    return f"{units:g}".replace("-", "−")
