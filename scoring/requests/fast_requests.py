"""Reads a chunk of requests at once with a compiled loop, in a fraction of the time of one by one.

    bodies ─ joined ─► read_bodies (scoring/requests/request_bytes.py) ─► rows, keys, ids, and which bodies are usual

1. The loop reads and checks the protobuf bytes. It keeps only the data that scoring needs: the row of attributes, the
   payment's id and the keys of its entities.
2. A body is *usual* when every field appears at most once and has its type, all texts are ASCII, and it keeps the rules
   of schemas/payment_fields.py.
3. The protobuf parser and `RequestRules` (decoder.py) decide about an unusual body, and word the error. One that is
   right is then read by the loop, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import (
    ATTRIBUTE_COUNT,
    ATTRIBUTES,
    CODES,
    KEYED,
    Attribute,
    declared_column,
    identity_column,
)
from paywarden.features.kernel.declared_texts import new_buffer
from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.features.profiles import money
from paywarden.features.profiles.band_program import band_program
from paywarden.features.profiles.keys import SEPARATOR, field_named, has_hashed_key
from paywarden.features.profiles.money import RateTable
from paywarden.features.profiles.plan import Plan
from paywarden.features.stores import base as store
from paywarden.schemas.currencies import MINOR_DIGITS
from paywarden.schemas.payment_fields import (
    AMOUNT_MINOR_MAX,
    DECLARED_MAX,
    FIELDS,
    TIME_MS_END,
    TIME_MS_MIN,
    UTC_OFFSET_MINUTES_MAX,
    EmailDomain,
    Form,
    PaymentFields,
)
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.schemas.request_proto import DECLARED_AFTER
from paywarden.scoring.requests import request_bytes as loop
from paywarden.scoring.requests.validation import BATCH_SIZE_MAX, RequestLimits

# The most bodies per call: those of the largest batch. The profiles of a usual chunk, of 32 payments, fit into the L2
# cache.
ROWS_MAX = BATCH_SIZE_MAX
# The average size that a chunk may have; a larger chunk is checked in Python first. A request with the longest ids has
# about 1,300 bytes; a declared text has its largest size more, and any other declared field less than _FIELD_BYTES.
_BODY_BYTES_MAX, _FIELD_BYTES = 2048, 16
_KIND_OF_FORM = {
    Form.ID: loop.ID,
    Form.CARD_TOKEN: loop.ID,
    Form.WORD: loop.WORD,
    Form.CURRENCY: loop.CURRENCY,
    Form.MCC: loop.MCC,
    Form.COUNTRY: loop.COUNTRY,
    Form.TIME: loop.TIME,
    Form.AMOUNT: loop.AMOUNT,
    Form.OFFSET: loop.OFFSET,
}
_DECLARED_KIND_OF_FORM = {
    Form.ID: loop.TEXT,
    Form.BIN: loop.BIN,
    Form.COUNTRY: loop.PLACE,
    Form.ADDRESS: loop.ADDRESS,
    Form.EMAIL: loop.EMAIL,
    Form.INTEGER: loop.WHOLE,
    Form.INSTANT: loop.WHOLE,
    Form.MONEY: loop.MONEY,
    Form.FLAG: loop.FLAG,
    Form.DECIMAL: loop.DECIMAL,
}
_KINDS = {field.name: _KIND_OF_FORM[field.form] for field in FIELDS if field.at_endpoint}
_REQUIRED = [field.name for field in FIELDS if field.at_endpoint and field.is_required]
_NUMBERS_OF = {field.name: field.number for field in ScoreRequest.DESCRIPTOR.fields}
# If the schema gets other fields, this module must be checked again.
assert _NUMBERS_OF.keys() == _KINDS.keys()
assert max(_NUMBERS_OF.values()) < loop.FIELDS_MAX
assert (loop.DECLARED_AFTER, loop.DECLARED_MAX) == (DECLARED_AFTER, DECLARED_MAX)
assert loop.RATE_SCALE == money.RATE_SCALE
assert chr(loop.SEPARATOR) == SEPARATOR
_LENGTHS = [Struct(f"={count}q") for count in range(ROWS_MAX + 1)]


class Pieces(NamedTuple):
    """For each body: a byte that is not 0 when it is read, the keys of all its entities, and the payment's id.

    A key is empty where the payment has no such entity. An unusual body has empty keys and an empty id.
    """

    is_usual: bytes
    keys: list[bytes]
    ids: list[bytes]


class FastRequests:
    """Reads chunks of requests. Not thread-safe. See the module."""

    def __init__(self, plan: Plan, rates: RateTable, limits: RequestLimits, rows: NDArray[np.int64]) -> None:
        """`rows`: shape (ROWS_MAX, plan.row_width), int64, C-contiguous. The loop fills this array."""
        assert rows.shape == (ROWS_MAX, plan.row_width)
        assert rows.dtype == np.int64
        assert rows.flags.c_contiguous
        self._entities = plan.entity_count
        self._past_ms_max, self._future_ms_max = limits.past_ms_max, limits.future_ms_max
        assert rates.rate_max * AMOUNT_MINOR_MAX < 2**63 - money.RATE_SCALE, "amounts in int64"
        entities, prefixes = _entity_program(plan)
        body_bytes = _BODY_BYTES_MAX + sum(field.size_max + _FIELD_BYTES for field in plan.fields.declared)
        # A keyed hash in a key has 16 bytes.
        text_bytes = ROWS_MAX * ((1 + plan.entity_count) * body_bytes + len(prefixes) + 16 * len(entities))
        self.arrays: dict[str, NDArray[Any]] = {
            "program": _program(plan),
            "numbers": _numbers(plan, limits),
            "declared": _declared_program(plan.fields),
            "derived": _derived_program(plan.fields),
            "bands": band_program(plan.fields, plan.key),
            "data": np.zeros(ROWS_MAX * body_bytes, dtype=np.uint8),
            "lengths": np.zeros(ROWS_MAX, dtype=np.int64),
            "rows": rows,
            **_rate_tables(rates),
            "entities": entities,
            "prefixes": prefixes,
            "texts": np.zeros(text_bytes, dtype=np.uint8),
            "ends": np.zeros(ROWS_MAX * (plan.entity_count + 1), dtype=np.int64),
            "checked": np.zeros(ROWS_MAX, dtype=np.uint8),
            "is_usual": np.zeros(ROWS_MAX, dtype=np.uint8),
            "kept": np.zeros(ROWS_MAX, dtype=np.int64),
            "places": np.zeros(2 * loop.PLACES_MAX, dtype=np.int64),
            "scratch": new_buffer(),
            "word": np.zeros(1, dtype=np.int64),
        }
        """The arrays of the loop's frame."""
        arrays = self.arrays
        # Keep the frame alive: the loop gets only its address.
        self._frame = Frame(loop.SLOT, arrays)
        self.frame_at = self._frame.address
        """The address of the frame of `request_bytes.read_bodies`."""
        self._data, self._texts, self._usual = arrays["data"].data, arrays["texts"].data, arrays["is_usual"].data
        self._lengths = arrays["lengths"].data.cast("B")
        # The time for which the numbers hold the earliest and the latest time of a payment.
        self._now_ms: int | None = None
        self.size = 0
        """The size of the bodies that `put` got last."""
        self._numbers, self._ends, self._kept = arrays["numbers"].data, arrays["ends"].data, arrays["kept"].data

    def put(self, bodies: Sequence[bytes]) -> int:
        """Put at most ROWS_MAX bodies where the loop reads them. Returns their size, or -1 if they are too long."""
        data = b"".join(bodies)
        self.size = size = len(data)
        if size > len(self._data):
            return -1
        self._data[:size] = data
        _LENGTHS[len(bodies)].pack_into(self._lengths, 0, *map(len, bodies))
        return size

    @property
    def fits(self) -> bool:
        """Whether the bodies that `put` got last are where the loop reads them."""
        return self.size <= len(self._data)

    def usual(self, count: int) -> bytes:
        """Returns a byte for each of the first `count` bodies that were read: UNUSUAL, USUAL or INCOMPLETE."""
        return self._usual[:count].tobytes()

    def put_pieces(self, keys: Sequence[bytes], ids: Sequence[bytes]) -> None:
        """Put the keys of all entities and the ids where the loop leaves them."""
        entities, count = self._entities, len(ids)
        pieces: list[bytes] = []
        for place, identity in enumerate(ids):
            pieces += [*keys[place * entities : (place + 1) * entities], identity]
        texts = b"".join(pieces)
        self._texts[: len(texts)] = texts
        self.arrays["ends"][: count * (entities + 1)] = list(itertools.accumulate(map(len, pieces)))

    def note_checked(self, count: int, *, are_checked: bool) -> None:
        """Note whether the first `count` bodies were found right in Python."""
        self.arrays["checked"][:count] = are_checked

    def set_time(self, now_ms: int) -> None:
        """Set the time, epoch milliseconds, by which the loop judges whether a payment's time is possible."""
        if now_ms != self._now_ms:
            self._now_ms = now_ms
            self._numbers[loop.EARLIEST_MS] = max(now_ms - self._past_ms_max, TIME_MS_MIN)
            self._numbers[loop.LATEST_MS] = min(now_ms + self._future_ms_max, TIME_MS_END - 1)

    def pieces(self, count: int) -> Pieces:
        """Returns the loop's results for the first `count` bodies."""
        entities = self._entities
        ends = self._ends[: count * (entities + 1)].tolist()
        texts = self._texts[: ends[-1] if ends else 0].tobytes()
        pieces = [texts[start:end] for start, end in itertools.pairwise((0, *ends))]
        ids = pieces[entities :: entities + 1]
        del pieces[entities :: entities + 1]
        return Pieces(self.usual(count), pieces, ids)

    def kept(self, bodies: Sequence[bytes]) -> list[bytes]:
        """Returns the bodies of the last `read` without their declared fields, as far as they are usual."""
        return [body[:size] for body, size in zip(bodies, self._kept, strict=False)]


