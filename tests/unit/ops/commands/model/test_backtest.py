"""`paywarden backtest`: what it prints and writes, and what it refuses before it has cost anyone minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.history import write_history
from paywarden.models.backtest.handbook import FIRST_DAY, PREQUENTIAL
from paywarden.models.metrics.evaluation import DAY_MS, METRICS, date_of_day
from paywarden.ops.commands.model.backtest import backtest
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source
from tests.worlds.small import small_world


def run(*arguments: str) -> Result:
    return CliRunner().invoke(backtest, ["handbook", *arguments], obj=Source({}, {}))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A simulated history on the handbook's days: small, and the command cannot tell it from the book's."""
    folder = tmp_path_factory.mktemp("handbook")
    last = PREQUENTIAL.days.last + 1
    write_history(folder, *simulate(cards=150, days=last - FIRST_DAY, seed=3, end_time_ms=last * DAY_MS))
    return str(folder)


@pytest.fixture(scope="module")
def single(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The output of a run, and its file."""
    file = tmp_path_factory.mktemp("results") / "single.json"
    done = run(
        *("--data", data, "--protocol", "single", "--models", "lightgbm,dt", "--budget", "2", "--seed", "5"),
        *("--json", str(file)),
    )
    assert done.exit_code == 0, done.output
    return done.stdout, json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def prequential(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("results") / "prequential.json"
    done = run("--data", data, "--protocol", "prequential", "--models", "dt", "--json", str(file))
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


def test_the_file_holds_the_three_metrics_by_fold_and_mean_for_every_model(prequential: dict[str, Any]) -> None:
    (model,) = prequential["models"]
    for part, splits in (("validation", PREQUENTIAL.validation), ("test", PREQUENTIAL.test)):
        folds = model[part]["folds"]
        assert [fold["train_from"] for fold in folds] == [date_of_day(split.train.first) for split in splits]
        for metric in METRICS:
            values = [fold[metric] for fold in folds]
            assert model[part]["mean"][metric] == pytest.approx(sum(values) / 4)
            assert 0 <= min(values) <= max(values) <= 1


def test_first_frauds_and_values_are_measured_on_test_folds(
    single: tuple[str, dict[str, Any]], prequential: dict[str, Any]
) -> None:
    text, result = single
    (fold,) = result["models"][0]["test"]["folds"]
    assert [found["false_positives_per_fraud"] for found in fold["missed"]["detected"]] == [5, 10]
    assert "missed" not in result["models"][0]["validation"]["folds"][0]
    assert f"value detected {fold['missed']['detected'][0]['amount_recall']:.1%} (95 % interval " in text
    assert all("missed" in fold for fold in prequential["models"][0]["test"]["folds"])


def test_the_catalogue_of_the_book_has_its_15_inputs(data: str, tmp_path: Path) -> None:
    file = tmp_path / "book.json"
    done = run(*("--data", data, "--protocol", "single", "--models", "dt", "--catalogue", "book", "--json", str(file)))
    assert done.exit_code == 0, done.output
    result = json.loads(file.read_text(encoding="utf-8"))
    assert (result["catalogue"], len(result["features"])) == ("book", 15)


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    done = run("--data", "nowhere", "--json", str(tmp_path / "missing" / "result.json"))
    assert done.exit_code == 1
    assert "there is no folder" in done.output


# On any data


LENGTHS = ("--train-days", "7", "--delay-days", "2", "--test-days", "4", "--folds", "2", "--models", "dt")


def run_on_windows(*arguments: str) -> Result:
    return CliRunner().invoke(backtest, ["run", *arguments], obj=Source({}, {}))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("small")
    write_history(folder, *small_world.tables())
    return str(folder)


@pytest.fixture(scope="module")
def windows(small: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The output of a run on windows, and its file."""
    file = tmp_path_factory.mktemp("results") / "windows.json"
    done = run_on_windows("--data", small, *LENGTHS, "--json", str(file))
    assert done.exit_code == 0, done.output
    return done.stdout, json.loads(file.read_text(encoding="utf-8"))


def test_folds_follow_each_other_up_to_the_last_known_labels(
    windows: tuple[str, dict[str, Any]],
) -> None:
    folds = windows[1]["folds"]
    # The data ends on 30 January, and a label takes two days.
    assert [(fold["test_from"], fold["test_to"]) for fold in folds["test"]] == [
        ("2024-01-21", "2024-01-24"),
        ("2024-01-25", "2024-01-28"),
    ]
    assert (folds["test"][0]["train_from"], folds["test"][0]["train_to"]) == ("2024-01-12", "2024-01-18")
    # Labels of its last day are known when the first test day begins.
    assert [fold["test_to"] for fold in folds["validation"]] == ["2024-01-14", "2024-01-18"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (
            ("--folds", "3"),
            "the windows are 35 days, 2023-12-25 to 2024-01-28, the data is from 2024-01-01 to 2024-01-30",
        ),
        (("--to", "2024-01-31"), "2024-01-05 to 2024-01-31, the data is from 2024-01-01"),
        (("--to", "2024-01-26"), "2023-12-31 to 2024-01-26"),
        (("--to", "soon"), "soon"),
    ],
)
def test_windows_beyond_the_data_are_refused_in_one_line(small: str, more: tuple[str, ...], named: str) -> None:
    done = run_on_windows("--data", small, *LENGTHS, *more)
    assert isinstance(done.exception, Misconfigured), done.output
    assert named in str(done.exception)
    assert "\n" not in str(done.exception)


def test_an_engine_measures_what_one_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})  # one process needs no pool, which starts in seconds
    write_history(tmp_path, *small_world.tables())
    results = []
    for name, options in (
        ("one", []),
        ("many", ["--engine", "processes", "--partitions", "2", "--work", str(tmp_path)]),
    ):
        file = tmp_path / f"{name}.json"
        windows = ["--train-days", "5", "--delay-days", "3", "--test-days", "4", "--models", "dt", "--budget", "1"]
        arguments = ["run", "--data", str(tmp_path), *windows, "--json", str(file), *options]
        done = CliRunner().invoke(backtest, arguments, obj=Source({}, {}))
        assert done.exit_code == 0, done.output
        result = json.loads(file.read_text(encoding="utf-8"))
        for of_run in (result, *result["models"]):
            del of_run["seconds"]
        del result["feature_seconds"]
        results.append(result)
    assert results[0] == results[1]
