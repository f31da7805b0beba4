"""`paywarden backtest`: measures models on our features, on any data and next to results that others have published."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.ops.engines import EngineAsked, engine_options, opened_passage, say
from paywarden.ops.extras import needs
from paywarden.ops.progress import progress_bar
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.features.dataflow.vectors import Passage
    from paywarden.features.history.history import History
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.profiles.money import RateTable
    from paywarden.models.backtest.backtest import BacktestRows, FoldFacts, ModelResult, Protocol, Summary
    from paywarden.models.backtest.handbook import Published
    from paywarden.models.metrics.evaluation import HandbookMetrics, Split

MODEL_NAMES = ("lr", "rf", "dt", "lightgbm")
# The width of the table. A pipe has no width of its own, and in a narrow terminal broken lines beat missing numbers.
_WIDTH_MIN = 130
_HEADINGS = {"auc_roc": "AUC ROC", "average_precision": "avg. precision", "card_precision_at_100": "CP@100"}


def _model_names(_context: click.Context, _option: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in MODEL_NAMES]
    if unknown:
        raise click.BadParameter(f"wanted some of {','.join(MODEL_NAMES)}, got {unknown[0]!r}")
    return names


_models_option = click.option(
    "--models",
    default=",".join(MODEL_NAMES),
    show_default=True,
    callback=_model_names,
    help="Models to compare, with commas between.",
)
_budget_option = click.option(
    "--budget",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="LightGBM parameters to try; each costs one training in every fold.",
)
_seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the search and of the models."
)


@click.group()
def backtest() -> None:
    """Compare models on a history or with published results."""


@backtest.command("run")
@click.option("--data", type=click.Path(), required=True, help="Folder with payments.parquet and outcomes.parquet.")
@click.option("--train-days", type=click.IntRange(1), required=True, help="Days that each fold is trained on.")
@click.option("--delay-days", type=click.IntRange(0), required=True, help="Days that a label takes to become known.")
@click.option("--test-days", type=click.IntRange(1), required=True, help="Days that each fold is tested on.")
@click.option(
    "--folds", type=click.IntRange(1), default=1, show_default=True, help="Folds to test on; as many more to choose on."
)
@click.option("--to", "to_day", metavar="DAY", help="Last day to test on (default: the last whose labels are known).")
@click.option(
    "--protocol",
    type=click.Choice(["all", "handbook"]),
    default="all",
    show_default=True,
    help="Measured payments: all, or as in the Fraud Detection Handbook, without cards known to be compromised.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write all results to this file.")
@engine_options
@_models_option
@_budget_option
@_seed_option
@click.pass_obj
@needs("train")
def on_windows(
    source: Source,
    data: str,
    train_days: int,
    delay_days: int,
    test_days: int,
    folds: int,
    to_day: str | None,
    protocol: str,
    json_file: str | None,
    engine_name: str,
    master: str | None,
    partitions: int,
    work: str | None,
    models: tuple[str, ...],
    budget: int,
    seed: int,
) -> None:
    """Compare models on your own data, fold by fold.

    A fold has train days, then delay days, then test days. Parameters are chosen on folds whose labels were known
    before the first test day. A model with the chosen parameters is measured on the test folds. All payments of
    the test days are measured.
    """
    from paywarden.features.history.history import read_history
    from paywarden.models.backtest.windows import Windows, last_test_day, windows_protocol
    from paywarden.models.metrics.evaluation import DAY_MS, day_of_date
    from paywarden.models.training.training_settings import TrainingSettings

    if json_file:
        _require_folder(json_file)
    windows = Windows(train_days, delay_days, test_days, folds)
    wanted = day_of_date(to_day) if to_day else None
    rates = wiring.rate_table(source)
    engine = wiring.feature_engine(source)
    labels = _Labels(delay_days, source.section("training", TrainingSettings).unknown_labels)
    on_engine = EngineAsked(engine_name, master, partitions, work)
    with ExitStack() as stack:
        if on_engine.is_local:
            history = read_history(data, engine.plan.fields)
            first, last = (int(history.event_time_ms[row]) // DAY_MS for row in (0, -1)) if len(history) else (0, -1)
            made: Callable[[Protocol], BacktestRows] = partial(
                _rows_with_bar, history, engine=engine, rates=rates, labels=labels
            )
        else:
            if on_engine.work is None:
                raise Misconfigured(f"backtest --engine {on_engine.name} needs --work, a path for intermediate rows")
            opened = opened_passage(on_engine, data, on_engine.work, features=engine, rates=rates)
            passage, _ = stack.enter_context(opened)
            first, last = min(passage.places.by_day, default=0), max(passage.places.by_day, default=-1)
            made = partial(_rows_on_engine, passage, labels=labels)
        if last < first:
            raise Misconfigured("the data holds no payment")
        folds_of_windows = windows_protocol(
            windows, last_test_day(first, last, windows, wanted), measures_all=protocol == "all"
        )
        measured = _measured(made, folds_of_windows, _ModelChoice(models, budget, seed), engine=engine, published={})
    facts = {"protocol": folds_of_windows.name, "measured": protocol, "windows": asdict(windows), "catalogue": "ours"}
    result = facts | measured
    _print(result)
    if json_file:
        _write(result, json_file)


@backtest.command()
@click.option("--data", type=click.Path(), required=True, help="Folder that `convert handbook` has written.")
@click.option(
    "--protocol",
    type=click.Choice(["single", "prequential"]),
    default="prequential",
    show_default=True,
    help="The book's split of chapter 3, or its four folds of chapter 5.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write all results to this file.")
@click.option(
    "--catalogue",
    type=click.Choice(["ours", "book"]),
    default="ours",
    show_default=True,
    help="The features that are served, or the book's 15 inputs in our words.",
)
@_models_option
@_budget_option
@_seed_option
@click.pass_obj
@needs("train")
def handbook(
    source: Source,
    data: str,
    protocol: str,
    json_file: str | None,
    catalogue: str,
    models: tuple[str, ...],
    budget: int,
    seed: int,
) -> None:
    """Compare models with published results.

    Protocol and metrics are those of the Fraud Detection Handbook; its published numbers stand next to ours.
    Parameters are chosen on the validation folds alone. A model with the chosen parameters is measured on the test
    folds. All models on four folds take many minutes: `--models` and `--budget` make it shorter.
    """
    if json_file:
        _require_folder(json_file)
    result = _run(source, data, protocol, catalogue, _ModelChoice(models, budget, seed))
    _print(result)
    if json_file:
        _write(result, json_file)


@dataclass(frozen=True)
class _Labels:
    """The number of days after which labels are known, and the label of a payment without an outcome."""

    delay_days: int
    unknown: str


@dataclass(frozen=True)
class _ModelChoice:
    """The models to compare, the number of LightGBM parameters to try, and the seed of the search and the models."""

    names: Sequence[str]
    budget: int
    seed: int


def _run(source: Source, data: str, protocol_name: str, catalogue: str, choice: _ModelChoice) -> dict[str, Any]:
    """Returns everything that the handbook's protocol prints and writes."""
    from paywarden.features.history.history import read_history
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.models.backtest.handbook import (
        BEST_PUBLISHED,
        LABEL_DELAY_DAYS,
        PROTOCOLS,
        PUBLISHED,
        book_catalogue,
        require_handbook,
    )
    from paywarden.models.metrics.labels import GENUINE

    protocol = PROTOCOLS[protocol_name]
    rates = wiring.rate_table(source)
    engine = FeatureEngine(
        wiring.catalogue(source) if catalogue == "ours" else book_catalogue(), wiring.identity_key(source)
    )
    history = read_history(data, engine.plan.fields)
    require_handbook(history, protocol)
    best = BEST_PUBLISHED[protocol.name]
    published = PUBLISHED[protocol.name]
    # The book's table has a label for every payment.
    labels = _Labels(LABEL_DELAY_DAYS, GENUINE)
    made = partial(_rows_with_bar, history, engine=engine, rates=rates, labels=labels)
    measured = _measured(made, protocol, choice, engine=engine, published=published)
    return {
        "protocol": protocol.name,
        "measured": "handbook",
        "catalogue": catalogue,
        "best_published": None if best is None else best.of_the_book(),
        **measured,
    }


