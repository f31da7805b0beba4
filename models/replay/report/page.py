"""What a report is made of, and how numbers are written for people.

A report is a list of blocks: headings, paragraphs, tables, figures. The templates in streams/templates say how each
kind of block looks (models/replay/report/renderer.py), and nothing here knows HTML. The style sheet's colours are
those of
Okabe and Ito, which people with any colour vision tell apart; what they say is also said in words, dashes or place.
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
"""What a payment is after each action."""


class TableCell(NamedTuple):
    """A table's cell with classes of the style sheet."""

    text: str
    style: str


class Row(NamedTuple):
    """A table's row as its template wants it."""

    cells: Sequence[TableCell]
    style: str


@dataclass(frozen=True)
class Heading:
    """Of a section (level 2) or a part of one (3)."""

    kind: ClassVar[str] = "heading"
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A text; a `style` is a class of the style sheet."""

    kind: ClassVar[str] = "paragraph"
    text: str
    style: str = ""


class Card(NamedTuple):
    """A number with what it means; beside it the challenger's, where there is one."""

    title: str
    value: str
    meaning: str
    challenger: str = ""


@dataclass(frozen=True)
class FigureCards:
    """Numbers that are seen first."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class PageTable:
    """A table of texts; the first `text_columns` columns are set left, the rest are numbers."""

    kind: ClassVar[str] = "table"
    heads: Sequence[str]
    rows: Sequence[Sequence[str | TableCell]]
    caption: str = ""
    text_columns: int = 1
    is_full: bool = True
    row_styles: Sequence[str] = ()

    @property
    def head_cells(self) -> list[TableCell]:
        """The heads with the classes of their columns."""
        return self._cells(self.heads)

    @property
    def body_rows(self) -> list[Row]:
        """The rows likewise. A row has a cell for each head."""
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
    """Words with what they mean."""

    kind: ClassVar[str] = "definitions"
    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """A plot under its title, with what it shows in words."""

    kind: ClassVar[str] = "figure"
    title: str
    drawing: Drawing
    caption: str


@dataclass(frozen=True)
class PageGroup:
    """Blocks that stay together where others stand beside them."""

    kind: ClassVar[str] = "group"
    blocks: Sequence[PageBlock]


@dataclass(frozen=True)
class Figures:
    """Plots or groups side by side, where the page is wide enough."""

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
    """What a reader must not miss."""
    return Paragraph(text, "notice")


def whole(number: float) -> str:
    """1,234,567."""
    return f"{number:,.0f}"


def decimal(number: float, digits: int = 3) -> str:
    return f"{number:.{digits}f}" if math.isfinite(number) else NO_NUMBER


def percent(share: float, digits: int = 1) -> str:
    """A share as 12.3 %; a small one with as many digits as it takes to see it."""
    if not math.isfinite(share):
        return NO_NUMBER
    if share and abs(share) < 0.001:
        digits = max(digits, 3)
    elif share and abs(share) < 0.01:
        digits = max(digits, 2)
    return f"{100 * share:.{digits}f}%"


def fixed_percent(share: float, digits: int = 1) -> str:
    """The same with as many digits as all of its column."""
    return f"{100 * share:.{digits}f}%" if math.isfinite(share) else NO_NUMBER


def count_of(number: int, noun: str) -> str:
    """1 payment, 2 payments."""
    return f"{whole(number)} {noun}" if number == 1 else f"{whole(number)} {noun}s"


def money(amount_minor: float, currency: str, *, is_signed: bool = False) -> str:
    """Whole units of the reference currency, as EUR 1,234; `is_signed` sets a plus before a gain."""
    text = amount(amount_minor, is_signed=is_signed)
    return f"{currency} {text}" if currency else text


def amount(amount_minor: float, *, is_signed: bool = False, digits: int = 0) -> str:
    """The same without the currency, for tables that name it in their heads."""
    units = amount_minor / _MINOR_PER_UNIT
    text = f"{abs(units):,.{digits}f}"
    if not text.strip("0.,"):
        return text
    return f"−{text}" if units < 0 else f"+{text}" if is_signed else text


def short_amount(amount_minor: float) -> str:
    """An amount for a plot's axis: 1.2M, 340k, 12."""
    units = amount_minor / _MINOR_PER_UNIT
    for size, letter in ((1e9, "bn"), (1e6, "M"), (1e3, "k")):
        if abs(units) >= size:
            return f"{units / size:g}{letter}".replace("-", "−")
    return f"{units:g}".replace("-", "−")
