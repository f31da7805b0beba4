"""The Python API for notebooks gives what the commands give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from paywarden.features.catalogue.loading import load_catalogue
from paywarden.features.history.history import write_history
from paywarden.models.analysis.analysis import Analysis, evaluate
from paywarden.models.metrics.evaluation import date_of_day
from paywarden.schemas.errors import Misconfigured
from tests.worlds.small import small_world
from tests.worlds.small.small_world import DAY_MS, FIRST_DAY, TRAINING_DAYS

FROM, TO = date_of_day(TRAINING_DAYS.first), date_of_day(TRAINING_DAYS.last)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return Analysis(small_world.history(), small_world.engine(), small_world.rates())


def test_features_are_those_of_training_to_the_bit(analysis: Analysis) -> None:
    table = analysis.features(FROM, TO, label_delay_days=small_world.LABEL_DELAY_DAYS)
    trained = small_world.table()
    assert table.column_names[:4] == ["payment_id", "event_time_ms", "card_id", "label"]
    vectors = np.column_stack([table[name].to_numpy() for name in analysis.engine.plan.names])
    assert vectors.astype(np.float32).tobytes() == trained.vectors.tobytes()
    assert [label == "fraud" for label in table["label"].to_pylist()] == (trained.label == 1).tolist()


def test_a_replay_and_an_evaluation_of_its_decisions_agree(analysis: Analysis) -> None:
    window = (date_of_day(FIRST_DAY + 22), date_of_day(FIRST_DAY + 27))
    replayed = analysis.replay(small_world.trained_bundle(), *window)
    decisions, champion = replayed.decisions, replayed.results.champion
    own = evaluate(
        decisions["label"],
        decisions["score"],
        event_time_ms=decisions["event_time_ms"],
        card_id=decisions["card_id"],
    )
    assert (own.payments, own.frauds) == (champion.whole.payments, champion.whole.frauds)
    assert (own.auc_roc, own.average_precision) == (champion.auc_roc, champion.average_precision)
    assert own.card_precision_at_100 == champion.card_precision_at_100
    assert own.average_precision_interval == pytest.approx(champion.average_precision_interval)
    assert champion.calibration is not None
    assert own.calibration is not None
    assert own.calibration.ratio == champion.calibration.ratio
    assert "card_count_1h" in decisions.column_names


@pytest.mark.parametrize("is_named", [True, False])
def test_a_notebook_reads_the_fields_of_a_project(tmp_path: Path, is_named: bool) -> None:
    """The history was read without them: every feature of a field of one's own was an error or missing."""
    (tmp_path / "payment.py").write_text(
        "from paywarden.features.catalogue.fields import Payment, decimal, text\n"
        "customer_id = text('customer_id', 1, personal=True)\n"
        "weight = decimal('weight', 2, unit='kg', least=0, most=500)\n"
        "PAYMENT = Payment(customer_id, weight)\n"
    )
    file = tmp_path / "catalogue.py"
    file.write_text(
        "from paywarden.features.catalogue.entity import Catalogue, Entity\n"
        "from paywarden.features.catalogue.request import request\n"
        "from payment import PAYMENT, weight\n"
        "customer = Entity('customer', key='customer_id')\n"
        "features = (request.number('weight', weight), customer.last_value('weight_before', of=weight))\n"
        "CATALOGUE = Catalogue(entities=(customer,), features=features, payment=PAYMENT)\n"
    )
    catalogue = load_catalogue(file)
    start_ms = DAY_MS * 20_000
    payments = pa.table(
        {
            "payment_id": [f"p{n}" for n in range(3)],
            "event_time_ms": [start_ms + n for n in range(3)],
            "card_id": ["c"] * 3,
            "merchant_id": ["m"] * 3,
            "amount_minor": [100] * 3,
            "currency": ["EUR"] * 3,
            **{name: pa.nulls(3, pa.string()) for name in ("device_id", "ip", "mcc", "country", "channel")},
            "customer_id": ["anna", "ben", "anna"],
            "weight": [2.5, None, 0.25],
        }
    )
    kinds = {"payment_id": pa.string(), "outcome_time_ms": pa.int64(), "label": pa.string(), "source": pa.string()}
    outcomes = pa.table({name: pa.array([], kind) for name, kind in kinds.items()})
    write_history(tmp_path / "data", payments, outcomes, catalogue.payment.fields)
    opened = Analysis.open(tmp_path / "data", catalogue=file if is_named else catalogue)
    table = opened.features()
    assert table["weight"].to_pylist() == [2.5, None, 0.25]
    assert table["weight_before"].to_pylist() == [None, None, 2.5]


def test_frauds_alone_are_not_measured() -> None:
    # Labels of seven days where "genuine" takes thirty: random scores had an average precision of 1.0.
    with pytest.raises(Misconfigured, match="all 2 known labels are fraud, wanted genuine ones as well"):
        evaluate(["fraud", None, "fraud"], [0.1, 0.2, 0.3])


class _Series(list[Any]):
    """A column with names of its rows, as pandas has."""

    def __init__(self, values: Sequence[Any], names: Sequence[int]) -> None:
        super().__init__(values)
        self.index = _Index(names)  # type: ignore[method-assign, assignment]


class _Index(list[int]):
    def equals(self, other: object) -> bool:
        return self == other

    def sort_values(self) -> _Index:
        return _Index(sorted(self))


class _NotAvailable:
    """As pandas.NA: it does not say whether it differs from itself."""

    def __ne__(self, other: object) -> Any:
        return self

    def __hash__(self) -> int:
        return 1

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


