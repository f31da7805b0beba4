"""Labels that stand in a table of their own, such as a bank's chargebacks.

    chargebacks.csv: charge, reported        payments.csv: id, when, card, shop, amount
    p2, 2026-05-09                           p1, …   no row of chargebacks: labelled as `others` says
                                             p2, …   the columns of its first row of chargebacks

The labels are in memory; they are few beside the payments.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paywarden.features.tables.columns.arrow_columns import Flags, as_texts, flags_of
from paywarden.features.tables.mapping import LabelSource
from paywarden.features.tables.sources import TableFiles, TableRows, joined
from paywarden.schemas.errors import Misconfigured


class LabelTable:
    """The rows of a second table, by the ids of their payments."""

    def __init__(self, source: LabelSource, *, mapping: str = "the mapping") -> None:
        """Read the table. Raises Misconfigured, in one line, for a file that is no table or has a row without an id."""
        files = TableFiles(source.file, source.input, source.used, mapping=mapping)
        parts = list(files.parts())
        if not parts:
            raise Misconfigured(f"{files.names[0]} holds no row")
        for rows in parts:
            name = files.names[rows.file]
            if rows.torn:
                line, what = rows.torn[0]
                raise Misconfigured(f"{name}, line {line}: {what}")
            is_lacking = flags_of(pc.is_null(as_texts(rows.columns[source.payment_id], source.input.missing)))
            if is_lacking.any():
                line = rows.lines[int(np.argmax(is_lacking))]
                raise Misconfigured(f"{name}, line {line}, column {source.payment_id}: names no payment")
        kinds = [{name: column.type for name, column in rows.columns.items()} for rows in parts]
        if any(kind != kinds[0] for kind in kinds):
            raise Misconfigured(f"{source.file}: the files have columns of different types; write them alike")
        columns = joined(parts).columns
        ids = as_texts(columns[source.payment_id], source.input.missing)
        # The first row of a payment counts.
        first = np.sort(np.unique(ids.to_numpy(zero_copy_only=False), return_index=True)[1])
        self._columns = {name: column.take(pa.array(first)) for name, column in columns.items()}
        self._ids = ids.take(pa.array(first))
        self._is_met = np.zeros(len(first), dtype=np.bool_)

    @property
    def payment_count(self) -> int:
        """Returns how many payments have a label."""
        return len(self._ids)

    @property
    def unmet_count(self) -> int:
        """Returns how many of them were no payment of any rows so far."""
        return int(len(self._is_met) - self._is_met.sum())

    def joined(self, rows: TableRows, ids: pa.Array) -> tuple[TableRows, Flags]:
        """Returns rows with the label's columns in place of their own, null where no label is, and which have one."""
        places = pc.index_in(ids, value_set=self._ids)
        named = flags_of(pc.is_valid(places))
        self._is_met[places.drop_null().to_numpy(zero_copy_only=False)] = True
        return replace(rows, columns={name: column.take(places) for name, column in self._columns.items()}), named