def _measured(
    made: Callable[[Protocol], BacktestRows],
    protocol: Protocol,
    choice: _ModelChoice,
    *,
    engine: FeatureEngine,
    published: Mapping[str, Published],
) -> dict[str, Any]:
    """Returns the results that every backtest prints and writes.

    `made` returns the payments of a protocol with their vectors. `published` has the published results by model, where
    there are some.
    """
    from paywarden.models.backtest.backtest import backtest as run
    from paywarden.models.backtest.backtest import facts_of
    from paywarden.models.backtest.models import family

    engine.warm_up()
    started = time.perf_counter()
    rows = made(protocol)
    feature_seconds = time.perf_counter() - started
    folds = {"validation": facts_of(rows, protocol.validation), "test": facts_of(rows, protocol.test)}
    results = []
    for name in choice.names:
        theirs = published.get(name)
        candidates = family(
            name,
            seed=choice.seed,
            budget=choice.budget,
            published=None if theirs is None else theirs.parameters,
        )
        results.append(_model(run(rows, protocol, candidates, progress=progress_bar), folds, theirs))
    return {
        "features": list(engine.plan.names),
        "catalogue_digest": engine.plan.digest,
        "seed": choice.seed,
        "budget": choice.budget,
        "payments": len(rows.label),
        "labels": None if rows.label_counts is None else asdict(rows.label_counts),
        "feature_seconds": feature_seconds,
        "seconds": time.perf_counter() - started,
        "folds": {part: [_facts(fold) for fold in facts] for part, facts in folds.items()},
        "models": results,
    }


