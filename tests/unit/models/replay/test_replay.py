from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from paywarden.features.history.history import History, final_labels, history_of_tables
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.models.bundle.bundle import Bundle
from paywarden.models.drift.binning import DIMENSIONS
from paywarden.models.metrics.evaluation import Days, day_of_time
from paywarden.models.policy.policy import ConfiguredRule, ConfiguredSegment, Facts, Policy, PolicySettings
from paywarden.models.replay.files import ReplayFiles
from paywarden.models.replay.measures import HANDBOOK, Contestant, ReplayResults
from paywarden.models.replay.replay import ReplayOptions, replay
from paywarden.schemas.errors import Misconfigured
from tests.worlds.endpoint.requests import requests_of
from tests.worlds.small import small_world
from tests.worlds.small.small_world import DAY_MS, FIRST_DAY, LABEL_DELAY_DAYS, TRAINING_DAYS

# After the training days, and before the end of the history.
WINDOW = Days(FIRST_DAY + 22, FIRST_DAY + 27)
CONTRACT = {"auc_roc", "average_precision", "card_precision_at_100", "payments", "frauds", "payments_per_second"}
COLUMNS = [
    *("payment_id", "event_time_ms", "card_id", "merchant_id", "amount_minor", "currency", "amount_reference_minor"),
    *("score", "action", "reasons", "model_version", "label"),
]


def contestant(
    bundle: Bundle, settings: PolicySettings | None = None, lists: Mapping[str, frozenset[str]] | None = None
) -> Contestant:
    manifest = bundle.manifest
    policy = Policy(
        settings or PolicySettings(), review_at=manifest.review_at, decline_at=manifest.decline_at, lists=lists
    )
    return Contestant(bundle, policy, "some.toml")


def run(
    destination: Path,
    *,
    window: Days = WINDOW,
    history: History | None = None,
    settings: PolicySettings | None = None,
    lists: Mapping[str, frozenset[str]] | None = None,
    champion: Contestant | None = None,
    challenger: Contestant | None = None,
    progress: Callable[[int], object] | None = None,
    **options: Any,
) -> ReplayResults:
    return replay(
        small_world.history() if history is None else history,
        engine=small_world.engine(),
        rates=small_world.rates(),
        champion=champion or contestant(small_world.loaded_bundle(), settings, lists),
        challenger=challenger,
        destination=destination,
        options=ReplayOptions(window=window, label_delay_days=LABEL_DELAY_DAYS, **options),
        progress=progress,
    )


def metrics_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return content


def report_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def rows_of(window: Days) -> np.ndarray[Any, np.dtype[np.intp]]:
    return np.flatnonzero(window.contains(day_of_time(small_world.history().event_time_ms)))


def passage_vectors() -> np.ndarray[Any, np.dtype[np.float32]]:
    passage = PointInTimeReplay(small_world.history(), small_world.engine(), small_world.rates())
    return np.concatenate([chunk.vectors for chunk in passage.chunks(rows=1000)])


def test_metrics_have_the_names_that_callers_depend_on(tmp_path: Path) -> None:
    results = run(tmp_path)
    written = metrics_of(tmp_path)
    assert written.keys() >= CONTRACT
    assert all(isinstance(written[name], int | float) for name in CONTRACT)
    assert written["auc_roc"] == results.champion.auc_roc
    assert 0.5 < results.champion.auc_roc <= 1
    assert results.champion.model_version == small_world.loaded_bundle().manifest.model_version
    assert results.facts.payments_replayed == rows_of(WINDOW)[-1] + 1


