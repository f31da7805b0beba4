"""`paywarden backtest`: what it prints and writes, and what it refuses before it has cost anyone minutes."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.history import write_history
from paywarden.models.backtest.handbook import FIRST_DAY, PREQUENTIAL, PUBLISHED, SINGLE
from paywarden.models.backtest.models import MODELS
from paywarden.models.metrics.evaluation import DAY_MS, METRICS, date_of_day
from paywarden.models.training.search_space import boosted_paths
from paywarden.ops.commands.model.backtest import MODEL_NAMES, backtest
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


def test_the_ceiling_of_the_data_stands_beside_the_models(single: tuple[str, dict[str, Any]]) -> None:
    said, result = single
    (ceiling,) = result["ceiling"]
    assert all(0 <= value <= 1 for value in ceiling.values())
    assert re.search(rf"generator's ceiling +test, mean +{ceiling['auc_roc']:.4f}", said)


def test_the_file_says_what_was_run(single: tuple[str, dict[str, Any]]) -> None:
    result = single[1]
    assert (result["protocol"], result["catalogue"], result["seed"], result["budget"]) == ("single", "ours", 5, 2)
    assert result["features"] == list(CATALOGUE.names)
    assert [model["name"] for model in result["models"]] == ["lightgbm", "dt"]
    assert result["seconds"] >= sum(model["seconds"] for model in result["models"]) > 0


def test_the_file_holds_the_three_metrics_by_fold_and_mean_for_every_model(prequential: dict[str, Any]) -> None:
    (model,) = prequential["models"]
    for part, splits in (("validation", PREQUENTIAL.validation), ("test", PREQUENTIAL.test)):
        folds = model[part]["folds"]
        assert [fold["train_from"] for fold in folds] == [date_of_day(split.train.first) for split in splits]
        for metric in METRICS:
            values = [fold[metric] for fold in folds]
            assert model[part]["mean"][metric] == pytest.approx(sum(values) / 4)
            assert 0 <= min(values) <= max(values) <= 1


def test_the_file_holds_what_was_tried_and_chosen(single: tuple[str, dict[str, Any]]) -> None:
    boosted, tree = single[1]["models"]
    assert len(boosted["grid"]) == 2 * 5
    assert len(tree["grid"]) == 11
    for model, metric in itertools.product((boosted, tree), METRICS):
        best = max(model["grid"], key=lambda tried: tried["mean"][metric])
        assert model["chosen"][metric] == best["parameters"]
        assert model["validation"]["mean"][metric] == best["mean"][metric]
    # The search is that of the seed that was asked for.
    wanted = [dict(candidate) for path in boosted_paths(seed=5, budget=2) for candidate in path.candidates()]
    assert [tried["parameters"] for tried in boosted["grid"]] == wanted


def test_the_file_holds_the_published_numbers_and_ours_by_their_parameters(prequential: dict[str, Any]) -> None:
    (model,) = prequential["models"]
    row = PUBLISHED["prequential"]["dt"]
    assert model["published"]["test"]["mean"] == row.test.of_the_book()
    assert model["published"]["parameters"] == row.parameters
    assert len(model["as_published"]["folds"]) == 4
    assert prequential["best_published"] == {
        "auc_roc": 0.876, "average_precision": 0.694, "card_precision_at_100": 0.305
    }  # fmt: skip


def test_the_file_says_how_large_each_fold_is(single: tuple[str, dict[str, Any]]) -> None:
    (fold,) = single[1]["folds"]["test"]
    assert fold["test_from"] == date_of_day(SINGLE.test[0].test.first)
    assert 0 < fold["train_frauds"] < fold["train_payments"]
    assert 0 < fold["test_frauds"] < fold["test_payments"]
    assert 0 < fold["card_precision_ceiling"] <= 1


def test_our_results_are_printed_next_to_the_published_ones(single: tuple[str, dict[str, Any]]) -> None:
    printed, result = single
    lines = [line.strip() for line in printed.splitlines()]
    of_tests = [line for line in lines if line.startswith("test, mean")]
    assert len(of_tests) == len(result["models"])
    for model, published, line in zip(result["models"], ("0.639", "0.496"), of_tests, strict=True):
        cells = line.split()
        assert f"{model['test']['mean']['average_precision']:.4f}" in cells
        assert published in cells
    tree = result["models"][1]
    (line,) = [line for line in printed.splitlines() if "their parameters" in line]
    assert f"{tree['as_published']['mean']['auc_roc']:.4f}" in line
    assert "0.763" in line


def test_choices_seed_and_times_are_printed(single: tuple[str, dict[str, Any]]) -> None:
    printed, result = single
    depth = result["models"][1]["chosen"]["auc_roc"]["max_depth"]
    assert any(
        line.startswith("dt, chosen for AUC ROC") and f"max_depth {depth}" in line for line in printed.splitlines()
    )
    assert "seed 5" in printed
    assert f"lightgbm {result['models'][0]['seconds']:.1f} s" in printed


def test_the_same_seed_gives_the_same_results(data: str, tmp_path: Path) -> None:
    results = []
    for name in ("first", "second"):
        arguments = ("--protocol", "single", "--models", "lightgbm", "--budget", "1", "--json", str(tmp_path / name))
        assert run("--data", data, *arguments).exit_code == 0
        (model,) = json.loads((tmp_path / name).read_text(encoding="utf-8"))["models"]
        results.append({key: value for key, value in model.items() if key != "seconds"})
    assert results[0] == results[1]


def test_the_catalogue_of_the_book_has_its_15_inputs(data: str, tmp_path: Path) -> None:
    file = tmp_path / "book.json"
    done = run(*("--data", data, "--protocol", "single", "--models", "dt", "--catalogue", "book", "--json", str(file)))
    assert done.exit_code == 0, done.output
    result = json.loads(file.read_text(encoding="utf-8"))
    assert (result["catalogue"], len(result["features"])) == ("book", 15)


def test_another_history_is_refused(tmp_path: Path) -> None:
    write_history(tmp_path, *simulate(cards=5, days=30, seed=1))
    done = run("--data", str(tmp_path))
    assert isinstance(done.exception, Misconfigured)
    assert "not the handbook's history" in str(done.exception)
    assert "2024-01-01 to 2024-01-30" in str(done.exception)


def test_an_unknown_model_is_refused_by_its_name() -> None:
    done = run("--data", "anywhere", "--models", "lr,svm")
    assert done.exit_code == 2
    assert "wanted some of lr,rf,dt,lightgbm, got 'svm'" in done.output


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    done = run("--data", "nowhere", "--json", str(tmp_path / "missing" / "result.json"))
    assert done.exit_code == 1
    assert "there is no folder" in done.output


def test_a_model_named_twice_is_run_once() -> None:
    from paywarden.ops.commands.model.backtest import _model_names

    assert _model_names(None, None, " dt,lr, dt") == ("dt", "lr")  # type: ignore[arg-type]


def test_the_command_offers_every_model_there_is() -> None:
    assert MODEL_NAMES == MODELS


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


def test_results_on_own_data_have_metrics_by_fold_alone(windows: tuple[str, dict[str, Any]]) -> None:
    printed, result = windows
    (model,) = result["models"]
    assert result["windows"] == {"train_days": 7, "delay_days": 2, "test_days": 4, "folds": 2}
    assert result["protocol"] == "windows"
    assert len(model["test"]["folds"]) == len(model["validation"]["folds"]) == 2
    assert "published" not in model
    assert "published" not in printed
    assert f"{model['test']['mean']['average_precision']:.4f}" in printed
    assert "perfect oracle" in printed


def test_an_earlier_last_day_moves_all_folds(small: str, tmp_path: Path) -> None:
    file = tmp_path / "earlier.json"
    arguments = ("--data", small, *LENGTHS, "--to", "2024-01-27", "--json", str(file))
    assert run_on_windows(*arguments).exit_code == 0
    folds = json.loads(file.read_text(encoding="utf-8"))["folds"]
    assert folds["test"][-1]["test_to"] == "2024-01-27"
    assert folds["validation"][0]["train_from"] == "2024-01-01"


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


def test_windows_without_payments_are_refused(tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    write_history(tmp_path, payments.slice(0, 0), outcomes.slice(0, 0))
    done = run_on_windows("--data", str(tmp_path), *LENGTHS)
    assert isinstance(done.exception, Misconfigured)
    assert "the data holds no payment" in str(done.exception)
