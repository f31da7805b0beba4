"""Stages over sorted partitions give the bits of one pass through memory, however rows and batches are cut."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from paywarden.features.dataflow.fold import Profiles, Window
from paywarden.features.dataflow.processes import ProcessEngine
from paywarden.features.dataflow.vectors import Passage, Vectors
from paywarden.features.history.history import read_history, write_history
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.history.staleness import Staleness
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.models.metrics.evaluation import Days
from paywarden.models.policy.policy import ConfiguredRule, Policy, PolicySettings
from paywarden.models.replay.measures import ALL_PAYMENTS, HANDBOOK, Contestant
from paywarden.models.replay.passage import replay_on
from paywarden.models.replay.replay import ReplayOptions, replay
from paywarden.models.training.memory import training_bytes
from paywarden.models.training.table import LabelRules, TrainingTable, training_table
from paywarden.models.training.table_passage import training_table_on
from paywarden.models.training.training import train_bundle
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import PaymentFields
from tests.parity.features_worlds import RATES
from tests.worlds.small import small_world
from tests.worlds.small.small_world import DAY_MS, FIRST_DAY, LABEL_DELAY_DAYS
from tests.worlds.stream.declarations import Declaration, column_types, declarations, heard_histories

WINDOW = Days(FIRST_DAY + 22, FIRST_DAY + 27)
CUTS = st.fixed_dictionaries(
    {
        "partitions": st.sampled_from([1, 2, 7]),
        "batch_rows": st.sampled_from([1, 2, 5, 1000]),
        # With few, every entity is folded in slices.
        "slice_events": st.sampled_from([1, 3, 1000]),
        "spill_bytes": st.sampled_from([1, 5_000, 1 << 28]),
    }
)


def written(folder: Path, declaration: Declaration, heard: Sequence[Any]) -> None:
    """Write a history of what was heard, with an outcome that repeats each fraud, and changes nothing."""
    payments = [payment for payment, weight in heard if weight is None]
    latest_ms, outcomes = 0, []
    for payment, weight in heard:
        latest_ms = max(latest_ms, payment.time_ms)
        if weight is not None:
            label = "fraud" if weight > 0 else "genuine"
            outcome = {"payment_id": payment.values["payment_id"], "outcome_time_ms": latest_ms, "label": label}
            outcomes += [outcome] * 2
    columns = {
        name: pa.array([payment.values.get(name) for payment in payments], kind)
        for name, kind in column_types(declaration.fields).items()
    }
    kinds = [("payment_id", pa.string()), ("outcome_time_ms", pa.int64()), ("label", pa.string())]
    table = pa.Table.from_pylist(outcomes, pa.schema([*kinds, ("source", pa.string())]))
    write_history(folder, pa.table(columns), table, declaration.fields)


def one_pass(
    folder: Path, fields: PaymentFields, features: FeatureEngine, rates: RateTable
) -> tuple[bytes, dict[bytes, bytes]]:
    """Returns the vectors' bytes and the last profiles, as one process computes them in memory."""
    passage = PointInTimeReplay(read_history(folder, fields), features, rates)
    vectors = np.concatenate([chunk.vectors.copy() for chunk in passage.chunks()])
    passage.finish()
    profiles = {
        key: state
        for column, states in zip(passage.entities, passage.profiles, strict=True)
        for key, state in zip(column.store_keys(), states, strict=True)
        if state is not None
    }
    return vectors.tobytes(), profiles


def opened(engine: ProcessEngine, folder: Path, features: FeatureEngine, rates: RateTable) -> Passage[Any]:
    paths = str(folder / "payments.parquet"), str(folder / "outcomes.parquet")
    return Passage.open(engine, *paths, features=features, rates=rates)


def in_partitions(passage: Passage[Any], first: int = 0) -> tuple[bytes, dict[bytes, bytes]]:
    """Returns the same from stages over partitions, of payments from `first` on."""
    window = Window(first, passage.places.payments)
    table = pa.concat_tables(list(passage.engine.tables(passage.finished(window, Vectors()))))
    assert table["row"].to_pylist() == list(range(first, window.last))
    profiles = pa.concat_tables([Profiles.schema.empty_table(), *passage.profiles()])
    found = dict(zip(profiles["_key"].to_pylist(), profiles["_profile"].to_pylist(), strict=True))
    assert len(found) == len(profiles)
    return b"".join(table["vector"].to_pylist()), found