def warm_up() -> None:
    """Load or compile the loop, so that no payment waits for it."""
    numbers = np.zeros(loop.NUMBER_COUNT, dtype=np.int64)
    # With no bodies the loop reads only one of the numbers.
    frame = Frame(loop.SLOT, dict.fromkeys(loop.RequestSlots._fields, numbers))
    loop.read_bodies(frame.address, 0)


def table_attributes(plan: Plan) -> list[Attribute]:
    """Returns the attributes of the fields that every payment has, as far as features use them."""
    return [ATTRIBUTES[column] for column in plan.attribute_columns if column < ATTRIBUTE_COUNT]


def _program(plan: Plan) -> NDArray[np.int64]:
    """Returns the kind of each field by its number, and the columns of code and identity if the catalogue uses them."""
    program = np.full((loop.FIELDS_MAX, loop.PROGRAM_WIDTH), -1, dtype=np.int64)
    program[:, loop.KIND] = loop.NONE
    for name, number in _NUMBERS_OF.items():
        program[number, loop.KIND] = _KINDS[name]
    for attribute in table_attributes(plan):
        if attribute.kind in CODES and attribute.name in _NUMBERS_OF:
            program[_NUMBERS_OF[attribute.name], loop.COLUMN] = attribute.column
    identities = frozenset[int]().union(*plan.entity_identities)
    for attribute in KEYED:
        if identity_column(attribute.column) in identities:
            program[_NUMBERS_OF[attribute.name], loop.IDENTITY] = identity_column(attribute.column)
    return program


