"""Features, replays and evaluations for a notebook, with the functions that the commands call.

    from paywarden.models.analysis.analysis import Analysis, evaluate

    analysis = Analysis.open("data")
    table = analysis.features("2026-10-01", "2026-10-31")        Arrow; table.to_pandas() for pandas
    replayed = analysis.replay("bundle", "2026-11-08", "2026-11-21")
    replayed.results.champion.average_precision                  the numbers of metrics.json
    evaluate(table["label"], my_scores)                          the same measures for scores of your own

Features are point in time: a payment's row holds what was known just before it, as in training, replay and scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.history.history import LABELS, UNKNOWN, History, final_labels, labels_known_by, read_history
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable, load_rates
from paywarden.models.bundle.bundle import load_bundle
from paywarden.models.metrics.auc import areas_under_curves
from paywarden.models.metrics.auc_variance import auc_variance
from paywarden.models.metrics.curves import MeanCalibration, mean_calibration
from paywarden.models.metrics.evaluation import DAY_MS, Days, card_precision_at_k, date_of_day, day_of_date
from paywarden.models.metrics.intervals import Interval, auc_interval, average_precision_interval
from paywarden.models.metrics.labels import AUTO
from paywarden.models.policy.policy import Policy, PolicySettings
from paywarden.models.replay.files import DECISIONS, results_folder
from paywarden.models.replay.measures import ALL_PAYMENTS, Contestant, ReplayResults
from paywarden.models.replay.replay import ReplayOptions
from paywarden.models.replay.replay import replay as run
from paywarden.schemas.errors import Misconfigured


@dataclass(frozen=True)
class Replayed:
    """A replay. `decisions`: for each payment of the window, the columns of decisions.parquet and the features."""

    decisions: pa.Table
    results: ReplayResults


@dataclass(frozen=True)
class Analysis:
    """A history, with the engine and the exchange rates that compute its features. Not thread-safe, like its engine."""

    history: History
    engine: FeatureEngine
    rates: RateTable

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        catalogue: Catalogue = CATALOGUE,
        key: IdentityKey = LAPTOP_KEY,
        rates: RateTable | None = None,
    ) -> Analysis:
        """Read payments.parquet and outcomes.parquet of a folder.

        `key`: the key of the identities (`[identity]`), which must be that of a bundle to replay. `rates`: the example
        rates if None. Raises Misconfigured as `read_history` does.
        """
        engine = FeatureEngine(catalogue, key)
        engine.warm_up()
        return cls(read_history(folder), engine, rates or load_rates())

    def features(
        self,
        first_day: str | None = None,
        last_day: str | None = None,
        *,
        names: Sequence[str] | None = None,
        label_delay_days: int | None = None,
    ) -> pa.Table:
        """Returns a row for each payment of these days (dates, both included; None: the data's first or last).

        Columns: payment_id, event_time_ms, card_id, label (fraud, genuine, or null where it is not known), and a
        float32 for each feature in `names` (None: all), null where it is missing. Labels are those known in the end, or
        with `label_delay_days` those known that many days after the last day. Raises Misconfigured for an unknown name,
        and for days without a payment.
        """
        if label_delay_days is not None and label_delay_days < 0:
            raise Misconfigured(f"label_delay_days: wanted 0 or more, got {label_delay_days}")
        window = self._window(first_day, last_day)
        places = self._places(names)
        first, last = self._rows(window)
        parts = [
            np.ascontiguousarray(chunk.vectors[:, list(places.values())])
            for chunk in PointInTimeReplay(self.history, self.engine, self.rates).chunks(first=first, last=last)
        ]
        values = np.concatenate(parts)
        if label_delay_days is None:
            label = final_labels(self.history)[first:last]
        else:
            label = labels_known_by(self.history, (window.last + 1 + label_delay_days) * DAY_MS)[first:last]
        history = self.history
        columns: dict[str, Any] = {
            "payment_id": history.payment_id[first:last],
            "event_time_ms": pa.array(history.event_time_ms[first:last]),
            "card_id": history.card.names.take(pa.array(history.card.codes[first:last])),
            "label": pa.array(LABELS).take(pa.array(label, mask=label == UNKNOWN)),
        }
        for number, name in enumerate(places):
            columns[name] = pa.array(values[:, number], from_pandas=True)
        return pa.table(columns)

    def replay(
        self,
        bundle: str | Path,
        first_day: str | None = None,
        last_day: str | None = None,
        *,
        policy: PolicySettings | None = None,
        destination: str | Path | None = None,
        protocol: str = ALL_PAYMENTS,
        unknown_labels: str = AUTO,
        label_delay_days: int = 7,
    ) -> Replayed:
        """Decide the payments of these days anew, as `paywarden replay` does.

        `policy`: thresholds and rules; None takes the bundle's thresholds. `destination`: the folder for the files and
        the report; None keeps none. The rest is as in `ReplayOptions`. Raises BundleRefused and Misconfigured.
        """
        window = self._window(first_day, last_day)
        loaded = load_bundle(
            Path(bundle), catalogue_digest=self.engine.plan.digest, identity_digest=self.engine.plan.key.digest
        )
        manifest = loaded.manifest
        decides = Policy(policy or PolicySettings(), review_at=manifest.review_at, decline_at=manifest.decline_at)
        options = ReplayOptions(
            window, label_delay_days, protocol=protocol, unknown_labels=unknown_labels, with_features=True
        )
        with TemporaryDirectory() as folder, results_folder(target := Path(destination or folder)):
            results = run(
                self.history,
                engine=self.engine,
                rates=self.rates,
                champion=Contestant(loaded, decides, "of the notebook"),
                destination=target,
                options=options,
            )
            return Replayed(pq.read_table(target / DECISIONS), results)

    def _window(self, first_day: str | None, last_day: str | None) -> Days:
        if len(self.history) == 0:
            raise Misconfigured("the data holds no payment")
        first_ms, last_ms = self.history.event_time_ms[[0, -1]].tolist()
        return Days(
            first_ms // DAY_MS if first_day is None else day_of_date(first_day),
            last_ms // DAY_MS if last_day is None else day_of_date(last_day),
        )

    def _rows(self, window: Days) -> tuple[int, int]:
        bounds_ms = [window.first * DAY_MS, (window.last + 1) * DAY_MS]
        first, last = np.searchsorted(self.history.event_time_ms, bounds_ms).tolist()
        if first == last:
            raise Misconfigured(f"there is no payment from {date_of_day(window.first)} to {date_of_day(window.last)}")
        return first, last

    def _places(self, names: Sequence[str] | None) -> dict[str, int]:
        of_all = {name: place for place, name in enumerate(self.engine.plan.names)}
        unknown = [name for name in names or () if name not in of_all]
        if unknown:
            raise Misconfigured(f"there is no feature {unknown[0]!r}")
        return of_all if names is None else {name: of_all[name] for name in names}


@dataclass(frozen=True)
class Evaluation:
    """The measures of scores, with 95 % intervals. NaN where there is nothing to compute them from."""

    payments: int
    """Payments whose label is known."""
    frauds: int
    auc_roc: float
    auc_roc_interval: Interval
    average_precision: float
    average_precision_interval: Interval
    card_precision_at_100: float
    """NaN without days and cards."""
    calibration: MeanCalibration | None
    """Mean score and share of frauds; None without a payment."""


def evaluate(label: Any, score: Any, *, event_time_ms: Any = None, card_id: Any = None) -> Evaluation:
    """Measure scores as a replay does.

    All are columns of one length: NumPy arrays, Arrow columns, pandas series or lists. `label`: "fraud", "genuine" or
    missing (as `Analysis.features` returns it), or 1, 0 and missing; payments without a label are left out. `score`:
    probabilities. `event_time_ms` and `card_id` are needed for card precision; with `card_id`, the interval of the
    calibration allows for frauds that come together.

    Raises Misconfigured for columns of different lengths, for scores that are no probabilities, and for labels that are
    frauds alone: any scores would be perfect.
    """
    labels, scores = _labels(label), _column(score, np.float64)
    if len(labels) != len(scores):
        raise Misconfigured(f"evaluate: {len(labels)} labels, but {len(scores)} scores")
    if not ((scores >= 0.0) & (scores <= 1.0)).all():
        raise Misconfigured("evaluate: wanted scores from 0 to 1")
    kept = labels != UNKNOWN
    fraud, scores = labels[kept] == 1, scores[kept]
    if len(fraud) and fraud.all():
        # Frauds are known sooner than anything else: labels of a short delay are frauds alone.
        what = "an outcome that is missing is not genuine; a longer label_delay_days, or none, knows more"
        raise Misconfigured(f"evaluate: all {len(fraud)} known labels are fraud, wanted genuine ones as well: {what}")
    card = np.arange(len(fraud)) if card_id is None else _codes(card_id)[kept]
    auc_roc, precision = areas_under_curves(fraud, scores)
    frauds = int(fraud.sum())
    by_card = float("nan")
    if event_time_ms is not None and card_id is not None:
        day = _column(event_time_ms, np.int64)[kept] // DAY_MS
        by_card = card_precision_at_k(day, card, fraud.astype(np.int64), scores).mean
    return Evaluation(
        payments=len(fraud),
        frauds=frauds,
        auc_roc=auc_roc,
        auc_roc_interval=auc_interval(auc_roc, frauds, len(fraud) - frauds, auc_variance(fraud, scores)),
        average_precision=precision,
        average_precision_interval=average_precision_interval(precision, frauds),
        card_precision_at_100=by_card,
        calibration=mean_calibration(fraud, scores, card) if len(fraud) else None,
    )


def _labels(label: Any) -> NDArray[np.int64]:
    """Returns 1 fraud, 0 genuine, -1 not known."""
    numbers = {LABELS[1]: 1, LABELS[0]: 0, 1: 1, 0: 0}
    values = label.to_pylist() if isinstance(label, pa.Array | pa.ChunkedArray) else list(label)
    found = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        is_missing = value is None or value != value  # NaN differs from itself
        number = UNKNOWN if is_missing else numbers.get(value)
        if number is None:
            raise Misconfigured(f"evaluate: row {row}: wanted fraud, genuine, 1, 0 or nothing as a label")
        found[row] = number
    return found


def _column(values: Any, kind: type[np.generic]) -> NDArray[Any]:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = values.to_numpy() if isinstance(values, pa.ChunkedArray) else values.to_numpy(zero_copy_only=False)
    return np.asarray(values).astype(kind)


def _codes(card_id: Any) -> NDArray[np.int64]:
    values = card_id.to_pylist() if isinstance(card_id, pa.Array | pa.ChunkedArray) else list(card_id)
    return np.unique(np.asarray(values, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)
