"""The profile sets of an Aerospike cluster, told apart by the names of their Aerospike sets.

    card, payment, …           the first set
    NAME$card, NAME$payment    a further one
    $meta                      the register
    $drift, $outcome(s)        what belongs to no set (counts of decisions, the join of outcomes)

A cluster remembers the names of sets until its nodes are started again, and takes no endless number of them: a set
that was dropped is empty, but its name is still known.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from paywarden.features.stores.aerospike.store import SET_SEPARATOR, AerospikeSettings, AerospikeStore, set_name_of
from paywarden.features.stores.base import ScanProgress
from paywarden.features.stores.profile_sets import FIRST, StoredRegister, check_name, erase_records


class AerospikeSets:
    """SetStores on an Aerospike cluster.

    `entities` are the kinds of records that the stream writes (card, payment, …). Others may use the namespace, too:
    what is not one of these is not of the first set, and is neither counted nor erased with it.
    """

    def __init__(self, settings: AerospikeSettings, entities: Sequence[str]) -> None:
        self.settings = settings
        self._entities = tuple(entities)

    def open(self, name: str, *, readonly: bool = False) -> AerospikeStore:  # noqa: ARG002 - that is the user's role
        """See SetStores. Raises Misconfigured when an entity's name is too long beside that of the set."""
        prefix = FIRST
        if name != FIRST:
            check_name(name)
            prefix = name + SET_SEPARATOR
        for entity in self._entities:
            set_name_of(prefix, entity)
        return AerospikeStore(self.settings, set_prefix=prefix)

    def open_register(self) -> StoredRegister:
        """See SetStores."""
        return StoredRegister(AerospikeStore(self.settings, set_prefix=SET_SEPARATOR))

    def open_beside(self, *, readonly: bool = False) -> AerospikeStore:  # noqa: ARG002 - that is the user's role
        """See SetStores."""
        return AerospikeStore(self.settings, set_prefix=SET_SEPARATOR)

    def counts(self, name: str) -> dict[str, int]:
        """See SetStores. As the nodes say: with what has expired and is not yet removed."""
        with closing(self.open(name)) as store:
            return self._own_counts(store, name)

    def erase(self, name: str, *, records_per_second: int = 0, progress: ScanProgress | None = None) -> None:
        """See SetStores. Record by record, as any server and any role that may write can."""
        with closing(self.open(name)) as store:
            erase_records(
                store,
                lambda: self._own_counts(store, name),
                records_per_second=records_per_second,
                progress=progress,
            )

    def _own_counts(self, store: AerospikeStore, name: str) -> dict[str, int]:
        counts = store.counts()
        if name == FIRST:
            return {entity: counts[entity] for entity in self._entities if entity in counts}
        return counts