def _numbers(plan: Plan, limits: RequestLimits) -> NDArray[np.int64]:
    numbers = np.zeros(loop.NUMBER_COUNT, dtype=np.int64)
    numbers[loop.ID_BYTES_MAX], numbers[loop.WORD_BYTES_MAX] = limits.id_bytes_max, limits.text_bytes_max
    numbers[loop.AMOUNT_MAX] = limits.amount_minor_max
    numbers[loop.OFFSET_MAX], numbers[loop.KEY_BYTES_MAX] = UTC_OFFSET_MINUTES_MAX, store.KEY_BYTES_MAX
    numbers[loop.REQUIRED] = sum(1 << _NUMBERS_OF[name] for name in _REQUIRED)
    numbers[loop.PAYMENT_ID], numbers[loop.CURRENCY_FIELD] = _NUMBERS_OF["payment_id"], _NUMBERS_OF["currency"]
    numbers[loop.TIME_COLUMN], numbers[loop.MINOR_COLUMN] = kernel.TIME_MS, kernel.AMOUNT_MINOR
    numbers[loop.AMOUNT_COLUMN], numbers[loop.ENTITY_COUNT] = kernel.AMOUNT, plan.entity_count
    numbers[loop.KEY_LOW], numbers[loop.KEY_HIGH] = plan.key.low, plan.key.high
    fields = plan.fields
    numbers[loop.ROW_WIDTH], numbers[loop.DECLARED_COUNT] = plan.row_width, fields.number_max
    required = sum(1 << field.number - 1 for field in fields.declared if field.is_required)
    # The bits of an int64, the last of which is its sign.
    numbers[loop.DECLARED_REQUIRED] = np.array(required, dtype=np.uint64).astype(np.int64)
    numbers[loop.HAS_MONEY] = any(field.form is Form.MONEY for field in fields.declared)
    numbers[loop.DERIVED_COUNT] = len(fields.derived)
    return numbers


