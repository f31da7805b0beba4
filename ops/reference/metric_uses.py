"""Finds the dashboards that show a metric, and reads the rules of alerts and recorded series."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from paywarden.ops.dashboards.boards import BOARDS
from paywarden.ops.dashboards.grafana import Dashboard, metrics_in, recorded_in

_RULES = Path(__file__).resolve().parents[1]


def rules_in(file: str) -> dict[str, str]:
    """Returns the expression of each rule of a file of ops, by the alert's or the recorded series' name, in order.

    The files keep to one form, which tests/unit/ops/monitoring/test_rules.py checks: no other reader of YAML is needed.
    """
    rules: dict[str, str] = {}
    for block in re.split(r"\n {6}- (?:alert|record): ", (_RULES / file).read_text(encoding="utf-8"))[1:]:
        name, _, rest = block.partition("\n")
        found = re.search(r" {8}expr: >-\n((?: {10}.*\n?)+)", rest)
        rules[name] = " ".join(line.strip() for line in found[1].splitlines()) if found else ""
    return rules


def family_of(series: str) -> str:
    """Returns the name of the metric that a series belongs to: that of a histogram for its buckets, sum and count."""
    return re.sub(r"_(bucket|sum|count)$", "", series)


def shown_on(boards: Iterable[Dashboard] = BOARDS) -> dict[str, list[str]]:
    """Returns the names of the dashboards that show a metric, itself or by a recording rule, by the metric's name."""
    recorded, shown = _recorded(), defaultdict[str, list[str]](list)
    for board in boards:
        metrics: set[str] = set()
        for panel in board.panels():
            for query in panel.queries:
                metrics |= metrics_in(query.expr)
                for series in recorded_in(query.expr):
                    metrics |= recorded[series]
        for metric in sorted(set(map(family_of, metrics))):
            shown[metric].append(board.name)
    return shown


def _recorded() -> Mapping[str, set[str]]:
    """The metrics behind each recorded series. A rule may read those recorded by rules above it."""
    behind: dict[str, set[str]] = {}
    for series, expr in rules_in("recording.yml").items():
        behind[series] = metrics_in(expr).union(*(behind[earlier] for earlier in recorded_in(expr)))
    return behind
