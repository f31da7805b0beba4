"""The events of a history: operations of callers and payment systems, and faults. All of it follows from the seed.

A plan is two lists. Shrinking leaves out items of either list; what is left keeps its moments and numbers.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.world import START_S

# The operations and faults happen in this many seconds; then everything is healed.
DURATION_S = 20.0
_PAYMENTS = (8, 36)
_CARDS, _MERCHANTS, _DEVICES = 6, 4, 3

# Forms of hostile requests and poisoned records, by the kind of fault that brings them.
FORMS = {
    "hostile_request": ("reused", "garbage", "half"),
    "poisoned_request": ("groups", "varint"),
    "hostile_batch": ("reused_in_batch", "big_batch"),
    "poisoned_record": ("bytes", "null", "schema_id", "currency"),
    "header_name": ("header_name",),
}

# Faults that destroy something, or need an operator: a history has at most one of each.
HEAVY = ("damaged_outbox", "damaged_profile", "topic_recreated", "label_changes", "foreign_directory")
# With all of these every promise holds.
DEFAULT = (
    "death",
    "freeze",
    "torn",
    "slow",
    "clock_jump",
    "offset_regress",
    "partition_stall",
    "broker_away",
    "commit_doubt",
    "transaction_abort",
    "store_away",
    "store_flaky",
    "rebalance",
    "connections",
    "hostile_request",
    "poisoned_record",
    "emfile",
    "enospc",
    "death_in_look_up",
    "poisoned_request",
    "hostile_batch",
    "header_name",
    *HEAVY,
    "open_transaction",
    "poisoned_cursor",
    "damaged_cursor",
    "damaged_counts",
    "supervisor_death",
    "failed_fork",
    "hung_worker",
    "crash_loop",
    "swap",
    "index_death",
    "eio",
    "hung_broker",
    "hung_store",
    "slow_callers",
    "torn_file",
    "clock_leap",
)
# In histories with one of these, the host's own supervisor starts its workers.
SUPERVISED = ("supervisor_death", "failed_fork", "hung_worker", "crash_loop")
# Topics on which a stranger leaves a transaction open.
_HELD_UP = ("payments", "outcomes", "profiles", "repartition-card", "outbox-cursors", "decisions")
# A kind of fault that was added later is drawn apart, in one of N histories: histories of other seeds stay the same.
_DRAWN_APART = {
    "open_transaction": 8,
    "poisoned_cursor": 12,
    "damaged_cursor": 12,
    "damaged_counts": 12,
    "supervisor_death": 16,
    "failed_fork": 16,
    "hung_worker": 16,
    "crash_loop": 16,
    "swap": 8,
    "index_death": 16,
    "eio": 12,
    "hung_broker": 10,
    "hung_store": 10,
    "slow_callers": 10,
    "torn_file": 10,
    "clock_leap": 6,
}
PROCESSES = ("worker-0", "worker-1", "companion", "stream-0", "stream-1")


@dataclass(frozen=True)
class Item:
    """One operation or fault. `number` names it in a shrunk command."""

    number: int
    at: float
    kind: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        details = " ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{self.number}: {self.at:.2f} s {self.kind} {details}"


@dataclass
class Plan:
    seed: int
    operations: list[Item] = field(default_factory=list)
    faults: list[Item] = field(default_factory=list)
    # Whether the host's own supervisor starts its workers. It stays so when the plan is shrunk.
    is_supervised: bool = False
    # Whether an index of decisions follows their topic.
    has_index: bool = False

    def without(self, operations: Collection[int], faults: Collection[int]) -> Plan:
        """Returns the plan without the items of these numbers."""
        return Plan(
            self.seed,
            [item for item in self.operations if item.number not in operations],
            [item for item in self.faults if item.number not in faults],
            self.is_supervised,
            self.has_index,
        )

    def kept(self, operations: Collection[int], faults: Collection[int]) -> Plan:
        """Returns the plan with the items of these numbers alone."""
        return Plan(
            self.seed,
            [item for item in self.operations if item.number in operations],
            [item for item in self.faults if item.number in faults],
            self.is_supervised,
            self.has_index,
        )


def plan_of(seed: int, kinds: Sequence[str]) -> Plan:
    """Returns the plan of a seed with faults of these kinds. Each history has a few kinds only, each some times."""
    chance = random.Random(f"plan {seed}")
    plan = Plan(seed)
    _operations(plan, chance, kinds)
    usual = [kind for kind in kinds if kind not in FORMS and kind not in _DRAWN_APART]
    chosen = chance.sample(usual, min(len(usual), chance.choice((0, 1, 2, 2, 3, 3, 4, 5))))
    if len(usual) == 1:
        chosen = usual
    number = 0
    for kind in chosen:
        for _ in range(chance.choice((1, 1, 2, 3)) if kind not in HEAVY else 1):
            plan.faults.append(_fault(number, kind, chance))
            number += 1
    for kind, one_of in _DRAWN_APART.items():
        apart = random.Random(f"{kind} {seed}")
        # Alone, a kind is in every history.
        if kind in kinds and (len(kinds) == 1 or apart.randrange(one_of) == 0):
            plan.faults += [_fault(number + more, kind, apart) for more in range(apart.choice((1, 2)))]
            number = len(plan.faults)
    plan.faults.sort(key=lambda item: item.at)
    plan.is_supervised = any(item.kind in SUPERVISED for item in plan.faults)
    plan.has_index = any(item.kind == "index_death" for item in plan.faults)
    return plan


def _operations(plan: Plan, chance: random.Random, kinds: Sequence[str]) -> None:
    number = 0

    def add(at: float, kind: str, **arguments: Any) -> None:
        nonlocal number
        plan.operations.append(Item(number, at, kind, arguments))
        number += 1

    for index in range(chance.randint(*_PAYMENTS)):
        at = chance.random() * DURATION_S
        payment = _payment(f"p{index}", at, chance)
        if chance.random() < 0.8:
            size = chance.choice((1, 1, 1, 1, 2, 5, 12))
            batch = [payment] + [_payment(f"p{index}.{n}", at, chance) for n in range(1, size)]
            add(at, "score", payments=batch, worker=chance.randrange(2), json=chance.random() < 0.3)
            if chance.random() < 0.4:
                # A caller who repeats, at once or much later.
                later = at + chance.choice((0.0, 0.001, 0.5, 10.0)) * chance.random()
                add(later, "score", payments=batch, worker=chance.randrange(2), json=chance.random() < 0.3)
        if chance.random() < 0.7:
            on_topic = at + chance.choice((0.0, 0.1, 5.0)) * chance.random()
            add(on_topic, "pay", payment=payment)
            while chance.random() < 0.15:
                add(on_topic + chance.random() * 5, "pay", payment=payment)
            label_at = on_topic + 0.01
            while chance.random() < 0.4:
                label_at += chance.random() * 5
                add(label_at, "report", payment_id=payment["payment_id"], label=chance.choice(("fraud", "genuine")))
    for kind, forms in FORMS.items():
        # Alone, a kind is in every history.
        if kind not in kinds or (len(kinds) > 1 and chance.random() < 0.6):
            continue
        for index in range(chance.randint(1, 4)):
            at = chance.random() * DURATION_S
            add(
                at,
                kind,
                form=chance.choice(forms),
                payments=[_payment(f"{kind}{index}.{n}", at, chance) for n in range(3)],
                worker=chance.randrange(2),
                topic=chance.choice(("payments", "payments", "outcomes")),
                chance=chance.randrange(1 << 30),
            )
    plan.operations.sort(key=lambda item: item.at)


def _payment(payment_id: str, at: float, chance: random.Random) -> dict[str, Any]:
    # A payment may be made long before it is sent.
    age_ms = chance.choice((0, 1, 1000, 3_600_000, 4 * 86_400_000)) * chance.random()
    return {
        "payment_id": payment_id,
        "event_time_ms": START_S * 1000 + int(at * 1000 - age_ms),
        "card_id": f"c{chance.randrange(_CARDS)}",
        "merchant_id": f"m{chance.randrange(_MERCHANTS)}",
        "device_id": f"d{chance.randrange(_DEVICES)}" if chance.random() < 0.7 else None,
        "amount_minor": chance.randrange(1, 100_000),
        "currency": "EUR",
        "mcc": "5411",
        "country": "DE",
        "channel": "ecommerce",
    }


def _fault(number: int, kind: str, chance: random.Random) -> Item:
    at = chance.random() * DURATION_S
    arguments: dict[str, Any] = {}
    if kind in ("death", "freeze", "emfile", "enospc", "torn", "slow", "eio", "torn_file"):
        names = PROCESSES if kind in ("death", "freeze") else PROCESSES[:3]
        arguments["process"] = chance.choice(names)
    if kind == "death":
        arguments["after"] = chance.choice((0, 1, 2, 3, 5, 8, 13, 30, 80))
    elif kind == "death_in_look_up":
        arguments["process"] = chance.choice(PROCESSES[:2])
    elif kind == "freeze":
        arguments["seconds"] = chance.choice((0.05, 0.5, 3.0, 8.0, 12.0))
    elif kind in ("emfile", "enospc", "slow", "eio"):
        arguments |= {"seconds": chance.choice((0.2, 2.0, 8.0)), "count": chance.choice((1, 3, 1000))}
    elif kind == "clock_jump":
        machine = chance.choice(("host", "stream-host-0", "stream-host-1"))
        arguments |= {"machine": machine, "seconds": chance.choice((-20.0, -2.0, 2.0, 20.0))}
    elif kind == "clock_leap":
        machine = chance.choice(("host", "stream-host-0", "stream-host-1", "broker"))
        # Nobody notices clocks that are wrong by the same amount.
        leap_s = 1800.0 if machine == "broker" else 3600.0
        arguments |= {"machine": machine, "seconds": chance.choice((-leap_s, leap_s))}
    elif kind in ("broker_away", "store_away"):
        arguments["seconds"] = chance.choice((0.1, 1.0, 4.0, 9.0))
    elif kind == "store_flaky":
        arguments |= {"seconds": chance.choice((1.0, 5.0)), "share": chance.choice((0.2, 0.5, 0.9))}
    elif kind == "commit_doubt":
        arguments |= {"seconds": 10.0, "share": chance.choice((0.2, 0.6))}
    elif kind == "transaction_abort":
        arguments |= {"seconds": 10.0, "share": chance.choice((0.2, 0.8))}
    elif kind in ("hung_broker", "hung_store"):
        arguments["seconds"] = chance.choice((1.0, 6.0, 12.0))
    elif kind == "slow_callers" or kind == "connections":
        arguments |= {"worker": chance.randrange(2), "count": chance.choice((5, 40)), "seconds": 10.0}
    elif kind == "open_transaction":
        topic = chance.choice((*_HELD_UP, "payments"))
        arguments |= {"topic": topic, "seconds": chance.choice((0.5, 5.0, 15.0))}
    elif kind in ("poisoned_cursor", "damaged_cursor", "damaged_counts", "hung_worker"):
        arguments["process"] = chance.choice(PROCESSES[:2])
    elif kind in ("supervisor_death", "index_death"):
        arguments["after"] = chance.choice((0, 1, 5, 13, 40))
    elif kind in ("failed_fork", "crash_loop"):
        arguments |= {"process": chance.choice(PROCESSES[:2]), "seconds": chance.choice((0.5, 3.0, 8.0))}
    elif kind == "swap":
        arguments["to"] = chance.choice(("other", "back", "canary", "damaged"))
    elif kind == "partition_stall":
        arguments["process"] = chance.choice(("companion", "stream-0", "stream-1"))
    elif kind == "topic_recreated":
        arguments["topic"] = "payments"
    arguments["chance"] = chance.randrange(1 << 30)
    return Item(number, at, kind, arguments)
