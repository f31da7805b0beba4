"""From a rate of payments and a number of entities to cores, memory, partitions, network and disk.

    busy cores of a process  =  what perf.whole measured at that rate, or on the line between two rates
    cores to have            =  busy cores / UTILISATION

1. A scoring host answers its share of the payments, but its companion applies the *whole* changelog: a profile of each
   kind of entity for each payment of all hosts. More hosts do not relieve it, and a companion is one process. The plan
   says when one core is not enough for that. Where hosts hold a part of the cards each ([shards]), a companion applies
   the cards that it holds, and only skips the others.
2. Stream workers share partitions. More of them than partitions would idle.
3. Disks are planned for the average rate and the retention in the settings, everything else for the required rate.

Example: at 500 payments a second a scoring worker kept 0.12 cores busy and at 1,000 it kept 0.19. For 750 on one host
0.155 busy cores are expected, 0.31 are planned, and one worker is more than enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from paywarden.ops.capacity.coefficients import PARTS, SIZES, Coefficients, Sizes
from paywarden.schemas.errors import Misconfigured

UTILISATION = 0.5
"""The share of its cores that a process keeps busy at the planned rate. Queues grow fast above it."""
PARTITIONS_MAX = 64
UNEVEN = 1.2
"""How much more than its share of the shards the fullest of ten hosts has (simulated)."""
_DAY_S = 86_400
# A worker has at least this many partitions, so that work spreads evenly.
_PARTITIONS_PER_WORKER = 2


@dataclass(frozen=True)
class Requirements:
    """The load that a deployment must carry, and its hosts.

    `rate`: payments a second at the busiest time, all hosts together. `entities`: profiles of all kinds together.
    `average_share`: the average rate as a share of `rate`. `sharded_share`: the share of the profiles that hosts hold
    a part of each (cards, and what belongs to a card), on `copies` hosts each; 0: every host holds all.
    """

    rate: float
    entities: float
    hosts: int
    average_share: float = 0.4
    sharded_share: float = 0.0
    copies: int = 2

    @property
    def held_share(self) -> float:
        """The share of the sharded profiles that the fullest host holds."""
        return min(1.0, UNEVEN * self.copies / self.hosts) if self.sharded_share else 1.0

    @property
    def mirror_profiles(self) -> float:
        """The profiles in the fullest mirror."""
        return self.entities * (1 - self.sharded_share * (1 - self.held_share))

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the number that cannot be."""
        for name, value in (("rate", self.rate), ("entities", self.entities)):
            if not 0 <= value < 1e12:
                raise Misconfigured(f"{name}: wanted a number from 0 to 1e12, got {value:g}")
        if not 1 <= self.hosts <= 10_000:
            raise Misconfigured(f"hosts: wanted 1 to 10000, got {self.hosts}")
        if not 0 < self.average_share <= 1:
            raise Misconfigured(f"average share: wanted above 0, at most 1, got {self.average_share:g}")
        if not 0 <= self.sharded_share <= 1:
            raise Misconfigured(f"sharded share: wanted 0 to 1, got {self.sharded_share:g}")
        if self.copies < 1:
            raise Misconfigured(f"copies: wanted at least 1, got {self.copies}")


@dataclass(frozen=True)
class KeptBytes:
    """Retention and copies in the settings."""

    kinds: int
    """Kinds of entities of the catalogue."""
    sharded_kinds: int
    """The kinds whose profiles are divided over the hosts, if any are."""
    partitions: int
    """Partitions of the topics payments and outcomes."""
    kafka_replication: int
    kafka_days: float
    """How long the topics of payments and decisions keep their records."""
    store_replication: int
    store_days: float
    """How long the store keeps payments' records."""
    answered_window_s: int
    answered_slots: int
    outbox_bytes_max: int


@dataclass(frozen=True)
class Need:
    """The resources that all processes of one kind need together."""

    processes: int
    busy_cores: float
    """The cores that the processes keep busy at the required rate."""
    cores: float
    """The cores to provide."""
    memory_bytes: int
    disk_bytes: int
    network_bytes_per_second: float
    """In and out."""


@dataclass(frozen=True)
class CapacityPlan:
    """Needs by part: PARTS and `store`. `partitions` of payments and outcomes; `warnings` in sentences."""

    needs: dict[str, Need]
    partitions: int
    host_memory_bytes: int
    """The memory of one scoring host, its mirror included."""
    warnings: tuple[str, ...]
    marker_bytes: int
    """The further disk of an Aerospike Community cluster after a rebuild: markers of the dropped set's records."""

    @property
    def cores(self) -> float:
        """Returns the cores of all processes of ours and Kafka's. The store's are not planned."""
        return sum(self.needs[part].cores for part in PARTS)


