"""Decisions that the index must not have any more: `paywarden admin forget` says so on the topic console-events.

    forget card:c7 at 12:00  ──►  console-events   subject erased:5f0c…, kind erased, what {"card_id": "5f0c…"}
                             ──►  the index        c7's decisions until 12:00 go; `forgotten` has the hash and the time
    --rebuild                ──►  decisions of c7 come from their topic again, and are passed over

The event and the index hold hashes of ids, never an id. Erasures and decisions may be read in any order. An erasure
removes the rows that are in the index, and each later row is compared with all erasures. A decision made after the
erasure is in the index, as a payment made after it begins a new profile.

Outcomes and verdicts name a payment alone. The index therefore remembers the hashes of the payments that it passed
over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from paywarden.streams.alerts.alert_events import ConsoleEvent
from paywarden.streams.decision_index.search import key_hash

if TYPE_CHECKING:
    from paywarden.streams.decision_index.database import Transaction

ERASED: Final = "erased"
"""The kind of the events, and the beginning of their subjects."""
FIELDS: Final = ("card_id", "merchant_id", "device_id", "ip")
"""The fields of a decision that an erasure may name."""
_SHIFT = 1 << 64
# A hash as an event has it.
_HASH = re.compile(r"[0-9a-f]{16}")


def hash_text(hash_: int) -> str:
    """Returns the hash of an entity as events have it: 16 hex digits."""
    return f"{hash_ + _SHIFT // 2:016x}"


@dataclass(frozen=True)
class Erasure:
    """Decisions until `until_ms` that have the hash of each of these fields."""

    hashes: Mapping[str, int]
    until_ms: int

    @classmethod
    def of(cls, ids: Mapping[str, str], until_ms: int) -> Erasure | None:
        """Returns the erasure of decisions with these ids, by field; None if decisions have not all of these fields."""
        if not ids or not set(ids) <= set(FIELDS):
            return None
        return cls({name: key_hash(name, value) for name, value in ids.items()}, until_ms)

    @classmethod
    def of_event(cls, record: Mapping[str, Any]) -> Erasure | None:
        """Returns the erasure in a record of console-events; None for any other record."""
        if record["kind"] != ERASED:
            return None
        texts = record["what"]
        if not texts or not set(texts) <= set(FIELDS) or not all(map(_HASH.fullmatch, texts.values())):
            return None
        return cls({name: int(text, 16) - _SHIFT // 2 for name, text in texts.items()}, record["time_ms"])

    def event(self, by: str) -> ConsoleEvent:
        """Returns the event that tells every index."""
        what = {name: hash_text(hash_) for name, hash_ in sorted(self.hashes.items())}
        return ConsoleEvent(f"{ERASED}:{'-'.join(what.values())}", ERASED, by, self.until_ms, what)

    def holds(self, decision: Mapping[str, Any]) -> bool:
        """Whether a decision is one of them."""
        return decision["decided_time_ms"] <= self.until_ms and all(
            decision[name] and key_hash(name, decision[name]) == hash_ for name, hash_ in self.hashes.items()
        )

    @property
    def key(self) -> str:
        """The erasure's key in the database: fields and hashes."""
        return " ".join(f"{name}={hash_}" for name, hash_ in sorted(self.hashes.items()))


class Erasures:
    """All erasures that an index knows, to compare decisions with."""

    def __init__(self, erasures: Iterable[Erasure]) -> None:
        self._by_first: dict[tuple[str, int], list[Erasure]] = {}
        for one in erasures:
            self._by_first.setdefault(min(one.hashes.items()), []).append(one)
        self._fields = sorted({name for name, _ in self._by_first})

    def __bool__(self) -> bool:
        return bool(self._by_first)

    def hold(self, decision: Mapping[str, Any]) -> bool:
        """Whether a decision is erased."""
        return any(
            one.holds(decision)
            for name in self._fields
            if decision[name]
            for one in self._by_first.get((name, key_hash(name, decision[name])), ())
        )


def read_erasures(transaction: Transaction) -> Erasures:
    """Returns the erasures in the database."""
    rows = transaction.execute("SELECT name, until_ms FROM forgotten")
    return Erasures(
        Erasure({part.partition("=")[0]: int(part.partition("=")[2]) for part in name.split(" ")}, until_ms)
        for name, until_ms in rows
    )


def note_erasure(transaction: Transaction, erasure: Erasure) -> None:
    """Remember an erasure. If two have the same ids, the later one counts."""
    transaction.execute(
        "INSERT INTO forgotten (name, until_ms) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET "
        "until_ms = greatest(forgotten.until_ms, excluded.until_ms)",
        (erasure.key, erasure.until_ms),
    )


def pass_over(transaction: Transaction, payment_hashes: Sequence[int]) -> None:
    """Remember payments whose outcomes and verdicts the index must not take in."""
    for payment_hash in payment_hashes:
        transaction.execute(
            "INSERT INTO forgotten_payments (payment_hash) VALUES (?) ON CONFLICT DO NOTHING", (payment_hash,)
        )


def passed_over(transaction: Transaction, payment_hashes: Iterable[int]) -> set[int]:
    """Returns those of the payments that the index must not know."""
    asked = sorted(set(payment_hashes))
    if not asked:
        return set()
    rows = transaction.execute(
        f"SELECT payment_hash FROM forgotten_payments WHERE payment_hash IN ({', '.join(map(str, asked))})"
    )
    return {row[0] for row in rows}