def _rows_with_bar(
    history: History, protocol: Protocol, *, engine: FeatureEngine, rates: RateTable, labels: _Labels
) -> BacktestRows:
    from paywarden.models.backtest.backtest import rows_of
    from paywarden.models.metrics.evaluation import DAY_MS

    # Everything before the first day that is needed fills the profiles, and takes its time too.
    row_count = int((history.event_time_ms < (protocol.days.last + 1) * DAY_MS).sum())
    with progress_bar("features", row_count) as advance:
        return rows_of(
            history,
            protocol.days,
            engine=engine,
            rates=rates,
            label_delay_days=labels.delay_days,
            unknown_labels=labels.unknown,
            progress=advance,
        )


def _rows_on_engine(passage: Passage[Any], protocol: Protocol, *, labels: _Labels) -> BacktestRows:
    from paywarden.models.backtest.backtest import rows_of_table
    from paywarden.models.training.table_passage import training_table_on
    from paywarden.models.training.training_settings import TrainingSettings

    say("the features of the protocol's days are computed")
    settings = TrainingSettings(
        label_delay_days=labels.delay_days, unknown_labels=labels.unknown, propensity_weight_max=0.0
    )
    room = Path(tempfile.gettempdir())
    return rows_of_table(training_table_on(passage, protocol.days, settings=settings, room=room, may_sample=False))


# The written file


def _model(result: ModelResult, folds: dict[str, list[FoldFacts]], published: Published | None) -> dict[str, Any]:
    measured = {
        "name": result.name,
        "chosen": {metric: dict(parameters) for metric, parameters in result.chosen.items()},
        "grid": [
            {
                "parameters": dict(tried.parameters),
                "mean": tried.validation.mean.of_the_book(),
                "std": tried.validation.std.of_the_book(),
            }
            for tried in result.grid
        ],
        "validation": _summary(result.validation, folds["validation"]),
        "test": _summary(result.test, folds["test"]),
        "seconds": result.seconds,
    }
    if published is None:
        return measured
    as_published = None if result.as_published is None else _summary(result.as_published, folds["test"])
    return measured | {"as_published": as_published, "published": _published(published)}


