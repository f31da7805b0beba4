"""The review queue: payments that the policy wants somebody to look at, each with one analyst at a time.

    p1  EUR 900, score 0.80     a look gains  0.00 (routing.py)      waits 2 h     priority 0
    p2  EUR 100, score 0.05     a look gains  3.30                   waits 2 h     priority 3.30 x (24 + 2)  = 85.80
    p3  EUR 90,  score 0.05     a look gains  2.97                   waits 20 h    priority 2.97 x (24 + 20) = 130.68

1. *Claim*: an analyst takes the payment with the highest priority that nobody holds, p3. Payments of one priority come
   by amount x score x wait. The claim expires after a while: a payment does not wait for somebody who has gone home.
2. *Verdict*: fraud, genuine or unsure, with a reason. It counts only with a claim that still holds. The same verdict
   with the same claim, as from a form that was sent twice, counts once.
3. *Outbox*: when the analyst has the answer, the verdict is in the database and marked as unsent. `VerdictSender` sends
   it to the topic `verdicts` and marks it after the broker has it. After a kill it sends the verdicts without a mark
   again. A verdict therefore comes at least once, with the same verdict_id.
4. *Second review*: a share of the payments, chosen by the hash of their ids, goes to a second analyst, who does not see
   the first verdict. The agreement comes from these pairs.

A payment leaves the queue with its last verdict, with an outcome, or when it is older than `age_ms_max`.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paywarden.models.metrics.costs import CostSettings
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.decision_index.database import Database, Transaction
from paywarden.streams.decision_index.routing import VERDICTS, MeasuredAnalysts, gain_sql
from paywarden.streams.decision_index.rows import newest_outcomes
from paywarden.streams.decision_index.search import key_hash
from paywarden.streams.decision_index.tallies import SEGMENTS

REASONS = (
    "cardholder_confirmed",
    "cardholder_denied",
    "known_pattern",
    "shared_with_fraud",
    "account_taken_over",
    "usual_for_the_card",
    "merchant_explained",
    "not_enough_to_say",
    "other",
)
NOTE_MAX = 2_000
_DAY_MS = 86_400_000
# Analysts are measured on their newest verdicts, which are enough for shares that are right to 2 %.
_MEASURED_VERDICTS, _MEASURE_EVERY_MS = 2_000, 600_000
_SHARES = 10_000
_ANALYST = "analyst"


@dataclass(frozen=True)
class ReviewRules:
    """The rules of the queue. `second_share`: of the payments, from 0 to 1. `unreviewed`: one of routing.UNREVIEWED."""

    claim_ms: int = 900_000
    second_share: float = 0.05
    age_ms_max: int = 7 * _DAY_MS
    costs: CostSettings = field(default_factory=CostSettings)
    unreviewed: str = "cheaper"


class ClaimLost(InvalidEvent):
    """The claim has expired, or the payment is no longer in the queue."""


@dataclass(frozen=True)
class WaitingReview:
    """A payment in the queue. `holder` is empty where nobody holds it. `gain_minor`: the expected gain of a look."""

    decision_id: str
    decided_time_ms: int
    payment_hash: int
    payment_id: str
    score: float
    worth_minor: int
    turn: int
    holder: str
    held_until_ms: int
    gain_minor: int

    @property
    def stake_minor(self) -> int:
        """The money at stake: the amount in the reference currency times the score."""
        return round(self.worth_minor * self.score)


@dataclass(frozen=True)
class ReviewClaim:
    """A payment that an analyst holds until `until_ms`. `token` goes with the verdict."""

    token: str
    waiting: WaitingReview
    until_ms: int


@dataclass(frozen=True)
class AnalystVerdict:
    """An analyst's verdict, with the fields of the topic."""

    verdict_id: str
    decision_id: str
    payment_id: str
    verdict: str
    reason: str
    note: str
    analyst: str
    turn: int
    claimed_time_ms: int
    verdict_time_ms: int

    def record(self) -> dict[str, Any]:
        """Returns the record of topic verdicts."""
        return dict(vars(self))


@dataclass(frozen=True)
class Throughput:
    """An analyst's work in a span of time. `median_s`: from claim to verdict."""

    analyst: str
    verdicts: int
    frauds: int
    median_s: float


@dataclass(frozen=True)
class ReviewAgreement:
    """Payments with two verdicts. `kappa`: Cohen's, agreement beyond chance; None without two or if chance is all."""

    pairs: int
    equal: int
    kappa: float | None


