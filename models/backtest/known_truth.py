"""How near a replay comes to the best that any model can do, where the data's own probabilities are known.

`paywarden simulate --world shop` draws a payment's label with a probability that it writes to truth.parquet. All that
the payment shows was drawn before its label, and labels of other payments say nothing more about it. Ranked by these
probabilities, payments are therefore in the best order there is, on average: no model has a higher ROC curve, and none
has more frauds among as many alerts (Neyman and Pearson). On few frauds, chance may lift a model above it.

The probability knows the situation of each payment, such as that its shop is compromised today. A model sees only its
traces, and some situations leave none before the first labels. A model can therefore not reach 100 %.

Example: of 1,000 payments with 12 frauds, 10 payments have the highest probabilities, and 9 of them are frauds. A
model's 10 highest scores have 6. Its recall at 1 % is 6/12 = 0.5, the ceiling's 0.75, and its share of that 67 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paywarden.features.datasets.shop_world import TRUTH_FILE
from paywarden.models.metrics.auc import areas_under_curves
from paywarden.schemas import arrow_files
from paywarden.schemas.errors import Misconfigured

ALERT_SHARE = 0.01
"""The share of payments that analysts look at: recall counts the frauds among these."""
_TRUTH_COLUMNS = ("payment_id", "fraud_probability", "situation")
_MADE_BY = "`paywarden simulate --world shop` writes it"
_DECISION_COLUMNS = ("payment_id", "score", "label")

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Reached:
    """The measures of one set of scores. NaN where no payment is fraud, or all are.

    `recall_at_1_percent` is the share of all frauds among the 1 % of payments with the highest scores.
    """

    auc_roc: float
    average_precision: float
    recall_at_1_percent: float


@dataclass(frozen=True)
class SituationReached:
    """The frauds of a situation, and the shares of them among the alerts of the model and of the ceiling."""

    situation: str
    payments: int
    frauds: int
    recall: float
    ceiling_recall: float


@dataclass(frozen=True)
class AgainstCeiling:
    """A replay beside the ceiling of the same payments. Payments without a label are left out of both."""

    replay: str
    payments: int
    frauds: int
    model: Reached
    ceiling: Reached
    situations: tuple[SituationReached, ...]

    @property
    def share(self) -> float:
        """The model's average precision as a part of the ceiling's."""
        return self.model.average_precision / self.ceiling.average_precision


def require_truth(folder: Path) -> None:
    """Raise Misconfigured if the folder has no truth of made payments."""
    if not (folder / TRUTH_FILE).is_file():
        raise Misconfigured(f"{folder / TRUTH_FILE} does not exist; {_MADE_BY}")


def against_ceiling(truth_folder: Path, replayed: Path) -> AgainstCeiling:
    """Returns a replay beside the ceiling. Both folders are as `simulate --world shop` and `replay` made them.

    Raises Misconfigured for a file that is missing or wrong, and for a payment that the truth does not have.
    """
    truth = _table(truth_folder / TRUTH_FILE, _TRUTH_COLUMNS, _MADE_BY)
    decisions = _table(replayed / "decisions.parquet", _DECISION_COLUMNS, "`paywarden replay` writes it")
    decisions = decisions.filter(pc.is_valid(decisions["label"]))
    place = pc.index_in(decisions["payment_id"].cast(pa.string()), value_set=truth["payment_id"].cast(pa.string()))
    if place.null_count:
        raise Misconfigured(
            f"{replayed / 'decisions.parquet'}: {place.null_count} of {len(decisions)} payments are not in "
            f"{truth_folder / TRUTH_FILE}: they are of other data"
        )
    truth = truth.take(place)
    fraud = pc.equal(decisions["label"].cast(pa.string()), "fraud").to_numpy(zero_copy_only=False)
    score, probability = decisions["score"].to_numpy(), truth["fraud_probability"].to_numpy()
    return AgainstCeiling(
        replay=str(replayed),
        payments=len(fraud),
        frauds=int(fraud.sum()),
        model=reached(fraud, score),
        ceiling=reached(fraud, probability),
        situations=tuple(_by_situation(truth["situation"].to_pylist(), fraud, score, probability)),
    )


def reached(fraud: Bools, score: F64) -> Reached:
    """Returns the measures of some scores. Both arrays: (payments,)."""
    area, precision = areas_under_curves(fraud, score)
    return Reached(area, precision, _recall(fraud, alerts(score)))


def alerts(score: F64) -> Bools:
    """Returns which payments are among the 1 % with the highest scores, shape (payments,); of equals, the first."""
    flagged = np.zeros(len(score), dtype=np.bool_)
    flagged[np.argsort(-score, kind="stable")[: round(ALERT_SHARE * len(score))]] = True
    return flagged


def _by_situation(situation: Sequence[str], fraud: Bools, score: F64, probability: F64) -> list[SituationReached]:
    names, flagged, best = np.array(situation, dtype=object), alerts(score), alerts(probability)
    reached_in = []
    for name in sorted(set(situation)):
        inside = names == name
        reached_in.append(
            SituationReached(
                name,
                payments=int(inside.sum()),
                frauds=int(fraud[inside].sum()),
                recall=_recall(fraud[inside], flagged[inside]),
                ceiling_recall=_recall(fraud[inside], best[inside]),
            )
        )
    return sorted(reached_in, key=lambda one: -one.frauds)


def _recall(fraud: Bools, flagged: Bools) -> float:
    return float(fraud[flagged].sum() / fraud.sum()) if fraud.any() else float("nan")


def _table(path: Path, columns: Sequence[str], hint: str) -> pa.Table:
    try:
        present = pq.read_schema(path).names
        for name in columns:
            if name not in present:
                raise Misconfigured(f"{path}: column {name} is missing; {hint}")
        table = pq.read_table(path, columns=list(columns))
    except FileNotFoundError as error:
        raise Misconfigured(f"{path} does not exist; {hint}") from error
    except arrow_files.UNREADABLE as error:
        raise Misconfigured(f"{path} cannot be read as Parquet: {(str(error).splitlines() or [''])[0]}") from error
    if not len(table):
        raise Misconfigured(f"{path} has no rows")
    return table