NOON_MS = 1_790_078_400_000
CARDS = ["a", "b"]


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"score": [0.5, None]}, "row 1: wanted scores from 0 to 1, got nothing"),
        ({"score": [0.5, math.nan]}, "row 1: wanted scores from 0 to 1, got nothing"),
        ({"score": [16.26, 0.5]}, "row 0: wanted scores from 0 to 1, got 16.26; margins, percents and amounts"),
        ({"score": [0.5, "high"]}, "row 1: wanted scores from 0 to 1, got str"),
        ({"score": [[0.5], [0.5]]}, "row 0: wanted scores from 0 to 1, got list"),
        ({"score": np.zeros((2, 2))}, r"score has the shape \(2, 2\), wanted one column; of predict_proba, take the"),
        ({"score": 0.5}, "score is float, wanted a column"),
        ({"label": ["1", "0"]}, "row 0: wanted fraud, genuine, 1, 0 or nothing as a label, got the text '1'"),
        ({"label": [[1], [0]]}, "row 0: wanted fraud, genuine, 1, 0 or nothing as a label"),
        (
            {"event_time_ms": [NOON_MS // 1000] * 2},
            f"row 0: event_time_ms {NOON_MS // 1000} looks like seconds; wanted",
        ),
        ({"event_time_ms": [NOON_MS * 1_000_000] * 2}, "row 0: event_time_ms looks like nanoseconds"),
        (
            {"event_time_ms": [NOON_MS, "2026-10-01"]},
            "row 1: wanted milliseconds since 1970, or dates with times, .* str",
        ),
        ({"event_time_ms": [NOON_MS, math.inf]}, "row 1: wanted milliseconds since 1970, .* got float"),
        ({"event_time_ms": [NOON_MS]}, "2 labels, but 1 times"),
        ({"card_id": ["a"]}, "2 labels, but 1 cards"),
        ({"card_id": ["a", None]}, "row 1: card_id is missing"),
        (
            {"label": _Series([1, 0], [4, 7]), "score": _Series([0.5, 0.5], [7, 4])},
            "score has the rows of label in another",
        ),
    ],
)
def test_each_mistake_in_a_notebook_has_its_line(asked: dict[str, Any], line: str) -> None:
    """Seconds in place of milliseconds gave the same scores another card precision, without an error."""
    usual: dict[str, Any] = {"label": [1, 0], "score": [0.5, 0.5], "event_time_ms": [NOON_MS] * 2, "card_id": CARDS}
    with pytest.raises(Misconfigured, match=f"^evaluate: {line}"):
        evaluate(**(usual | asked))


@pytest.mark.parametrize(
    "times",
    [
        np.array([NOON_MS, NOON_MS + DAY_MS], dtype="datetime64[ms]").astype("datetime64[ns]"),
        pa.array([NOON_MS, NOON_MS + DAY_MS], pa.timestamp("ms")),
        pa.chunked_array([pa.array([NOON_MS, NOON_MS + DAY_MS], pa.timestamp("ms", "Europe/Berlin"))]),
        [datetime.fromtimestamp(NOON_MS / 1000 + day * 86_400, UTC) for day in (0, 1)],
        [datetime.fromtimestamp(NOON_MS / 1000 + day * 86_400, UTC).date() for day in (0, 1)],
        np.array([NOON_MS, NOON_MS + DAY_MS], dtype=np.float64),
    ],
    ids=("numpy", "arrow", "with a zone", "datetime", "date", "float"),
)
def test_times_may_be_dates(times: Any) -> None:
    wanted = evaluate([1, 0], [0.9, 0.1], event_time_ms=[NOON_MS, NOON_MS + DAY_MS], card_id=CARDS)
    assert repr(evaluate([1, 0], [0.9, 0.1], event_time_ms=times, card_id=CARDS)) == repr(wanted)
    assert wanted.card_precision_at_100 == pytest.approx(0.005)


def test_rows_belong_together_by_their_place() -> None:
    whole = repr(evaluate([1, 0], [0.9, 0.1]))
    # As after a split into training and test rows: the scores of a model have names of their own.
    assert repr(evaluate(_Series([1, 0], [4, 7]), _Series([0.9, 0.1], [0, 1]))) == whole
    assert repr(evaluate([1, 0, _NotAvailable()], [0.9, 0.1, 0.2])) == whole


def test_days_may_be_dates(analysis: Analysis) -> None:
    first, last = date_of_day(FIRST_DAY + 20), date_of_day(FIRST_DAY + 21)
    wanted = analysis.features(first, last, names=["amount"])
    noon = datetime.fromisoformat(f"{last}T12:00:00")
    assert analysis.features(date.fromisoformat(first), noon, names=["amount"]).equals(wanted)
    with pytest.raises(Misconfigured, match="names: wanted a list of features, got 'amount'"):
        analysis.features(first, names="amount")
    with pytest.raises(Misconfigured, match=r"label_delay_days: wanted whole days, 0 or more, got 7\.5"):
        analysis.features(first, label_delay_days=7.5)  # type: ignore[arg-type]


def test_a_folder_is_opened_and_an_unknown_feature_refused(tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    write_history(tmp_path, payments, outcomes)
    opened = Analysis.open(tmp_path)
    assert len(opened.history) == len(payments)
    with pytest.raises(Misconfigured, match="there is no feature 'x'"):
        opened.features(names=["x"])
