"""`paywarden replay`: shows the decisions that a model or a policy would have made, before it goes live."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.ops.commands.model.ceiling import ceiling_lines
from paywarden.ops.days import day_option, require_within
from paywarden.ops.engines import SPARK, EngineAsked, engine_options, opened_passage, say, spark_path
from paywarden.ops.extras import needs
from paywarden.ops.histories import DaysAsked, HistoryAsked, history_options, read_asked
from paywarden.ops.progress import progress_bar
from paywarden.ops.reporting import print_table
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source, read_source

if TYPE_CHECKING:
    from paywarden.features.history.history import History
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.profiles.money import RateTable
    from paywarden.models.backtest.known_truth import AgainstCeiling
    from paywarden.models.bundle.bundle import Bundle
    from paywarden.models.metrics.costs import CostSettings
    from paywarden.models.metrics.evaluation import Days
    from paywarden.models.replay.live_comparison import LiveDecisions
    from paywarden.models.replay.measures import Contestant, ReplayResults
    from paywarden.models.replay.replay import ReplayOptions


@click.command()
@history_options
@click.option("--bundle", type=click.Path(), required=True, help="The champion: the bundle that scores.")
@click.option("--challenger", type=click.Path(), help="The challenger: another bundle, compared with the champion.")
@click.option(
    "--policy", "policy_file", type=click.Path(), help="File whose [policy] decides (default: the configuration)."
)
@click.option(
    "--challenger-policy",
    "challenger_policy_file",
    type=click.Path(),
    help="The challenger's policy file (default: the champion's).",
)
@click.option(
    "--from",
    "from_day",
    metavar="DAY",
    help="First UTC day to measure: a date, or -28d for 28 days before the data's last (default: the data's first).",
)
@click.option(
    "--to",
    "to_day",
    metavar="DAY",
    help="Last UTC day to measure, included, in the same form (default: the data's last).",
)
@click.option(
    "--protocol",
    type=click.Choice(["all", "handbook"]),
    default="all",
    show_default=True,
    help="Measured payments: all, or as in the Fraud Detection Handbook, without cards known to be compromised.",
)
@click.option(
    "--label-delay-days",
    type=click.IntRange(0),
    default=7,
    show_default=True,
    help="With --protocol handbook: days until a card with a fraud is known.",
)
@click.option(
    "--unknown-labels",
    type=click.Choice(["auto", "leave_out", "genuine"]),
    help="The label of a payment without an outcome (default: [training] unknown_labels).",
)
@click.option(
    "--costs", "costs_text", metavar="NAME=VALUE,…", default="", help="Values that replace settings of [costs]."
)
@click.option(
    "--lag",
    metavar="TIME|FILE",
    help="How far profiles lag behind: 0, 150ms, 1s, 1h, or a CSV file with time_ms and lag_ms as measured (default: "
    "[training] profile_lag; with --decisions 0).",
)
@click.option(
    "--overlay",
    metavar="HOSTS",
    help="With a lag: a payment sees what its scoring host has answered in the last seconds. How many hosts there are "
    "(default: [training] overlay_hosts).",
)
@click.option("--vectors", is_flag=True, help="Keep each payment's feature vector in decisions.parquet, as bytes.")
@click.option("--features", is_flag=True, help="Keep each feature in decisions.parquet, as a column with its name.")
@click.option(
    "--decisions",
    "decisions_file",
    type=click.Path(),
    help="decisions.parquet of an earlier replay of the same data and bundle, whose scores and vectors are reused.",
)
@click.option(
    "--archived-decisions",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="An archive with decisions/: compare the live decisions with those of the replay.",
)
@click.option(
    "--ceiling", is_flag=True, help="Compare with the best that any model can do, on data of `simulate --world shop`."
)
@engine_options
@click.option("--threads", type=click.IntRange(1), help="Threads that share the work (default: one for each core).")
@click.option("--out", type=click.Path(file_okay=False), required=True, help="Folder for the results.")
@click.pass_obj
@needs("history")
def replay(
    source: Source,
    data: str | None,
    from_topic: bool,
    since: str | None,
    until: str | None,
    warm_up_days: int | None,
    bundle: str,
    challenger: str | None,
    policy_file: str | None,
    challenger_policy_file: str | None,
    from_day: str | None,
    to_day: str | None,
    protocol: str,
    label_delay_days: int,
    unknown_labels: str | None,
    costs_text: str,
    lag: str | None,
    overlay: str | None,
    vectors: bool,
    features: bool,
    decisions_file: str | None,
    archived_decisions: Path | None,
    engine_name: str,
    master: str | None,
    partitions: int,
    work: str | None,
    ceiling: bool,
    threads: int | None,
    out: str,
) -> None:
    """Decide a history again, with any model and policy.

    The features, the model and the policy are those of the scoring workers. The results are decisions.parquet,
    metrics.json and report.html. With --challenger, --challenger-policy or both, champion and challenger decide about
    the same payments and are compared. A policy file gives [policy] alone, and the environment does not change it.

    Payments of `simulate --world shop` have a known probability of fraud. Ranked by it, they are in the best order
    there is, on average: no model can have a higher AUC, average precision or recall than this ceiling. With --ceiling
    the results have it. Recall is the share of all frauds among the 1 % of payments with the highest scores.
    """
    if ceiling:
        from paywarden.models.backtest.known_truth import require_truth

        if data is None:
            raise click.UsageError("--ceiling needs --data")
        require_truth(Path(data))
    from paywarden.features.dataflow.dataflow_engine import require_local
    from paywarden.features.history.overlay import HistoryOverlay
    from paywarden.features.history.staleness import Staleness
    from paywarden.features.profiles.overlay_settings import OverlaySettings
    from paywarden.models.bundle.bundle import load_bundle
    from paywarden.models.bundle.signature import BundleSettings, TrustedKeys
    from paywarden.models.metrics.evaluation import day_of_date
    from paywarden.models.replay.files import results_folder
    from paywarden.models.replay.replay import REPORT, ReplayOptions
    from paywarden.models.replay.replay import replay as run
    from paywarden.models.training.training_settings import TrainingSettings

    asked = HistoryAsked(data, from_topic, since, until, warm_up_days)
    training = source.section("training", TrainingSettings)
    if lag is None:
        # Decisions of an earlier replay have the vectors of its lag already.
        lag = "0" if decisions_file else training.profile_lag
    costs, staleness = _costs(source, costs_text), Staleness.read(lag)
    of_hosts = source.section("overlay", OverlaySettings)
    hosts = str(training.overlay_hosts) if overlay is None else overlay
    pending = HistoryOverlay.read(hosts, lifetime_ms=of_hosts.lifetime_ms, events_max=of_hosts.events_max)
    engine = wiring.feature_engine(source)
    load = partial(
        load_bundle,
        catalogue_digest=engine.plan.digest,
        identity_digest=engine.plan.key.digest,
        trusted=TrustedKeys.read(source.section("bundles", BundleSettings)),
    )
    champions = load(Path(bundle))
    challengers = load(Path(challenger)) if challenger else champions
    champion = contestant(source, champions, policy_file)
    other = None
    if challenger or challenger_policy_file:
        other = contestant(source, challengers, challenger_policy_file or policy_file)
    rates = wiring.rate_table(source)
    on_engine = EngineAsked(engine_name, master, partitions, work)
    options = partial(
        ReplayOptions,
        label_delay_days=label_delay_days,
        protocol=protocol,
        unknown_labels=unknown_labels or training.unknown_labels,
        propensity_weight_max=training.propensity_weight_max,
        costs=costs,
        with_vectors=vectors,
        with_features=features,
        earlier=Path(decisions_file) if decisions_file else None,
        staleness=staleness,
        overlay=pending,
    )
    if not on_engine.is_local:
        require_local(
            {
                "--from-topic": from_topic,
                "--archived-decisions": archived_decisions is not None,
                "--ceiling": ceiling,
                "--lag": staleness is not None,
                "--decisions": decisions_file is not None,
            }
        )
        contestants = [(champion, Path(bundle))]
        if other is not None:
            contestants.append((other, Path(challenger or bundle)))
        _replay_on_engine(
            on_engine,
            asked,
            (from_day, to_day),
            Path(out) if "://" not in out else out,
            engine=engine,
            rates=rates,
            contestants=contestants,
            options=options,
        )
        return
    first_day, last_day = day_option("--from", from_day, asked), day_option("--to", to_day, asked)
    click.get_current_context().with_resource(results_folder(Path(out)))
    history = read_asked(
        source,
        asked,
        engine=engine,
        # Which cards are known to be compromised follows from the days of training.
        days=DaysAsked(first_day, last_day, needed_from=day_of_date(champions.manifest.train_from)),
        with_propensities=training.propensity_weight_max > 0,
    )
    if len(history) == 0:
        raise click.ClickException(f"{data} holds no payment")
    earlier = Path(decisions_file) if decisions_file else None
    require_within(history, ("--from", first_day), ("--to", last_day))
    window = _window(history, earlier, first_day, last_day)
    live = None
    if archived_decisions is not None:
        from paywarden.streams.archive.live_decisions import archived_decisions as read_live

        live = read_live(archived_decisions, window)
    engine.warm_up()
    with progress_bar("replay", _rows(history, window, from_first=earlier is None)) as advance:
        results = run(
            history,
            engine=engine,
            rates=rates,
            champion=champion,
            challenger=other,
            destination=Path(out),
            options=options(window=window, threads=threads or len(os.sched_getaffinity(0))),
            progress=advance,
        )
    headline = results.headline()
    if live is not None:
        headline |= _compared_with_live(live, results, Path(out))
    reached = _reached(data, Path(out)) if ceiling and data is not None else None
    if reached is not None:
        headline |= {"ceiling": {**asdict(reached), "share": reached.share}}
    click.echo(json.dumps(headline, indent=2))
    _tell(results)
    if reached is not None:
        click.echo("\n".join(["", *ceiling_lines(reached), ""]), err=True)
    click.echo(f"the report is {Path(out) / REPORT}", err=True)


def _replay_on_engine(
    on_engine: EngineAsked,
    asked: HistoryAsked,
    days: tuple[str | None, str | None],
    out: Path | str,
    *,
    engine: FeatureEngine,
    rates: RateTable,
    contestants: list[tuple[Contestant, Path]],
    options: Callable[..., ReplayOptions],
) -> None:
    """Replay on an engine of partitions, and print the results. `out`: a folder here, or a URL that Spark can write."""
    from paywarden.models.metrics.evaluation import Days
    from paywarden.models.replay.files import DECISIONS, DIFFERENCES, results_folder
    from paywarden.models.replay.passage import days_of, replay_on
    from paywarden.models.replay.replay import METRICS, REPORT

    with ExitStack() as stack:
        if isinstance(out, Path):
            stack.enter_context(results_folder(out))
        folder = out if isinstance(out, Path) else Path(stack.enter_context(TemporaryDirectory(prefix="paywarden-")))
        data = asked.data or ""
        passage, put = stack.enter_context(opened_passage(on_engine, data, str(out), features=engine, rates=rates))
        if passage.places.payments == 0:
            raise Misconfigured(f"{data} holds no payment")
        whole = days_of(passage)
        first, last = (day_option(name, text, whole.last) for name, text in zip(("--from", "--to"), days, strict=True))
        results = replay_on(
            passage,
            contestants=contestants,
            destination=folder,
            decisions=f"{spark_path(str(out))}/{DECISIONS}" if on_engine.name == SPARK else str(folder / DECISIONS),
            options=options(window=Days(whole.first if first is None else first, whole.last if last is None else last)),
            say=say,
        )
        files = [folder / name for name in (DIFFERENCES, REPORT, METRICS)]
        put([file for file in files if file.exists()])
    click.echo(json.dumps(results.headline(), indent=2))
    _tell(results)
    click.echo(f"the report is {out}/{REPORT}", err=True)


def _reached(data: str, out: Path) -> AgainstCeiling:
    from paywarden.models.backtest.known_truth import against_ceiling

    return against_ceiling(Path(data), out)


def _tell(results: ReplayResults) -> None:
    """Print on stderr the measured days, the contestants side by side, and a warning for scores that are far off."""
    from paywarden.models.replay.report.summary import calibration_warning, measured_lines, side_by_side

    for line in measured_lines(results):
        click.echo(line, err=True)
    table = side_by_side(results)
    if table:
        print_table(table[0], table[1:], text_columns=1, err=True)
    contestants = {"The scores": results.champion}
    if results.challenger is not None:
        contestants = {"The champion's scores": results.champion, "The challenger's scores": results.challenger}
    # Two policies of one model have the same scores.
    for whose, one in list(contestants.items())[: 1 if results.is_of_one_model else 2]:
        warning = calibration_warning(results.facts, one, whose=whose)
        if warning:
            click.echo(warning, err=True)


def contestant(source: Source, bundle: Bundle, policy_file: str | None) -> Contestant:
    """Returns a bundle with the policy of a file, or of the configuration."""
    from paywarden.models.replay.measures import Contestant

    manifest = bundle.manifest
    # The environment must not override the two policy files: they would become the same.
    nothing: Mapping[str, str] = {}
    decided_by = wiring.policy(
        read_source(policy_file, nothing) if policy_file else source,
        review_at=manifest.review_at,
        decline_at=manifest.decline_at,
        catalogue=wiring.catalogue(source),
    )
    return Contestant(bundle, decided_by, Path(policy_file).name if policy_file else "of the configuration")


def _compared_with_live(live: LiveDecisions, results: ReplayResults, folder: Path) -> dict[str, Any]:
    """Compare with live decisions; returns that section of the headline, and adds it to metrics.json and the report."""
    from paywarden.models.replay.files import DECISIONS, write_whole
    from paywarden.models.replay.live_comparison import compare_with_live, replayed_decisions
    from paywarden.models.replay.replay import METRICS, REPORT
    from paywarden.models.replay.report.report import report_html

    compared = compare_with_live(live, replayed_decisions(folder / DECISIONS))
    section = {"archived_decisions": compared.to_dict()}
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    write_whole(folder / METRICS, json.dumps(metrics | section, indent=2, allow_nan=False) + "\n")
    write_whole(folder / REPORT, report_html(results, compared))
    return section


def _costs(source: Source, text: str) -> CostSettings:
    """Returns the settings of [costs], some replaced by the option. Raises Misconfigured or ClickException."""
    from paywarden.models.metrics.costs import CostSettings

    costs = source.section("costs", CostSettings)
    kinds = {field.name: type(getattr(costs, field.name)) for field in fields(costs)}
    given = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name not in kinds:
            raise click.ClickException(f"--costs: wanted some of {', '.join(kinds)}, got {name!r}")
        try:
            given[name] = kinds[name](value)
        except ValueError:
            kind = "a whole number" if kinds[name] is int else "a number"
            raise click.ClickException(f"--costs: {name}: wanted {kind}, got {value!r}") from None
    return replace(costs, **given)


def _window(history: History, earlier: Path | None, first_day: int | None, last_day: int | None) -> Days:
    """Returns the days to measure. A bound that is not given is that of the earlier decisions, else of the history."""
    from paywarden.models.metrics.evaluation import DAY_MS, Days
    from paywarden.models.replay.earlier_decisions import time_range_ms

    first_ms, last_ms = time_range_ms(earlier) if earlier else history.event_time_ms[[0, -1]].tolist()
    return Days(
        first_ms // DAY_MS if first_day is None else first_day,
        last_ms // DAY_MS if last_day is None else last_day,
    )


def _rows(history: History, window: Days, *, from_first: bool) -> int:
    """Returns how many payments the replay runs through, with those that warm profiles up before the window."""
    from paywarden.models.metrics.evaluation import DAY_MS

    first, last = history.event_time_ms.searchsorted([window.first * DAY_MS, (window.last + 1) * DAY_MS]).tolist()
    return int(last - (0 if from_first else first))
