from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

from paywarden.models.replay.report.plots import (
    HEIGHT,
    WIDTH,
    Bar,
    Plot,
    PlotLine,
    Upright,
    Whisker,
    drawing_of,
    linear_axis,
)
from paywarden.models.replay.report.renderer import report_templates


def plain(value: float) -> str:
    return f"{value:g}"


def plot(*marks: PlotLine | Bar | Upright | Whisker) -> Plot:
    x, y = linear_axis("x", 0, 10, plain), linear_axis("y", 0, 100, plain)
    return Plot("a plot", x, y, marks, [("champion", "one & only")])


def svg(plot: Plot) -> str:
    """Returns the plot as the template writes it, with its legend."""
    template: Any = report_templates().get_template("plot.html").module
    return str(template.plot(drawing_of(plot)))


def parsed(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{drawing}</div>")


def test_every_mark_lies_inside_of_the_drawing() -> None:
    drawing = svg(
        plot(
            PlotLine([(0, 0), (10, 100)], "champion", with_dots=True, hints=["a", "b"]),
            Bar(1, 2, 0, 500, "genuine", "too high"),
            Whisker(3, -5, 50, "champion"),
            Upright(9.9, "right"),
            Upright(1, "left"),
        )
    )
    for name, limit in (("x", WIDTH), ("y", HEIGHT), ("cx", WIDTH), ("cy", HEIGHT), ("x2", WIDTH), ("y2", HEIGHT)):
        for value in re.findall(rf' {name}="([^"]+)"', drawing):
            assert 0 <= float(value) <= limit


def test_texts_from_data_are_escaped() -> None:
    drawing = svg(plot(Upright(3, "<b>&"), Bar(1, 2, 0, 5, "genuine", "<script>")))
    assert "<b>" not in drawing
    assert "<script>" not in drawing
    assert "one &amp; only" in drawing
    parsed(drawing)
