"""`paywarden train`: trains a bundle on a history and prints how good it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.ops.days import day_option, require_within
from paywarden.ops.engines import EngineAsked, engine_options, opened_passage, say
from paywarden.ops.extras import needs
from paywarden.ops.histories import DaysAsked, HistoryAsked, history_options, read_asked
from paywarden.ops.progress import progress_bar
from paywarden.ops.reporting import print_table
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.profiles.money import RateTable
    from paywarden.models.bundle.bundle import Manifest
    from paywarden.models.metrics.evaluation import Days
    from paywarden.models.training.training_settings import TrainingSettings

FEATURES_SHOWN = 10


@click.command()
@history_options
@click.option(
    "--train-from",
    required=True,
    metavar="DAY",
    help="First UTC day to train on: a date, or -70d for 70 days before the data's last.",
)
@click.option("--train-to", required=True, metavar="DAY", help="Last UTC day to train on, included, in the same form.")
@click.option("--out", type=click.Path(file_okay=False), required=True, help="Folder of the bundle to write.")
@click.option(
    "--search-budget",
    "--trials",
    "search_budget",
    type=click.IntRange(0),
    help="Parameters to try on the last days of the window (default: 1). 0 or 1: no search.",
)
@click.option(
    "--minutes",
    "search_minutes",
    type=click.FloatRange(0),
    help="Try no more parameters than this many minutes of counted work allow (default: 0). 0: no limit.",
)
@click.option(
    "--choose-seconds",
    type=click.FloatRange(0),
    help="How many seconds of work held-out days may try changes of inputs, weights, sampling, bins and trees "
    "(default: 20). The work is counted, not timed. 0: none.",
)
@click.option(
    "--cascade/--no-cascade",
    default=None,
    help="Whether a small model answers the clear payments first (default: [training] cascade).",
)
@click.option("--seed", type=click.IntRange(0), help="Seed of everything random (default: 0).")
@engine_options
@click.option(
    "--experiment",
    metavar="NAME",
    help="MLflow experiment to record the training in.",
)
@click.pass_obj
@needs("train")
def train(
    source: Source,
    data: str | None,
    from_topic: bool,
    since: str | None,
    until: str | None,
    warm_up_days: int | None,
    train_from: str,
    train_to: str,
    out: str,
    search_budget: int | None,
    search_minutes: float | None,
    choose_seconds: float | None,
    cascade: bool | None,
    seed: int | None,
    engine_name: str,
    master: str | None,
    partitions: int,
    work: str | None,
    experiment: str | None,
) -> None:
    """Train a model on a history and write its bundle.

    The bundle holds the calibrated model, its native library, its thresholds and golden vectors. The number of trees is
    chosen on the last days of the window, if the window is long enough to hold some out. The same data, settings and
    seed give the same bundle.

    With an engine, the features are computed there, and memory holds what trees need alone. If the payments of the
    window are still too many, all frauds and a share of the genuine payments are trained on, and the bundle says so.
    """
    from paywarden.models.training.experiments import record_training
    from paywarden.models.training.training_settings import TrainingSettings

    asked = HistoryAsked(data, from_topic, since, until, warm_up_days)
    given = {
        "search_budget": search_budget,
        "search_minutes": search_minutes,
        "choose_seconds": choose_seconds,
        "cascade": cascade,
        "seed": seed,
        "mlflow_experiment": experiment,
    }
    # Each option has the name and the type of its setting.
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings = replace(source.section("training", TrainingSettings), **changed)
    bundle = Path(out)
    on_engine = EngineAsked(engine_name, master, partitions, work)
    manifest = _trained(source, asked, (train_from, train_to), bundle, settings, on_engine)
    _print(bundle, manifest)
    if manifest.cascade:
        _print_cascade(bundle, manifest)
    if settings.mlflow_experiment:
        click.echo(record_training(settings.mlflow_experiment, manifest, bundle))


def _trained(
    source: Source,
    asked: HistoryAsked,
    days: tuple[str, str],
    bundle: Path,
    settings: TrainingSettings,
    on_engine: EngineAsked,
) -> Manifest:
    """Train and write the bundle. Everything that can be checked is checked before the features, which take minutes."""
    from paywarden.features.dataflow.dataflow_engine import require_local
    from paywarden.features.history.history import require_past
    from paywarden.features.history.overlay import HistoryOverlay
    from paywarden.features.history.staleness import Staleness
    from paywarden.features.profiles.overlay_settings import OverlaySettings
    from paywarden.models.metrics.evaluation import DAY_MS
    from paywarden.models.metrics.labels import end_of_labels_ms
    from paywarden.models.training.memory import require_memory
    from paywarden.models.training.table import (
        LabelRules,
        TrainingTable,
        require_both_kinds,
        training_rows,
        training_table,
    )
    from paywarden.models.training.training import checked_destination, train_bundle
    from paywarden.models.training.training_settings import require_usable
    from paywarden.ops.times import now_ms

    rates = wiring.rate_table(source)
    engine = wiring.feature_engine(source)
    require_usable(settings, engine.plan.names)
    checked_destination(bundle)
    staleness = Staleness.read(settings.profile_lag)
    of_hosts = source.section("overlay", OverlaySettings)
    overlay = HistoryOverlay.read(
        str(settings.overlay_hosts), lifetime_ms=of_hosts.lifetime_ms, events_max=of_hosts.events_max
    )
    if not on_engine.is_local:
        require_local(
            {
                "--from-topic": asked.from_topic,
                "training.profile_lag": staleness is not None,
                "training.overlay_hosts": settings.overlay_hosts > 0,
            }
        )
        return _trained_on_engine(on_engine, asked, days, bundle, settings, engine=engine, rates=rates)
    window = _window(days, asked)
    history = read_asked(
        source,
        asked,
        engine=engine,
        days=DaysAsked(window.first, window.last),
        with_propensities=settings.propensity_weight_max > 0,
    )
    require_past(history, now_ms())
    if len(history):
        require_within(history, ("--train-from", window.first), ("--train-to", window.last))
    labels = LabelRules.of(settings)
    labelled = training_rows(history, window, labels)
    require_both_kinds(labelled.label)
    require_memory(len(labelled.row), engine.plan.feature_count)
    _require_mature(end_of_labels_ms(history), window, settings.label_delay_days)
    engine.warm_up()
    rows = int((history.event_time_ms < (window.last + 1) * DAY_MS).sum())

    def table_of(engine: FeatureEngine, what: str) -> TrainingTable:
        with progress_bar(what, rows) as advance:
            return training_table(
                history,
                window,
                engine=engine,
                rates=rates,
                labels=labels,
                staleness=staleness,
                overlay=overlay,
                progress=advance,
            )

    def vectors_with(days: int, other: FeatureEngine) -> NDArray[np.float32]:
        return table_of(other, f"features with label_delay {days}d").vectors

    return train_bundle(
        table_of(engine, "features"),
        window,
        bundle,
        engine=engine,
        settings=settings,
        progress=progress_bar,
        other_delays={days: partial(vectors_with, days, other) for days, other in _with_other_delays(source)},
    )


def _with_other_delays(source: Source) -> Iterator[tuple[int, FeatureEngine]]:
    """Yield the label delays to try, with engines of the catalogue with each of them."""
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.models.training.changes import DELAYS_DAYS

    catalogue, key = wiring.catalogue(source), wiring.identity_key(source)
    if all(feature.with_delay is None for feature in catalogue.features):
        return
    for days in DELAYS_DAYS:
        if catalogue.label_delay != f"{days}d":
            # Not every window goes with every delay.
            with suppress(Misconfigured):
                yield days, FeatureEngine(replace(catalogue, label_delay=f"{days}d"), key)


def _trained_on_engine(
    on_engine: EngineAsked,
    asked: HistoryAsked,
    days: tuple[str, str],
    bundle: Path,
    settings: TrainingSettings,
    *,
    engine: FeatureEngine,
    rates: RateTable,
) -> Manifest:
    """Train on an engine of partitions, and write the bundle."""
    from paywarden.features.history.history import OUTCOMES_FILE
    from paywarden.models.training.table_passage import training_table_on
    from paywarden.models.training.training import train_bundle
    from paywarden.ops.times import now_ms

    data, room = asked.data or "", bundle.absolute().parent
    with opened_passage(on_engine, data, str(room), features=engine, rates=rates) as (passage, _):
        places = passage.places
        if places.payments == 0:
            raise Misconfigured(f"{data} holds no payment")
        if places.last_ms > max(now_ms(), places.last_payment_ms):
            raise Misconfigured(f"{OUTCOMES_FILE}: outcome_time_ms must not be later than now")
        window = _window(days, max(places.by_day))
        _require_mature(places.last_ms, window, settings.label_delay_days)
        say("the features of the training days are computed")
        table = training_table_on(passage, window, settings=settings, room=room)
    if table.sample is not None:
        say(f"{len(table.label)} payments are trained on: {table.sample.in_words()}")
    return train_bundle(table, window, bundle, engine=engine, settings=settings, progress=progress_bar)


def _window(days: tuple[str, str], asked: HistoryAsked | int) -> Days:
    from paywarden.models.metrics.evaluation import Days

    first, last = (
        day_option(name, text, asked) for name, text in zip(("--train-from", "--train-to"), days, strict=True)
    )
    assert first is not None
    assert last is not None
    return Days(first, last)


def _require_mature(end_ms: int, window: Days, label_delay_days: int) -> None:
    """Print a line if the labels of some days cannot have arrived. Raises Misconfigured if they are those of all.

    `end_ms`: the time up to which outcomes are known.
    """
    from paywarden.models.metrics.evaluation import DAY_MS, date_of_day

    last_mature = end_ms // DAY_MS - label_delay_days
    if last_mature >= window.last:
        return
    told = (
        f"the data ends on {date_of_day(last_mature + label_delay_days)}, and labels take {label_delay_days} days "
        "(training.label_delay_days)"
    )
    if last_mature < window.first:
        raise Misconfigured(f"no day of the window is mature: {told}")
    click.echo(f"days after {date_of_day(last_mature)} are not mature: {told}", err=True)


# The printed text


def _print(bundle: Path, manifest: Manifest) -> None:
    metrics = manifest.metrics
    click.echo(
        f"bundle {bundle}: {manifest.model_version}, {manifest.training_payments} payments with "
        f"{manifest.training_frauds} frauds; out of fold AUC ROC {metrics['auc_roc']:.4f}, "
        f"average precision {metrics['average_precision']:.4f}"
    )
    click.echo(f"digest {manifest.digest}")
    _print_native(bundle)
    _print_validation(manifest)
    _print_evidence(manifest)
    click.echo(
        f"out of fold: Brier score {metrics['brier']:.6f}, "
        f"expected calibration error {metrics['expected_calibration_error']:.6f}"
    )
    _print_reliability(manifest.reliability)
    print_table(
        ("feature", "gain", "splits"),
        [(name, f"{gain:.1f}", f"{splits}") for name, gain, splits in manifest.most_important(FEATURES_SHOWN)],
    )


def _print_reliability(bins: Sequence[Mapping[str, float]]) -> None:
    """Print a reliability table. A bin whose interval does not contain its mean score is marked."""
    print_table(
        ("mean score", "frauds", "95 % interval", "", "payments"),
        [
            (
                f"{one['mean_score']:.6f}",
                f"{one['observed_rate']:.6f}",
                f"{one['low']:.6f} to {one['high']:.6f}",
                "" if one["low"] <= one["mean_score"] <= one["high"] else "*",
                f"{int(one['count'])}",
            )
            for one in bins
        ],
    )


def _print_native(bundle: Path) -> None:
    from paywarden.models.bundle.bundle import native_library, parity_summary

    if native_library(bundle).is_file():
        click.echo(f"native library: {parity_summary(bundle)}")


def _print_evidence(manifest: Manifest) -> None:
    """Print the training's findings about its own data: labels, features that drift, what later days are promised."""
    from paywarden.models.metrics.evaluation import DAY_MS
    from paywarden.models.metrics.labels import LabelCounts
    from paywarden.models.metrics.propensity import WeightCounts
    from paywarden.models.metrics.value_detected import missed_of
    from paywarden.models.training.changes import TriedDelay, change_choice_of
    from paywarden.models.training.feature_ranges import DriftingFeature
    from paywarden.models.training.promise import promise_of
    from paywarden.models.training.training_evidence import LabelDelay

    labels = manifest.evidence["labels"]
    if labels["counts"]:
        click.echo(LabelCounts(**labels["counts"]).in_words())
    if labels["fraud_delay"]:
        delays_ms = [round(days * DAY_MS) for days in labels["feature_delays_days"]]
        click.echo(LabelDelay(**labels["fraud_delay"]).in_words(delays_ms))
    if manifest.evidence["propensity"]:
        click.echo(WeightCounts(**manifest.evidence["propensity"]).in_words())
    if manifest.evidence["changes"]:
        for line in change_choice_of(manifest.evidence["changes"]).in_words():
            click.echo(line)
    for record in manifest.evidence["label_delays"]:
        click.echo(TriedDelay(**record).in_words())
    if manifest.evidence["missed"] and manifest.training_frauds:
        for line in missed_of(manifest.evidence["missed"]).in_words():
            click.echo(f"out of fold, {line}")
    drifting = [DriftingFeature(**record) for record in manifest.evidence["drifting"]]
    for feature in drifting[:FEATURES_SHOWN]:
        left_out = ", left out" if feature.name in manifest.parameters["leave_out"] else ""
        click.echo(f"drifts out of its training range: {feature.in_words()}{left_out}")
    if len(drifting) > FEATURES_SHOWN:
        click.echo(f"and {len(drifting) - FEATURES_SHOWN} further features drift; manifest.json has them all")
    for line in promise_of(manifest.evidence["promise"]).in_words():
        click.echo(line)


