"""`paywarden ceiling`: how near replays come to the best that any model can do on made data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops.extras import needs

if TYPE_CHECKING:
    from paywarden.models.backtest.known_truth import AgainstCeiling

_HEADINGS = ("scores", "payments", "frauds", "AUC ROC", "avg. precision", "recall at 1 %", "of the ceiling")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of `simulate --world shop`.")
@click.option(
    "--replay",
    "replays",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Folder of a replay of that data. May be given several times.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write the result to this file.")
@needs("history")
def ceiling(data: Path, replays: tuple[Path, ...], json_file: str | None) -> None:
    """Compare replays with the best that any model can do.

    Made payments have a known probability of fraud. Ranked by it, they are in the best order there is, on average: no
    model can have a higher AUC, average precision or recall than this ceiling. Recall is the share of all frauds among
    the 1 % of payments with the highest scores.
    """
    from paywarden.models.backtest.known_truth import against_ceiling

    compared = [against_ceiling(data, replay) for replay in replays]
    click.echo("\n".join(_lines(compared)))
    if json_file is not None:
        Path(json_file).write_text(json.dumps([_as_json(one) for one in compared], indent=2) + "\n", encoding="utf-8")


def _as_json(one: AgainstCeiling) -> dict[str, Any]:
    return {**asdict(one), "share": one.share}


def _lines(compared: Sequence[AgainstCeiling]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("scores", "payments", "frauds", "AUC ROC", "avg. precision", "recall at 1 %", "of the ceiling")
    ]
    told: set[tuple[object, ...]] = set()
    for one in compared:
        size = f"{one.payments:,}", f"{one.frauds:,}"
        # Replays of the same payments have the same ceiling.
        if (*size, one.ceiling) not in told:
            rows.append(("ceiling", *size, *_cells(asdict(one.ceiling)), "100 %"))
        told.add((*size, one.ceiling))
        share = "" if math.isnan(one.share) else f"{one.share:.0%}".replace("%", " %")
        rows.append((one.replay, *size, *_cells(asdict(one.model)), share))
    lines = _aligned(rows)
    for one in compared:
        rows = [(f"frauds of {one.replay}", "frauds", "found", "found by the ceiling")]
        rows += [
            (each.situation, f"{each.frauds:,}", *_cells({"a": each.recall, "b": each.ceiling_recall}))
            for each in one.situations
            if each.frauds
        ]
        lines += ["", *_aligned(rows)]
    return lines


def _cells(values: dict[str, float]) -> list[str]:
    return ["" if math.isnan(value) else f"{value:.3f}" for value in values.values()]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the rows as lines: the first column left, all others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
