"""The blocks of a report, and how numbers are written for people.

A report is a list of blocks: headings, paragraphs, tables, figures. The templates in models/replay/report/templates
render each kind of block (models/replay/report/renderer.py); no code here knows HTML. The style sheet uses the colours
of M. Okabe and K. Ito, "Color universal design" (2008), which people with any colour vision can tell apart. Every
difference in colour is also a difference in words, dashes or position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

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


class Row(NamedTuple):
    """A row of a table, as the template needs it."""

    cells: Sequence[TableCell]
    style: str


@dataclass(frozen=True)
class Heading:
    """The heading of a section (level 2) or of a part of one (level 3)."""

    kind: ClassVar[str] = "heading"
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text. `style` is a class of the style sheet."""

    kind: ClassVar[str] = "paragraph"
    text: str
    style: str = ""


class Card(NamedTuple):
    """A number and its meaning. `challenger` is the challenger's number; empty without a challenger."""

    title: str
    value: str
    meaning: str
    challenger: str = ""


@dataclass(frozen=True)
class FigureCards:
    """The most important numbers, as cards."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class PageTable:
    """A table of texts. The first `text_columns` columns are left-aligned, the other columns hold numbers."""

    kind: ClassVar[str] = "table"
    heads: Sequence[str]
    rows: Sequence[Sequence[str | TableCell]]
    caption: str = ""
    text_columns: int = 1
    is_full: bool = True
    row_styles: Sequence[str] = ()

    @property
    def head_cells(self) -> list[TableCell]:
        """The column heads, with the classes of their columns."""
        return self._cells(self.heads)

    @property
    def body_rows(self) -> list[Row]:
        """The rows, with the classes of their columns. Each row must have one cell for each head."""
        styles = [*self.row_styles, *[""] * (len(self.rows) - len(self.row_styles))]
        return [Row(self._cells(row), style) for row, style in zip(self.rows, styles, strict=True)]

    def _cells(self, row: Sequence[str | TableCell]) -> list[TableCell]:
        cells = []
        for place, (_, content) in enumerate(zip(self.heads, row, strict=True)):
            text, style = (content.text, content.style) if isinstance(content, TableCell) else (content, "")
            kind = "text" if place < self.text_columns else ""
            cells.append(TableCell(text, " ".join(filter(None, (kind, style)))))
        return cells


@dataclass(frozen=True)
class Definitions:
    """Terms and their meanings."""

    kind: ClassVar[str] = "definitions"
    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """A plot with a title above it and a caption below."""

    kind: ClassVar[str] = "figure"
    title: str
    drawing: Drawing
    caption: str


@dataclass(frozen=True)
class PageGroup:
    """Blocks that stay in one column when other blocks stand beside them."""

    kind: ClassVar[str] = "group"
    blocks: Sequence[PageBlock]


@dataclass(frozen=True)
class Figures:
    """Plots or groups, side by side if the page is wide enough."""

    kind: ClassVar[str] = "figures"
    parts: Sequence[Figure | PageGroup]


@dataclass(frozen=True)
class Beside:
    """Two parts side by side, the first wider than the second."""

    kind: ClassVar[str] = "beside"
    wide: Sequence[PageBlock]
    narrow: Sequence[PageBlock]


PageBlock = Heading | Paragraph | FigureCards | PageTable | Definitions | Figure | PageGroup | Figures | Beside


def notice(text: str) -> Paragraph:
    """Returns a paragraph that the style sheet makes hard to miss."""
    return Paragraph(text, "notice")


def whole(number: float) -> str:
    """Returns a number like 1,234,567."""
    return f"{number:,.0f}"


def decimal(number: float, digits: int = 3) -> str:
    return f"{number:.{digits}f}" if math.isfinite(number) else NO_NUMBER


def percent(share: float, digits: int = 1) -> str:
    """Returns a share like 12.3%. Shares below 1 % get at least two digits, and below 0.1 % at least three."""
    if not math.isfinite(share):
        return NO_NUMBER
    if share and abs(share) < 0.001:
        digits = max(digits, 3)
    elif share and abs(share) < 0.01:
        digits = max(digits, 2)
    return f"{100 * share:.{digits}f}%"


def fixed_percent(share: float, digits: int = 1) -> str:
    """Returns a share with exactly `digits` digits, for columns of a table."""
    return f"{100 * share:.{digits}f}%" if math.isfinite(share) else NO_NUMBER


def count_of(number: int, noun: str) -> str:
    """Returns a text like "1 payment" or "2 payments"."""
    return f"{whole(number)} {noun}" if number == 1 else f"{whole(number)} {noun}s"


def money(amount_minor: float, currency: str, *, is_signed: bool = False) -> str:
    """Returns whole units of the reference currency, like EUR 1,234. With `is_signed`, a gain has a plus sign."""
    text = amount(amount_minor, is_signed=is_signed)
    return f"{currency} {text}" if currency else text


def amount(amount_minor: float, *, is_signed: bool = False, digits: int = 0) -> str:
    """Returns an amount without its currency, for tables that name the currency in a head."""
    units = amount_minor / _MINOR_PER_UNIT
    text = f"{abs(units):,.{digits}f}"
    if not text.strip("0.,"):
        return text
    return f"−{text}" if units < 0 else f"+{text}" if is_signed else text


def short_amount(amount_minor: float) -> str:
    """Returns an amount for a plot's axis, like 1.2M, 340k or 12."""
    units = amount_minor / _MINOR_PER_UNIT
    for size, letter in ((1e9, "bn"), (1e6, "M"), (1e3, "k")):
        if abs(units) >= size:
            return f"{units / size:g}{letter}".replace("-", "−")
    return f"{units:g}".replace("-", "−")
