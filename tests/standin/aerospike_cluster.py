"""Several stand-ins that are one Aerospike cluster: they share their records, and each owns some partitions.

    with StandInCluster(node_count=2) as cluster:
        client = aerospike.client({"hosts": [("127.0.0.1", cluster.nodes[0].port)]})
        cluster.lose(1)
        cluster.take_over()

Every node holds every record, so the replication factor is the number of nodes. `lose` and `take_over` are two steps,
because they are seconds apart in a real cluster. In between, the client may not know of the loss, and the running nodes
answer only for their own partitions.

A node that comes back owns partitions at once, before it has what was written meanwhile:

    cluster.lose(1)
    cluster.take_over()                        writes go to the others
    cluster.bring_back(1, is_behind=True)      node 1 answers with what it had, unless a read asks all copies
    cluster.end_migration(1)                   of each record the copy that wins stays, on every node

If another node goes while copies move, the others lack what it alone had:

    cluster.lose(0, hides=True)                node 1 has what it had: newer records are hidden
    cluster.bring_back(0)                      they are there again, unless they were written since

A node that the network cuts off from the others, but not from clients:

    cluster.cut_off(1)      it writes its own copies, and answers no write: no second copy acknowledges them
    cluster.orphan(1)       both sides have noticed: each has all partitions, and acknowledges writes
    cluster.rejoin(1)       its writes lose

"""

from __future__ import annotations

from types import TracebackType

from tests.standin.aerospike_records import PARTITION_COUNT, Record
from tests.standin.aerospike_server import StandIn, partition_bitmap


class StandInCluster:
    """The nodes of a cluster, from `with` to its end. `nodes` keeps the lost ones."""

    def __init__(self, *, node_count: int) -> None:
        first = StandIn(node_name=_node_name(0))
        others = [
            StandIn(node_name=_node_name(number), shared_records=first.records) for number in range(1, node_count)
        ]
        self.nodes = [first, *others]
        self.records = first.records
        self._living = list(self.nodes)
        # The records of a lost node, by its number.
        self._had: dict[int, dict[bytes, Record]] = {}
        # What lost nodes alone have.
        self._hidden: dict[bytes, Record | None] = {}
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
        """The `host:port` of each node."""
        return tuple(node.address for node in self.nodes)

    def lose(self, number: int, *, hides: bool = False) -> None:
        """Stop a node. The others have not noticed yet. `hides`: it alone has what nodes that came back lack."""
        self._had[number] = dict(self.records.by_digest)
        self._living.remove(self.nodes[number])
        self.nodes[number].stop()
        for node in self._living if hides else ():
            self._hidden |= self.records.replace(node.copies)
            node.moving_count = len(node.copies)
            node.copies.clear()

    def bring_back(self, number: int, *, is_behind: bool = False) -> None:
        """Start a lost node again. It owns partitions at once."""
        self.records.merge(self._hidden)
        had, now = self._had.pop(number), self.records.by_digest
        if is_behind:
            differing = [digest for digest in had.keys() | now.keys() if had.get(digest) is not now.get(digest)]
            self.nodes[number].copies = {digest: had.get(digest) for digest in differing}
        self.nodes[number].start()
        self._living.append(self.nodes[number])
        self.take_over()

    def end_migration(self, number: int) -> None:
        """Let a node that came back get what it lacks, and the others what it has."""
        self.records.merge(self.nodes[number].copies)
        self.nodes[number].moving_count = 0

    def cut_off(self, number: int) -> None:
        """Cut the network between a node and the others. Nobody has noticed yet."""
        node = self.nodes[number]
        node.records = self.records.parted()
        for each in self._living:
            each.unanswered = node.partitions

    def orphan(self, number: int) -> None:
        """Let both sides notice: each is a cluster that has all partitions. The client is told by its own nodes."""
        node = self.nodes[number]
        for each in self._living:
            each.unanswered = frozenset()
        self._living.remove(node)
        self.take_over()
        others, self._living = self._living, [node]
        self.take_over()
        self._living = others

    def rejoin(self, number: int) -> None:
        """Join the sides again. The writes that the node took alone are gone."""
        node = self.nodes[number]
        node.records, node.unanswered = self.records, frozenset()
        if node not in self._living:
            self._living.append(node)
        for each in self._living:
            each.unanswered = frozenset()
        self.take_over()

    def take_over(self) -> None:
        """Share all partitions among the running nodes, and tell the client."""
        self._generation += 1
        for rank, node in enumerate(self._living):
            node.partitions = frozenset(range(rank, PARTITION_COUNT, len(self._living)))
        for node in self._living:
            self._tell(node)

    def _tell(self, node: StandIn) -> None:
        count, rank = len(self._living), self._living.index(node)
        # The node after a partition's master has its first copy, the next node its second, and so on round the cluster.
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
        }
        node.node_count = count


def _node_name(number: int) -> str:
    return f"BB900000000000{number + 1}"
