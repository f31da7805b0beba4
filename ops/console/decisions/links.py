"""Draw what a payment's card, device, address and merchant are linked to, and the card's last payments.

    device-7 ───┬─── card-1 (this payment) ─── shop-3
                └─── card-9 ✕ 2 frauds ─────── shop-8

1. First hop: the newest payments of its card, device, address and merchant.
2. Second hop: the newest payments of the other cards, devices and addresses among them. Merchants are not followed:
   everybody pays at a large one.
3. A card stands in the middle column, devices and addresses at its left, merchants at its right, those of the first hop
   at the top. The same payments give the same picture.

A read of the index for each hop, of a bounded number of keys and payments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from paywarden.models.replay.report.plots import (
    Axis,
    Bar,
    Box,
    Drawing,
    Plot,
    PlotShape,
    Stroke,
    Word,
    drawing_of,
    linear_axis,
)
from paywarden.ops.console.rendering import Currencies, number, time_text
from paywarden.schemas.currencies import MINOR_DIGITS
from paywarden.streams.decision_index.index import DecisionIndex
from paywarden.streams.decision_index.search import FoundRow, LinkedPayment

# To read a row from a file of many millions takes some milliseconds.
_SECOND_PAYMENTS, _SECOND_ENTITIES = 3, 6
_COLUMN_MAX = 20
NODES_MAX = 3 * _COLUMN_MAX
"""The picture has no more entities."""
_COLUMNS = {"device_id": 0, "ip": 0, "card_id": 1, "merchant_id": 2}
_SIGNS = {"device_id": "▲", "ip": "◆", "card_id": "■", "merchant_id": "●"}
_XS, _ROW, _WIDTH, _LABEL_MAX = (20, 320, 620), 26, 860, 16

Entity = tuple[str, str]
_Payment = FoundRow | LinkedPayment


@dataclass(frozen=True)
class LinkedEntity:
    """An entity of the picture. `hop` 0: of this payment. `payments` and `frauds` among the payments looked at."""

    kind: str
    value: str
    hop: int
    payments: int
    frauds: int


@dataclass(frozen=True)
class Links:
    """The entities, the pairs that had payments together, and the picture. `is_all`: no entity is left out."""

    entities: tuple[LinkedEntity, ...]
    pairs: tuple[tuple[int, int], ...]
    drawing: Drawing
    is_all: bool


def links_of(index: DecisionIndex, row: FoundRow, near: Sequence[LinkedPayment], shown: Callable[[str], str]) -> Links:
    """Return the entities within two hops of a payment.

    `near`: payments of its card, device, address and merchant. `shown`: an id as the person may see it.
    """
    own = _entities(row)
    found = dict.fromkeys(own, 0) | {one: 1 for first in near for one in _entities(first) if one not in own}
    followed = [one for one, hop in found.items() if hop == 1 and one[0] != "merchant_id"][:_SECOND_ENTITIES]
    second = index.newest_of(followed, _SECOND_PAYMENTS)
    found |= {one: 2 for far in second for one in _entities(far) if one not in found}
    payments: list[_Payment] = [row, *near, *second]
    rows = {each.decision_id: each for each in payments}.values()
    kept = _kept(found)
    entities = tuple(_counted(one, found[one], rows, shown) for one in kept)
    places = {one: place for place, one in enumerate(kept)}
    pairs = {
        (places[card], places[other])
        for each in rows
        for card, other in product([("card_id", each.card_id)], _entities(each))
        if card in places and other in places and other != card
    }
    ordered = tuple(sorted(pairs))
    return Links(entities, ordered, _picture(entities, ordered), len(kept) == len(found))


def _entities(row: _Payment) -> list[Entity]:
    return [(kind, value) for kind in _COLUMNS if (value := getattr(row, kind))]


def _kept(found: Mapping[Entity, int]) -> list[Entity]:
    """Return the entities that have room, the nearest first: at most _COLUMN_MAX in a column."""
    columns: list[list[Entity]] = [[], [], []]
    for one in sorted(found, key=lambda one: found[one]):
        columns[_COLUMNS[one[0]]].append(one)
    return [one for column in columns for one in column[:_COLUMN_MAX]]


def _counted(one: Entity, hop: int, rows: Iterable[_Payment], shown: Callable[[str], str]) -> LinkedEntity:
    kind, value = one
    of_it = [each for each in rows if getattr(each, kind) == value]
    frauds = sum(each.outcome is not None and each.outcome.label == "fraud" for each in of_it)
    return LinkedEntity(kind, value if kind == "merchant_id" else shown(value), hop, len(of_it), frauds)


def _picture(entities: Sequence[LinkedEntity], pairs: Sequence[tuple[int, int]]) -> Drawing:
    heights = [0, 0, 0]
    points: list[tuple[int, int]] = []
    for one in entities:
        column = _COLUMNS[one.kind]
        points.append((_XS[column], 20 + heights[column] * _ROW))
        heights[column] += 1
    # A line goes from the end of a label to the sign of the next column.
    shapes: list[PlotShape] = []
    for card, other in pairs:
        left, right = sorted((points[card], points[other]))
        shapes.append(Stroke("link", f"{left[0] + 215}", f"{right[0] - 12}", f"{left[1]}", f"{right[1]}"))
    for one, (x, y) in zip(entities, points, strict=True):
        style = "node own" if not one.hop else "node"
        label = one.value if len(one.value) <= _LABEL_MAX else f"…{one.value[1 - _LABEL_MAX :]}"
        mark = f" ✕ {one.frauds} {'fraud' if one.frauds == 1 else 'frauds'}" if one.frauds else ""
        shapes.append(Word(style, f"{x}", f"{y}", _SIGNS[one.kind], "middle", is_centred=True))
        shapes.append(
            Word(f"{style} fraud" if mark else style, f"{x + 14}", f"{y}", label + mark, "start", is_centred=True)
        )
    told = sum(bool(one.frauds) for one in entities)
    words = f"{len(entities)} linked cards, devices, addresses and merchants, {told} with known frauds"
    return Drawing(words, _WIDTH, 20 + max(1, *heights) * _ROW, shapes, ())


def strip_of(rows: Sequence[FoundRow], row: FoundRow, currencies: Currencies) -> Drawing | None:
    """Return a card's payments as bars of time and amount, `row` and known frauds marked; None for one alone."""
    told = sorted({each.decision_id: each for each in (*rows, row)}.values(), key=lambda each: each.place)
    if len(told) < 2:
        return None
    first, last = told[0].decided_time_ms, max(told[-1].decided_time_ms, told[0].decided_time_ms + 1)
    half, unit = (last - first) / 300, 10 ** MINOR_DIGITS.get(currencies.reference, 2)
    amounts = [each.worth_minor if each.worth_minor is not None else each.amount_minor for each in told]
    ends = [(time_ms, time_text(time_ms, "%m-%d %H:%M")) for time_ms in (first, last)]
    x = Axis("time (UTC)", first - half, last + half, ends)
    marks = [
        Bar(
            each.decided_time_ms - half,
            each.decided_time_ms + half,
            0,
            max(0, amount) / unit,
            "now" if each.decision_id == row.decision_id else "was",
            f"{time_text(each.decided_time_ms)}: {currencies.text(each.amount_minor, each.currency)}, {each.action}"
            + (f", known {each.outcome.label}" if each.outcome else ""),
        )
        for each, amount in zip(told, amounts, strict=True)
    ]
    label = f"amount {currencies.reference}".strip()
    y = linear_axis(label, 0, max(1, *amounts) / unit, number)
    legend = [("now", "this payment ▼"), ("was", "the card's others (✕: known fraud)")]
    plot = Plot(f"The last {len(told)} payments of the card by time and amount", x, y, marks, legend)
    drawing = drawing_of(plot)
    boxes = [shape for shape in drawing.shapes if isinstance(shape, Box)]
    signs: list[PlotShape] = []
    for each, box in zip(told, boxes, strict=True):
        if sign := ("▼" * (each.decision_id == row.decision_id) + "✕" * _is_fraud(each)):
            middle = float(box.x) + float(box.width) / 2
            signs.append(Word("tick", f"{middle:.1f}", f"{max(10.0, float(box.y) - 4):.1f}", sign, "middle"))
    return replace(drawing, shapes=[*drawing.shapes, *signs])


def _is_fraud(row: FoundRow) -> bool:
    return row.outcome is not None and row.outcome.label == "fraud"
