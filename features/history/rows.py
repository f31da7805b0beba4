"""Rows of attributes of a history's payments."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.history.declared_columns import holds_hashes
from paywarden.features.history.history import History
from paywarden.features.history.payment_columns import Coded
from paywarden.schemas.payment_fields import Form


class HistoryRows:
    """Makes the rows of requested payments. It keeps one code for each distinct text, not a copy of the columns."""

    def __init__(
        self,
        history: History,
        amounts: NDArray[np.int64],
        key: IdentityKey = LAPTOP_KEY,
        declared_amounts: Mapping[str, NDArray[np.int64]] = MappingProxyType({}),
    ) -> None:
        """`amounts`: minor units of the reference currency, shape (payments,).

        `declared_amounts` has by name the codes of each declared amount in the reference currency.
        """
        self.width = attributes.row_width(history.fields)
        """How many numbers a row has."""
        self._plain = {
            kernel.TIME_MS: history.event_time_ms,
            kernel.AMOUNT: amounts,
            kernel.AMOUNT_MINOR: history.amount_minor,
            attributes.utc_offset.column: history.utc_offset_code,
            attributes.declined.column: history.declined_code,
        }
        texts = (
            (attributes.currency, history.currency),
            (attributes.card_id, history.card),
            (attributes.merchant_id, history.merchant),
            (attributes.device_id, history.device),
            (attributes.ip, history.ip),
            (attributes.mcc, history.mcc),
            (attributes.country, history.country),
            (attributes.channel, history.channel),
        )
        self._coded = [(a.column, coded.codes, _codes_of(coded, a.kind)) for a, coded in texts]
        self._coded += [
            (attributes.identity_column(a.column), coded.codes, _identities_of(coded, key))
            for a, coded in texts
            if attributes.identity_column(a.column) != a.column
        ]
        self._add_declared(history, key, declared_amounts)

    def _add_declared(self, history: History, key: IdentityKey, amounts: Mapping[str, NDArray[np.int64]]) -> None:
        for field in history.fields.declared:
            column = attributes.declared_column(field.number)
            if field.form is Form.MONEY:
                self._plain[column], self._plain[column + 1] = amounts[field.name], history.numbers(field.name)
            elif not field.is_text:
                self._plain[column] = history.numbers(field.name)
            elif field.form is Form.COUNTRY:
                coded = history.coded(field.name)
                codes = _codes_of(coded, attributes.AttributeKind.COUNTRY)
                self._coded += [(column, coded.codes, codes), (column + 1, coded.codes, codes)]
            else:
                coded = history.coded(field.name)
                is_public = field.form is not Form.EMAIL
                codes = _codes_of(coded, attributes.AttributeKind.TEXT) if is_public else _ones_of(coded)
                self._coded += [(column, coded.codes, codes), (column + 1, coded.codes, _identities_of(coded, key))]
        for derived in (*history.fields.derived, *history.fields.bands):
            column, coded = attributes.declared_column(derived.number), history.coded(derived.name)
            self._coded.append((column, coded.codes, _ones_of(coded)))
            self._coded.append((column + 1, coded.codes, _identities_of(coded, key)))

    def of(self, payments: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """Returns the rows of these payments, shape (count, width), C-contiguous."""
        times = self._plain[kernel.TIME_MS][payments]
        rows = np.empty((len(times), self.width), dtype=np.int64)
        self.fill(payments, rows)
        return rows

    def fill(self, payments: NDArray[np.int64] | slice, rows: NDArray[np.int64]) -> None:
        """Write the rows of these payments into `rows`, shape (count, width). All of it is overwritten."""
        rows[:] = 0
        for column, values in self._plain.items():
            rows[:, column] = values[payments]
        for column, codes, values in self._coded:
            # Code -1, a missing text, takes the last entry.
            rows[:, column] = values[codes[payments]]


def _ones_of(coded: Coded) -> NDArray[np.int64]:
    """Returns the public codes of texts that have none: 1 for each, and 0 for a missing one."""
    return np.array([*[1] * len(coded.names), 0], dtype=np.int64)


def _identities_of(coded: Coded, key: IdentityKey) -> NDArray[np.int64]:
    if holds_hashes(coded.names.type):
        return np.append(coded.names.to_numpy(), 0)
    return np.array([*key.of_all(coded.names.to_pylist()), 0], dtype=np.int64)


def _codes_of(coded: Coded, kind: attributes.AttributeKind) -> NDArray[np.int64]:
    code = attributes.CODES[kind]
    return np.array([*(code(name) for name in coded.names.to_pylist()), 0], dtype=np.int64)
