"""A scan of one set, page by page at a limited rate. It continues where it was after the loss of a node.

1. A page is one query for at most `scan_page_record_count` records over all partitions. It starts from a state: how far
   the client has read each partition. The page returns records and the next state.
2. A page that fails leaves the state unchanged. The scan tries it again until it succeeds or `scan_patience_ms` is
   over. It must not continue the failed query: the state of that query has moved past records that it received and
   then discarded. The scan would end without them and without an error.
3. A node that does not hold a whole partition says so, and the client asks other nodes. A page raises an error rather
   than leave out a partition.
4. A node that holds a whole partition may still lack what another copy has: after it came back, while copies move.
   Therefore the scan first waits for `scan_patience_ms` until no copies move. If they still do, it goes on and says so:
   on a large cluster they may move for hours.
5. One loss is invisible to every page: if as many nodes are lost as a record has copies, the remaining nodes serve the
   lost partitions as empty. Therefore the scan counts the nodes at its start and again at its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import aerospike
from aerospike import exception as client_errors

from paywarden.features.stores.aerospike.calls import Calls
from paywarden.features.stores.aerospike.client import AerospikeSettings, describe, scan_policy
from paywarden.features.stores.aerospike.migration import moving_count
from paywarden.features.stores.aerospike.servers import ask, pairs_of
from paywarden.features.stores.base import ScanProgress
from paywarden.schemas.errors import StoreUnavailable

_log = logging.getLogger(__name__)

# A record in the client's form: key, metadata, bins.
ScannedRecord = tuple[tuple[str, str, object, bytearray], dict[str, int], dict[str, Any]]

# The client's own progress by partition; empty at the start.
_State = dict[Any, Any]
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Cluster:
    """The nodes that answered, the number of copies of each record, and the number of the set's copies on all nodes.

    These two are None unless every node of the cluster answered. `moving_count`: partitions whose copies are moving.
    """

    node_names: frozenset[str]
    copy_count: int | None = None
    object_count: int | None = None
    moving_count: int = 0

    @property
    def record_count(self) -> int | None:
        """Returns how many records the set has, each counted once."""
        return None if self.object_count is None or not self.copy_count else self.object_count // self.copy_count


class SetScan:
    """A scan of one set. `clock` returns seconds that never go back; `sleep` waits for some seconds."""

    def __init__(
        self,
        client: aerospike.Client,
        calls: Calls,
        settings: AerospikeSettings,
        set_name: str,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
    ) -> None:
        self._client = client
        self._calls = calls
        self._settings = settings
        self._set_name = set_name
        self._clock = clock
        self._sleep = sleep
        # The progress so far, and the time from which the next page may be read.
        self._state: _State = {}
        self._is_done = False
        self._free_at = clock()

    def pages(self, progress: ScanProgress | None) -> Iterator[list[ScannedRecord]]:
        """Yield the records page by page. Raises StoreUnavailable rather than leave out a part, or Misconfigured."""
        cluster = self._wait_for_copies()
        expected_count = cluster.record_count
        count = 0
        if progress is not None:
            progress(count, expected_count)
        while not self._is_done:
            page = self._retry_while_store_down(self._next_page)
            yield page
            count += len(page)
            if progress is not None:
                progress(count, expected_count)
        self._retry_while_store_down(lambda: self._check_nothing_was_lost(cluster))

    def _wait_for_copies(self) -> _Cluster:
        """Returns the cluster once no copies move, or after `scan_patience_ms`."""
        deadline = self._clock() + self._settings.scan_patience_ms / 1000
        cluster = self._look_at_cluster()
        while cluster.moving_count and self._clock() < deadline:
            self._sleep(self._settings.tend_interval_ms / 1000)
            cluster = self._look_at_cluster()
        if cluster.moving_count:
            _log.warning(
                "%s: copies of %d partitions are moving: a scan of set %s may miss what was written last",
                describe(self._settings),
                cluster.moving_count,
                self._set_name,
            )
        return cluster

    def _retry_while_store_down(self, action: Callable[[], _Result]) -> _Result:
        """Returns the action's result. Repeats it for `scan_patience_ms` while the store is unavailable."""
        deadline: float | None = None
        while True:
            try:
                return action()
            except StoreUnavailable:
                now = self._clock()
                if deadline is None:
                    deadline = now + self._settings.scan_patience_ms / 1000
                if now >= deadline:
                    raise
            # Until its next tend, the client would repeat the same attempt.
            self._sleep(self._settings.tend_interval_ms / 1000)

    def _next_page(self) -> list[ScannedRecord]:
        settings = self._settings
        wait_s = self._free_at - self._clock()
        if wait_s > 0:
            self._sleep(wait_s)
        started = self._clock()
        policy = scan_policy(settings)
        if self._state:
            policy["partition_filter"] = {"partition_status": self._state}
        with self._calls.call("scan"):
            query = self._client.query(settings.namespace, self._set_name)
            query.select(settings.bin_name)
            query.max_records = settings.scan_page_record_count
            # Each node keeps this rate within a page. This class keeps it between pages and for all nodes together.
            query.records_per_second = settings.scan_records_per_second
            query.paginate()
            page: list[ScannedRecord] = query.results(policy)
            # A dictionary, whatever the client's own annotation says.
            self._state = query.get_partitions_status()  # type: ignore[assignment]
            self._is_done = query.is_done()
        if settings.scan_records_per_second:
            # Counted from the actual start of the page, so that a slow caller gathers no credit.
            self._free_at = started + len(page) / settings.scan_records_per_second
        return page

    def _look_at_cluster(self) -> _Cluster:
        answers: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        try:
            for name in [node["node_name"] for node in self._client.get_node_names()]:
                answer = self._ask(name)
                if answer is not None:
                    answers[name] = answer
        except client_errors.AerospikeError:
            # Without a node, the first page raises a better error.
            return _Cluster(frozenset())
        names = frozenset(answers)
        moving = sum(moving_count(namespace) for namespace, _ in answers.values())
        try:
            copy_count = min(int(namespace["effective_replication_factor"]) for namespace, _ in answers.values())
            cluster_size = max(int(namespace["ns_cluster_size"]) for namespace, _ in answers.values())
            # A node without any record of a set does not list the set.
            object_count = sum(int(of_set.get("objects", "0")) for _, of_set in answers.values())
        except (KeyError, ValueError):
            return _Cluster(names, moving_count=moving)
        return _Cluster(names, copy_count, object_count if len(names) == cluster_size else None, moving)

    def _ask(self, node_name: str) -> tuple[dict[str, str], dict[str, str]] | None:
        """Returns a node's statistics of the namespace and of the set, None if it does not answer."""
        of_namespace = f"namespace/{self._settings.namespace}"
        of_set = f"sets/{self._settings.namespace}/{self._set_name}"
        said = ask(self._client, self._settings, node_name, of_namespace, of_set)
        return None if said is None else (pairs_of(said[of_namespace], ";"), pairs_of(said[of_set].rstrip(";"), ":"))

    def _check_nothing_was_lost(self, before: _Cluster) -> None:
        lost_count = len(before.node_names - self._look_at_cluster().node_names)
        # If the number of copies is unknown, assume one.
        copy_count = before.copy_count or 1
        if lost_count >= copy_count:
            raise StoreUnavailable(
                f"{describe(self._settings)}: scan lost {lost_count} of {len(before.node_names)} nodes, and a record "
                f"has copies on {copy_count}: records may be missing"
            )