def test_scores_and_actions_are_those_of_the_bundle_and_the_policy(tmp_path: Path) -> None:
    champion = run(tmp_path).champion
    decisions = pq.read_table(tmp_path / "decisions.parquet")
    bundle = small_world.loaded_bundle()
    score = bundle.score(np.ascontiguousarray(passage_vectors()[rows_of(WINDOW)]))
    assert np.array_equal(decisions["score"].to_numpy(), score)
    manifest = bundle.manifest
    wanted = np.where(
        score >= manifest.decline_at, "decline", np.where(score >= manifest.review_at, "review", "approve")
    )
    assert decisions["action"].to_pylist() == wanted.tolist()
    assert champion.actions == {name: int((wanted == name).sum()) for name in ("approve", "review", "decline")}
    assert all(champion.actions.values())
    assert set(decisions["model_version"].to_pylist()) == {manifest.model_version}


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_byte(threads: int, tmp_path: Path) -> None:
    """Uses rules, a challenger and cards known to be compromised, so that no file is trivial."""
    settings = PolicySettings(rules=(ConfiguredRule("large", "amount > 100_00", "review"),))
    options: dict[str, Any] = {
        "settings": settings,
        "challenger": contestant(small_world.other_loaded_bundle()),
        "with_vectors": True,
    }
    run(tmp_path / "alone", **options)
    run(tmp_path / "shared", threads=threads, **options)
    for name in ("decisions.parquet", "differences.parquet", "report.html"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    alone, shared = metrics_of(tmp_path / "alone"), metrics_of(tmp_path / "shared")
    assert alone | {"payments_per_second": 0} == shared | {"payments_per_second": 0}
    earlier = tmp_path / "shared" / "decisions.parquet"
    run(tmp_path / "again", threads=threads, earlier=earlier, **options)
    assert (tmp_path / "again" / "decisions.parquet").read_bytes() == earlier.read_bytes()


def test_a_failure_while_writing_beside_leaves_no_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no room on the disk")

    monkeypatch.setattr(ReplayFiles, "write", fail)
    with pytest.raises(OSError, match="no room"):
        run(tmp_path, threads=2)
    assert list(tmp_path.iterdir()) == []


def test_rules_and_segments_decide_as_they_do_about_requests(tmp_path: Path) -> None:
    """Rules read every field, including fields that a payment does not have."""
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


@pytest.mark.parametrize("when", ["", "amount >= 0"])
def test_a_currency_without_a_rate_is_replayed_as_it_is_scored(when: str, tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    place = payments.column_names.index("currency")
    currency = ["NGN" if row % 7 == 0 else name for row, name in enumerate(payments["currency"].to_pylist())]
    history = history_of_tables(payments.set_column(place, "currency", pa.array(currency)), outcomes)
    rules = (ConfiguredRule("any", when, "decline"),) if when else ()
    run(tmp_path, history=history, settings=PolicySettings(rules=rules, review_at=1.0, decline_at=1.0))
    decisions = pq.read_table(tmp_path / "decisions.parquet")
    is_unknown = pc.equal(decisions["currency"].cast(pa.string()), "NGN")
    assert pc.is_null(decisions["amount_reference_minor"]).equals(is_unknown)
    unknown, known = decisions.filter(is_unknown), decisions.filter(pc.invert(is_unknown))
    decided = [{(row["action"], *row["reasons"]) for row in rows.to_pylist()} for rows in (unknown, known)]
    assert decided == [{("review", "unknown_rate")}, {("decline", "rule:any") if when else ("approve",)}]


def test_the_vector_column_equals_the_computed_vectors(tmp_path: Path) -> None:
    run(tmp_path, with_vectors=True)
    decisions = pq.read_table(tmp_path / "decisions.parquet")
    assert decisions.column_names == [*COLUMNS, "vector", *DIMENSIONS]
    wanted = passage_vectors()[rows_of(WINDOW)]
    assert decisions["vector"].to_pylist() == [row.tobytes() for row in wanted]
    # With them stands what drift detection needs besides: the segments of each payment.
    for name in DIMENSIONS:
        assert decisions[name].to_pylist() == small_world.history().texts(name, rows_of(WINDOW)).tolist()


def test_a_feature_with_the_name_of_another_column_is_refused(tmp_path: Path) -> None:
    bundle = small_world.loaded_bundle()
    names = ["score", *bundle.manifest.feature_names[1:]]
    renamed = replace(bundle, manifest=replace(bundle.manifest, feature_names=names))
    with pytest.raises(Misconfigured, match="--features: feature score has the name of a column"):
        run(tmp_path / "a", champion=contestant(renamed), with_features=True)
    assert not (tmp_path / "a").exists()


def test_labels_are_those_known_in_the_end_and_null_where_none_is(tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    some = outcomes.filter(pc.less(outcomes["outcome_time_ms"], (WINDOW.last + 5) * DAY_MS))
    history = history_of_tables(payments, some)
    run(tmp_path, history=history)
    label = pq.read_table(tmp_path / "decisions.parquet")["label"].to_pylist()
    names = {1: "fraud", 0: "genuine", -1: None}
    assert label == [names[number] for number in final_labels(history)[rows_of(WINDOW)].tolist()]
    assert set(label) == {"fraud", "genuine", None}


def test_decisions_do_not_depend_on_what_came_later(tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    count = int(rows_of(WINDOW)[-1]) + 1
    end_ms = payments["event_time_ms"][count - 1].as_py()
    known = outcomes.filter(pa.compute.less_equal(outcomes["outcome_time_ms"], end_ms))
    run(tmp_path / "whole", with_vectors=True)
    run(tmp_path / "cut", with_vectors=True, history=history_of_tables(payments.slice(0, count), known))
    whole, cut = (pq.read_table(tmp_path / name / "decisions.parquet") for name in ("whole", "cut"))
    # All columns except the label, which holds what was known in the end.
    assert whole.drop_columns("label").equals(cut.drop_columns("label"))


def test_in_the_training_days_nothing_is_left_out(tmp_path: Path) -> None:
    window = Days(TRAINING_DAYS.last, WINDOW.last)
    metrics = run(tmp_path, window=window, protocol=HANDBOOK).facts
    assert metrics.excluded_known_compromised == 0
    assert metrics.payments == len(rows_of(window))


def test_without_a_fraud_the_metrics_that_need_one_are_null(tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    genuine = outcomes.filter(pa.compute.equal(outcomes["label"], "genuine"))
    run(tmp_path, history=history_of_tables(payments, genuine))
    written = metrics_of(tmp_path)
    assert (written["auc_roc"], written["average_precision"]) == (None, None)
    assert (written["frauds"], written["card_precision_at_100"]) == (0, 0.0)
    assert "None of these payments is known to be fraud" in report_of(tmp_path)


def test_without_outcomes_measures_that_need_labels_are_null(tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    history = history_of_tables(payments, outcomes.slice(0, 0))
    run(tmp_path, history=history, challenger=contestant(small_world.other_loaded_bundle()))
    written = metrics_of(tmp_path)
    for name in ("auc_roc", "average_precision", "card_precision_at_100", "reliability"):
        assert written[name] is None
    assert written["whole"]["money"] is None
    assert written["comparison"]["changes"] == {}
    assert sum(written["actions"].values()) == written["payments"] == len(rows_of(WINDOW))
    assert "No outcome is known for any of these payments" in report_of(tmp_path)


def test_a_window_without_payments_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="there is no payment from 2024-04-10 to 2024-04-11"):
        run(tmp_path / "out", window=Days(FIRST_DAY + 100, FIRST_DAY + 101))
    assert not (tmp_path / "out").exists()


def test_a_destination_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("", encoding="utf-8")
    with pytest.raises(Misconfigured, match="cannot write results to"):
        run(tmp_path / "out")


def test_a_challenger_changes_nothing_of_what_the_champion_decides(tmp_path: Path) -> None:
    run(tmp_path / "alone")
    run(tmp_path / "both", challenger=contestant(small_world.other_loaded_bundle()))
    assert (tmp_path / "alone/decisions.parquet").read_bytes() == (tmp_path / "both/decisions.parquet").read_bytes()
    alone, both = metrics_of(tmp_path / "alone"), metrics_of(tmp_path / "both")
    alone.pop("payments_per_second")
    assert all(both[name] == value for name, value in alone.items())


def test_a_challenger_decides_as_it_does_alone(tmp_path: Path) -> None:
    """The champion's training days decide which payments are measured. Both contestants have the same here."""
    run(tmp_path / "both", challenger=contestant(small_world.other_loaded_bundle()))
    run(tmp_path / "alone", champion=contestant(small_world.other_loaded_bundle()))
    challenger = metrics_of(tmp_path / "both")["challenger"]
    alone = metrics_of(tmp_path / "alone")
    assert challenger["model_version"] == small_world.other_loaded_bundle().manifest.model_version
    assert all(alone[name] == value for name, value in challenger.items())


def test_differences_are_the_payments_that_get_another_action(tmp_path: Path) -> None:
    other = contestant(small_world.other_loaded_bundle())
    run(tmp_path / "both", challenger=other)
    run(tmp_path / "other", champion=other)
    champion = pq.read_table(tmp_path / "both/decisions.parquet")
    challenger = pq.read_table(tmp_path / "other/decisions.parquet")
    differences = pq.read_table(tmp_path / "both/differences.parquet")
    before, after = champion["action"].to_pylist(), challenger["action"].to_pylist()
    rows = [row for row in range(len(before)) if before[row] != after[row]]
    assert rows
    for name in ("payment_id", "event_time_ms", "card_id", "merchant_id"):
        assert differences[name].to_pylist() == champion[name].take(rows).to_pylist()
    assert differences["champion_action"].to_pylist() == [before[row] for row in rows]
    assert differences["challenger_action"].to_pylist() == [after[row] for row in rows]
    assert differences["champion_score"].to_pylist() == champion["score"].take(rows).to_pylist()
    assert differences["challenger_score"].to_pylist() == challenger["score"].take(rows).to_pylist()
    labels = final_labels(small_world.history())[rows_of(WINDOW)[rows]]
    assert differences["label"].to_pylist() == [{1: "fraud", 0: "genuine", -1: None}[int(label)] for label in labels]


def test_a_replay_that_fails_leaves_the_results_that_were_there(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "decisions.parquet").read_bytes()

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, window=Days(WINDOW.first, WINDOW.first), progress=fail)
    assert (tmp_path / "decisions.parquet").read_bytes() == before
    assert not list(tmp_path.glob("*.unfinished"))


POLICY_WITH_A_RULE = PolicySettings(
    review_at=0.01,
    rules=(ConfiguredRule("busy", "card_count_1h >= 2 and amount > 20_00", "decline"),),
    segments=(ConfiguredSegment("online", 'channel == "ecom"', review_at=0.02, decline_at=0.5),),
)


def test_another_policy_decides_about_the_same_scores(tmp_path: Path) -> None:
    results = run(tmp_path, challenger=contestant(small_world.loaded_bundle(), POLICY_WITH_A_RULE))
    assert results.is_of_one_model
    assert results.comparison is not None
    assert results.challenger is not None
    assert results.champion.auc_roc == results.challenger.auc_roc
    assert results.comparison.score_shift.largest_rise == results.comparison.score_shift.largest_fall == 0
    assert results.comparison.agreement.share < 1
    assert results.challenger.whole.reviewed > results.champion.whole.reviewed


def test_each_reason_is_counted_with_the_frauds_it_found(tmp_path: Path) -> None:
    settings = PolicySettings(
        review_at=0.01,
        rules=(
            ConfiguredRule("first", 'country == "FR"', "approve", override=True),
            ConfiguredRule("large", "amount > 100_00", "review"),
        ),
        segments=(ConfiguredSegment("online", 'channel == "ecom"', review_at=0.02),),
    )
    champion = run(tmp_path, settings=settings, window=Days(TRAINING_DAYS.last, WINDOW.last)).champion
    history, rows = small_world.history(), rows_of(Days(TRAINING_DAYS.last, WINDOW.last))
    decisions = pq.read_table(tmp_path / "decisions.parquet")
    score, fraud = decisions["score"].to_numpy(), final_labels(history)[rows] == 1
    amounts = PointInTimeReplay(history, small_world.engine(), small_world.rates()).amounts[rows]

    def has(field: str, value: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
        coded = history.coded(field)
        return np.asarray(coded.codes[rows] == coded.names.to_pylist().index(value))

    french, online = has("country", "FR"), has("channel", "ecom")
    is_declined = score >= small_world.loaded_bundle().manifest.decline_at
    by_score = ~french & ~is_declined & (score >= np.where(online, 0.02, 0.01))
    large = ~french & ~is_declined & (amounts > 100_00)
    wanted = {
        "rule:first": (french, french),
        "rule:large": (large, large & ~by_score),
        "score_at_or_above_review_threshold": (by_score & ~online, by_score & ~online & ~large),
        "score_at_or_above_review_threshold:online": (by_score & online, by_score & online & ~large),
    }
    reasons = {one.reason: one for one in champion.by_reason}
    assert set(wanted) < set(reasons)
    for reason, (asked, alone) in wanted.items():
        one = reasons[reason]
        assert (one.payments, one.alone, one.frauds) == (asked.sum(), alone.sum(), (asked & fraud).sum())
        assert (one.amount_minor, one.fraud_minor) == (amounts[asked].sum(), amounts[asked & fraud].sum())
        assert one.precision == one.frauds / one.payments
        assert one.action == ("approve" if reason == "rule:first" else "review")


@pytest.mark.parametrize("challenger", ["policy", "model"])
def test_earlier_decisions_give_what_a_full_replay_gives(challenger: str, tmp_path: Path) -> None:
    bundle = small_world.loaded_bundle() if challenger == "policy" else small_world.other_loaded_bundle()
    against = contestant(bundle, POLICY_WITH_A_RULE)
    run(tmp_path / "earlier", with_vectors=True)
    run(tmp_path / "full", challenger=against, with_vectors=True)
    earlier = tmp_path / "earlier/decisions.parquet"
    run(tmp_path / "reused", challenger=against, with_vectors=True, earlier=earlier)
    for name in ("decisions.parquet", "differences.parquet", "report.html"):
        assert (tmp_path / "full" / name).read_bytes() == (tmp_path / "reused" / name).read_bytes()
    full, reused = metrics_of(tmp_path / "full"), metrics_of(tmp_path / "reused")
    assert reused["payments_replayed"] == len(rows_of(WINDOW))
    for name in ("payments_replayed", "payments_per_second"):
        full.pop(name)
        reused.pop(name)
    assert full == reused


def test_earlier_decisions_without_vectors_do_for_thresholds_alone(tmp_path: Path) -> None:
    run(tmp_path / "earlier")
    earlier = tmp_path / "earlier/decisions.parquet"
    stricter = PolicySettings(review_at=0.001)
    run(tmp_path / "full", settings=stricter)
    run(tmp_path / "reused", settings=stricter, earlier=earlier)
    assert (tmp_path / "full/decisions.parquet").read_bytes() == (tmp_path / "reused/decisions.parquet").read_bytes()
    with pytest.raises(Misconfigured, match="holds no vectors"):
        run(tmp_path / "refused", settings=POLICY_WITH_A_RULE, earlier=earlier)
    with pytest.raises(Misconfigured, match="holds no vectors"):
        run(tmp_path / "refused", challenger=contestant(small_world.other_loaded_bundle()), earlier=earlier)
    assert not (tmp_path / "refused").exists()


def test_earlier_decisions_are_not_replaced_by_the_results_of_using_them(tmp_path: Path) -> None:
    run(tmp_path, with_vectors=True)
    before = (tmp_path / "decisions.parquet").read_bytes()
    with pytest.raises(Misconfigured, match="would be replaced by the results"):
        run(tmp_path, earlier=tmp_path / "decisions.parquet")
    assert (tmp_path / "decisions.parquet").read_bytes() == before


def test_a_window_of_only_known_compromised_cards_is_refused(tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    days = day_of_time(payments["event_time_ms"].to_numpy())
    is_known = TRAINING_DAYS.contains(days) & (final_labels(small_world.history()) == 1)
    early = set(payments.filter(pa.array(is_known))["card_id"].to_pylist())
    is_kept = np.array([card in early for card in payments["card_id"].to_pylist()]) | ~WINDOW.contains(days)
    kept = payments.filter(pa.array(is_kept))
    about = outcomes.filter(pa.compute.is_in(outcomes["payment_id"], kept["payment_id"]))
    with pytest.raises(Misconfigured, match="of a card known to be compromised"):
        run(tmp_path / "out", history=history_of_tables(kept, about), protocol=HANDBOOK)
    assert not (tmp_path / "out").exists()


def test_payments_whose_label_is_not_known_are_decided_but_not_measured(tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    ids = pa.array([f"{text}" for text in payments["payment_id"].to_pylist()])
    unknown = ids.take(pa.array(rows_of(WINDOW)[::3]))
    fewer = outcomes.filter(pc.invert(pc.is_in(pc.cast(outcomes["payment_id"], pa.string()), unknown)))
    history = history_of_tables(payments, fewer)
    facts = run(tmp_path / "left_out", history=history).facts
    assert facts.left_out_unknown == len(unknown)
    assert facts.payments == len(rows_of(WINDOW)) - len(unknown)
    assert pq.read_metadata(tmp_path / "left_out" / "decisions.parquet").num_rows == len(rows_of(WINDOW))
    taken = run(tmp_path / "taken", history=history, unknown_labels="genuine").facts
    assert (taken.payments, taken.without_outcome) == (len(rows_of(WINDOW)), len(unknown))


def test_an_unknown_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="wanted one of all, handbook, got 'some'"):
        run(tmp_path, protocol="some")


def test_first_frauds_values_and_lists_are_measured(tmp_path: Path) -> None:
    history = small_world.history()
    fraud = final_labels(history) == 1
    rows = rows_of(WINDOW)
    card = history.card.codes
    first = [row for row in rows[fraud[rows]] if not fraud[:row][card[:row] == card[row]].any()]
    known = {history.card.names[code].as_py() for code in card[np.flatnonzero(fraud[: rows[0]])]}
    rule = ConfiguredRule("blocked", "card_id in lists.blocked", "decline")
    results = run(
        tmp_path, settings=PolicySettings(rules=(rule,)), lists={"blocked": frozenset(known)}, unknown_labels="genuine"
    )
    champion = results.champion
    assert champion.first_strikes["card"].frauds == len(first) > 0
    assert champion.stops is not None
    listed = champion.stops.by["lists"]
    assert listed.frauds == int(sum(card[row] in set(card[: rows[0]][fraud[: rows[0]]]) for row in rows[fraud[rows]]))
    assert champion.whole.frauds_stopped == sum(part.frauds for part in champion.stops.by.values())
    written = metrics_of(tmp_path)
    assert [found["false_positives_per_fraud"] for found in written["detected"]] == [5, 10]
    assert written["first_strikes"]["card"]["frauds"] == len(first)
    assert "What is missed" in report_of(tmp_path)
    assert "Frauds stopped by lists" in report_of(tmp_path)