def busy_cores(costs: Coefficients, asked: Requirements, kinds: int, sharded_kinds: int = 0) -> dict[str, float]:
    """Returns by part the cores that are busy at the rate asked for. `sharded_kinds` of entities are among `kinds`."""
    busy = {part: costs.busy(part, asked.rate) for part in PARTS}
    fixed = {part: costs.busy(part, 0.0) for part in PARTS}
    # Each host has its share of the payments, and the fixed cost of its processes.
    busy["serve"] = asked.hosts * costs.busy("serve", asked.rate / asked.hosts)
    work = max(0.0, busy["companion"] - fixed["companion"])
    apply = min(costs.cpu_us_per_profile / 1e6 * kinds * asked.rate, work)
    # A companion applies the sharded profiles that its host holds, and skips the rest.
    skipped = (1 - asked.held_share) * sharded_kinds
    skip = min(costs.cpu_us_per_skipped_profile, costs.cpu_us_per_profile) / 1e6 * skipped * asked.rate
    own = apply * (kinds - skipped) / kinds + skip
    busy["companion"] = asked.hosts * (fixed["companion"] + own) + (work - apply)
    return busy


def plan(costs: Coefficients, asked: Requirements, kept: KeptBytes, sizes: Sizes = SIZES) -> CapacityPlan:
    """Returns the resources that a deployment needs. See the module."""
    busy = busy_cores(costs, asked, kept.kinds, kept.sharded_kinds)
    stream_workers = max(1, math.ceil(busy["stream"] / UTILISATION))
    partitions = min(PARTITIONS_MAX, max(kept.partitions, _PARTITIONS_PER_WORKER * stream_workers))
    serve_workers = asked.hosts * max(1, math.ceil(busy["serve"] / UTILISATION / asked.hosts))
    average = asked.rate * asked.average_share
    mirror = int(asked.mirror_profiles * sizes.mirror_profile)
    answered = kept.answered_slots * sizes.answered_slot
    decisions = int(asked.rate / asked.hosts * kept.answered_window_s * sizes.outbox_decision)
    host_memory = mirror + answered + sizes.process["companion"] + serve_workers // asked.hosts * sizes.process["serve"]
    kafka_in, kafka_out = costs.kafka_bytes_in_per_payment, costs.kafka_bytes_out_per_payment
    # The changelog goes to each host. The measured figures already contain the reading of one host.
    changelog = kept.kinds * sizes.mirror_profile * (asked.hosts - 1)
    kafka_network = asked.rate * (kafka_in * kept.kafka_replication + kafka_out + changelog)
    payments = average * _DAY_S * kept.store_days
    store_bytes = asked.entities * sizes.store_profile + payments * sizes.store_payment
    marker_bytes = (asked.entities + payments) * sizes.store_marker
    needs = {
        "serve": _need(serve_workers, busy["serve"], asked.hosts * host_memory, 0, asked.rate * 1500),
        "companion": _need(
            asked.hosts,
            busy["companion"],
            0,
            serve_workers * kept.outbox_bytes_max + asked.hosts * decisions,
            asked.rate * (kept.kinds * sizes.mirror_profile * asked.hosts + sizes.outbox_decision),
        ),
        "stream": _need(
            stream_workers,
            busy["stream"],
            stream_workers * sizes.process["stream"],
            0,
            asked.rate * (kafka_in + kafka_out),
        ),
        "kafka": _need(
            max(3, kept.kafka_replication) if kept.kafka_replication > 1 else 1,
            busy["kafka"] * kept.kafka_replication,
            0,
            int(average * _DAY_S * kept.kafka_days * kafka_in * kept.kafka_replication),
            kafka_network,
        ),
        "store": _need(0, 0.0, 0, int(store_bytes * kept.store_replication), 0.0),
    }
    return CapacityPlan(
        needs,
        partitions,
        host_memory,
        tuple(_warnings(asked, kept, busy, stream_workers)),
        int(marker_bytes * kept.store_replication),
    )


def _need(processes: int, busy: float, memory: int, disk: int, network: float) -> Need:
    return Need(processes, busy, busy / UTILISATION, memory, disk, network)


def _warnings(asked: Requirements, kept: KeptBytes, busy: dict[str, float], stream_workers: int) -> list[str]:
    found = []
    of_one = busy["companion"] / asked.hosts
    if of_one > UTILISATION:
        found.append(
            f"each companion would keep {of_one:.1f} cores busy and is one process: every host applies the whole "
            "changelog, but for cards with [shards] (--sharded-share), and more hosts do not change that. Measure with "
            "perf.companion, and split the payments over clusters of their own"
        )
    if stream_workers > PARTITIONS_MAX:
        found.append(
            f"the stream needs {stream_workers} workers, and payments can have {PARTITIONS_MAX} partitions at most"
        )
    elif stream_workers > kept.partitions:
        found.append(f"{stream_workers} stream workers need more than the {kept.partitions} partitions of [topics]")
    slots = asked.rate / asked.hosts * kept.answered_window_s
    if slots > kept.answered_slots * 0.8:
        found.append(
            f"each host answers {slots:,.0f} payments within [answered] window_s: payments_max must be above that"
        )
    return found
