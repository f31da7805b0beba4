"""Random declarations of fields, entities and features: the kernel gives the bits of the plain features."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import identity_column
from tests.parity.comparison import differing, same_bits
from tests.unit.features.kernel.profiles import Change, bound_vector, profile, vectors
from tests.worlds.stream.declarations import declarations, heard_histories


@settings(max_examples=60)
@given(data=st.data())
def test_random_declarations_give_the_plain_bits(data: st.DataObject) -> None:
    declaration = data.draw(declarations(hops_max=2))
    history = data.draw(heard_histories(declaration, count_min=3, count_max=10))
    engine, profiles = declaration.engine, dict[bytes, bytes]()
    columns = {engine.plan.entity_names[hop.target]: identity_column(hop.attribute) for hop in engine.plan.hops}
    key_of: dict[tuple[str, int], bytes] = {}

    def neighbour(entity: str, identity: int) -> bytes | None:
        return profiles.get(key_of.get((entity, identity), b""))

    found = []
    for payment, weight in history:
        row, keys = declaration.row_of(payment), declaration.keys_of(payment)
        assert len(row) == engine.plan.row_width
        if weight is None:
            states = {entity: profiles.get(key) for entity, key in keys.items()}
            found.append(vectors(engine, [row], [states], neighbour)[0])
            assert same_bits(bound_vector(engine, row, states, neighbour), found[-1])
        kind = kernel.PAYMENT if weight is None else kernel.LABEL
        for entity, key in keys.items():
            profiles[key] = profile(engine, entity, [Change(kind, row, weight or 1)], profiles.get(key))
            if entity in columns:
                key_of[entity, row[columns[entity]]] = key
    assert list(differing(engine.plan.names, np.array(found), declaration.plain_vectors(history))) == []
