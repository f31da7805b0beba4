"""The profile sets of an Aerospike cluster, which differ in the names of their Aerospike sets.

    card, payment, …           the first set
    NAME$card, NAME$payment    a further set
    $meta                      the register
    $drift, $outcome(s)        records that belong to no set (counts of decisions, the join of outcomes)

A cluster keeps the names of sets until its nodes restart, and the number of names is limited. A dropped set is empty,
but its name still counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from types import MappingProxyType

from paywarden.features.stores.aerospike.cluster_check import ClusterLook
from paywarden.features.stores.aerospike.metrics import AerospikeMetrics
from paywarden.features.stores.aerospike.store import SET_SEPARATOR, AerospikeSettings, AerospikeStore, set_name_of
from paywarden.features.stores.base import ScanProgress
from paywarden.features.stores.profile_sets import FIRST, StoredRegister, check_name, erase_records
from paywarden.schemas.errors import PaywardenError


class AerospikeSets:
    """SetStores on an Aerospike cluster.

    `entities` are the kinds of records that the stream writes (card, payment, …). Others may use the namespace
    too: their sets do not belong to the first profile set, and it neither counts nor erases them.
    """

    def __init__(
        self,
        settings: AerospikeSettings,
        entities: Sequence[str],
        *,
        lifetimes_s: Mapping[str, int] = MappingProxyType({}),
        metrics: AerospikeMetrics | None = None,
        look: ClusterLook | None = None,
    ) -> None:
        """`metrics` are shared by all stores that this opens; `look` looks at the cluster when a profile set opens.

        `lifetimes_s` is as for AerospikeStore.
        """
        self.settings = settings
        self._entities, self._lifetimes_s = tuple(entities), lifetimes_s
        self._metrics = AerospikeMetrics() if metrics is None else metrics
        self._look = look

    def open(self, name: str, *, readonly: bool = False) -> AerospikeStore:  # noqa: ARG002 - that is the user's role
        """See SetStores. Raises Misconfigured if the names of the set and of an entity are too long together."""
        prefix = FIRST
        if name != FIRST:
            check_name(name)
            prefix = name + SET_SEPARATOR
        for entity in self._entities:
            set_name_of(prefix, entity)
        store = self._open(prefix)
        if self._look is not None:
            try:
                self._look.at(store.reports())
            except PaywardenError:
                store.close()
                raise
        return store

    def _open(self, prefix: str) -> AerospikeStore:
        return AerospikeStore(self.settings, set_prefix=prefix, lifetimes_s=self._lifetimes_s, metrics=self._metrics)

    def open_register(self) -> StoredRegister:
        """See SetStores."""
        return StoredRegister(self._open(SET_SEPARATOR))

    def open_beside(self, *, readonly: bool = False) -> AerospikeStore:  # noqa: ARG002 - that is the user's role
        """See SetStores."""
        return self._open(SET_SEPARATOR)

    def counts(self, name: str) -> dict[str, int]:
        """See SetStores. The counts come from the nodes, and include expired records and markers of erased ones."""
        with closing(self.open(name)) as store:
            return self._own_counts(store, name)

    def erase(self, name: str, *, records_per_second: int = 0, progress: ScanProgress | None = None) -> None:
        """See SetStores. Removes record by record, which any server and any role with the right to write can do."""
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
