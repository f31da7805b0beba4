from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.history import History, final_labels, history_of_tables
from features.passage import Passage
from models.evaluation import Days, Split, day_of_time, exclude_known_compromised
from ops.traffic import requests_of
from schemas.errors import Misconfigured
from scoring.policy import ConfiguredRule, ConfiguredSegment, Facts, Policy, PolicySettings
from streams.replay import ReplayMetrics, replay
from tests import small_world
from tests.small_world import FIRST_DAY, LABEL_DELAY_DAYS, TRAINING_DAYS

# After the training days, and before the end of the history.
WINDOW = Days(FIRST_DAY + 22, FIRST_DAY + 27)
CONTRACT = {"auc_roc", "average_precision", "card_precision_at_100", "payments", "frauds", "payments_per_second"}
COLUMNS = ["payment_id", "event_time_ms", "card_id", "merchant_id", "score", "action", "model_version"]


def run(
    destination: Path,
    *,
    window: Days = WINDOW,
    history: History | None = None,
    settings: PolicySettings | None = None,
    lists: Mapping[str, frozenset[str]] | None = None,
    **options: Any,
) -> ReplayMetrics:
    bundle = small_world.loaded_bundle()
    manifest = bundle.manifest
    return replay(
        small_world.history() if history is None else history,
        engine=small_world.engine(),
        rates=small_world.rates(),
        bundle=bundle,
        policy=Policy(
            settings or PolicySettings(), review_at=manifest.review_at, decline_at=manifest.decline_at, lists=lists
        ),
        window=window,
        label_delay_days=LABEL_DELAY_DAYS,
        destination=destination,
        **options,
    )


def metrics_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return content


def rows_of(window: Days) -> np.ndarray[Any, np.dtype[np.intp]]:
    return np.flatnonzero(window.contains(day_of_time(small_world.history().event_time_ms)))


def passage_vectors() -> np.ndarray[Any, np.dtype[np.float32]]:
    passage = Passage(small_world.history(), small_world.engine(), small_world.rates())
    return np.concatenate([chunk.vectors for chunk in passage.chunks(rows=1000)])


def test_metrics_have_the_names_that_callers_depend_on(tmp_path: Path) -> None:
    metrics = run(tmp_path)
    written = metrics_of(tmp_path)
    assert written.keys() >= CONTRACT
    assert all(isinstance(written[name], int | float) for name in CONTRACT)
    assert written["auc_roc"] == metrics.auc_roc
    assert 0.5 < metrics.auc_roc <= 1
    assert metrics.model_version == small_world.loaded_bundle().manifest.model_version
    assert metrics.payments_replayed == rows_of(WINDOW)[-1] + 1


def test_decisions_are_the_windows_payments_in_order(tmp_path: Path) -> None:
    run(tmp_path)
    decisions = pq.read_table(tmp_path / "decisions.parquet")
    assert decisions.column_names == COLUMNS
    rows = rows_of(WINDOW)
    payments = small_world.tables()[0].take(pa.array(rows))
    for name in ("payment_id", "event_time_ms", "card_id", "merchant_id"):
        assert decisions[name].to_pylist() == payments[name].to_pylist()


def test_scores_and_actions_are_those_of_the_bundle_and_the_policy(tmp_path: Path) -> None:
    metrics = run(tmp_path)
    decisions = pq.read_table(tmp_path / "decisions.parquet")
    bundle = small_world.loaded_bundle()
    score = bundle.score(np.ascontiguousarray(passage_vectors()[rows_of(WINDOW)]))
    assert np.array_equal(decisions["score"].to_numpy(), score)
    manifest = bundle.manifest
    wanted = np.where(
        score >= manifest.decline_at, "decline", np.where(score >= manifest.review_at, "review", "approve")
    )
    assert decisions["action"].to_pylist() == wanted.tolist()
    assert metrics.actions == {name: int((wanted == name).sum()) for name in ("approve", "review", "decline")}
    assert all(metrics.actions.values())
    assert set(decisions["model_version"].to_pylist()) == {manifest.model_version}


def test_rules_and_segments_decide_as_they_do_about_requests(tmp_path: Path) -> None:
    """Each field a condition can read is read, those that a payment does not have too."""
    device = small_world.tables()[0]["device_id"].drop_null()[0].as_py()
    settings = PolicySettings(
        rules=(
            ConfiguredRule("ours", "merchant_id in lists.ours", "approve", override=True),
            ConfiguredRule("busy", "card_count_1h >= 2 and amount > 20_00", "review"),
            ConfiguredRule("device", f'device_id == "{device}" or missing(device_id) and country != "FR"', "review"),
            ConfiguredRule("odd", 'amount_minor > 300_00 and currency == "EUR" and channel != "pos"', "decline"),
            ConfiguredRule("time", "event_time_ms < 0 or missing(mcc) or missing(card_id)", "decline"),
            ConfiguredRule("ip", 'ip == "10.0.0.1"', "decline"),
        ),
        segments=(ConfiguredSegment("online", 'channel == "ecom"', review_at=0.01, decline_at=0.02),),
    )
    ours = {"ours": frozenset(small_world.tables()[0]["merchant_id"].to_pylist()[:40])}
    run(tmp_path, settings=settings, lists=ours)
    decisions = pq.read_table(tmp_path / "decisions.parquet")
    manifest = small_world.loaded_bundle().manifest
    policy = Policy(settings, review_at=manifest.review_at, decline_at=manifest.decline_at, lists=ours)
    rows = rows_of(WINDOW)
    vectors, rates = passage_vectors()[rows], small_world.rates()
    wanted, reasons = [], set[str]()
    for request, vector, score in zip(
        requests_of(small_world.tables()[0].take(pa.array(rows)), id_prefix=""),
        vectors,
        decisions["score"].to_pylist(),
        strict=True,
    ):
        amount = rates.convert(request.amount_minor, request.currency, request.event_time_ms)
        verdict = policy.decide(Facts(request, amount, vector, score, ()))
        wanted.append(verdict.action)
        reasons.update(verdict.reasons)
    assert decisions["action"].to_pylist() == wanted
    assert reasons >= {"rule:ours", "rule:busy", "rule:device", "rule:odd"}
    assert any(reason.endswith(":online") for reason in reasons)