def set_counts(client: aerospike.Client, settings: AerospikeSettings) -> dict[str, int]:
    """Returns how many records each non-empty set of the namespace has, each record counted once.

    Raises StoreUnavailable unless every node of the cluster answers.
    """
    of_namespace, of_sets = f"namespace/{settings.namespace}", f"sets/{settings.namespace}"
    counts: dict[str, int] = {}
    answered, copy_count, cluster_size = 0, 1, 0
    try:
        for node in client.get_node_names():
            said = ask(client, settings, node["node_name"], of_namespace, of_sets) or {}
            namespace = pairs_of(said[of_namespace], ";")
            copy_count = int(namespace["effective_replication_factor"])
            cluster_size = max(cluster_size, int(namespace["ns_cluster_size"]))
            for one in filter(None, said[of_sets].split(";")):
                of_set = pairs_of(one, ":")
                counts[of_set["set"]] = counts.get(of_set["set"], 0) + int(of_set["objects"])
            answered += 1
    except (client_errors.AerospikeError, KeyError, ValueError) as error:
        raise StoreUnavailable(f"{describe(settings)}: a node does not say which sets it has") from error
    if answered == 0 or answered < cluster_size:
        raise StoreUnavailable(
            f"{describe(settings)}: {answered} of {cluster_size} nodes say which sets they have, it takes all of them"
        )
    # Rounded up: while copies are on the move, a set with one record must not seem to have none.
    return {name: -(-count // copy_count) for name, count in counts.items() if count}
