"""Turns one checked request into a row of attributes and the store keys of its entities, in Python.

The oracle of the compiled reader (scoring/requests/fast_requests.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features.catalogue.attributes import (
    CODES,
    KEYED,
    DeclaredRow,
    identity_column,
)
from paywarden.features.kernel import AMOUNT, AMOUNT_MINOR, TIME_MS, UNKNOWN_AMOUNT
from paywarden.features.profiles.keys import entity_key, key_maker
from paywarden.features.profiles.money import RateTable
from paywarden.features.profiles.plan import Plan
from paywarden.schemas.payment_fields import FIELD
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.requests.fast_requests import table_attributes
from paywarden.scoring.requests.schema import RequestSchema

# Entries in the memo of each attribute, with about a hundred bytes each.
_REMEMBERED_MAX = 50_000


class RequestRows:
    """Holds the rows of at most `rows_max` payments at a time. Not thread-safe.

    `attributes`: shape (rows_max, plan.row_width), int64, C-contiguous; it stays the same array.
    """

    def __init__(self, plan: Plan, rates: RateTable, rows_max: int) -> None:
        self.attributes: NDArray[np.int64] = np.zeros((rows_max, plan.row_width), dtype=np.int64)
        self._bytes = self.attributes.data.cast("B")
        self._packer = Struct(f"={plan.row_width}q")
        self._rates, self._key = rates, plan.key
        self._values_of = RequestSchema(plan.fields).values
        self._declared = DeclaredRow(plan.fields, self._convert) if plan.fields.number_max else None
        # Only the attributes that the catalogue uses are read and coded.
        self._coders = [
            (attribute.column, attrgetter(attribute.name), _remembered(CODES[attribute.kind]), attribute.name)
            for attribute in table_attributes(plan)
            if attribute.kind in CODES and attribute.name in ScoreRequest.DESCRIPTOR.fields_by_name
        ]
        identities = frozenset[int]().union(*plan.entity_identities)
        self._coders += [
            (identity_column(attribute.column), attrgetter(attribute.name), _remembered(plan.key.of), attribute.name)
            for attribute in KEYED
            if identity_column(attribute.column) in identities
        ]
        self._key_makers = [
            self._key_maker(*entity, plan) for entity in zip(plan.entity_names, plan.entity_keys, strict=True)
        ]

    def write(self, row: int, request: ScoreRequest) -> None:
        """Fill row `row` with a request."""
        numbers = [0] * len(self.attributes[0])
        time_ms, amount_minor = request.event_time_ms, request.amount_minor
        numbers[TIME_MS] = time_ms
        amount = self._rates.convert(amount_minor, request.currency, time_ms)
        numbers[AMOUNT] = UNKNOWN_AMOUNT if amount is None else amount
        numbers[AMOUNT_MINOR] = amount_minor
        for column, get, code, name in self._coders:
            value = get(request)
            # An offset of 0 minutes counts as present; an empty text counts as absent.
            if value or request.HasField(name):
                numbers[column] = code(value)
        if self._declared is not None:
            self._declared.fill(numbers, self._values_of(request), self._key)
        self._packer.pack_into(self._bytes, row * self._packer.size, *numbers)

    def keys_of(self, request: ScoreRequest) -> list[bytes]:
        """Returns the store key of each entity, in the catalogue's order; empty without such an entity."""
        return [make_key(request) for make_key in self._key_makers]

    def _convert(self, amount_minor: int, values: Mapping[str, Any]) -> int | None:
        return self._rates.convert(amount_minor, values["currency"], values["event_time_ms"])

    def _key_maker(self, entity: str, fields: tuple[str, ...], plan: Plan) -> Callable[[ScoreRequest], bytes]:
        if all(field in FIELD for field in fields):
            return _key_maker(entity, fields)
        of_values, values_of = key_maker(entity, fields, plan.fields, plan.key), self._values_of
        return lambda request: of_values(values_of(request))


def _remembered(code: Callable[..., int]) -> Callable[..., int]:
    """Memoise `code`, which makes a repeated value four times as fast. Countries and channels repeat most."""
    codes: dict[object, int] = {}

    def remembered(value: object) -> int:
        coded = codes.get(value)
        if coded is None:
            coded = code(value)
            if len(codes) < _REMEMBERED_MAX:
                codes[value] = coded
        return coded

    return remembered


def _key_maker(entity: str, fields: tuple[str, ...]) -> Callable[[ScoreRequest], bytes]:
    """Returns a function that makes the store key of one entity from a request; the key may be empty."""
    if len(fields) == 1:
        prefix, get = f"{entity}:", attrgetter(fields[0])

        def single(request: ScoreRequest) -> bytes:
            identity: str = get(request)
            return (prefix + identity).encode() if identity else b""

        return single
    get_all = attrgetter(*fields)

    def combined(request: ScoreRequest) -> bytes:
        ids: tuple[str, ...] = get_all(request)
        return entity_key(entity, ids) if all(ids) else b""

    return combined