def test_the_vector_column_is_what_the_passage_computes(tmp_path: Path) -> None:
    run(tmp_path, with_vectors=True)
    decisions = pq.read_table(tmp_path / "decisions.parquet")
    assert decisions.column_names == [*COLUMNS, "vector"]
    wanted = passage_vectors()[rows_of(WINDOW)]
    assert decisions["vector"].to_pylist() == [row.tobytes() for row in wanted]


def test_two_replays_write_the_same_decisions_to_the_byte(tmp_path: Path) -> None:
    run(tmp_path / "a", with_vectors=True)
    run(tmp_path / "b", with_vectors=True)
    assert (tmp_path / "a/decisions.parquet").read_bytes() == (tmp_path / "b/decisions.parquet").read_bytes()
    first, second = metrics_of(tmp_path / "a"), metrics_of(tmp_path / "b")
    for metrics in (first, second):
        metrics.pop("payments_per_second")
    assert first == second


def test_decisions_do_not_depend_on_what_came_later(tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    count = int(rows_of(WINDOW)[-1]) + 1
    end_ms = payments["event_time_ms"][count - 1].as_py()
    known = outcomes.filter(pa.compute.less_equal(outcomes["outcome_time_ms"], end_ms))
    run(tmp_path / "whole", with_vectors=True)
    run(tmp_path / "cut", with_vectors=True, history=history_of_tables(payments.slice(0, count), known))
    assert (tmp_path / "whole/decisions.parquet").read_bytes() == (tmp_path / "cut/decisions.parquet").read_bytes()


def test_a_result_that_is_there_is_replaced_and_nothing_unfinished_is_left(tmp_path: Path) -> None:
    run(tmp_path, window=Days(WINDOW.first, WINDOW.first))
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decisions.parquet", "metrics.json"]
    assert pq.read_metadata(tmp_path / "decisions.parquet").num_rows == len(rows_of(WINDOW))


def test_cards_known_to_be_compromised_are_not_measured(tmp_path: Path) -> None:
    metrics = run(tmp_path)
    history = small_world.history()
    days, label = day_of_time(history.event_time_ms), (final_labels(history) == 1).astype(np.int64)
    asked = exclude_known_compromised(days, history.card.codes, label, Split(TRAINING_DAYS, WINDOW, LABEL_DELAY_DAYS))
    assert metrics.payments == int(asked.sum()) > 0
    assert metrics.frauds == int(label[asked].sum()) > 0
    assert metrics.excluded_known_compromised == len(rows_of(WINDOW)) - metrics.payments > 0


def test_in_the_training_days_nothing_is_left_out(tmp_path: Path) -> None:
    window = Days(TRAINING_DAYS.last, WINDOW.last)
    metrics = run(tmp_path, window=window)
    assert metrics.excluded_known_compromised == 0
    assert metrics.payments == len(rows_of(window))


def test_card_precision_is_the_mean_of_its_days(tmp_path: Path) -> None:
    metrics = run(tmp_path)
    assert len(metrics.card_precision_per_day) == WINDOW.last - WINDOW.first + 1
    assert metrics.card_precision_at_100 == pytest.approx(np.mean(metrics.card_precision_per_day))


def test_without_a_fraud_the_metrics_that_need_one_are_null(tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    history = history_of_tables(payments, outcomes.slice(0, 0))
    run(tmp_path, history=history)
    written = metrics_of(tmp_path)
    assert (written["auc_roc"], written["average_precision"]) == (None, None)
    assert (written["frauds"], written["card_precision_at_100"]) == (0, 0.0)


def test_a_window_without_payments_is_refused_with_its_days_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="there is no payment from 2024-04-10 to 2024-04-11"):
        run(tmp_path / "out", window=Days(FIRST_DAY + 100, FIRST_DAY + 101))
    assert not (tmp_path / "out").exists()


def test_a_destination_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("", encoding="utf-8")
    with pytest.raises(Misconfigured, match="cannot write results to"):
        run(tmp_path / "out")


def test_progress_counts_every_payment_that_is_run_through(tmp_path: Path) -> None:
    seen: list[int] = []
    metrics = run(tmp_path, progress=seen.append)
    assert sum(seen) == metrics.payments_replayed