def _summary(summary: Summary, folds: Sequence[FoldFacts]) -> dict[str, Any]:
    return {
        "mean": summary.mean.of_the_book(),
        "std": summary.std.of_the_book(),
        "folds": [_fold(facts, measured) for facts, measured in zip(folds, summary.folds, strict=True)],
    }


def _fold(facts: FoldFacts, measured: HandbookMetrics) -> dict[str, Any]:
    from paywarden.models.metrics.intervals import auc_interval, average_precision_interval

    genuine = facts.test_payments - facts.test_frauds
    missed = {} if measured.missed is None else {"missed": measured.missed.record()}
    return missed | {
        **_days(facts.split),
        **measured.of_the_book(),
        "test_frauds": facts.test_frauds,
        "auc_roc_interval": auc_interval(measured.auc_roc, facts.test_frauds, genuine, measured.auc_roc_variance),
        "average_precision_interval": average_precision_interval(measured.average_precision, facts.test_frauds),
    }


def _published(row: Published) -> dict[str, Any]:
    parameters = None if row.parameters is None else {metric: dict(values) for metric, values in row.parameters.items()}
    return {
        "model": row.model,
        "parameters": parameters,
        "validation": None if row.validation is None else {"mean": row.validation.of_the_book()},
        "test": {"mean": row.test.of_the_book(), "std": None if row.test_std is None else row.test_std.of_the_book()},
    }


def _facts(facts: FoldFacts) -> dict[str, Any]:
    counts = {name: value for name, value in vars(facts).items() if name != "split"}
    return {**_days(facts.split), **counts}


def _days(split: Split) -> dict[str, str]:
    from paywarden.models.metrics.evaluation import date_of_day

    return {
        "train_from": date_of_day(split.train.first),
        "train_to": date_of_day(split.train.last),
        "test_from": date_of_day(split.test.first),
        "test_to": date_of_day(split.test.last),
    }


def _require_folder(json_file: str) -> None:
    """Refuse a file that cannot be written before the run, which takes minutes. Raises ClickException."""
    folder = Path(json_file).parent
    if not folder.is_dir():
        raise click.ClickException(f"cannot write {json_file}: there is no folder {folder}")


def _write(result: dict[str, Any], json_file: str) -> None:
    try:
        Path(json_file).write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write {json_file}: {error.strerror}") from error


# The printed text


def _print(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH_MIN)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("model", no_wrap=True)
    table.add_column("measured on", no_wrap=True)
    table.add_column("frauds", justify="right", no_wrap=True)
    beside = any("published" in model for model in result["models"])
    for heading in _HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
        if beside:
            table.add_column("published", justify="right", no_wrap=True, style="dim")
    # Where nothing is published every second cell is empty.
    step = 1 if beside else 2
    for model in result["models"]:
        for name, where, frauds, *cells in _rows(model):
            table.add_row(name, where, frauds, *cells[::step])
        table.add_section()
    ceilings = [fold["card_precision_ceiling"] for fold in result["folds"]["test"]]
    oracle = ["1.0000", "", "1.0000", "", f"{sum(ceilings) / len(ceilings):.4f}", ""]
    table.add_row("perfect oracle", "test, mean", "", *oracle[::step])
    if result.get("best_published") is not None:
        table.add_row("best published", "test, mean", "", *_cells({}, result["best_published"]))
    console.print(table)
    for line in _doubts(result):
        click.echo(line)
    for model in result["models"]:
        for line in _missed_lines(model["test"]["folds"]):
            click.echo(f"{model['name']}, test: {line}")
    for model in result["models"]:
        for metrics, parameters in _choices(model["chosen"]):
            click.echo(f"{model['name']}, chosen for {metrics}: {parameters}")
    seconds = ", ".join(f"{model['name']} {model['seconds']:.1f} s" for model in result["models"])
    click.echo(
        f"{result['protocol']} protocol, catalogue {result['catalogue']} ({len(result['features'])} features), "
        f"seed {result['seed']}; features {result['feature_seconds']:.1f} s, {seconds}"
    )


