"""The lines of `paywarden replay --ceiling`: how near a replay comes to the best that any model can do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paywarden.models.backtest.known_truth import AgainstCeiling

_HEADINGS = ("scores", "payments", "frauds", "AUC ROC", "avg. precision", "recall at 1 %", "of the ceiling")


def ceiling_lines(compared: AgainstCeiling) -> list[str]:
    """Return the lines that show a replay beside the ceiling."""
    size = f"{compared.payments:,}", f"{compared.frauds:,}"
    share = "" if math.isnan(compared.share) else f"{compared.share:.0%}".replace("%", " %")
    measures = [
        _HEADINGS,
        ("ceiling", *size, *_cells(asdict(compared.ceiling)), "100 %"),
        (compared.replay, *size, *_cells(asdict(compared.model)), share),
    ]
    situations = [
        (each.situation, f"{each.frauds:,}", *_cells({"found": each.recall, "ceiling": each.ceiling_recall}))
        for each in compared.situations
        if each.frauds
    ]
    return [*_aligned(measures), "", *_aligned([("frauds of", "frauds", "found", "found by the ceiling"), *situations])]


def _cells(values: dict[str, float]) -> list[str]:
    return ["" if math.isnan(value) else f"{value:.3f}" for value in values.values()]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines: the first column left, all others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
