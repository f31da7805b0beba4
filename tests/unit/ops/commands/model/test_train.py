"""`paywarden train`: what it prints, what it lets be chosen, and what it refuses before it has cost anyone minutes."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from paywarden.features.history.history import OUTCOMES_FILE, PAYMENTS_FILE, write_history
from paywarden.models.bundle.bundle import load_bundle, read_manifest
from paywarden.models.bundle.compiler import compiler_name
from paywarden.models.training.promise import promise_of
from paywarden.ops.commands.model.train import train
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source
from tests.worlds.small import small_world

WINDOW = ("--train-from", "2024-01-03", "--train-to", "2024-01-20")
QUICK = {"trees": 5, "early_stopping_rounds": 0}
# Days enough for twenty known frauds on either side of the gap.
VALIDATED = QUICK | {"trees": 30, "label_delay_days": 3, "validation_days": 9, "early_stopping_rounds": 5}
LONG_WINDOW = ("--train-from", "2024-01-03", "--train-to", "2024-01-26")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_history(folder, *small_world.tables())
    return folder


def run(data: Path, out: Path, *arguments: str, settings: dict[str, Any] | None = None) -> Result:
    source = Source({"training": QUICK if settings is None else settings}, {})
    window = () if "--train-from" in arguments else WINDOW
    return CliRunner().invoke(train, ["--data", str(data), *window, "--out", str(out), *arguments], obj=source)


def refusal(data: Path, tmp_path: Path, *arguments: str, settings: dict[str, Any] | None = None) -> str:
    """The one line with which it refuses; nothing is written."""
    done = run(data, tmp_path / "bundle", *arguments, settings=settings)
    assert isinstance(done.exception, Misconfigured), done.output
    assert not (tmp_path / "bundle").exists()
    line = str(done.exception)
    assert "\n" not in line
    return line


# What it prints


def test_train_prints_how_good_the_scores_are_and_their_features(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine a part takes longer, and a line says how far it is.
    monkeypatch.setattr("paywarden.ops.progress.FIRST_LINE_S", math.inf)
    done = run(data, tmp_path / "bundle")
    assert done.exit_code == 0, done.output
    assert done.stderr == "", "no bar where there is no terminal"
    manifest = read_manifest(tmp_path / "bundle")
    everything = done.stdout.splitlines()
    # Where there is a compiler.
    lines = [line for line in everything if not line.startswith("native library: LightGBM's bits in ")]
    assert len(everything) - len(lines) == (compiler_name() is not None)
    assert lines[0].startswith(f"bundle {tmp_path / 'bundle'}: {manifest.model_version}, ")
    assert lines[1] == f"digest {manifest.digest}"
    assert lines[2] == "5 trees, not validated: the settings leave nothing to choose"
    assert re.fullmatch(
        r"labels: \d+ fraud, \d+ genuine, \d+ without an outcome .* genuine, \d+ not known .*", lines[3]
    )
    assert re.fullmatch(
        r"half of the frauds are known after .* days, 95 % after .*; fraud features wait 7 days.*", lines[4]
    )
    scores = lines.index(next(line for line in lines if line.startswith("out of fold: Brier")))
    missed = [line for line in lines if line.startswith("out of fold, at ")]
    assert [line.split()[4] for line in missed[:2]] == ["5", "10"]
    assert all("value detected" in line and "first frauds of cards" in line for line in missed[:2])
    told = [line for line in lines[5:scores] if line not in missed]
    assert all(line.startswith(("drifts out of its training range: ", "and ")) for line in told[:-1])
    assert told[-1] == promise_of(manifest.evidence["promise"]).in_words()[-1]
    assert re.match(r"nothing is promised from .* windows of 2 days have a past of 4 days .* needed$", told[-1])
    assert f"Brier score {manifest.metrics['brier']:.6f}" in lines[scores]
    table = lines.index(next(line for line in lines if line.split()[0] == "feature"))
    assert lines[scores + 1].split() == ["mean", "score", "frauds", "95", "%", "interval", "payments"]
    assert sum(int(line.split()[-1]) for line in lines[scores + 2 : table]) == manifest.training_payments
    assert [line.split()[0] for line in lines[table + 1 :]] == [name for name, _, _ in manifest.most_important(10)]


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains as on a machine without a C compiler, in a third of the time. No digest depends on the library."""
    monkeypatch.setattr("paywarden.models.training.training.compiler_name", lambda: None)


