"""Shows one stored profile in words and numbers: as a dictionary in the form of JSON, and that as lines of text.

A profile of another catalogue is shown after its migration to this one. Amounts are in major units of the reference
currency; features have the model's values and units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.entity_words.arguments import is_moment
from paywarden.features.catalogue.expressions import (
    ASK_PAYMENT,
    NUMBER_MEASURES,
    Derived,
    Expression,
    Latest,
    Measure,
    Neighbours,
    Remembered,
    WindowedMeasure,
    stored_values,
)
from paywarden.features.catalogue.windows import in_units
from paywarden.features.kernel.toolkit.varint import decode_zigzag
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.keys import entity_key, field_named, key_text
from paywarden.features.profiles.money import REFERENCE_MINOR_DIGITS
from paywarden.features.profiles.plan import Plan
from paywarden.features.profiles.shape import (
    MEASURES,
    ColumnShape,
    LatestShape,
    TableShape,
    decode_shape,
    numbers_of,
    shape_of,
)
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import Band

# A cell of a tile: a count, an amount, or a count for each bucket; None for a largest amount without payments.
CellValue = int | Decimal | tuple[int, ...] | None
View = dict[str, Any]
Columns = Sequence[Sequence[int]]

_WORDS = {
    Measure.COUNT: "count",
    Measure.AMOUNT_SUM: "sum",
    Measure.SQUARES_LOW: "squares",
    Measure.AMOUNT_MAX: "max",
    Measure.AMOUNT_MIN: "min",
    Measure.DISTINCT_BITS: "distinct",
    Measure.BUCKET_COUNTS: "buckets",
    Measure.FRAUD_COUNT: "fraud",
    Measure.FRAUD_AMOUNT: "fraud sum",
    Measure.NUMBER_COUNT: "count",
    Measure.NUMBER_SUM: "sum",
    Measure.NUMBER_SQUARES_LOW: "squares",
    Measure.NUMBER_MAX: "max",
    Measure.NUMBER_MIN: "min",
    Measure.FRAUD_SQUARES_LOW: "fraud squares",
    Measure.LABELLED_COUNT: "labelled",
}
_SQUARES_HIGH = frozenset({Measure.SQUARES_HIGH, Measure.NUMBER_SQUARES_HIGH, Measure.FRAUD_SQUARES_HIGH})
_NO_VALUE = "-"


def typed_key(plan: Plan, text: str) -> tuple[int, bytes]:
    """Returns the entity's number and the store key for `card:C1` or, for a combination, `card_merchant:C1,M1`.

    Raises Misconfigured, or InvalidEvent for an id that no key can hold. Neither message repeats the text.
    """
    name, colon, _ = text.partition(":")
    if name not in plan.entity_names or not colon:
        known = ", ".join(plan.entity_names)
        raise Misconfigured(f"wanted ENTITY:ID, the entity one of {known}; got something else")
    entity = plan.entity_names.index(name)
    fields = plan.entity_keys[entity]
    ids = ids_in(text, len(fields))
    if len(ids) != len(fields):
        raise Misconfigured(f"wanted {name}:{','.join(fields)}, {len(fields)} ids with commas between; got {len(ids)}")
    if "" in ids:
        raise Misconfigured(f"wanted {name}:{','.join(fields)}; {fields[ids.index('')]} is empty")
    named = [field_named(one, plan.fields) for one in fields]
    for field, value in zip(named, ids, strict=True):
        if isinstance(field, Band) and value not in field.texts:
            bands = f"{field.texts[0]} to {field.texts[-1]}"
            raise Misconfigured(f"wanted {name}:{','.join(fields)}; {field.name} is a band from {bands}")
    try:
        shown = [key_text(field, value, plan.key) for field, value in zip(named, ids, strict=True)]
        return entity, entity_key(name, shown)
    except UnicodeEncodeError:
        # A shell passes on bytes that are not UTF-8 in this form.
        raise Misconfigured(f"the id of a {name} must be UTF-8 text") from None


def ids_in(text: str, fields: int) -> list[str]:
    """Returns the ids in a text for `typed_key`: C1 and M1 of `card_merchant:C1,M1`, an entity of two `fields`."""
    identity = text.partition(":")[2]
    return [identity] if fields == 1 else identity.split(",")


def view_profile(
    engine: FeatureEngine,
    catalogue: Catalogue,
    entity: int,
    state: bytes,
    *,
    as_of_ms: int,
    source_name: Callable[[int], str],
) -> View:
    """Returns the content of a packed profile, and the entity's features at a time. `engine` is that of `catalogue`.

    Times are texts in UTC, None for never. `size_bytes`, `layout_version` and `digest` describe the stored bytes,
    the rest the profile as this catalogue reads it. `source_name` returns the topic and partition of a source, whose
    newest offset is under this name. A value is None if it is missing, personal, or known by its checksum alone.

    Raises UnreadableProfile.
    """
    own = engine.migrated(entity, state)
    # This comes first: the roll-up checks the whole profile, so the following steps need no checks.
    features = _features(engine, catalogue, entity, own, as_of_ms)
    shape = engine.plan.shapes[entity]
    numbers = numbers_of(own, shape).tolist()
    words, known = _conditions_of(catalogue), _attributes_of(catalogue)
    counts, at = iter(numbers[4 : 4 + len(shape.widths)]), 4 + len(shape.widths)
    newest_ms = sum(numbers[:3])

    def columns(width: int) -> Columns:
        """Returns the columns of the next section."""
        nonlocal at
        count, begin = next(counts), at
        at += width * count
        return [numbers[begin + place * count :][:count] for place in range(width)]

    tables = [_table(table, columns(table.width), newest_ms, words, known) for table in shape.tables]
    memories = [_memory(known[attribute], capacity, columns(2), newest_ms) for attribute, capacity in shape.memories]
    latest = [_latest(kept, columns(kept.width), newest_ms, known) for kept in shape.latest]
    sources, offsets = numbers[at:][: numbers[3]], numbers[at + numbers[3] :][: numbers[3]]
    return {
        "entity": engine.plan.entity_names[entity],
        "size_bytes": len(state),
        "layout_version": state[0],
        "digest": shape_of(state)[0][::-1].hex(),
        "is_migrated": own is not state,
        "first_payment": utc(numbers[0]) if numbers[0] else None,
        "last_payment": utc(numbers[0] + numbers[1]) if numbers[0] + numbers[1] else None,
        "newest_event": utc(newest_ms),
        "tables": tables,
        "memories": memories,
        "latest_payments": latest,
        "sources": dict(zip(map(source_name, sources), offsets, strict=True)),
        "as_of": utc(as_of_ms),
        "has_newer_events": as_of_ms < newest_ms,
        "features": features,
    }


def first_payment_ms(state: bytes) -> int | None:
    """Returns the time of the first payment in a profile of any catalogue; 0 without one, None if unreadable."""
    if not state or state[0] != kernel.LAYOUT_VERSION:
        return None
    try:
        return int(numbers_of(state, decode_shape(shape_of(state)[1]))[0])
    except Misconfigured:
        return None


def sources_of(state: bytes) -> dict[int, int] | None:
    """Returns the newest offset by source in a profile of any catalogue, None if it is unreadable."""
    if not state or state[0] != kernel.LAYOUT_VERSION:
        return None
    try:
        # The sources and their offsets are the last: see `kernel.decode`.
        numbers = numbers_of(state, decode_shape(shape_of(state)[1])).tolist()
    except Misconfigured:
        return None
    count = numbers[3]
    if not 0 <= 2 * count <= len(numbers) - 4:
        return None
    sources, offsets = numbers[len(numbers) - 2 * count : len(numbers) - count], numbers[len(numbers) - count :]
    return dict(zip(sources, offsets, strict=True))


def to_json(view: View) -> str:
    """Returns a view as JSON: amounts are numbers of major units."""
    return json.dumps(view, indent=2, default=float)


def to_lines(view: View) -> list[str]:
    """Returns a view as lines for a terminal."""
    migrated = ", of another catalogue: shown as migrated to this one" if view["is_migrated"] else ""
    facts = [
        ("entity", view["entity"]),
        ("size", f"{view['size_bytes']} bytes"),
        ("layout", f"version {view['layout_version']}, digest {view['digest']}{migrated}"),
        ("first payment", view["first_payment"] or "never"),
        ("last payment", view["last_payment"] or "never"),
        ("newest event", view["newest_event"]),
    ]
    lines = _aligned(facts)
    for table in view["tables"]:
        tiles = table["tiles"]
        lines += ["", f"tiles of {table['hop']}{', known frauds' if table['labels'] else ''}: {len(tiles)}"]
        rows = [tuple(map(_spoken, tile.values())) for tile in tiles]
        lines += _aligned([("tile from", *list(tiles[0])[1:]), *rows], is_right_from=1) if rows else []
    for memory in view["memories"]:
        values = memory["values"]
        lines += ["", f"latest values of {memory['attribute']}: {len(values)}, at most {memory['capacity']}"]
        lines += _aligned([(one["last_seen"], one["value"] or "(only a checksum)") for one in values])
    for latest in view["latest_payments"]:
        payments, named = latest["payments"], ", ".join(latest["fields"]) or "times alone"
        lines += ["", f"latest payments, {named}: {len(payments)}, at most {latest['capacity']}"]
        lines += _aligned([tuple(map(_spoken, kept.values())) for kept in payments])
    lines += ["", f"contains, by source partition: {len(view['sources']) or 'nothing of a topic'}"]
    lines += _aligned([(source, f"offset {offset}") for source, offset in view["sources"].items()])
    lines += ["", f"features as of {view['as_of']}"]
    if view["has_newer_events"]:
        lines.append("(the profile has newer events: what it has dropped since then is not in these)")
    rows = [
        (one["name"], _NO_VALUE, one["missing"])
        if one["value"] is None
        else (one["name"], f"{one['value']:.10g}", one["unit"])
        for one in view["features"]
    ]
    return lines + _aligned(rows)


def utc(time_ms: int) -> str:
    """Returns epoch milliseconds as ISO 8601, also for years that Python's datetime cannot express."""
    return str(np.datetime64(time_ms, "ms") if time_ms % 1000 else np.datetime64(time_ms // 1000, "s")) + "Z"


def _features(engine: FeatureEngine, catalogue: Catalogue, entity: int, state: bytes, as_of_ms: int) -> list[View]:
    """Returns the features that use only this entity's profile, as a payment at that time would see them."""
    plan = engine.plan
    row = np.zeros((1, plan.row_width), dtype=np.int64)
    row[0, kernel.TIME_MS] = as_of_ms
    presence = np.full(plan.entity_count, kernel.ABSENT, dtype=np.uint8)
    presence[entity] = kernel.KNOWN
    bounds = np.zeros(plan.entity_count + 1, dtype=np.int64)
    bounds[entity + 1 :] = len(state)
    out = np.empty((1, plan.feature_count), dtype=np.float32)
    engine.fill_vectors(row, presence, np.frombuffer(bytearray(state), dtype=np.uint8), bounds, out)
    values = {feature.name: feature.value for feature in catalogue.features}
    found = []
    for feature, value in zip(catalogue.features, _shortest(out[0]), strict=True):
        if _entities_in(feature.value, values) != {plan.entity_names[entity]}:
            continue
        missing = feature.missing if math.isnan(value) else None
        if _asks_payment(feature.value, values):
            missing = "it depends on the payment"
        elif _asks_neighbours(feature.value, values):
            missing = "it depends on other profiles"
        shown = None if missing is not None else value
        found.append({"name": feature.name, "value": shown, "unit": feature.unit, "missing": missing})
    return found


def _shortest(vector: NDArray[np.float32]) -> list[float]:
    """Returns each float32 as the shortest number that rounds to it: 0.1 and not 0.10000000149."""
    return [float(str(value)) for value in vector]


def _entities_in(value: Expression, values: Mapping[str, Expression]) -> set[str]:
    """Returns the entities whose profiles a value uses; `values` has the earlier features by name."""
    if isinstance(value, str):
        return _entities_in(values[value], values)
    if isinstance(value, Derived):
        return {entity for operand in value.operands for entity in _entities_in(operand, values)}
    return {value.entity}


def _asks_payment(value: Expression, values: Mapping[str, Expression]) -> bool:
    """Returns whether a value, or an earlier feature in it, needs a payment's own attributes."""
    if isinstance(value, str):
        return _asks_payment(values[value], values)
    if isinstance(value, Derived):
        return value.operation in ASK_PAYMENT or any(_asks_payment(operand, values) for operand in value.operands)
    return isinstance(value, (Remembered, Latest)) and value.recollection in ASK_PAYMENT


def _asks_neighbours(value: Expression, values: Mapping[str, Expression]) -> bool:
    """Returns whether a value, or an earlier feature in it, needs profiles of neighbours."""
    if isinstance(value, str):
        return _asks_neighbours(values[value], values)
    if isinstance(value, Derived):
        return any(_asks_neighbours(operand, values) for operand in value.operands)
    return isinstance(value, Neighbours)


def _conditions_of(catalogue: Catalogue) -> dict[attributes.ConditionCode, str]:
    """Returns the text of each condition in the catalogue."""
    stored = [item for feature in catalogue.features for item in stored_values(feature.value)]
    asked = [item.column.condition for item in stored if isinstance(item, WindowedMeasure)]
    return {one.code: one.text for one in asked if one is not None}


def _attributes_of(catalogue: Catalogue) -> dict[int, attributes.Attribute]:
    """Returns the attributes by the columns that name them; a moment's age has the column behind its own."""
    declared = catalogue.payment.attributes
    ages = {one.column + 1: one for one in declared if is_moment(one)}
    return {**{one.column: one for one in (*attributes.ATTRIBUTES, *declared)}, **ages}


def _table(
    table: TableShape,
    columns: Columns,
    newest_ms: int,
    words: dict[attributes.ConditionCode, str],
    known: Mapping[int, attributes.Attribute],
) -> View:
    """Returns the tiles of one hop. `columns`: how many hops each is older than the newest event, and the measures."""
    # The squares are stored in two sums and shown as one.
    shown = [
        (column, offset)
        for column, offset in zip(table.columns, table.offsets, strict=True)
        if MEASURES[column.measure] not in _SQUARES_HIGH
    ]
    high = {
        (column.attribute, column.condition): offset
        for column, offset in zip(table.columns, table.offsets, strict=True)
        if MEASURES[column.measure] in _SQUARES_HIGH
    }
    names = [_column_name(column, words, known) for column, _ in shown]
    tiles: list[View] = []
    for row in zip(*columns, strict=True):
        cells = tuple(
            _cell(
                column,
                row[offset : offset + column.parts],
                row[high.get((column.attribute, column.condition), 0)],
                _digits(known[column.attribute]),
            )
            for column, offset in shown
        )
        start_ms = (newest_ms // table.hop_ms - row[0]) * table.hop_ms
        tiles.append({"start": utc(start_ms), **dict(zip(names, cells, strict=True))})
    return {"hop": in_units(table.hop_ms), "labels": table.is_label, "tiles": tiles}


def _column_name(
    column: ColumnShape, words: dict[attributes.ConditionCode, str], known: Mapping[int, attributes.Attribute]
) -> str:
    measure = MEASURES[column.measure]
    name = _WORDS[measure]
    if measure in (Measure.DISTINCT_BITS, Measure.BUCKET_COUNTS) or measure in NUMBER_MEASURES:
        name += f" {known[column.attribute].name}"
    return name if column.condition is None else f"{name} where {words[column.condition]}"


def _cell(column: ColumnShape, parts: Sequence[int], high: int, digits: int) -> CellValue:
    """Returns the value in a column's words of a tile; `high` is the other half of a sum of squares.

    `digits` is how many digits a declared number has after the point.
    """
    value = parts[0]
    match MEASURES[column.measure]:
        case Measure.AMOUNT_SUM:
            return _major(value)
        case Measure.AMOUNT_MAX | Measure.AMOUNT_MIN:
            return _major(value - 1) if value else None
        case Measure.SQUARES_LOW:
            return Decimal(value + (high << kernel.SQUARE_BITS)).scaleb(-2 * REFERENCE_MINOR_DIGITS)
        case Measure.NUMBER_SUM:
            return Decimal(value).scaleb(-digits)
        case Measure.NUMBER_SQUARES_LOW:
            return Decimal(value + (high << kernel.SQUARE_BITS)).scaleb(-2 * digits)
        case Measure.NUMBER_MAX | Measure.NUMBER_MIN:
            return Decimal(decode_zigzag(value - 1)).scaleb(-digits) if value else None
        case Measure.DISTINCT_BITS:
            return _distinct(parts)
        case Measure.BUCKET_COUNTS:
            return tuple(parts)
        case Measure.FRAUD_COUNT | Measure.LABELLED_COUNT:
            return decode_zigzag(value)
        case Measure.FRAUD_AMOUNT:
            return _major(decode_zigzag(value))
        case Measure.FRAUD_SQUARES_LOW:
            squares = decode_zigzag(value) + (decode_zigzag(high) << kernel.SQUARE_BITS)
            return Decimal(squares).scaleb(-2 * REFERENCE_MINOR_DIGITS)
        case _:
            return value


def _distinct(words: Sequence[int]) -> int:
    """Returns the linear counting estimate, as the features use it."""
    size = 64 * len(words)
    ones = sum((word & (2**64 - 1)).bit_count() for word in words)
    return round(size * math.log(size / max(1, size - ones)))


def _major(amount_minor: int) -> Decimal:
    return Decimal(amount_minor).scaleb(-REFERENCE_MINOR_DIGITS)


def _digits(attribute: attributes.Attribute) -> int:
    """Returns how many digits an attribute's numbers have after the point; a moment is its age, and shown in s."""
    if is_moment(attribute):
        return 3
    if attribute.kind is attributes.AttributeKind.AMOUNT:
        return REFERENCE_MINOR_DIGITS
    return attribute.field.decimals if attribute.field is not None else 0


def _latest(kept: LatestShape, columns: Columns, newest_ms: int, known: Mapping[int, attributes.Attribute]) -> View:
    """`columns` are the stored ones: the values of each field, and how much earlier each payment was."""
    of = [known[column] for column, _ in kept.fields]
    names = [attribute.name for attribute in of]
    payments: list[View] = []
    time_ms = newest_ms
    for *values, age_ms in zip(*columns, strict=True):
        time_ms -= age_ms
        shown = tuple(
            _kept_value(attribute, value, is_number)
            for attribute, value, (_, is_number) in zip(of, values, kept.fields, strict=True)
        )
        payments.append({"time": utc(time_ms), **dict(zip(names, shown, strict=True))})
    return {"fields": names, "capacity": kept.capacity, "payments": payments}


def _kept_value(attribute: attributes.Attribute, value: int, is_number: bool) -> str | None:
    is_personal = attribute.field is not None and attribute.field.is_personal
    if value == 0 or is_personal:
        return None
    if is_number:
        return str(Decimal(decode_zigzag(value - 1)).scaleb(-_digits(attribute)))
    return _remembered(attribute.kind, value)


def _memory(attribute: attributes.Attribute, capacity: int, columns: Columns, newest_ms: int) -> View:
    """Returns the latest distinct values of an attribute, newest first."""
    values: list[View] = []
    seen_ms = newest_ms
    for code, age_ms in zip(*columns, strict=True):
        seen_ms -= age_ms
        values.append({"value": _remembered(attribute.kind, code), "last_seen": utc(seen_ms)})
    return {"attribute": attribute.name, "capacity": capacity, "values": values}


def _remembered(kind: attributes.AttributeKind, code: int) -> str | None:
    if kind is attributes.AttributeKind.AMOUNT:
        return str(_major(code))
    if kind is attributes.AttributeKind.COUNTRY and code <= 26 * 26:
        first, second = divmod(code - 1, 26)
        return chr(65 + first) + chr(65 + second)
    return None


def _spoken(cell: CellValue | str) -> str:
    if cell is None:
        return _NO_VALUE
    return " ".join(map(str, cell)) if isinstance(cell, tuple) else str(cell)


def _aligned(rows: Sequence[tuple[str, ...]], is_right_from: int = 99) -> list[str]:
    """Returns lines with aligned columns. Those from `is_right_from` on are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place >= is_right_from else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
