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

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
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
from paywarden.features.catalogue.loading import load_catalogue
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
from paywarden.schemas.payment_fields import TABLE_ALONE

_EVENT_TIME = TABLE_ALONE.by_name["event_time_ms"]


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
        catalogue: Catalogue | str | Path = CATALOGUE,
        key: IdentityKey = LAPTOP_KEY,
        rates: RateTable | None = None,
    ) -> Analysis:
        """Read payments.parquet and outcomes.parquet of a folder, with the fields that the catalogue declares.

        `catalogue`: that of a project, or its file. `key`: the key of the identities (`[identity]`), which must be that
        of a bundle to replay. `rates`: the example rates if None. Raises Misconfigured as `load_catalogue` and
        `read_history` do.
        """
        engine = FeatureEngine(catalogue if isinstance(catalogue, Catalogue) else load_catalogue(Path(catalogue)), key)
        engine.warm_up()
        return cls(read_history(folder, engine.plan.fields), engine, rates or load_rates())

    def features(
        self,
        first_day: str | date | None = None,
        last_day: str | date | None = None,
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
        if label_delay_days is not None and (label_delay_days < 0 or label_delay_days != int(label_delay_days)):
            raise Misconfigured(f"label_delay_days: wanted whole days, 0 or more, got {label_delay_days}")
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
        first_day: str | date | None = None,
        last_day: str | date | None = None,
        *,
        policy: PolicySettings | None = None,
        destination: str | Path | None = None,
        protocol: str = ALL_PAYMENTS,
        unknown_labels: str = AUTO,
        label_delay_days: int = 7,
    ) -> Replayed:
        """Decide the payments of these days again, as `paywarden replay` does.

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

    def _window(self, first_day: str | date | None, last_day: str | date | None) -> Days:
        if len(self.history) == 0:
            raise Misconfigured("the data holds no payment")
        first_ms, last_ms = self.history.event_time_ms[[0, -1]].tolist()
        return Days(
            first_ms // DAY_MS if first_day is None else _day(first_day),
            last_ms // DAY_MS if last_day is None else _day(last_day),
        )

    def _rows(self, window: Days) -> tuple[int, int]:
        bounds_ms = [window.first * DAY_MS, (window.last + 1) * DAY_MS]
        first, last = np.searchsorted(self.history.event_time_ms, bounds_ms).tolist()
        if first == last:
            raise Misconfigured(f"there is no payment from {date_of_day(window.first)} to {date_of_day(window.last)}")
        return first, last

    def _places(self, names: Sequence[str] | None) -> dict[str, int]:
        if isinstance(names, str):
            raise Misconfigured(f"names: wanted a list of features, got {names!r}")
        of_all = {name: place for place, name in enumerate(self.engine.plan.names)}
        unknown = [name for name in names or () if name not in of_all]
        if unknown:
            raise Misconfigured(f"there is no feature {unknown[0]!r}")
        return of_all if names is None else {name: of_all[name] for name in names}


def _day(day: str | date) -> int:
    """Returns the number of a day that is a text such as 2026-10-01, a date, or a time on that day."""
    return day_of_date(day.isoformat()[:10] if isinstance(day, date) else day)


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

    All are columns of one length: NumPy arrays, Arrow columns, pandas or polars series, or lists. Rows belong together
    by their place. `label`: "fraud", "genuine" or missing (as `Analysis.features` returns it), or 1, 0 and missing;
    payments without a label are left out. `score`: probabilities. `event_time_ms` (or dates with times; without a zone
    they are UTC) and `card_id` are needed for card precision; with `card_id`, the interval of the calibration allows
    for frauds that come together.

    Raises Misconfigured, with the row if it is one, for a column of another length or kind, scores that are no
    probabilities, times in another unit, and for labels that are frauds alone: any scores would be perfect.
    """
    _require_one_order(label=label, score=score, event_time_ms=event_time_ms, card_id=card_id)
    labels, scores = _labels(label), _scores(score)
    times_ms = None if event_time_ms is None else _times_ms(event_time_ms)
    cards = None if card_id is None else _codes(card_id)
    for name, column in (("scores", scores), ("times", times_ms), ("cards", cards)):
        if column is not None and len(column) != len(labels):
            raise Misconfigured(f"evaluate: {len(labels)} labels, but {len(column)} {name}")
    kept = labels != UNKNOWN
    fraud, scores = labels[kept] == 1, scores[kept]
    if len(fraud) and fraud.all():
        # Frauds are known sooner than anything else: labels of a short delay are frauds alone.
        what = "an outcome that is missing is not genuine; a longer label_delay_days, or none, knows more"
        raise Misconfigured(f"evaluate: all {len(fraud)} known labels are fraud, wanted genuine ones as well: {what}")
    card = np.arange(len(fraud)) if cards is None else cards[kept]
    auc_roc, precision = areas_under_curves(fraud, scores)
    frauds = int(fraud.sum())
    by_card = float("nan")
    if times_ms is not None and cards is not None:
        by_card = card_precision_at_k(times_ms[kept] // DAY_MS, card, fraud.astype(np.int64), scores).mean
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


def _require_one_order(**columns: Any) -> None:
    """Refuse pandas columns whose rows have the same names in another order: rows belong together by their place."""
    indexes: dict[str, Any] = {name: getattr(column, "index", None) for name, column in columns.items()}
    indexed = [(name, index) for name, index in indexes.items() if hasattr(index, "equals")]
    for name, index in indexed[1:]:
        first_name, first = indexed[0]
        if len(index) == len(first) and not index.equals(first) and index.sort_values().equals(first.sort_values()):
            raise Misconfigured(f"evaluate: {name} has the rows of {first_name} in another order: bring both into one")


def _values(name: str, column: Any) -> list[Any]:
    """Returns a column's values, with None for missing ones."""
    if isinstance(column, pa.Array | pa.ChunkedArray):
        values = column.to_pylist()
    else:
        shape = getattr(column, "shape", None)
        if shape is not None and len(shape) != 1:
            hint = "; of predict_proba, take the column [:, 1]" if name == "score" and len(shape) == 2 else ""
            raise Misconfigured(f"evaluate: {name} has the shape {tuple(shape)}, wanted one column{hint}")
        try:
            values = list(column)
        except TypeError as error:
            raise Misconfigured(f"evaluate: {name} is {type(column).__name__}, wanted a column") from error
    return [None if _is_missing(value) else value for value in values]


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)  # NaN and NaT differ from themselves
    except TypeError:
        return True  # pandas.NA does not say whether it differs
    except ValueError:
        return False  # an array says it for each of its values