def test_train_prints_the_days_held_out_and_the_choice(data: Path, tmp_path: Path) -> None:
    done = run(data, tmp_path / "bundle", *LONG_WINDOW, "--search-budget", "3", "--seed", "7", settings=VALIDATED)
    assert done.exit_code == 0, done.output
    manifest = read_manifest(tmp_path / "bundle")
    assert "validated 2024-01-18 to 2024-01-26, trained 2024-01-03 to 2024-01-14: " in done.stdout
    assert "chosen of 3: learning_rate " in done.stdout
    assert len(manifest.validation["tried"]) == 3
    # The catalogue waits 7 days; what other delays would gain is told, and none is taken.
    assert [one["days"] for one in manifest.evidence["label_delays"]] == [1, 3]
    assert 'on held-out days, label_delay="1d" in the catalogue: average precision ' in done.stdout
    assert manifest.catalogue_digest == small_world.engine().plan.digest
    assert (manifest.parameters["seed"], manifest.parameters["search_budget"]) == (7, 3)
    load_bundle(tmp_path / "bundle", catalogue_digest=small_world.engine().plan.digest)


def test_a_cap_on_trees_that_was_reached_is_named(data: Path, tmp_path: Path) -> None:
    done = run(data, tmp_path / "bundle", *LONG_WINDOW, settings=VALIDATED | {"trees": 4})
    assert done.exit_code == 0, done.output
    wanted = "the cap on trees was reached: 4 of 4 chosen in 1 of 1 folds; more may do better (training.trees)"
    assert wanted in done.stdout


