from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from paywarden.models.replay.report.page import Figure
from paywarden.models.replay.report.plots import (
    HEIGHT,
    WIDTH,
    Bar,
    Plot,
    PlotLine,
    Upright,
    Whisker,
    drawing_of,
    edge_axis,
    linear_axis,
    log_axis,
    step_axis,
)
from paywarden.models.replay.report.renderer import render_block


def plain(value: float) -> str:
    return f"{value:g}"


def plot(*marks: PlotLine | Bar | Upright | Whisker) -> Plot:
    x, y = linear_axis("x", 0, 10, plain), linear_axis("y", 0, 100, plain)
    return Plot("a plot", x, y, marks, [("champion", "one & only")])


def svg(plot: Plot) -> str:
    """Returns the plot as the template writes it, with its legend."""
    figure = render_block(Figure("", drawing_of(plot), ""))
    return figure.removeprefix("<figure><h3></h3>").removesuffix("<figcaption></figcaption></figure>")


def parsed(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{drawing}</div>")


def test_ticks_are_round_and_hold_the_values() -> None:
    axis = linear_axis("y", -37, 83, plain)
    assert [text for _, text in axis.ticks] == ["-50", "0", "50", "100"]
    assert (axis.low, axis.high) == (-50, 100)


def test_an_axis_without_values_can_be_drawn() -> None:
    axis = linear_axis("y", 0, 0, plain)
    assert axis.high > axis.low
    assert axis.place(0) == 0


def test_a_logarithmic_axis_draws_smaller_values_at_its_edge() -> None:
    axis = log_axis("x", 0.001, 1, plain)
    assert [text for _, text in axis.ticks] == ["0.001", "0.01", "0.1", "1"]
    assert axis.place(0.1) == pytest.approx(2 / 3)
    assert axis.place(0) == axis.place(0.001) == 0


def test_an_axis_of_many_steps_labels_a_few() -> None:
    days = [f"day {number}" for number in range(365)]
    axis = step_axis("day", days)
    assert 3 < len(axis.ticks) <= 6
    assert axis.ticks[0] == (0.5, "day 0")
    assert len(step_axis("day", days[:3]).ticks) == 3


@pytest.mark.parametrize("count", [2, 5, 6, 7, 12, 21, 31, 93, 365])
def test_named_days_do_not_touch_each_other(count: int) -> None:
    axis = step_axis("day", ["2024-02-18"] * count)
    drawing = parsed(svg(Plot("days", axis, linear_axis("y", 0, 1, plain), [])))
    places = [float(word.get("x", "")) for word in drawing.iter("text") if word.text == "2024-02-18"]
    # Ten characters of 13.5 pixels' type, as on a telephone, are 79 pixels wide in a wide font.
    assert all(right - left >= 79 + 8 for left, right in pairwise(places))
    assert places[-1] + 34 <= WIDTH


def test_bins_are_named_at_their_edges() -> None:
    assert edge_axis("score", ["0", ".1", "1"]).ticks == [(0, "0"), (1, ".1"), (2, "1")]


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


def test_a_line_is_interrupted_where_it_has_no_value() -> None:
    drawing = svg(plot(PlotLine([(0, 1), (1, 2), (2, math.nan), (3, 4), (4, 5)], "champion", with_dots=True)))
    path = re.search(r' d="([^"]+)"', drawing)
    assert path is not None
    assert path.group(1).count("M") == 2
    assert drawing.count("<circle") == 4
    assert "nan" not in drawing


def test_labels_of_uprights_have_their_own_rows_the_rightmost_on_top() -> None:
    drawing = parsed(svg(plot(Upright(3, "review"), Upright(8, "decline"))))
    notes = {note.text: float(note.get("y", "")) for note in drawing.iter("text") if note.get("class") == "note"}
    assert notes["decline"] < notes["review"]


def test_texts_from_data_are_escaped() -> None:
    drawing = svg(plot(Upright(3, "<b>&"), Bar(1, 2, 0, 5, "genuine", "<script>")))
    assert "<b>" not in drawing
    assert "<script>" not in drawing
    assert "one &amp; only" in drawing
    parsed(drawing)
