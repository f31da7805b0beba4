"""The oracle of features: the plain way that `paywarden features --check` compares with, from the list of events.

features/datasets/plain_features.py keeps no profile, no tile and no program. It reads a catalogue's expressions and a
payment's row; tests of the catalogue hold what each word and each field becomes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from paywarden.features.catalogue.attributes import identity_column
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.expressions import Neighbours
from paywarden.features.datasets.plain_features import PlainEvents, plain_vector

Event = tuple[Mapping[str, bytes], Sequence[int], int | None]
"""The store keys of the entities that a payment has, by name; its row; and the change of its label, or None."""


def plain_vectors(
    catalogue: Catalogue, heard: Sequence[Event], numbers: Collection[int] | None = None
) -> NDArray[np.float32]:
    """Returns the vector of each payment when it arrived, or those of these numbers. Shape (payments, features)."""
    hops = [feature.value for feature in catalogue.features if isinstance(feature.value, Neighbours)]
    columns = {hop.target: identity_column(hop.attribute) for hop in hops}
    events: dict[tuple[str, bytes], PlainEvents] = {}
    others: dict[tuple[str, int], PlainEvents] = {}
    found, arrived = [], 0
    for keys, row, weight in heard:
        known = {name: events.setdefault((name, key), PlainEvents()) for name, key in keys.items()}
        if weight is None:
            if numbers is None or arrived in numbers:
                values = plain_vector(catalogue.features, row, known, others)
                assert values.keys() == set(catalogue.names), "the plain way does not know a word"
                found.append([values[name] for name in catalogue.names])
            arrived += 1
        others |= {(name, row[column]): known[name] for name, column in columns.items() if name in known}
        for one in known.values():
            if weight is None:
                one.payments.append(row)
            else:
                one.labels.append((row, weight))
    return np.array(found, dtype=np.float64).astype(np.float32).reshape(len(found), len(catalogue.names))