def test_a_training_beyond_memory_is_refused_before_features(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paywarden.models.training.memory.free_memory", lambda: 400_000_000)
    monkeypatch.setattr("paywarden.models.training.table.training_table", None)
    line = refusal(data, tmp_path)
    assert re.search(
        r"payments with \d+ features takes about 0.5 GB of memory, and 0.4 GB are free: wanted fewer", line
    )


def test_train_prints_what_a_cascade_answers_early_and_its_cost(data: Path, tmp_path: Path) -> None:
    done = run(data, tmp_path / "bundle", "--cascade", settings=QUICK | {"trees": 60})
    assert done.exit_code == 0, done.output
    told = read_manifest(tmp_path / "bundle").cascade
    first, second = [line for line in done.stdout.splitlines() if line.startswith("cascade: ")]
    assert f"{told['share_early']:.1%} of the payments answered early" in first
    assert f"average precision {-told['average_precision_loss']:+.4f}" in first
    assert re.search(r"\d\.\d\d µs a row instead of \d+\.\d\d", second)


@pytest.mark.usefixtures("without_library")
def test_an_experiment_without_mlflow_is_a_line_and_a_bundle(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = run(data, tmp_path / "a", "--experiment", "night")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].startswith("experiment night: not recorded, MLflow is not installed")
    assert "mlflow_experiment" not in read_manifest(tmp_path / "a").parameters


# What it refuses, before any feature is computed


@pytest.fixture
def without_features(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("the features of a history take minutes")

    monkeypatch.setattr("paywarden.models.training.table.training_table", unwanted)


Change = Callable[[pa.Table], pa.Table]


def _times(change: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> Change:
    """Other times for all outcomes."""

    def changed(table: pa.Table) -> pa.Table:
        place = table.column_names.index("outcome_time_ms")
        return table.set_column(place, "outcome_time_ms", change(table["outcome_time_ms"]))

    return changed


def _other_ids(table: pa.Table) -> pa.Table:
    ids = pa.array([f"another-{number}" for number in range(len(table))])
    return table.set_column(table.column_names.index("payment_id"), "payment_id", ids)


BAD_DATA: dict[str, tuple[str, Change, str]] = {
    "a missing column": (PAYMENTS_FILE, lambda table: table.drop_columns(["merchant_id"]), "merchant_id is missing"),
    "unsorted payments": (
        PAYMENTS_FILE,
        lambda table: table.take(list(reversed(range(len(table))))),
        "payments.parquet: rows must be sorted by event_time_ms; row 1 breaks that",
    ),
    "duplicated payments": (
        PAYMENTS_FILE,
        lambda table: pa.concat_tables([table, table.slice(len(table) - 1)]),
        "payments.parquet: payment_id must be unique; row ",
    ),
    "outcomes without payments": (OUTCOMES_FILE, _other_ids, "outcomes are about payments that payments.parquet"),
    "labels from before their payment": (
        OUTCOMES_FILE,
        _times(lambda times: pc.add(pc.multiply(times, 0), 1)),
        "outcomes.parquet: an outcome cannot be known before its payment is made; row 0 breaks that",
    ),
    "labels from the future": (
        OUTCOMES_FILE,
        _times(lambda times: pc.multiply(times, 1000)),
        "outcomes.parquet: outcome_time_ms must not be later than now; row 0 breaks that",
    ),
    "no outcome at all": (OUTCOMES_FILE, lambda table: table.slice(0, 0), "the training window has 0 frauds in "),
}


@pytest.mark.usefixtures("without_features")
@pytest.mark.parametrize("case", list(BAD_DATA))
def test_data_that_cannot_be_trained_on_is_one_line(data: Path, tmp_path: Path, case: str) -> None:
    name, change, wanted = BAD_DATA[case]
    for file in (PAYMENTS_FILE, OUTCOMES_FILE):
        table = pq.read_table(data / file)
        pq.write_table(change(table) if file == name else table, tmp_path / file)
    assert wanted in refusal(tmp_path, tmp_path)


@pytest.mark.usefixtures("without_features")
@pytest.mark.parametrize(
    ("first", "last", "wanted"),
    [
        ("2023-01-01", "2023-02-01", "--train-to 2023-02-01: the data starts on 2024-01-01"),
        ("2024-02-10", "2024-02-20", "--train-from 2024-02-10: the data ends on 2024-01-30"),
        ("2024-01-20", "2024-01-03", "must not end before it starts"),
        ("2024-01-32", "2024-02-01", "--train-from: wanted a date such as 2026-10-01, or -14d for 14 days before"),
        ("-27d", "10d", "--train-to: wanted a date such as 2026-10-01, or -14d for 14 days before"),
    ],
)
def test_a_window_that_cannot_be_trained_on_is_one_line(
    data: Path, tmp_path: Path, first: str, last: str, wanted: str
) -> None:
    assert wanted in refusal(data, tmp_path, "--train-from", first, "--train-to", last)


@pytest.mark.usefixtures("without_features")
def test_a_window_without_a_mature_day_is_refused(data: Path, tmp_path: Path) -> None:
    line = refusal(data, tmp_path, settings=QUICK | {"label_delay_days": 300})
    assert re.match(r"no day of the window is mature: the data ends on 2024-\d\d-\d\d, and labels take 300 days", line)


@pytest.mark.usefixtures("without_features")
def test_an_output_folder_with_other_files_is_refused_at_once(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    done = run(data, tmp_path)
    assert isinstance(done.exception, Misconfigured)
    assert "holds something that is no bundle" in str(done.exception)


def test_a_search_in_a_window_too_short_for_it_is_one_line(data: Path, tmp_path: Path) -> None:
    line = refusal(data, tmp_path, "--train-from", "2024-01-13", "--train-to", "2024-01-20", "--search-budget", "2")
    assert line.startswith("parameters cannot be searched: 8 days are too short to hold 1 × 1 out")


# On an engine of partitions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profile_lag": "1s"}, "training.profile_lag works with --engine local alone"),
        ({"overlay_hosts": 2}, "training.overlay_hosts works with --engine local alone"),
    ],
)
def test_settings_that_an_engine_lacks_are_refused(
    data: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    assert refusal(data, tmp_path, "--engine", "processes", settings=QUICK | settings) == message


def test_an_engine_refuses_a_window_outside_the_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})  # one process needs no pool, which starts in seconds
    line = refusal(data, tmp_path, "--engine", "processes", "--train-from", "2023-01-01", "--train-to", "2023-01-09")
    assert line.startswith("there is no payment from 2023-01-01 to 2023-01-09: the data is from 2024-01-01 to ")
