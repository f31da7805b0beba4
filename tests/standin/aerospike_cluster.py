"""Several stand-ins that are one Aerospike cluster: they share their records, and each owns some partitions.

    with StandInCluster(node_count=2) as cluster:
        client = aerospike.client({"hosts": [("127.0.0.1", cluster.nodes[0].port)]})
        cluster.lose(1)
        cluster.take_over()

Every node holds every record, so the replication factor is the number of nodes. Losing a node and the others'
taking over what it owned are two steps, as they are seconds apart in a real cluster: in between the client
may not yet know, and the nodes that are left answer for their own partitions only.
"""

from __future__ import annotations

from types import TracebackType

from tests.standin.aerospike_records import PARTITION_COUNT
from tests.standin.aerospike_server import StandIn, namespace_statistics, partition_bitmap


class StandInCluster:
    """The nodes, from `with` to its end. `nodes` keeps those that are lost."""

    def __init__(self, *, node_count: int) -> None:
        first = StandIn(node_name=_node_name(0))
        others = [
            StandIn(node_name=_node_name(number), shared_records=first.records) for number in range(1, node_count)
        ]
        self.nodes = [first, *others]
        self.records = first.records
        self._living = list(self.nodes)
        self._generation = 0

    def __enter__(self) -> StandInCluster:
        for node in self.nodes:
            node.start()
        self.take_over()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.stop()

    @property
    def hosts(self) -> tuple[str, ...]:
        """`host:port` of each node."""
        return tuple(node.address for node in self.nodes)

    def lose(self, number: int) -> None:
        """A node is gone, and so far the others have not noticed."""
        self._living.remove(self.nodes[number])
        self.nodes[number].stop()

    def bring_back(self, number: int) -> None:
        """A lost node is there again, and owns partitions at once."""
        self.nodes[number].start()
        self._living.append(self.nodes[number])
        self.take_over()

    def take_over(self) -> None:
        """The nodes there are share all partitions among them, and tell the client."""
        self._generation += 1
        for rank, node in enumerate(self._living):
            node.partitions = frozenset(range(rank, PARTITION_COUNT, len(self._living)))
        for node in self._living:
            self._tell(node)

    def _tell(self, node: StandIn) -> None:
        count, rank = len(self._living), self._living.index(node)
        # A partition's first copy is with the node after its master, and so on round the cluster.
        replicas = [self._living[(rank - step) % count].partitions for step in range(count)]
        bitmaps = ",".join(map(partition_bitmap, replicas))
        others = [other for other in self._living if other is not node]
        peers = f"{self._generation},{node.port},[{','.join(f'[{o.node_name},,[{o.address}]]' for o in others)}]"
        node.info |= {
            "partition-generation": str(self._generation),
            "peers-generation": str(self._generation),
            "peers-clear-std": peers,
            "peers-clear-alt": peers,
            "replicas": f"{node.namespace}:{self._generation},{count},{bitmaps};",
            f"namespace/{node.namespace}": namespace_statistics(node_count=count),
        }


def _node_name(number: int) -> str:
    return f"BB900000000000{number + 1}"