@settings(max_examples=10, phases=[Phase.generate])
@given(data=st.data(), cuts=CUTS)
def test_random_declarations_give_the_bits_of_one_pass(data: st.DataObject, cuts: dict[str, Any]) -> None:
    declaration = data.draw(declarations(fields_max=6, entities_max=4, features_max=6, hops_max=3))
    heard = data.draw(heard_histories(declaration, count_min=2, count_max=14))
    with TemporaryDirectory() as name:
        folder = Path(name)
        written(folder, declaration, heard)
        wanted = one_pass(folder, declaration.fields, declaration.engine, RATES)
        slice_events = cuts.pop("slice_events")
        with ProcessEngine(folder, **cuts) as engine:
            passage = replace(opened(engine, folder, declaration.engine, RATES), slice_events=slice_events)
            assert in_partitions(passage) == wanted


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_history(folder, *small_world.tables())
    return folder


@pytest.fixture(scope="module")
def last_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a third of the small world: its last ten days."""
    folder = tmp_path_factory.mktemp("last_days")
    payments, outcomes = small_world.tables()
    payments = payments.filter(pc.greater_equal(payments["event_time_ms"], (FIRST_DAY + 20) * DAY_MS))
    write_history(folder, payments, outcomes.filter(pc.is_in(outcomes["payment_id"], payments["payment_id"])))
    return folder


def test_a_window_has_the_bits_of_its_payments_in_a_whole_pass(last_days: Path, tmp_path: Path) -> None:
    features, rates = small_world.engine(), small_world.rates()
    vectors, profiles = one_pass(last_days, features.plan.fields, features, rates)
    with ProcessEngine(tmp_path, partitions=5, processes=2, spill_bytes=1 << 20, batch_rows=700) as engine:
        found = in_partitions(opened(engine, last_days, features, rates), first=3000)
    assert found == (vectors[3000 * 4 * features.plan.feature_count :], profiles)
    assert list(tmp_path.iterdir()) == []


def test_a_busy_merchant_is_folded_in_slices(last_days: Path, tmp_path: Path) -> None:
    features, rates = small_world.engine(), small_world.rates()
    with ProcessEngine(tmp_path, partitions=4) as engine:
        passage = replace(opened(engine, last_days, features, rates), slice_events=150)
        slices, busy = passage._slices(passage._keyed(Window(0, passage.places.payments), 2 * passage.places.payments))
        assert len(busy) == len(slices.counts) > 2
        assert len(slices.before) > len(busy)
        assert in_partitions(passage) == one_pass(last_days, features.plan.fields, features, rates)


def test_files_of_a_folder_are_one_history_in_the_order_of_names(last_days: Path, tmp_path: Path) -> None:
    features, rates = small_world.engine(), small_world.rates()
    for name in ("payments.parquet", "outcomes.parquet"):
        (tmp_path / name).mkdir()
        table = pq.read_table(last_days / name)
        for number, start in enumerate(range(0, len(table), 1500)):
            pq.write_table(table.slice(start, 1500), tmp_path / name / f"part-{number}.parquet")
    with ProcessEngine(tmp_path / "work", partitions=3) as engine:
        found = in_partitions(opened(engine, tmp_path, features, rates))
    assert found == one_pass(last_days, features.plan.fields, features, rates)


def contestant(bundle: Any, settings: PolicySettings) -> Contestant:
    manifest = bundle.manifest
    policy = Policy(settings, review_at=manifest.review_at, decline_at=manifest.decline_at)
    return Contestant(bundle, policy, "some.toml")


RULES = PolicySettings(rules=(ConfiguredRule("large", "amount > 300_00 and card_count_1d >= 2", "review"),))


@pytest.mark.parametrize(("with_challenger", "partitions"), [(False, 1), (True, 3)])
def test_a_replay_has_the_measures_and_decisions_of_one_process(
    small: Path, tmp_path: Path, with_challenger: bool, partitions: int
) -> None:
    features, rates = small_world.engine(), small_world.rates()
    champion = contestant(small_world.loaded_bundle(), PolicySettings())
    challenger = contestant(small_world.other_loaded_bundle(), RULES) if with_challenger else None
    options = ReplayOptions(
        window=WINDOW,
        label_delay_days=LABEL_DELAY_DAYS,
        with_vectors=with_challenger,
        protocol=HANDBOOK if with_challenger else ALL_PAYMENTS,
    )
    local, spread = tmp_path / "local", tmp_path / "spread"
    history = read_history(small)
    replay(
        history,
        engine=features,
        rates=rates,
        champion=champion,
        challenger=challenger,
        destination=local,
        options=options,
    )
    spread.mkdir()
    contestants = [(champion, small_world.trained_bundle())]
    if challenger is not None:
        contestants.append((challenger, small_world.other_bundle()))
    with ProcessEngine(tmp_path / "work", partitions=partitions, batch_rows=3000) as engine:
        passage = opened(engine, small, features, rates)
        decisions = str(spread / "decisions.parquet")
        replay_on(
            passage,
            contestants=contestants,
            destination=spread,
            decisions=decisions,
            options=options,
            say=lambda _: None,
        )
    assert digests(spread) == digests(local)
    assert sorted(path.name for path in spread.iterdir()) == sorted(path.name for path in local.iterdir())
    assert (spread / "decisions.parquet" / "_SUCCESS").exists()


def digests(folder: Path) -> dict[str, str]:
    """Returns the digest of each result: of files without the speed, of tables row by row."""
    results = {}
    metrics = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    results["metrics"] = "\n".join(line for line in metrics if '"payments_per_second"' not in line)
    results["report"] = (folder / "report.html").read_text(encoding="utf-8")
    for name in ("decisions.parquet", "differences.parquet"):
        if (folder / name).exists():
            results[name] = repr(pq.read_table(folder / name).to_pylist())
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in results.items()}


def table_digest(table: TrainingTable) -> str:
    """Returns the sha256 of a training table. Codes of cards count by their order alone."""
    assert table.card is not None
    assert table.outcomes is not None
    assert table.segments is not None
    assert table.strikes is not None
    # Outcomes of one millisecond may come in any order.
    order = np.lexsort((table.outcomes.row, table.outcomes.time_ms))
    columns = [
        *(table.vectors, table.label, table.day, table.row, table.amount_minor, table.fraud_delay_ms),
        *(table.outcomes.row[order], table.outcomes.time_ms[order], table.outcomes.fraud[order]),
        *(np.unique(table.card, return_inverse=True)[1], table.segments.time_ms, table.strikes.place),
        *table.strikes.is_first.values(),
    ]
    digest = hashlib.sha256()
    for column in columns:
        assert column is not None
        digest.update(np.ascontiguousarray(column).data)
    weight = b"" if table.weight is None else table.weight.tobytes()
    texts = [column.tolist() for column in table.segments.values]
    digest.update(weight + repr((texts, table.label_counts, table.weight_counts, table.sample)).encode())
    return digest.hexdigest()


QUICK = TrainingSettings(trees=8, folds=2, early_stopping_rounds=0, label_delay_days=LABEL_DELAY_DAYS)


@pytest.mark.parametrize(("partitions", "share"), [(1, 0.25), (2, 1.0), (64, 0.25)])
def test_a_training_table_has_the_bytes_of_one_process(
    last_days: Path, tmp_path: Path, partitions: int, share: float
) -> None:
    settings = replace(QUICK, genuine_sample_share=share, seed=3)
    features, rates = small_world.engine(), small_world.rates()
    wanted = training_table(
        read_history(last_days), WINDOW, engine=features, rates=rates, labels=LabelRules.of(settings)
    )
    with ProcessEngine(tmp_path / "work", partitions=partitions, batch_rows=3000) as engine:
        passage = opened(engine, last_days, features, rates)
        table = training_table_on(passage, WINDOW, settings=settings, room=tmp_path)
    assert table_digest(table) == table_digest(wanted)
    assert (table.sample is None) == (share == 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_a_bundle_from_an_engine_has_the_digest_of_one_process(small: Path, tmp_path: Path) -> None:
    features, rates = small_world.engine(), small_world.rates()
    settings = replace(QUICK, genuine_sample_share=0.5)
    labels = LabelRules.of(settings)
    days = small_world.TRAINING_DAYS
    local = training_table(read_history(small), days, engine=features, rates=rates, labels=labels)
    with ProcessEngine(tmp_path / "work", partitions=3) as engine:
        passage = opened(engine, small, features, rates)
        table = training_table_on(passage, days, settings=settings, room=tmp_path)
    manifests = [
        train_bundle(one, days, tmp_path / name, engine=features, settings=settings)
        for name, one in (("local", local), ("spread", table))
    ]
    assert manifests[0].digest == manifests[1].digest
    assert manifests[0].parameters["genuine_sample_share"] == manifests[0].evidence["sampled"]["share"] == 0.5


def test_the_largest_share_is_taken_that_memory_has_room_for(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, rates = small_world.engine(), small_world.rates()
    days = small_world.TRAINING_DAYS
    with ProcessEngine(tmp_path / "work", partitions=2) as engine:
        passage = opened(engine, small, features, rates)
        whole = len(training_table_on(passage, days, settings=QUICK, room=tmp_path).label)
        enough = training_bytes(whole, features.plan.feature_count, is_on_disk=True)
        monkeypatch.setattr("paywarden.models.training.memory.free_memory", lambda: enough - 1)
        table = training_table_on(passage, days, settings=QUICK, room=tmp_path)
        monkeypatch.setattr("paywarden.models.training.memory.free_memory", lambda: 1000)
        with pytest.raises(Misconfigured, match=r"^to train on .* takes about .* wanted fewer days, or more memory$"):
            training_table_on(passage, days, settings=QUICK, room=tmp_path)
    assert table.sample is not None
    assert table.sample.share == 0.5
    assert len(table.label) < whole


def test_a_policy_decides_alike_after_a_journey() -> None:
    sent = pickle.loads(pickle.dumps(Policy(RULES, review_at=0.1, decline_at=0.6)))  # noqa: S301 - our own bytes
    assert sent.digest == Policy(RULES, review_at=0.1, decline_at=0.6).digest
    assert sent.thresholds == (0.1, 0.6)


# Refusals in one line that names the file and the row.


def broken(folder: Path, small: Path, change: Any, *, name: str = "payments.parquet") -> str:
    """Returns the error of a history with one of its files changed."""
    for one in ("payments.parquet", "outcomes.parquet"):
        table = pq.read_table(small / one).slice(0, 400 if one == "payments.parquet" else 0)
        pq.write_table(change(table) if one == name else table, folder / one)
    with pytest.raises(Misconfigured) as refused, ProcessEngine(folder / "work", partitions=2, batch_rows=50) as engine:
        opened(engine, folder, small_world.engine(), small_world.rates())
    return str(refused.value)


def with_value(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    place = table.column_names.index(column)
    return table.set_column(
        place,
        column,
        pa.array(
            values, table[column].type.value_type if pa.types.is_dictionary(table[column].type) else table[column].type
        ),
    )


def test_a_wrong_value_is_refused_with_its_file_and_row(small: Path, tmp_path: Path) -> None:
    text = broken(tmp_path, small, lambda table: with_value(table, "amount_minor", 333, -5))
    assert text.startswith("payments.parquet, row 333: amount_minor "), text


def test_an_id_that_comes_twice_is_refused_with_both_rows(small: Path, tmp_path: Path) -> None:
    text = broken(tmp_path, small, lambda t: with_value(t, "payment_id", 321, t["payment_id"][12].as_py()))
    assert text == "payments.parquet, row 321: payment_id must be unique; payments.parquet, row 12 has the same one"


def test_a_missing_column_is_refused_by_name(small: Path, tmp_path: Path) -> None:
    text = broken(tmp_path, small, lambda table: table.drop_columns(["merchant_id"]))
    assert text == "payments.parquet: column merchant_id is missing"


@pytest.mark.parametrize(
    ("id_of", "before_ms", "message"),
    [
        (7, 1, "outcomes.parquet, row 0: an outcome cannot be known before its payment is made"),
        (399, 0, ""),
        (None, 0, "outcomes.parquet, row 0: the outcome is about a payment that payments.parquet does not hold"),
    ],
)
def test_an_outcome_must_follow_a_payment(
    small: Path, tmp_path: Path, id_of: int | None, before_ms: int, message: str
) -> None:
    payments = pq.read_table(small / "payments.parquet").slice(0, 400)
    payment_id = "p?" if id_of is None else payments["payment_id"][id_of].as_py()
    time_ms = payments["event_time_ms"][0 if id_of is None else id_of].as_py() - before_ms
    outcomes = {"payment_id": [payment_id], "outcome_time_ms": [time_ms], "label": ["fraud"], "source": [None]}

    def change(table: pa.Table) -> pa.Table:
        return pa.table({name: pa.array(values, table[name].type) for name, values in outcomes.items()})

    if message:
        assert broken(tmp_path, small, change, name="outcomes.parquet") == message


def test_options_of_one_process_are_refused_by_name(small: Path, tmp_path: Path) -> None:
    options = ReplayOptions(window=WINDOW, label_delay_days=7)
    contestants = [(contestant(small_world.loaded_bundle(), PolicySettings()), small_world.trained_bundle())]
    with ProcessEngine(tmp_path, partitions=1) as engine:
        passage = opened(engine, small, small_world.engine(), small_world.rates())
        for wrong in ({"staleness": Staleness.read("1s")}, {"earlier": tmp_path}):
            with pytest.raises(Misconfigured, match="works with --engine local alone"):
                replay_on(
                    passage,
                    contestants=contestants,
                    destination=tmp_path,
                    decisions=str(tmp_path / "decisions.parquet"),
                    options=replace(options, **wrong),
                    say=lambda _: None,
                )
