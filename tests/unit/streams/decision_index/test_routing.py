"""The expected gain of a look, by the obvious computation, and what it is worth to simulated analysts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.models.metrics.costs import CostSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.decision_index.database import Database, DuckDbDatabase
from paywarden.streams.decision_index.index_settings import DecisionIndexSettings
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewSettings
from paywarden.streams.decision_index.routing import UNREVIEWED, VERDICTS, MeasuredAnalysts, gain_sql
from tests.unit.streams.decision_index.test_index import made

COSTS = CostSettings()
DAY_MS = 86_400_000
_START_MS = 1_760_000_000_000


def plainly(score: float, worth: int, unreviewed: str, analysts: MeasuredAnalysts) -> float:
    """Computes a gain as the module's picture does."""

    def approved(share: float) -> float:
        return score * share * worth * COSTS.fraud_loss_share

    def declined(share: float) -> float:
        return (1 - score) * share * worth * COSTS.declined_margin_share

    left = {"approve": approved(1), "decline": declined(1), "cheaper": min(approved(1), declined(1))}[unreviewed]
    for verdict in VERDICTS:
        left -= min(approved(analysts.share("fraud", verdict)), declined(analysts.share("genuine", verdict)))
    return max(0.0, left)


@pytest.mark.parametrize("unreviewed", UNREVIEWED)
def test_the_gain_in_sql_is_the_gain_computed_plainly(database: Database, unreviewed: str) -> None:
    rng = np.random.default_rng(5)
    analysts = MeasuredAnalysts.of({("fraud", "fraud"): 40, ("genuine", "fraud"): 9, ("genuine", "unsure"): 4})
    expression = gain_sql(COSTS, unreviewed, analysts)
    with database.reading() as transaction:
        for score in (0.0, 0.05, 0.8, 1.0, *rng.random(20).tolist(), 1e-12):
            worth = int(rng.integers(0, 1_000_000))
            columns = "SELECT CAST(? AS DOUBLE PRECISION) AS score, CAST(? AS BIGINT) AS worth_minor"
            ((gain,),) = transaction.execute(f"SELECT {expression} FROM ({columns}) AS one", (score, worth))
            assert gain == pytest.approx(plainly(score, worth, unreviewed, analysts), abs=0.51)


def test_the_worked_example_holds() -> None:
    assert plainly(0.05, 10_000, "cheaper", MeasuredAnalysts()) == pytest.approx(330)
    assert plainly(0.80, 10_000, "cheaper", MeasuredAnalysts()) == pytest.approx(0)


def test_an_unknown_fate_of_unreviewed_payments_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"decision_index\.unreviewed: wanted one of cheaper, approve, decline"):
        DecisionIndexSettings(unreviewed="wait")


# Simulated analysts

_DAYS, _ARRIVALS, _LOOKS = 60, 200, 40
_RIGHT, _ACCUSED = 0.85, 0.08


class SimulatedReviews:
    """Payments in review whose scores are calibrated, and analysts who are wrong about some."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        score = 1 / (1 + np.exp(-rng.normal(-3.5, 1.6, 40 * _DAYS * _ARRIVALS)))
        self.score: NDArray[np.float64] = score[(score >= 0.02) & (score < 0.9)][: _DAYS * _ARRIVALS]
        self.worth = np.exp(rng.normal(8.5, 1.1, len(self.score))).astype(np.int64)
        self.fraud = rng.random(len(self.score)) < self.score
        self.accused = rng.random(len(self.score)) < np.where(self.fraud, _RIGHT, _ACCUSED)

    def saved(self, row: int) -> float:
        """Returns the money that a look at a payment saved: its cost without the look, and after the verdict."""
        score, accused = self.score[row], self.accused[row]
        of_fraud, of_genuine = (_RIGHT, _ACCUSED) if accused else (1 - _RIGHT, 1 - _ACCUSED)
        return self._cost(row, score, 1 - score) - self._cost(row, score * of_fraud, (1 - score) * of_genuine)

    def _cost(self, row: int, fraud: float, genuine: float) -> float:
        is_declined = fraud * COSTS.fraud_loss_share > genuine * COSTS.declined_margin_share
        if is_declined == self.fraud[row]:
            return 0.0
        return float(self.worth[row]) * (COSTS.declined_margin_share if is_declined else COSTS.fraud_loss_share)

    def by_queue(self, database: Database) -> float:
        """Returns the money saved by a look in the order of the queue."""
        queue, saved = ReviewQueue(database, ReviewSettings(second_share=0.0)), 0.0
        for day in range(_DAYS):
            now_ms = _START_MS + day * DAY_MS
            rows = range(day * _ARRIVALS, (day + 1) * _ARRIVALS)
            asked: list[dict[str, Any]] = [
                made(0, payment_id=str(row), decision_id=str(row), action="review", score=float(self.score[row]))
                | {"decided_time_ms": now_ms}
                for row in rows
            ]
            with database.transaction() as transaction:
                queue.add_decisions(transaction, asked, self.worth[rows.start : rows.stop].tolist())
            taken, _ = queue.waiting(now_ms, _LOOKS)
            saved += sum(self.saved(int(each.payment_id)) for each in taken)
            ids = ", ".join(f"'{each.decision_id}'" for each in taken)
            with database.transaction() as transaction:
                transaction.execute(f"UPDATE reviews SET status = 'done' WHERE decision_id IN ({ids})")
        return saved / (_DAYS * _LOOKS)

    def by_stake(self) -> float:
        """Returns the same in the order amount x score x wait."""
        saved, is_done = 0.0, np.zeros(len(self.score), dtype=bool)
        arrived = np.arange(len(self.score)) // _ARRIVALS
        for day in range(_DAYS):
            rows = np.flatnonzero((arrived <= day) & (arrived >= day - 7) & ~is_done)
            priority = self.worth[rows] * self.score[rows] * (1 + day - arrived[rows])
            taken = rows[np.argsort(-priority, kind="stable")[:_LOOKS]]
            is_done[taken] = True
            saved += sum(self.saved(int(row)) for row in taken)
        return saved / (_DAYS * _LOOKS)


def test_a_look_saves_half_as_much_again_as_by_amount_and_score(tmp_path: Path) -> None:
    found, before = 0.0, 0.0
    for seed in range(100, 104):
        world, database = SimulatedReviews(seed), DuckDbDatabase(tmp_path / f"{seed}.duckdb")
        found, before = found + world.by_queue(database), before + world.by_stake()
        database.close()
    assert found >= 1.5 * before, (found / 4, before / 4)