def _entity_program(plan: Plan) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Returns for each entity the end of its prefix, its number of fields and their places; and all prefixes."""
    program: list[int] = []
    prefixes = b""
    for name, fields in zip(plan.entity_names, plan.entity_keys, strict=True):
        prefixes += f"{name}:".encode()
        program += [len(prefixes), len(fields), *(_place_in_key(field, plan) for field in fields)]
    return np.array(program, dtype=np.int64), np.frombuffer(bytearray(prefixes), dtype=np.uint8)


def _place_in_key(name: str, plan: Plan) -> int:
    """Returns the place of a text, or HASHED and the column of an identity."""
    if name in _NUMBERS_OF:
        return _NUMBERS_OF[name]
    field = field_named(name, plan.fields)
    if has_hashed_key(field):
        return loop.HASHED + identity_column(declared_column(field.number))
    return _declared_place(field.number)


def _declared_place(number: int) -> int:
    return loop.FIELDS_MAX + number - 1


def _declared_program(fields: PaymentFields) -> NDArray[np.int64]:
    program = np.zeros((fields.number_max, loop.DECLARED_WIDTH), dtype=np.int64)
    for field in fields.declared:
        most = field.size_max if field.is_text else 1 if field.form is Form.FLAG else field.maximum
        program[field.number - 1] = _DECLARED_KIND_OF_FORM[field.form], field.minimum, most, 10**field.decimals
    return program


def _derived_program(fields: PaymentFields) -> NDArray[np.int64]:
    program = np.zeros((len(fields.derived), loop.DERIVED_WIDTH), dtype=np.int64)
    for row, derived in zip(program, fields.derived, strict=True):
        source = fields.by_name[derived.of]
        place = _declared_place(source.number) if source.number else _NUMBERS_OF[source.name]
        bits = (0, 0) if isinstance(derived, EmailDomain) else (derived.bits, derived.bits_v6)
        row[:] = place, *bits, declared_column(derived.number)
    return program


def _rate_tables(rates: RateTable) -> Mapping[str, NDArray[np.int64]]:
    """Returns the number of each currency code, where each currency's rates begin, their times, and the rates.

    A currency without a rate has NO_RATE in place of its number.
    """
    currencies = np.full(26**3, loop.NO_CURRENCY, dtype=np.int64)
    for currency in MINOR_DIGITS:
        currencies[_place_of(currency)] = loop.NO_RATE
    bounds, times, values = [0], [], []
    for currency, dated in rates.dated():
        # The rules of a payment refuse any other code.
        if currency not in MINOR_DIGITS:
            continue
        currencies[_place_of(currency)] = len(bounds) - 1
        times += [time_ms for time_ms, _ in dated]
        values += [rate for _, rate in dated]
        bounds.append(len(times))
    tables = {"currencies": currencies, "rate_bounds": bounds, "rate_times": times, "rates": values}
    return {name: np.array(table, dtype=np.int64) for name, table in tables.items()}


def _place_of(currency: str) -> int:
    first, second, third = (ord(letter) - ord("A") for letter in currency)
    return (26 * first + second) * 26 + third
