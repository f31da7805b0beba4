"""Shows one stored profile in words and numbers, as values and as lines of text.

A profile of another catalogue is shown after its migration to this one. Amounts are in major units of the reference
currency; features have the model's values and units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

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


@dataclass(frozen=True)
class TileView:
    start_ms: int
    cells: tuple[CellValue, ...]


@dataclass(frozen=True)
class TableView:
    """The tiles of one hop, of payments or of their labels (`is_label`).

    `columns` names the cells: the measure, its attribute, and the condition.
    """

    hop: str
    is_label: bool
    columns: tuple[str, ...]
    tiles: tuple[TileView, ...]


@dataclass(frozen=True)
class Remembrance:
    """A remembered value and the time when it was last seen. `value` is None if the profile has only its checksum."""

    value: str | None
    seen_ms: int


@dataclass(frozen=True)
class MemoryView:
    """The latest distinct values of an attribute, newest first, at most `capacity`."""

    attribute: str
    capacity: int
    values: tuple[Remembrance, ...]


@dataclass(frozen=True)
class KeptPayment:
    """A payment as the profile keeps it. A value is None if it is missing, personal, or known by a checksum only."""

    time_ms: int
    values: tuple[str | None, ...]


@dataclass(frozen=True)
class LatestView:
    """Some fields of the latest payments, newest first, at most `capacity`."""

    fields: tuple[str, ...]
    capacity: int
    payments: tuple[KeptPayment, ...]


@dataclass(frozen=True)
class FeatureValue:
    """One feature. `value` is None if it is missing; then `why` gives the possible reasons."""

    name: str
    value: float | None
    unit: str
    why: str


@dataclass(frozen=True)
class ProfileView:
    """The content of a stored profile. Times are epoch milliseconds, None for never.

    `layout_version`, `digest` and `size_bytes` are of the stored bytes; the rest is of the profile as this catalogue
    reads it. `sources` are (source, newest offset contained).
    """

    entity: str
    size_bytes: int
    layout_version: int
    digest: str
    is_migrated: bool
    first_payment_ms: int | None
    last_payment_ms: int | None
    newest_event_ms: int
    tables: tuple[TableView, ...]
    memories: tuple[MemoryView, ...]
    latest: tuple[LatestView, ...]
    sources: tuple[tuple[int, int], ...]
    as_of_ms: int
    features: tuple[FeatureValue, ...]


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
    engine: FeatureEngine, catalogue: Catalogue, entity: int, state: bytes, *, as_of_ms: int
) -> ProfileView:
    """Returns the content of a packed profile, and the entity's features at a time. `engine` is that of `catalogue`.

    Raises UnreadableProfile.
    """
    own = engine.migrated(entity, state)
    # This comes first: the roll-up checks the whole profile, so the following steps need no checks.
    features = _features(engine, catalogue, entity, own, as_of_ms)
    shape = engine.plan.shapes[entity]
    numbers = numbers_of(own, shape).tolist()
    words, known = _conditions_of(catalogue), _attributes_of(catalogue)
    sections = len(shape.widths)
    counts, at = numbers[4 : 4 + sections], 4 + sections
    newest_ms = sum(numbers[:3])
    tables = []
    for table, count in zip(shape.tables, counts, strict=False):
        columns = [numbers[at + place * count :][:count] for place in range(table.width)]
        tables.append(_table(table, columns, newest_ms, words, known))
        at += count * table.width
    memories = []
    for (attribute, capacity), count in zip(shape.memories, counts[len(shape.tables) :], strict=False):
        values, ages_ms = numbers[at : at + count], numbers[at + count : at + 2 * count]
        memories.append(_memory(known[attribute], capacity, values, ages_ms, newest_ms))
        at += 2 * count
    latest = []
    for kept, count in zip(shape.latest, counts[len(shape.tables) + len(shape.memories) :], strict=True):
        columns = [numbers[at + place * count :][:count] for place in range(kept.width)]
        latest.append(_latest(kept, columns, newest_ms, known))
        at += kept.width * count
    return ProfileView(
        entity=engine.plan.entity_names[entity],
        size_bytes=len(state),
        layout_version=state[0],
        digest=shape_of(state)[0][::-1].hex(),
        is_migrated=own is not state,
        first_payment_ms=numbers[0] or None,
        last_payment_ms=numbers[0] + numbers[1] or None,
        newest_event_ms=newest_ms,
        tables=tuple(tables),
        memories=tuple(memories),
        latest=tuple(latest),
        sources=tuple(zip(numbers[at:][: numbers[3]], numbers[at + numbers[3] :][: numbers[3]], strict=True)),
        as_of_ms=as_of_ms,
        features=features,
    )


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


def to_lines(view: ProfileView, source_name: Callable[[int], str]) -> list[str]:
    """Returns a view as lines for a terminal. `source_name` returns the topic and partition of a source."""
    migrated = ", of another catalogue: shown as migrated to this one" if view.is_migrated else ""
    facts = [
        ("entity", view.entity),
        ("size", f"{view.size_bytes} bytes"),
        ("layout", f"version {view.layout_version}, digest {view.digest}{migrated}"),
        ("first payment", _spoken_time(view.first_payment_ms)),
        ("last payment", _spoken_time(view.last_payment_ms)),
        ("newest event", _spoken_time(view.newest_event_ms)),
    ]
    lines = _aligned(facts)
    for table in view.tables:
        rows = [(utc(tile.start_ms), *map(_spoken_cell, tile.cells)) for tile in table.tiles]
        lines += ["", f"tiles of {table.hop}{', known frauds' if table.is_label else ''}: {len(rows)}"]
        lines += _aligned([("tile from", *table.columns), *rows], is_right_from=1) if rows else []
    for memory in view.memories:
        lines += ["", f"latest values of {memory.attribute}: {len(memory.values)}, at most {memory.capacity}"]
        lines += _aligned(
            [(utc(v.seen_ms), "(only a checksum)" if v.value is None else v.value) for v in memory.values]
        )
    for latest in view.latest:
        named = ", ".join(latest.fields) or "times alone"
        lines += ["", f"latest payments, {named}: {len(latest.payments)}, at most {latest.capacity}"]
        lines += _aligned(
            [(utc(kept.time_ms), *(value or _NO_VALUE for value in kept.values)) for kept in latest.payments]
        )
    lines += ["", f"contains, by source partition: {len(view.sources) or 'nothing of a topic'}"]
    lines += _aligned([(source_name(source), f"offset {offset}") for source, offset in view.sources])
    lines += ["", f"features as of {utc(view.as_of_ms)}"]
    if view.as_of_ms < view.newest_event_ms:
        lines.append("(the profile has newer events: what it has dropped since then is not in these)")
    return lines + _aligned([_spoken_feature(feature) for feature in view.features])


def to_dict(view: ProfileView, source_name: Callable[[int], str]) -> dict[str, object]:
    """Returns a view for JSON: times as texts in UTC, amounts as numbers of major units."""
    return {
        "entity": view.entity,
        "size_bytes": view.size_bytes,
        "layout_version": view.layout_version,
        "digest": view.digest,
        "is_migrated": view.is_migrated,
        "first_payment": None if view.first_payment_ms is None else utc(view.first_payment_ms),
        "last_payment": None if view.last_payment_ms is None else utc(view.last_payment_ms),
        "newest_event": utc(view.newest_event_ms),
        "tables": [
            {
                "hop": table.hop,
                "labels": table.is_label,
                "tiles": [
                    {"start": utc(tile.start_ms), **dict(zip(table.columns, map(_plain, tile.cells), strict=True))}
                    for tile in table.tiles
                ],
            }
            for table in view.tables
        ],
        "memories": [
            {
                "attribute": memory.attribute,
                "capacity": memory.capacity,
                "values": [{"value": v.value, "last_seen": utc(v.seen_ms)} for v in memory.values],
            }
            for memory in view.memories
        ],
        "latest_payments": [
            {
                "capacity": latest.capacity,
                "payments": [
                    {"time": utc(kept.time_ms), **dict(zip(latest.fields, kept.values, strict=True))}
                    for kept in latest.payments
                ],
            }
            for latest in view.latest
        ],
        "sources": {source_name(source): offset for source, offset in view.sources},
        "as_of": utc(view.as_of_ms),
        "features": [
            {"name": f.name, "value": f.value, "unit": f.unit, "missing": f.why or None} for f in view.features
        ],
    }


def utc(time_ms: int) -> str:
    """Returns epoch milliseconds as ISO 8601, also for years that Python's datetime cannot express."""
    return str(np.datetime64(time_ms, "ms") if time_ms % 1000 else np.datetime64(time_ms // 1000, "s")) + "Z"


def _features(
    engine: FeatureEngine, catalogue: Catalogue, entity: int, state: bytes, as_of_ms: int
) -> tuple[FeatureValue, ...]:
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
        if _asks_payment(feature.value, values):
            found.append(FeatureValue(feature.name, None, feature.unit, "it depends on the payment"))
        elif _asks_neighbours(feature.value, values):
            found.append(FeatureValue(feature.name, None, feature.unit, "it depends on other profiles"))
        elif math.isnan(value):
            found.append(FeatureValue(feature.name, None, feature.unit, feature.missing))
        else:
            found.append(FeatureValue(feature.name, value, feature.unit, ""))
    return tuple(found)


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
    columns: Sequence[Sequence[int]],
    newest_ms: int,
    words: dict[attributes.ConditionCode, str],
    known: Mapping[int, attributes.Attribute],
) -> TableView:
    """`columns` are the stored ones: how many hops each tile is older than the newest event's, and the measures."""
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
    tiles = []
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
        tiles.append(TileView((newest_ms // table.hop_ms - row[0]) * table.hop_ms, cells))
    names = tuple(_column_name(column, words, known) for column, _ in shown)
    return TableView(in_units(table.hop_ms), table.is_label, names, tuple(tiles))


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


def _latest(
    kept: LatestShape, columns: Sequence[Sequence[int]], newest_ms: int, known: Mapping[int, attributes.Attribute]
) -> LatestView:
    """`columns` are the stored ones: the values of each field, and how much earlier each payment was."""
    of = [known[column] for column, _ in kept.fields]
    payments, time_ms = [], newest_ms
    for *values, age_ms in zip(*columns, strict=True):
        time_ms -= age_ms
        shown = tuple(
            _kept_value(attribute, value, is_number)
            for attribute, value, (_, is_number) in zip(of, values, kept.fields, strict=True)
        )
        payments.append(KeptPayment(time_ms, shown))
    return LatestView(tuple(attribute.name for attribute in of), kept.capacity, tuple(payments))


def _kept_value(attribute: attributes.Attribute, value: int, is_number: bool) -> str | None:
    is_personal = attribute.field is not None and attribute.field.is_personal
    if value == 0 or is_personal:
        return None
    if is_number:
        return str(Decimal(decode_zigzag(value - 1)).scaleb(-_digits(attribute)))
    return _remembered(attribute.kind, value)


def _memory(
    attribute: attributes.Attribute, capacity: int, codes: Sequence[int], ages_ms: Sequence[int], newest_ms: int
) -> MemoryView:
    values, seen_ms = [], newest_ms
    for code, age_ms in zip(codes, ages_ms, strict=True):
        seen_ms -= age_ms
        values.append(Remembrance(_remembered(attribute.kind, code), seen_ms))
    return MemoryView(attribute.name, capacity, tuple(values))


def _remembered(kind: attributes.AttributeKind, code: int) -> str | None:
    if kind is attributes.AttributeKind.AMOUNT:
        return str(_major(code))
    if kind is attributes.AttributeKind.COUNTRY and code <= 26 * 26:
        first, second = divmod(code - 1, 26)
        return chr(65 + first) + chr(65 + second)
    return None


def _spoken_time(time_ms: int | None) -> str:
    return "never" if time_ms is None else utc(time_ms)


def _spoken_cell(cell: CellValue) -> str:
    if cell is None:
        return _NO_VALUE
    return " ".join(map(str, cell)) if isinstance(cell, tuple) else str(cell)


def _spoken_feature(feature: FeatureValue) -> tuple[str, str, str]:
    if feature.value is None:
        return feature.name, _NO_VALUE, feature.why
    return feature.name, f"{feature.value:.10g}", feature.unit


def _plain(cell: CellValue) -> int | float | list[int] | None:
    """Returns a cell in the form of JSON."""
    if isinstance(cell, tuple):
        return list(cell)
    return float(cell) if isinstance(cell, Decimal) else cell


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
