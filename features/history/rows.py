"""Rows of attributes of a history's payments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.history.history import Coded, History


class HistoryRows:
    """Makes the rows of requested payments. It keeps one code for each distinct text, not a copy of the columns."""

    def __init__(self, history: History, amounts: NDArray[np.int64], key: IdentityKey = LAPTOP_KEY) -> None:
        """`amounts`: minor units of the reference currency, shape (payments,)."""
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

    def of(self, payments: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """Returns the rows of these payments, shape (count, kernel.ATTRIBUTE_COUNT), C-contiguous."""
        times = self._plain[kernel.TIME_MS][payments]
        rows = np.zeros((len(times), kernel.ATTRIBUTE_COUNT), dtype=np.int64)
        for column, values in self._plain.items():
            rows[:, column] = values[payments]
        for column, codes, values in self._coded:
            # Code -1, a missing text, takes the last entry.
            rows[:, column] = values[codes[payments]]
        return rows


def _identities_of(coded: Coded, key: IdentityKey) -> NDArray[np.int64]:
    return np.array([*key.of_all(coded.names.to_pylist()), 0], dtype=np.int64)


def _codes_of(coded: Coded, kind: attributes.AttributeKind) -> NDArray[np.int64]:
    code = attributes.CODES[kind]
    return np.array([*(code(name) for name in coded.names.to_pylist()), 0], dtype=np.int64)
