"""Watches whether acknowledged records may be hidden, which happens when a second fault meets copies that move.

    a node goes         its records have copies elsewhere, which move to further nodes    nothing is hidden
    another one goes    while copies move: it may have had the only newest one            hidden until it is back

A hidden record reads as absent, without an error, even if a read asks all copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import aerospike
from aerospike import exception as client_errors

from paywarden.features.stores.aerospike.client import AerospikeSettings
from paywarden.features.stores.aerospike.metrics import AerospikeMetrics
from paywarden.features.stores.aerospike.servers import ask, number, pairs_of

# Partitions whose copies a node has yet to send, and to receive.
_MOVING = ("migrate_tx_partitions_remaining", "migrate_rx_partitions_remaining")


def moving_count(of_namespace: dict[str, str]) -> int:
    """Returns of how many partitions a node has yet to send or receive a copy."""
    return sum(number(of_namespace, name) or 0 for name in _MOVING)


@dataclass(frozen=True)
class _Look:
    names: frozenset[str]
    size: int
    copy_count: int
    moving_count: int


class MigrationWatch:
    """Compares the cluster with what it was at the last look. Call `look` every few seconds, from one thread."""

    def __init__(self, client: aerospike.Client, settings: AerospikeSettings, metrics: AerospikeMetrics) -> None:
        self._client, self._settings, self._metrics = client, settings, metrics
        self._last: _Look | None = None
        self._gone: frozenset[str] = frozenset()
        self.why_hidden = ""
        """Why acknowledged records may be hidden, as of the last look; empty if none are."""

    def look(self) -> list[dict[str, str]]:
        """Returns the statistics of the namespace on each node that answers. Raises nothing."""
        asked = f"namespace/{self._settings.namespace}"
        try:
            names = [node["node_name"] for node in self._client.get_node_names()]
        except client_errors.AerospikeError:
            return []
        answers = {name: ask(self._client, self._settings, name, asked) for name in names}
        found = {name: pairs_of(said[asked], ";") for name, said in answers.items() if said is not None}
        # A node that does not have the namespace says no size.
        sizes = {size for one in found.values() if (size := number(one, "ns_cluster_size"))}
        if len(sizes) == 1:
            copies = min(number(one, "effective_replication_factor") or 1 for one in found.values())
            self._note(_Look(frozenset(found), sizes.pop(), copies, sum(map(moving_count, found.values()))))
        elif sizes:
            self.why_hidden = "the nodes do not agree about the cluster's size"
        return list(found.values())

    def _note(self, now: _Look) -> None:
        last, self._last = self._last, now
        if last is not None:
            lost_count = last.size - now.size
            if lost_count >= last.copy_count or (lost_count > 0 and last.moving_count):
                self._gone |= last.names - now.names
                self._metrics.second_faults.inc(lost_count)
        self._gone -= now.names
        self._metrics.moving.set(now.moving_count)
        if self._gone:
            self.why_hidden = f"{', '.join(sorted(self._gone))} went while copies moved and is not back"
        else:
            self.why_hidden = f"copies of {now.moving_count} partitions move" if now.moving_count else ""