def _rows(model: dict[str, Any]) -> Iterator[list[str]]:
    """One row for each fold and each mean."""
    name, published = model["name"], model.get("published", {})
    for part in ("validation", "test"):
        folds = model[part]["folds"]
        for fold in folds:
            yield [name, f"{part} {fold['test_from']}", _frauds_cell(fold["test_frauds"]), *_cells(fold, {})]
            name = ""
        frauds = _frauds_cell(sum(fold["test_frauds"] for fold in folds))
        yield ["", f"{part}, mean", frauds, *_mean_cells(model[part], published.get(part))]
    if model.get("as_published") is not None:
        yield ["", "test, their parameters", "", *_mean_cells(model["as_published"], published["test"])]


def _frauds_cell(frauds: int) -> str:
    """Returns the number of frauds, marked if they are few."""
    from paywarden.models.metrics.intervals import FRAUDS_FEW

    return f"{frauds}{'*' if frauds < FRAUDS_FEW else ''}"


def _doubts(result: dict[str, Any]) -> list[str]:
    """Returns a line on the measured payments, and one for each fold whose figures rest on few frauds."""
    from paywarden.models.metrics.intervals import FRAUDS_FEW

    measured = {"all": "all payments of the test days", "handbook": "payments of cards not yet known to be compromised"}
    lines = [f"measured: {measured[result['measured']]}"]
    for model in result["models"]:
        for part in ("validation", "test"):
            for fold in model[part]["folds"]:
                if fold["test_frauds"] < FRAUDS_FEW:
                    low, high = fold["average_precision_interval"]
                    lines.append(
                        f"* {model['name']}, {part} {fold['test_from']}: {fold['test_frauds']} frauds are few, average "
                        f"precision {fold['average_precision']:.4f} has the 95 % interval {low:.4f} to {high:.4f}"
                    )
    return lines


def _missed_lines(folds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns lines about the value detected and first frauds: of one fold with intervals, or the means of several."""
    from paywarden.models.metrics.value_detected import FALSE_POSITIVES, missed_of

    missed = [missed_of(fold["missed"]) for fold in folds if "missed" in fold]
    if len(missed) < 2:
        return [line for found in missed for line in found.in_words()]
    lines = []
    for place, allowed in enumerate(FALSE_POSITIVES):
        detected = [found.detected[place] for found in missed]
        value, frauds, first = (
            _mean_and_spread([getattr(found, name) for found in detected])
            for name in ("amount_recall", "recall", "first_recall")
        )
        lines.append(
            f"at {allowed} false positives a fraud: value detected {value}, {frauds} of the frauds, first frauds of "
            f"cards {first} (mean of {len(missed)} folds and their spread; the file of --json has each with intervals)"
        )
    return lines


def _mean_and_spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.1%}±{math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)):.1%}"


def _mean_cells(ours: dict[str, Any], theirs: dict[str, Any] | None) -> list[str]:
    """Means with the spread over the folds, where there are several."""
    our_std = ours["std"] if len(ours["folds"]) > 1 else None
    return _cells(ours["mean"], theirs["mean"] if theirs else {}, our_std, theirs.get("std") if theirs else None)


def _cells(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    our_std: dict[str, float] | None = None,
    their_std: dict[str, float] | None = None,
) -> list[str]:
    """For each metric ours and theirs; an empty dictionary leaves its column empty."""
    cells = []
    for metric in _HEADINGS:
        for values, std, places in ((ours, our_std, 4), (theirs, their_std, 3)):
            value = values.get(metric, math.nan)
            spread = f"±{std[metric]:.{places - 1}f}" if std else ""
            cells.append("" if math.isnan(value) else f"{value:.{places}f}{spread}")
    return cells


def _choices(chosen: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Metrics that made the same choice, and the choice."""
    by_choice: dict[str, list[str]] = {}
    for metric, parameters in chosen.items():
        by_choice.setdefault(", ".join(f"{key} {value}" for key, value in parameters.items()), []).append(metric)
    for parameters_text, metrics in by_choice.items():
        yield ", ".join(_HEADINGS[metric] for metric in metrics), parameters_text