def _print_cascade(bundle: Path, manifest: Manifest) -> None:
    from paywarden.models.bundle.bundle import golden_payments, load_bundle
    from paywarden.models.bundle.cascade import CascadePredictor, microseconds_a_row

    told = manifest.cascade
    click.echo(
        f"cascade: {told['share_early']:.1%} of the payments answered early; out of fold {told['disagreement']:.2e} of "
        f"the actions differ from the large model's (held out {told['disagreement_held_out']:.2e}, at most "
        f"{told['disagreement_max']:g}), average precision {-told['average_precision_loss']:+.4f}"
    )
    predictor = load_bundle(bundle, catalogue_digest=manifest.catalogue_digest).predictor
    assert isinstance(predictor, CascadePredictor)
    with_it, alone = microseconds_a_row([predictor, predictor.large], golden_payments(bundle))
    click.echo(f"cascade: {with_it:.2f} µs a row instead of {alone:.2f} when many are scored together")


def _print_validation(manifest: Manifest) -> None:
    validation, trees = manifest.validation, manifest.parameters["trees"]
    if validation["left_out"]:
        click.echo(f"{trees} trees, not validated: {validation['left_out']}")
        return
    tried = validation["tried"]
    chosen = tried[validation["chosen"]]
    capped = [fold["trees"] for fold in chosen["folds"] if fold["trees"] == validation["trees_max"]]
    if capped:
        click.echo(
            f"the cap on trees was reached: {capped[0]} of {validation['trees_max']} chosen in {len(capped)} of "
            f"{len(chosen['folds'])} folds; more may do better (training.trees)"
        )
    for days, fold in zip(validation["days"], chosen["folds"], strict=True):
        click.echo(
            f"validated {days['test_from']} to {days['test_to']}, trained {days['train_from']} to {days['train_to']}: "
            f"{fold['trees']} trees, AUC ROC {fold['auc_roc']:.4f}, average precision {fold['average_precision']:.4f}, "
            f"log loss {fold['log_loss']:.6f}"
        )
    if len(tried) > 1:
        parameters = ", ".join(f"{name} {value}" for name, value in chosen["parameters"].items())
        click.echo(f"chosen of {len(tried)}: {parameters}, trees {trees}")
