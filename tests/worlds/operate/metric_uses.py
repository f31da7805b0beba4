"""Reads the dashboards, and the rules of alerts and recorded series: which metrics they use."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.checkout import CHECKOUT

_OPS = CHECKOUT / "ops"


@dataclass(frozen=True)
class Panel:
    """What a panel shows: its queries, and the alerts to whose pages of the runbook it links."""

    board: str
    title: str
    queries: tuple[str, ...]
    alerts: tuple[str, ...]


def boards() -> dict[str, dict[str, Any]]:
    """Return the files of ops/dashboards, read, by their names."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(_OPS.glob("dashboards/*.json"))}


def panels() -> list[Panel]:
    """Return the panels of all dashboards. A row is a headline and no panel."""
    return [
        Panel(
            name,
            panel["title"],
            tuple(query["expr"] for query in panel["targets"]),
            tuple(link["url"].rpartition("/")[2].removesuffix(".md") for link in panel["links"]),
        )
        for name, board in boards().items()
        for panel in board["panels"]
        if panel["type"] != "row"
    ]


def metrics_in(expr: str) -> set[str]:
    """Return the metrics that a query reads, series of recording rules apart.

    >>> sorted(metrics_in('sum(rate(paywarden_score_bucket{le="0.5"}[5m])) / instance:paywarden_score:mean5m'))
    ['paywarden_score_bucket']
    """
    return set(re.findall(r"(?<![\w:])paywarden_\w+(?![\w:])", expr))


def recorded_in(expr: str) -> set[str]:
    """Return the series of recording rules that a query reads: those with colons in their names."""
    return set(re.findall(r"(?<!\w)[a-z_]+:paywarden_\w+:\w+", expr))


def rules_in(file: str) -> dict[str, str]:
    """Return the expression of each rule of a file of ops, by the alert's or the recorded series' name, in order."""
    rules: dict[str, str] = {}
    for block in re.split(r"\n {6}- (?:alert|record): ", (_OPS / file).read_text(encoding="utf-8"))[1:]:
        name, _, rest = block.partition("\n")
        found = re.search(r" {8}expr: >-\n((?: {10}.*\n?)+)", rest)
        rules[name] = " ".join(line.strip() for line in found[1].splitlines()) if found else ""
    return rules


def family_of(series: str) -> str:
    """Return the name of the metric that a series belongs to: that of a histogram for its buckets, sum and count."""
    return re.sub(r"_(bucket|sum|count)$", "", series)


def shown_on() -> dict[str, list[str]]:
    """Return the names of the dashboards that show a metric, itself or by a recording rule, by the metric's name."""
    recorded, shown = _recorded(), defaultdict[str, list[str]](list)
    for panel in panels():
        metrics: set[str] = set()
        for query in panel.queries:
            metrics |= metrics_in(query).union(*(recorded[series] for series in recorded_in(query)))
        for metric in sorted(set(map(family_of, metrics))):
            shown[metric].append(panel.board)
    return shown


def _recorded() -> Mapping[str, set[str]]:
    """The metrics behind each recorded series. A rule may read those recorded by rules above it."""
    behind: dict[str, set[str]] = {}
    for series, expr in rules_in("recording.yml").items():
        behind[series] = metrics_in(expr).union(*(behind[earlier] for earlier in recorded_in(expr)))
    return behind