def _labels(label: Any) -> NDArray[np.int64]:
    """Returns 1 fraud, 0 genuine, -1 not known."""
    numbers = {LABELS[1]: 1, LABELS[0]: 0, 1: 1, 0: 0, None: UNKNOWN}
    values = _values("label", label)
    found = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        number = numbers.get(value) if isinstance(value, Hashable) else None
        if number is None:
            # A column of a CSV file may have been read as texts.
            hint = f", got the text {value!r}" if value in ("0", "1") else ""
            raise Misconfigured(f"evaluate: row {row}: wanted fraud, genuine, 1, 0 or nothing as a label{hint}")
        found[row] = number
    return found


def _scores(score: Any) -> NDArray[np.float64]:
    values = _values("score", score)
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        row = next(row for row, value in enumerate(values) if not isinstance(value, int | float))
        raise Misconfigured(f"evaluate: row {row}: wanted scores from 0 to 1, got {_kind(values[row])}") from error
    if found.ndim != 1:
        raise Misconfigured(f"evaluate: row 0: wanted scores from 0 to 1, got {_kind(values[0])}")
    wrong = np.flatnonzero(~((found >= 0.0) & (found <= 1.0)))
    if len(wrong):
        row = int(wrong[0])
        what = _kind(values[row]) if values[row] is None else f"{found[row]:g}"
        raise Misconfigured(
            f"evaluate: row {row}: wanted scores from 0 to 1, got {what}; margins, percents and amounts are no "
            "probabilities"
        )
    return found


def _times_ms(times: Any) -> NDArray[np.int64]:
    """Returns milliseconds since 1970, UTC, of such numbers or of dates with times."""
    values = _values("event_time_ms", times)
    found = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        number = _time_ms(value)
        if number is None:
            wanted = "milliseconds since 1970, or dates with times,"
            raise Misconfigured(f"evaluate: row {row}: wanted {wanted} as event_time_ms, got {_kind(value)}")
        problem = _EVENT_TIME.problem_of(number)
        if problem:
            raise Misconfigured(f"evaluate: row {row}: event_time_ms {problem}")
        found[row] = number
    return found


def _time_ms(value: Any) -> int | None:
    if isinstance(value, np.datetime64):
        return int(value.astype("datetime64[ms]").astype(np.int64))
    if isinstance(value, date):
        moment = value if isinstance(value, datetime) else datetime.combine(value, time.min)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    # A whole number may be a float where a column once had a gap.
    is_number = isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value)
    return int(value) if is_number and value == int(value) else None


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _codes(card_id: Any) -> NDArray[np.int64]:
    values = _values("card_id", card_id)
    if None in values:
        raise Misconfigured(f"evaluate: row {values.index(None)}: card_id is missing")
    return np.unique(np.asarray(values, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)
