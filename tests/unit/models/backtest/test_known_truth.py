"""The ceiling of data whose probabilities are known: what a replay reaches of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.backtest.known_truth import against_ceiling, reached
from paywarden.schemas.errors import Misconfigured

COUNT = 1000


def write(
    data: Path,
    *,
    score: np.ndarray,
    label: list[str | None],
    first: int = 0,
    folder: str = "replayed",
    best: Literal[1, -1] = 1,
) -> Path:
    """Writes a truth of COUNT payments, the likeliest first, and a replay of those from `first` on; returns its folder.

    `best` is -1 for scores in the opposite order.
    """
    ids = [f"p{number}" for number in range(COUNT)]
    situation = pa.array(["attack" if number < 20 else "usual" for number in range(COUNT)]).dictionary_encode()
    probability = np.linspace(0.9, 0.001, COUNT)
    truth = pa.table({"payment_id": ids, "fraud_probability": probability, "situation": situation})
    pq.write_table(truth, data / "truth.parquet")
    replayed = data / folder
    replayed.mkdir(exist_ok=True)
    decisions = pa.table({"payment_id": ids[first:], "score": score[::best][first:], "label": label[first:]})
    pq.write_table(decisions, replayed / "decisions.parquet")
    return replayed


def labels(frauds: set[int]) -> list[str | None]:
    return ["fraud" if number in frauds else "genuine" for number in range(COUNT)]


def test_a_replay_stands_beside_the_ceiling_of_its_payments(tmp_path: Path) -> None:
    # The 10 highest scores have 6 of 12 frauds, the 10 highest probabilities 9.
    frauds = {*range(9), 500, 501, 502}
    score = np.linspace(0.5, 0.001, COUNT)
    score[[6, 7, 8]] = 0.0
    score[[20, 21, 22]] = 0.99
    found = against_ceiling(tmp_path, write(tmp_path, score=score, label=labels(frauds)))
    assert (found.payments, found.frauds) == (COUNT, 12)
    assert (found.model.recall_at_1_percent, found.ceiling.recall_at_1_percent) == (0.5, 0.75)
    assert found.model.auc_roc < found.ceiling.auc_roc
    assert found.share == found.model.average_precision / found.ceiling.average_precision < 1
    attack, usual = found.situations
    assert (attack.situation, attack.payments, attack.frauds) == ("attack", 20, 9)
    assert (attack.recall, attack.ceiling_recall) == (6 / 9, 1.0)
    assert (usual.situation, usual.frauds, usual.recall, usual.ceiling_recall) == ("usual", 3, 0.0, 0.0)


def test_without_a_fraud_nothing_can_be_reached(tmp_path: Path) -> None:
    found = against_ceiling(tmp_path, write(tmp_path, score=np.zeros(COUNT), label=labels(set())))
    assert all(math.isnan(value) for value in (found.share, *vars(found.model).values()))


@given(st.integers(0, 2**32))
def test_labels_drawn_with_the_probabilities_are_ranked_best_by_them(seed: int) -> None:
    """On average: of one draw of labels, noise may rank better by chance, and does so by little."""
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.05, 1.0, 20_000)
    is_fraud = rng.random(len(probability)) < probability
    noisy = probability * rng.lognormal(0, 0.7, len(probability))
    best, other = reached(is_fraud, probability), reached(is_fraud, noisy)
    assert best.average_precision > other.average_precision - 0.02
    assert best.auc_roc > other.auc_roc - 0.02
    assert best.recall_at_1_percent >= other.recall_at_1_percent - 0.02


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"truth.parquet does not exist; `paywarden simulate --world shop` writes"):
        against_ceiling(tmp_path, tmp_path)
    replayed = write(tmp_path, score=np.zeros(COUNT), label=labels({1}))
    with pytest.raises(Misconfigured, match=r"other/decisions.parquet does not exist; `paywarden replay` writes it"):
        against_ceiling(tmp_path, tmp_path / "other")
    table = pq.read_table(replayed / "decisions.parquet")
    pq.write_table(table.drop_columns(["score"]), replayed / "decisions.parquet")
    with pytest.raises(Misconfigured, match=r"decisions.parquet: column score is missing"):
        against_ceiling(tmp_path, replayed)
    other = [f"q{number}" if number < 3 else f"p{number}" for number in range(COUNT)]
    pq.write_table(table.set_column(0, "payment_id", pa.array(other)), replayed / "decisions.parquet")
    with pytest.raises(Misconfigured, match=r"decisions.parquet: 3 of 1000 payments are not in .*truth.parquet"):
        against_ceiling(tmp_path, replayed)
    (tmp_path / "truth.parquet").write_bytes(b"none")
    with pytest.raises(Misconfigured, match=r"truth.parquet cannot be read as Parquet"):
        against_ceiling(tmp_path, replayed)
