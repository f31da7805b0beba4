"""Counts the payments that a rule fired on, by their outcome (fraud, genuine or unknown), in all and by week."""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.streams.decision_index.database import Transaction
from paywarden.streams.decision_index.outcome_counts import period_begin
from paywarden.streams.decision_index.search import key_hash

RULE_DECISIONS_MAX = 10_000
"""The most decisions of a rule that are looked at: the newest ones."""
_LABELS = ("fraud", "genuine", "")
_Newest = dict[tuple[int, int], tuple[int, str]]


@dataclass(frozen=True)
class RuleCatch:
    """The payments that a rule fired on: known as fraud, known as genuine, and without an outcome so far.

    Money in minor units of the reference currency, without payments that have no rate. `is_all` is False where the rule
    fired more often than RULE_DECISIONS_MAX; its newest decisions, since `since_ms`, then count.
    """

    rule: str
    frauds: int
    genuine: int
    unknown: int
    fraud_minor: int
    genuine_minor: int
    unknown_minor: int
    since_ms: int
    is_all: bool

    @property
    def fired(self) -> int:
        """Decisions that name the rule among their reasons."""
        return self.frauds + self.genuine + self.unknown

    @property
    def fraud_share(self) -> float | None:
        """The share of known payments that were fraud; None without any."""
        known = self.frauds + self.genuine
        return self.frauds / known if known else None


def rule_catch(transaction: Transaction, rule: str, since_ms: int) -> RuleCatch:
    """Returns the catches of a rule since a time, from its newest RULE_DECISIONS_MAX decisions."""
    newest = _newest(transaction, rule, since_ms)
    since_ms = min((time_ms for time_ms, _ in newest), default=since_ms)
    return _catch(rule, newest, since_ms, is_all=len(newest) < RULE_DECISIONS_MAX)


def rule_weeks(transaction: Transaction, rule: str, since_ms: int) -> list[RuleCatch]:
    """Returns the same by week, which begins on Monday (UTC), the newest week first."""
    newest = _newest(transaction, rule, since_ms)
    weeks: dict[int, _Newest] = {}
    for place, told in newest.items():
        weeks.setdefault(period_begin(place[0], "week"), {})[place] = told
    oldest = min(weeks, default=0)
    is_whole = len(newest) < RULE_DECISIONS_MAX
    return [_catch(rule, weeks[at], at, is_all=is_whole or at > oldest) for at in sorted(weeks, reverse=True)]


def _newest(transaction: Transaction, rule: str, since_ms: int) -> _Newest:
    """Returns the money and the newest label of each of a rule's newest decisions, by time and payment."""
    rows = transaction.execute(
        "SELECT p.decided_time_ms, p.payment_hash, d.worth_minor, o.label FROM (SELECT DISTINCT "
        "decided_time_ms, payment_hash FROM keys WHERE hash = ? AND decided_time_ms >= ? ORDER BY "
        f"decided_time_ms DESC, payment_hash DESC LIMIT {RULE_DECISIONS_MAX}) AS p JOIN decisions d ON "
        "d.decided_time_ms = p.decided_time_ms AND d.payment_hash = p.payment_hash LEFT JOIN outcomes o ON "
        "o.payment_hash = p.payment_hash WHERE d.decided_time_ms >= ? ORDER BY o.outcome_time_ms, o.label",
        (key_hash("rule", rule), since_ms, since_ms),
    )
    # The newest outcome of a payment comes last, and counts.
    return {(time_ms, payment_hash): (worth or 0, label or "") for time_ms, payment_hash, worth, label in rows}


def _catch(rule: str, newest: _Newest, since_ms: int, *, is_all: bool) -> RuleCatch:
    counts, money = dict.fromkeys(_LABELS, 0), dict.fromkeys(_LABELS, 0)
    for worth, label in newest.values():
        counts[label] += 1
        money[label] += worth
    return RuleCatch(
        rule=rule,
        frauds=counts["fraud"],
        genuine=counts["genuine"],
        unknown=counts[""],
        fraud_minor=money["fraud"],
        genuine_minor=money["genuine"],
        unknown_minor=money[""],
        since_ms=since_ms,
        is_all=is_all,
    )
