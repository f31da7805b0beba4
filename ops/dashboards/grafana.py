"""A dashboard as values, and the JSON that Grafana imports.

Every panel uses two variables of its dashboard: the Prometheus to query, which an import asks for, and the address of
the runbook's pages, a field at the top:

    panel ── query ──► ${datasource}
          └─ link ───► ${runbook}/PaywardenStoreDown.md

Panels stand in rows of 24 columns, from left to right, in the order in which they are declared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

COLUMNS = 24
SCHEMA_VERSION = 39
"""Grafana 10.1 wrote this version first. Later releases bring an older file up to theirs by themselves."""
TAG = "paywarden"
RUNBOOK = "docs/operate/runbook"
"""The value of the variable `runbook` until somebody writes the address of the pages into it."""
KINDS = ("timeseries", "stat", "table", "bargauge")
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_HEIGHT = {"timeseries": 8, "stat": 4, "table": 8, "bargauge": 8}
_ALL = ".+"
_REFRESH = "30s"


@dataclass(frozen=True)
class Query:
    """A query in PromQL. `legend` names its lines, with labels in double braces."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture. `unit` is Grafana's name of it (`s`, `bytes`, `percentunit`, `reqps`, `short`, …).

    `alerts` are the alerts whose cause the panel shows: it links to their pages in the runbook. `steps` colour the
    panel: from which value on it has which colour. `scale` divides the results of the queries, which are then in
    `unit`.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    alerts: tuple[str, ...] = ()
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    steps: tuple[tuple[float, str], ...] = ()
    minimum: float | None = 0.0
    maximum: float | None = None


@dataclass(frozen=True)
class DashboardSection:
    """A headline and the panels below it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice at the top: the values of `query`, shortened to the first group of `pattern`; several or all at once."""

    name: str
    label: str
    query: str
    pattern: str = ""


@dataclass(frozen=True)
class Dashboard:
    """`name` is that of the file, and `paywarden-NAME` is the dashboard's uid, under which others link to it."""

    name: str
    title: str
    description: str
    sections: tuple[DashboardSection, ...]
    variables: tuple[Variable, ...] = ()

    @property
    def uid(self) -> str:
        """Returns the id in the dashboard's address."""
        return f"{TAG}-{self.name}"

    def panels(self) -> Iterator[Panel]:
        """Yields the panels, in the order in which they stand."""
        for section in self.sections:
            yield from section.panels


def to_json(board: Dashboard) -> str:
    """Returns the file that Grafana imports. The same dashboard gives the same bytes."""
    document = {
        "__inputs": [
            {
                "name": "DS_PROMETHEUS",
                "label": "Prometheus",
                "description": "The Prometheus that scrapes Paywarden, with the rules of ops/recording.yml.",
                "type": "datasource",
                "pluginId": "prometheus",
                "pluginName": "Prometheus",
            },
        ],
        "__requires": [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": "10.1.0"},
            {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
            *({"type": "panel", "id": kind, "name": kind, "version": ""} for kind in _kinds(board)),
        ],
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": _REFRESH,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "utc",
        "annotations": {"list": []},
        "links": [_links_to_others()],
        "templating": {"list": [_datasource(), *map(_variable, board.variables), _runbook()]},
        "panels": list(_laid_out(board.sections)),
    }
    return json.dumps(document, indent=1) + "\n"


def _kinds(board: Dashboard) -> list[str]:
    return sorted({panel.kind for panel in board.panels()})


def _links_to_others() -> dict[str, Any]:
    return {
        "type": "dashboards",
        "title": "Paywarden",
        "tags": [TAG],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {"text": "${DS_PROMETHEUS}", "value": "${DS_PROMETHEUS}"},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "refresh": 1,
        "regex": "",
    }


def _runbook() -> dict[str, Any]:
    """A field at the top. A constant would be asked for at an import, and be empty where files are provisioned."""
    return {
        "name": "runbook",
        "label": "Runbook",
        "description": "The address at which the runbook's pages are read.",
        "type": "textbox",
        "query": RUNBOOK,
        "current": {"text": RUNBOOK, "value": RUNBOOK},
        "options": [{"text": RUNBOOK, "value": RUNBOOK, "selected": True}],
        "hide": 0,
    }


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": _SOURCE,
        "definition": variable.query,
        "query": {"query": variable.query, "refId": variable.name},
        "regex": variable.pattern,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": _ALL,
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def _laid_out(sections: Sequence[DashboardSection]) -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for section in sections:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": section.title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            "panels": [],
        }
        y += 1
        x, height = 0, 0
        for panel in section.panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            number += 1
            yield _panel(panel, number, {"h": _HEIGHT[panel.kind], "w": panel.width, "x": x, "y": y})
            x, height = x + panel.width, max(height, _HEIGHT[panel.kind])
        y += height


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    instant = panel.kind != "timeseries"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        "links": [
            {"title": f"Runbook: {alert}", "url": f"${{runbook}}/{alert}.md", "targetBlank": True}
            for alert in panel.alerts
        ],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or panel.title,
                "instant": instant,
                "range": not instant,
                "format": "table" if panel.kind == "table" else "time_series",
                "editorMode": "code",
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"value": None, "color": "green"}]
    steps += [{"value": value, "color": color} for value, color in panel.steps]
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 20 if panel.stacked else 0,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if panel.steps else "off"},
        }
    return {
        "unit": panel.unit,
        **({} if panel.minimum is None else {"min": panel.minimum}),
        **({} if panel.maximum is None else {"max": panel.maximum}),
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "custom": custom,
    }


_REDUCED = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": _REDUCED, "colorMode": "value", "graphMode": "none", "textMode": "auto"},
    "bargauge": {"reduceOptions": _REDUCED, "displayMode": "basic", "orientation": "horizontal"},
    "table": {"showHeader": True, "cellHeight": "sm"},
}


def metrics_in(expr: str) -> set[str]:
    """Returns the metrics that a query reads, series of recording rules apart.

    >>> sorted(metrics_in('sum(rate(paywarden_score_bucket{le="0.5"}[5m])) / instance:paywarden_score:mean5m'))
    ['paywarden_score_bucket']
    """
    return set(re.findall(r"(?<![\w:])paywarden_\w+(?![\w:])", expr))


def recorded_in(expr: str) -> set[str]:
    """Returns the series of recording rules that a query reads: those with colons in their names."""
    return set(re.findall(r"(?<!\w)[a-z_]+:paywarden_\w+:\w+", expr))