_WAITING = "decision_id, decided_time_ms, payment_hash, payment_id, score, worth_minor, turn, holder, held_until_ms"
_VERDICT = "verdict_id, decision_id, payment_id, verdict, reason, note, analyst, turn, claimed_ms, time_ms"


_OWN = "holder = ? AND held_until_ms > ?"
_FREE = (
    "NOT (holder <> '' AND held_until_ms > ?) AND NOT EXISTS "
    "(SELECT 1 FROM verdicts v WHERE v.decision_id = reviews.decision_id AND v.analyst = ?)"
)


class ReviewQueue:
    """The queue in the database of the index. Thread-safe, also between processes on PostgreSQL."""

    def __init__(self, database: Database, settings: ReviewRules) -> None:
        self._database, self._settings = database, settings
        self._measured, self._measured_ms = MeasuredAnalysts(), 0

    # Filled from the topics

    def add_decisions(
        self, transaction: Transaction, decisions: Iterable[Mapping[str, Any]], worths: Iterable[int]
    ) -> None:
        """Adds decisions with the action `review`, in the form of their topic; `worths`: the amount of each in the
        reference currency."""
        asked = [
            (decision, worth)
            for decision, worth in zip(decisions, worths, strict=True)
            if decision["action"] == "review"
        ]
        if not asked:
            return
        # A repeated decision would be refused as a whole by some databases.
        unique = {decision["decision_id"]: (decision, worth) for decision, worth in asked}
        transaction.append(
            "reviews",
            {
                "decision_id": list(unique),
                "decided_time_ms": [decision["decided_time_ms"] for decision, _ in unique.values()],
                "payment_hash": [key_hash("payment_id", decision["payment_id"]) for decision, _ in unique.values()],
                "payment_id": [decision["payment_id"] for decision, _ in unique.values()],
                # For charts.
                **{name: [decision.get(name) or "" for decision, _ in unique.values()] for name in SEGMENTS},
                "score": [decision["score"] for decision, _ in unique.values()],
                "worth_minor": [worth for _, worth in unique.values()],
                "status": ["open"] * len(unique),
                "turn": [1] * len(unique),
                "holder": [""] * len(unique),
                "claim": [""] * len(unique),
                "claimed_ms": [0] * len(unique),
                "held_until_ms": [0] * len(unique),
            },
        )
        # Verdicts may have come before their decisions.
        self._settle(transaction, list(unique))

    @staticmethod
    def add_outcomes(transaction: Transaction, outcomes: Iterable[Mapping[str, Any]]) -> None:
        """Takes payments out of the queue whose outcome is known."""
        hashes = {key_hash("payment_id", outcome["payment_id"]) for outcome in outcomes}
        if hashes:
            transaction.execute(
                "UPDATE reviews SET status = 'known' WHERE status = 'open' AND payment_hash IN "
                f"({', '.join(map(str, hashes))})"
            )

    def add_verdicts(self, transaction: Transaction, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds verdicts from their topic: those of other consoles, and ours from before the database was lost."""
        for record in records:
            said = AnalystVerdict(**{name: record[name] for name in AnalystVerdict.__dataclass_fields__})
            self._insert(transaction, said, sent=True)
        self._settle(transaction, [record["decision_id"] for record in records])

    # An analyst's acts

    def claim(self, analyst: str, now_ms: int, *, decision_id: str = "") -> ReviewClaim | None:
        """Gives an analyst the first payment of the queue, or that of a decision; None if there is none to give.

        An analyst who holds one already gets it again, with its claim prolonged.
        """
        gain = self.gain_sql(now_ms)
        with self._database.transaction() as transaction:
            for condition, values in (
                (_OWN, (analyst, now_ms)),
                (_FREE, (now_ms, analyst)),
            ):
                for waiting in self._first(transaction, gain, condition, values, now_ms, decision_id):
                    return self._hold(transaction, waiting, analyst, now_ms)
        return None

    def _first(
        self,
        transaction: Transaction,
        gain: str,
        condition: str,
        values: Sequence[Any],
        now_ms: int,
        decision_id: str,
    ) -> list[WaitingReview]:
        of_one, more = (" AND decision_id = ?", [decision_id]) if decision_id else ("", [])
        lock = " FOR UPDATE SKIP LOCKED" if self._database.name == "PostgreSQL" else ""
        rows = transaction.execute(
            f"SELECT {_WAITING}, {gain} FROM reviews WHERE status = 'open' AND decided_time_ms >= ? "
            f"AND {condition}{of_one} ORDER BY {_priority(gain, now_ms)} LIMIT 1{lock}",
            [self.oldest_ms(now_ms), *values, *more],
        )
        return [WaitingReview(*row) for row in rows]

    def _hold(self, transaction: Transaction, waiting: WaitingReview, analyst: str, now_ms: int) -> ReviewClaim:
        until_ms = now_ms + self._settings.claim_ms
        again = waiting.holder == analyst and waiting.held_until_ms > now_ms
        token = secrets.token_hex(16)
        if again:
            ((token,),) = transaction.execute("SELECT claim FROM reviews WHERE decision_id = ?", (waiting.decision_id,))
            transaction.execute(
                "UPDATE reviews SET held_until_ms = ? WHERE decision_id = ?", (until_ms, waiting.decision_id)
            )
        else:
            transaction.execute(
                "UPDATE reviews SET holder = ?, claim = ?, claimed_ms = ?, held_until_ms = ? WHERE decision_id = ?",
                (analyst, token, now_ms, until_ms, waiting.decision_id),
            )
        return ReviewClaim(token, waiting, until_ms)

    def free(self, analyst: str, decision_ids: Sequence[str], now_ms: int) -> list[str]:
        """Returns those of the decisions that an analyst can claim or holds, in their order."""
        if not decision_ids:
            return []
        with self._database.reading() as transaction:
            rows = transaction.execute(
                f"SELECT decision_id FROM reviews WHERE decision_id IN ({', '.join('?' * len(decision_ids))}) "
                f"AND status = 'open' AND decided_time_ms >= ? AND (({_OWN}) OR ({_FREE}))",
                [*decision_ids, self.oldest_ms(now_ms), analyst, now_ms, now_ms, analyst],
            )
        found = {row[0] for row in rows}
        return [one for one in decision_ids if one in found]

    def held(self, analyst: str, now_ms: int) -> ReviewClaim | None:
        """Returns the payment that an analyst holds; None without one."""
        gain = self.gain_sql(now_ms)
        with self._database.reading() as transaction:
            rows = transaction.execute(
                f"SELECT claim, {_WAITING}, {gain} FROM reviews "
                "WHERE status = 'open' AND holder = ? AND held_until_ms > ?",
                (analyst, now_ms),
            )
        for token, *rest in rows:
            waiting = WaitingReview(*rest)
            return ReviewClaim(token, waiting, waiting.held_until_ms)
        return None

    def release(self, analyst: str, token: str) -> None:
        """Gives a payment back to the queue. Raises ClaimLost if the claim does not hold."""
        with self._database.transaction() as transaction:
            self._held(transaction, analyst, token, 0)
            transaction.execute(
                "UPDATE reviews SET holder = '', claim = '', held_until_ms = 0 WHERE claim = ?", (token,)
            )

    def decide(self, analyst: str, token: str, verdict: str, reason: str, note: str, now_ms: int) -> AnalystVerdict:
        """Keeps a verdict. When this returns, the verdict is on disk and will be sent.

        Raises InvalidEvent naming the field that is wrong, ClaimLost if the claim does not hold any more.
        """
        if verdict not in VERDICTS:
            raise InvalidEvent(f"wanted one of {', '.join(VERDICTS)}", field="verdict")
        if reason not in REASONS:
            raise InvalidEvent(f"wanted one of {', '.join(REASONS)}", field="reason")
        if len(note) > NOTE_MAX:
            raise InvalidEvent(f"wanted at most {NOTE_MAX} characters, got {len(note)}", field="note")
        with self._database.transaction() as transaction:
            earlier = transaction.execute(f"SELECT {_VERDICT} FROM verdicts WHERE verdict_id = ?", (token,))
            if earlier:
                said = AnalystVerdict(*earlier[0])
                if (said.analyst, said.verdict, said.reason) != (analyst, verdict, reason):
                    raise ClaimLost("another verdict was given with this claim")
                return said
            decision_id, payment_id, turn, claimed_ms = self._held(transaction, analyst, token, now_ms)
            said = AnalystVerdict(
                token, decision_id, payment_id, verdict, reason, note, analyst, turn, claimed_ms, now_ms
            )
            self._insert(transaction, said, sent=False)
            self._settle(transaction, [decision_id])
        return said

    @staticmethod
    def _held(transaction: Transaction, analyst: str, token: str, now_ms: int) -> tuple[str, str, int, int]:
        rows = transaction.execute(
            "SELECT decision_id, payment_id, turn, claimed_ms FROM reviews WHERE claim = ? AND holder = ? "
            "AND claim <> '' AND status = 'open' AND held_until_ms > ?",
            (token, analyst, now_ms),
        )
        if not rows:
            raise ClaimLost("the claim has expired: claim the payment again")
        ((decision_id, payment_id, turn, claimed_ms),) = rows
        return decision_id, payment_id, turn, claimed_ms

    @staticmethod
    def _insert(transaction: Transaction, said: AnalystVerdict, *, sent: bool) -> None:
        transaction.execute(
            "INSERT INTO verdicts (verdict_id, decision_id, payment_id, verdict, reason, note, analyst, turn, "
            "claimed_ms, time_ms, payment_hash, is_sent) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT DO NOTHING",
            (*vars(said).values(), key_hash("payment_id", said.payment_id), sent),
        )

    def _settle(self, transaction: Transaction, decision_ids: Sequence[str]) -> None:
        """Moves payments on that have verdicts: to their second turn, or out of the queue."""
        if not decision_ids:
            return
        counts = transaction.execute(
            "SELECT decision_id, count(DISTINCT analyst) FROM verdicts WHERE decision_id IN "
            f"({', '.join('?' * len(decision_ids))}) GROUP BY decision_id",
            list(decision_ids),
        )
        for decision_id, count in counts:
            rows = transaction.execute("SELECT payment_hash FROM reviews WHERE decision_id = ?", (decision_id,))
            for (payment_hash,) in rows:
                is_open = count == 1 and self._has_second(payment_hash)
                transaction.execute(
                    "UPDATE reviews SET status = ?, turn = ?, holder = '', claim = '', held_until_ms = 0 "
                    "WHERE decision_id = ? AND status = 'open' AND turn <= ?",
                    ("open" if is_open else "done", count + 1 if is_open else count, decision_id, count),
                )

    def _has_second(self, payment_hash: int) -> bool:
        return payment_hash % _SHARES < self._settings.second_share * _SHARES

    # Looks

    def oldest_ms(self, now_ms: int) -> int:
        """Returns the time of the oldest decision that can be in the queue."""
        return now_ms - self._settings.age_ms_max

    def waiting(self, now_ms: int, count: int = 50) -> tuple[list[WaitingReview], int]:
        """Returns the first payments of the queue, held ones included, and how many there are in all."""
        since_ms, gain = self.oldest_ms(now_ms), self.gain_sql(now_ms)
        with self._database.reading() as transaction:
            rows = transaction.execute(
                f"SELECT {_WAITING}, {gain} FROM reviews WHERE status = 'open' AND decided_time_ms >= ? "
                f"ORDER BY {_priority(gain, now_ms)} LIMIT {int(count)}",
                (since_ms,),
            )
            ((total,),) = transaction.execute(
                "SELECT count(*) FROM reviews WHERE status = 'open' AND decided_time_ms >= ?", (since_ms,)
            )
        return [WaitingReview(*row) for row in rows], int(total)

    def verdicts_of(self, decision_id: str) -> list[AnalystVerdict]:
        """Returns the verdicts about a decision, the oldest first."""
        with self._database.reading() as transaction:
            rows = transaction.execute(
                f"SELECT {_VERDICT} FROM verdicts WHERE decision_id = ? ORDER BY time_ms, verdict_id", (decision_id,)
            )
        return [AnalystVerdict(*row) for row in rows]

    def verdicts_for(self, decision_id: str, person: str) -> list[AnalystVerdict]:
        """Returns the verdicts that a person may see: none while somebody may still review without knowing them."""
        said = self.verdicts_of(decision_id)
        with self._database.reading() as transaction:
            rows = transaction.execute("SELECT status FROM reviews WHERE decision_id = ?", (decision_id,))
        is_open = any(status == "open" for (status,) in rows)
        return said if not is_open or person in {each.analyst for each in said} else []

    def throughput(self, since_ms: int) -> list[Throughput]:
        """Returns the work of each analyst since a time, most verdicts first."""
        with self._database.reading() as transaction:
            rows = transaction.execute(
                "SELECT analyst, count(*), count(CASE WHEN verdict = 'fraud' THEN 1 END), "
                "percentile_cont(0.5) WITHIN GROUP (ORDER BY time_ms - claimed_ms) FROM verdicts WHERE time_ms >= ? "
                "GROUP BY analyst ORDER BY count(*) DESC, analyst",
                (since_ms,),
            )
        return [Throughput(analyst, count, frauds, float(median) / 1000) for analyst, count, frauds, median in rows]

    def gain_sql(self, now_ms: int) -> str:
        """Returns the expected gain of a look as SQL, by the analysts' measured error."""
        return gain_sql(self._settings.costs, self._settings.unreviewed, self.measured(now_ms))

    def measured(self, now_ms: int) -> MeasuredAnalysts:
        """Returns how often verdicts agreed with later outcomes, from at most ten minutes ago.

        Outcomes that come from an analyst do not count: they may repeat the verdict.
        """
        if now_ms - self._measured_ms >= _MEASURE_EVERY_MS:
            with self._database.reading() as transaction:
                rows = transaction.execute(
                    f"SELECT payment_hash, verdict FROM verdicts ORDER BY time_ms DESC LIMIT {_MEASURED_VERDICTS}"
                )
                known = newest_outcomes(transaction, {payment_hash for payment_hash, _ in rows})
            counted = Counter(
                (known[payment_hash].label, verdict)
                for payment_hash, verdict in rows
                if payment_hash in known and known[payment_hash].source != _ANALYST
            )
            self._measured, self._measured_ms = MeasuredAnalysts.of(counted), now_ms
        return self._measured

    def agreement(self, since_ms: int) -> ReviewAgreement:
        """Returns how often the second analyst of a payment said the same as the first; `since_ms`: of the second."""
        with self._database.reading() as transaction:
            rows = transaction.execute(
                "SELECT a.verdict, b.verdict, count(*) FROM verdicts a JOIN verdicts b "
                "ON a.decision_id = b.decision_id AND a.turn = 1 AND b.turn = 2 WHERE b.time_ms >= ? "
                "GROUP BY a.verdict, b.verdict",
                (since_ms,),
            )
        return agreement_of({(first, second): count for first, second, count in rows})

    def unsent(self, count: int) -> list[AnalystVerdict]:
        """Returns the oldest verdicts that are not known to be on the topic."""
        with self._database.reading() as transaction:
            rows = transaction.execute(
                f"SELECT {_VERDICT} FROM verdicts WHERE NOT is_sent ORDER BY time_ms, verdict_id LIMIT {int(count)}"
            )
        return [AnalystVerdict(*row) for row in rows]

    def mark_sent(self, verdicts: Sequence[AnalystVerdict]) -> None:
        """Notes that the broker has these."""
        with self._database.transaction() as transaction:
            for said in verdicts:
                transaction.execute("UPDATE verdicts SET is_sent = true WHERE verdict_id = ?", (said.verdict_id,))


def _priority(gain: str, now_ms: int) -> str:
    """Returns the order of the queue, as SQL: a payment counts once more for each day that it waits."""
    wait = f"(CAST({now_ms + _DAY_MS} AS DOUBLE PRECISION) - decided_time_ms)"
    return f"{gain} * {wait} DESC, worth_minor * score * {wait} DESC, decision_id"


def agreement_of(pairs: Mapping[tuple[str, str], int]) -> ReviewAgreement:
    """Returns the agreement of counted pairs of a first and a second verdict (J. Cohen, 1960).

    Example: 40 times both said fraud, 40 times both genuine, 20 times they differed, as often in each direction. They
    agree in 0.8; by chance they would in 0.5; kappa is (0.8 - 0.5) / (1 - 0.5) = 0.6.
    """
    total = sum(pairs.values())
    equal = sum(count for (first, second), count in pairs.items() if first == second)
    if total < 2:
        return ReviewAgreement(total, equal, None)
    chance = sum(
        sum(count for (first, _), count in pairs.items() if first == kind)
        * sum(count for (_, second), count in pairs.items() if second == kind)
        for kind in VERDICTS
    ) / (total * total)
    return ReviewAgreement(total, equal, None if chance >= 1.0 else (equal / total - chance) / (1 - chance))
