"""The ledger of merchants: payments, frauds, disputes and enumerated payments by merchant and day, for schemes' ratios.

Card schemes watch merchants by month. Visa's programme (VAMP) has two ratios, which the ledger gives for each month:

    fraud and dispute ratio    (frauds + disputes) / payments that were not declined
    enumeration ratio          payments during an episode of enumeration / all payments

Outcomes come weeks after their payments, and corrections later still. So a day is never added up: it is counted again
from the index's own tables, a day at each `step`, over the last DAYS days in turn. Corrections, repeated decisions and
erasures then need no care of their own. Older days keep what was counted last.

A payment counts once a day, whatever the number of decisions about it, and by its newest outcome. A dispute is a
payment with an outcome whose source is `chargeback`; a payment may be a fraud and a dispute, as in the schemes' own
counts. The ledger has decisions where the schemes have settled payments: its ratios are early warnings, no statement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from paywarden.streams.decision_index.database import Database, Transaction
from paywarden.streams.decision_index.rows import COUNTED_WORTH, outcomes_sql
from paywarden.streams.decision_index.search import key_hash

DAYS = 130
"""Visa takes disputes up to 120 days after a payment."""
_DAY_MS, _HOURS = 86_400_000, 24
_COLUMNS = (
    *("payments", "amount_minor", "approved", "approved_minor", "frauds", "fraud_minor", "disputes"),
    *("enumerated", "enumerated_minor"),
)
_PAYMENTS = "SELECT payment_hash FROM decisions WHERE decided_time_ms >= ? AND decided_time_ms < ?"
_COUNT = f"""
    INSERT INTO merchant_days (day, merchant_id, {", ".join(_COLUMNS)})
    SELECT ?, p.merchant_id, count(*), sum(p.worth), sum(p.approved), sum(p.approved * p.worth),
        sum(CASE WHEN o.label = 'fraud' THEN 1 ELSE 0 END),
        sum(CASE WHEN o.label = 'fraud' THEN p.worth ELSE 0 END), coalesce(sum(o.disputed), 0),
        sum(CASE WHEN e.payment_hash IS NULL THEN 0 ELSE 1 END),
        sum(CASE WHEN e.payment_hash IS NULL THEN 0 ELSE p.worth END)
    FROM (
        SELECT payment_hash, min(merchant_id) AS merchant_id, {COUNTED_WORTH} AS worth,
            CASE WHEN min(action) < 2 THEN 1 ELSE 0 END AS approved
        FROM decisions WHERE decided_time_ms >= ? AND decided_time_ms < ? GROUP BY payment_hash
    ) AS p
    LEFT JOIN ({outcomes_sql(_PAYMENTS)}) AS o ON o.payment_hash = p.payment_hash AND o.place = 1
    LEFT JOIN (
        SELECT DISTINCT payment_hash FROM episode_payments WHERE decided_time_ms >= ? AND decided_time_ms < ?
    ) AS e ON e.payment_hash = p.payment_hash
    GROUP BY p.merchant_id
"""


@dataclass(frozen=True)
class MerchantMonth:
    """A merchant's month. Money in minor units of the reference currency, without payments that have no rate."""

    merchant_id: str
    payments: int
    amount_minor: int
    approved: int
    approved_minor: int
    frauds: int
    fraud_minor: int
    disputes: int
    enumerated: int
    enumerated_minor: int

    @property
    def fraud_ratio(self) -> float | None:
        """Frauds and disputes by payments that were not declined; None without any."""
        return (self.frauds + self.disputes) / self.approved if self.approved else None

    @property
    def enumeration_ratio(self) -> float:
        """The share of payments during an episode."""
        return self.enumerated / self.payments


class MerchantLedger:
    """Counts days, and reads months. Thread-safe, as its database is."""

    def __init__(self, database: Database, *, now_ms: Callable[[], int]) -> None:
        self._database, self._now_ms = database, now_ms
        self._next = 0

    def step(self) -> None:
        """Count today again, and one of the days before in turn. Raises TemporaryFailure."""
        today = self._now_ms() // _DAY_MS
        with self._database.reading() as transaction:
            rows = transaction.execute(
                "SELECT DISTINCT hour FROM hours WHERE decisions > 0 AND hour >= ?", ((today - DAYS) * _HOURS,)
            )
        days = sorted({int(hour) // _HOURS for (hour,) in rows}, reverse=True)
        if not days:
            return
        self._next = self._next + 1 if self._next + 1 < len(days) else 0
        for day in {days[0], days[self._next]}:
            with self._database.transaction() as transaction:
                # Two consoles on one PostgreSQL must not count a day at the same time.
                self._database.fill_alone(transaction)
                count_day(transaction, day)


def count_day(transaction: Transaction, day: int) -> None:
    """Count a UTC day, by the times of its decisions, from the index's tables."""
    transaction.execute("DELETE FROM merchant_days WHERE day = ?", (day,))
    span = day * _DAY_MS, (day + 1) * _DAY_MS
    transaction.execute(_COUNT, (day, *span, *span, *span))


def months(database: Database) -> list[str]:
    """Returns the months that the ledger has, the newest first: "2026-12"."""
    with database.reading() as transaction:
        rows = transaction.execute("SELECT DISTINCT day FROM merchant_days")
    return sorted({_month_of(int(day)) for (day,) in rows}, reverse=True)


def month_of_merchants(database: Database, month: str, count: int) -> list[MerchantMonth]:
    """Returns a month of at most `count` merchants: those with the most frauds, disputes and enumerated first."""
    sums = ", ".join(f"sum({name}) AS {name}" for name in _COLUMNS)
    with database.reading() as transaction:
        rows = transaction.execute(
            f"SELECT * FROM (SELECT merchant_id, {sums} FROM merchant_days WHERE day >= ? AND day < ? "
            "GROUP BY merchant_id) AS m ORDER BY frauds + disputes + enumerated DESC, payments DESC, merchant_id "
            f"LIMIT {int(count)}",
            _days_of(month),
        )
    return [MerchantMonth(row[0], *map(int, row[1:])) for row in rows]


def forget_merchant(transaction: Transaction, merchant_hash: int, until_day: int) -> None:
    """Take an erased merchant out of the ledger."""
    rows = transaction.execute("SELECT DISTINCT merchant_id FROM merchant_days WHERE day <= ?", (until_day,))
    for (merchant_id,) in rows:
        if key_hash("merchant_id", merchant_id) == merchant_hash:
            where = "merchant_id = ? AND day <= ?"
            transaction.execute(f"DELETE FROM merchant_days WHERE {where}", (merchant_id, until_day))


def _month_of(day: int) -> str:
    return datetime.fromtimestamp(day * _DAY_MS / 1000, UTC).strftime("%Y-%m")


def _days_of(month: str) -> tuple[int, int]:
    """Returns a month's first day, and the first day after it, as days since the epoch."""
    year, number = map(int, month.split("-"))
    begin = datetime(year, number, 1, tzinfo=UTC)
    end = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(begin.timestamp()) * 1000 // _DAY_MS, int(end.timestamp()) * 1000 // _DAY_MS
