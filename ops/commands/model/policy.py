"""`paywarden policy`: checks and prints the policy as scoring workers read it, and proposes parts of it from history.

`mine` proposes rules from missed frauds, `explore` shares of exploration from what the explored payments were.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.ops.commands.model.replay import contestant
from paywarden.ops.days import day_option, require_within
from paywarden.ops.extras import needs
from paywarden.ops.histories import DaysAsked, HistoryAsked, read_asked
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source, read_source

if TYPE_CHECKING:
    from rich.table import Table

    from paywarden.models.replay.mined_history import ProvenRules
    from paywarden.models.replay.rule_mining import MinedRules, WeighedRule

# The options of commands that propose a part of the policy.
_policy_file = click.option(
    "--policy", "policy_file", type=click.Path(), help="File with [policy] (default: the configuration)."
)
_json = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
_out = click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File for the policy."
)


@click.group()
def policy() -> None:
    """Check rules, thresholds and lists, mine rules, or propose shares of exploration."""


@policy.command()
@click.option("--config", type=click.Path(dir_okay=False), help="Configuration file (default: that of all commands).")
@click.option(
    "--bundle",
    type=click.Path(file_okay=False),
    help="Bundle with the thresholds that no setting has (default: [serve] bundle).",
)
@click.pass_obj
def check(source: Source, config: str | None, bundle: str | None) -> None:
    """Check the whole configuration and print the policy.

    Every problem in any section is one line on stderr, and the exit status is then 1.
    """
    from rich.console import Console

    from paywarden.models.policy.lists import read_lists
    from paywarden.models.policy.policy import PolicySettings
    from paywarden.ops.configuration import problems_of

    if config is not None:
        source = read_source(config, check_sections=False)
    if problems := problems_of(source, bundle):
        for problem in problems:
            click.echo(f"paywarden: {problem}", err=True)
        sys.exit(1)
    settings = source.section("policy", PolicySettings)
    thresholds = wiring.bundle_thresholds(source, bundle)
    # A condition may hold brackets, which rich would take for markup.
    console = Console(highlight=False, markup=False)
    for table in _tables(settings, *thresholds):
        console.print(table)
    lists = _table("lists", "name", "entries")
    for name, entries in read_lists(settings.lists).items():
        lists.add_row(name, str(len(entries)))
    console.print(lists)
    console.print(f"{source.name}: every section is right" if source.file else "no configuration file: defaults hold")


def _tables(settings: object, review_at: float, decline_at: float) -> list[Table]:
    """Returns the tables to print. `review_at` and `decline_at` are those of the bundle, 0 without one."""
    from paywarden.models.policy.policy import FLAGS, PolicySettings, unknown_flag

    assert isinstance(settings, PolicySettings)
    general = (settings.review_at or review_at, settings.decline_at or decline_at)
    thresholds = _table("thresholds, of the first segment that applies", "segment", "when", "review at", "decline at")
    for segment in settings.segments:
        own = (segment.review_at or general[0], segment.decline_at or general[1])
        thresholds.add_row(segment.name, segment.when, *map(_score, own))
    thresholds.add_row("(all others)", "", *map(_score, general))
    rules = _table("rules", "name", "when", "action", "", "until")
    for rule in settings.rules:
        rules.add_row(rule.name, rule.when, rule.action, "decides alone" if rule.override else "at least", rule.until)
    flags = _table("flags", "flag", "asks for")
    for flag in (*FLAGS, unknown_flag("other")):
        flags.add_row(flag, getattr(settings, f"on_{flag}"))
    explored = _table("explored shares of the declined", "score from", "share")
    for each in settings.explored:
        explored.add_row(f"{each.score_from:g}", f"{each.share:g}")
    return [thresholds, rules, flags, *([explored] if settings.explored else [])]


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _score(threshold: float) -> str:
    return f"{threshold:.4g}" if threshold else "as the bundle says"


@policy.command("mine")
@click.option("--data", required=True, help="Folder with payments.parquet and outcomes.parquet, or an archive.")
@click.option("--bundle", type=click.Path(), required=True, help="The bundle that scores.")
@_policy_file
@click.option(
    "--from", "from_day", metavar="DAY", default="-28d", show_default=True, help="First UTC day of missed frauds."
)
@click.option("--to", "to_day", metavar="DAY", help="Last UTC day of missed frauds (default: the data's last).")
@click.option(
    "--false-positives",
    type=float,
    default=0.005,
    show_default=True,
    help="The share of genuine payments that all new rules together may stop.",
)
@click.option(
    "--days",
    type=click.IntRange(1, 365),
    default=14,
    show_default=True,
    help="Days after the last that the rules hold.",
)
@click.option(
    "--action", type=click.Choice(["review", "decline"]), default="review", show_default=True, help="The rules' action."
)
@_json
@_out
@click.pass_obj
@needs("train")
def mine_rules(
    source: Source,
    data: str,
    bundle: str,
    policy_file: str | None,
    from_day: str | None,
    to_day: str | None,
    false_positives: float,
    days: int,
    action: str,
    as_json: bool,
    out: Path,
) -> None:
    """Find rules for frauds that model and policy approve.

    Each rule is found on the first days and proposed if it earns money on the later ones, by its 95 % interval and
    [costs]. FILE is the policy with these rules. Each ends by itself, and one of an earlier mining that no longer earns
    is left out. FILE.proof/ has the replay of both policies. Propose FILE with `paywarden models register --policy`.
    """
    from paywarden.models.bundle.bundle import load_bundle
    from paywarden.models.bundle.signature import BundleSettings, TrustedKeys
    from paywarden.models.metrics.costs import CostSettings
    from paywarden.models.metrics.evaluation import Days, date_of_day, day_of_date
    from paywarden.models.policy.text import policy_text
    from paywarden.models.replay.files import results_folder, write_whole
    from paywarden.models.replay.mined_history import mine_history
    from paywarden.models.replay.replay import ReplayOptions
    from paywarden.models.replay.rule_mining import MiningAsked
    from paywarden.models.training.training_settings import TrainingSettings

    asked, proof = HistoryAsked(data), out.with_name(f"{out.name}.proof")
    engine, catalogue, rates = wiring.feature_engine(source), wiring.catalogue(source), wiring.rate_table(source)
    trusted = TrustedKeys.read(source.section("bundles", BundleSettings))
    loaded = load_bundle(
        Path(bundle),
        catalogue_digest=engine.plan.digest,
        identity_digest=engine.plan.key.digest,
        trusted=trusted,
    )
    manifest, training = loaded.manifest, source.section("training", TrainingSettings)
    first_day, last_day = day_option("--from", from_day, asked), day_option("--to", to_day, asked)
    click.get_current_context().with_resource(results_folder(proof))
    history = read_asked(
        source,
        asked,
        engine=engine,
        days=DaysAsked(first_day, last_day, needed_from=day_of_date(manifest.train_from)),
    )
    if len(history) == 0:
        raise Misconfigured(f"{data} holds no payment")
    require_within(history, ("--from", first_day), ("--to", last_day))
    of_data = [int(history.event_time_ms[place]) // 86_400_000 for place in (0, -1)]
    last = of_data[1] if last_day is None else min(last_day, of_data[1])
    window = Days(max(of_data[0], first_day or 0), last)
    threads = len(os.sched_getaffinity(0))
    settings = MiningAsked(
        until=date_of_day(last + days),
        action=action,
        false_positives=false_positives,
        costs=source.section("costs", CostSettings),
        threads=threads,
    )
    engine.warm_up()
    found = mine_history(
        history,
        engine=engine,
        catalogue=catalogue,
        rates=rates,
        current=contestant(source, loaded, policy_file),
        proof=proof,
        options=ReplayOptions(
            window=window,
            label_delay_days=0,
            unknown_labels=training.unknown_labels,
            costs=settings.costs,
            threads=threads,
        ),
        settings=settings,
    )
    lines = _mined_lines(found)
    text = policy_text(found.policy.settings, found.policy.lists)
    write_whole(out, "".join(f"# {line}\n" for line in lines) + "\n" + text)
    if as_json:
        click.echo(json.dumps(_mined_json(found.mined) | {"policy": str(out), "proof": str(proof)}, indent=2))
    click.echo("\n".join([*lines, f"the policy is {out}, the proof {proof / 'report.html'}"]), err=True)


def _mined_lines(found: ProvenRules) -> list[str]:
    facts = found.proof.facts
    lines = [f"{found.mined.missed_frauds} frauds were approved from {facts.first_day} to {facts.last_day}"]
    lines += found.mined.in_words()
    now, then = found.proof.champion, found.proof.challenger
    if then is not None:
        lines.append(f"replayed: recall {now.whole.recall:.1%} before, {then.whole.recall:.1%} with these rules")
    return lines


def _mined_json(mined: MinedRules) -> dict[str, Any]:
    def record(each: WeighedRule) -> dict[str, Any]:
        found_on = None if each.found_on is None else asdict(each.found_on)
        return asdict(each.rule) | {"found_on": found_on, "held_out": asdict(each.held_out)}

    kinds = ("new", "kept", "retired", "noise")
    lists = {kind: [record(each) for each in getattr(mined, kind)] for kind in kinds}
    return {"missed_frauds": mined.missed_frauds, "cut_ms": mined.cut_ms, **lists}


@policy.command("explore")
@click.option("--data", type=click.Path(exists=True, file_okay=False), required=True, help="An archive.")
@_policy_file
@click.option(
    "--from", "from_day", metavar="DAY", default="-90d", show_default=True, help="First UTC day of explored payments."
)
@click.option("--to", "to_day", metavar="DAY", help="Last UTC day (default: the last one with matured labels).")
@_json
@_out
@click.pass_obj
@needs("train")
def propose_explored_shares(
    source: Source,
    data: str,
    policy_file: str | None,
    from_day: str,
    to_day: str | None,
    as_json: bool,
    out: Path,
) -> None:
    """Propose how much to explore, from what the explored payments were.

    More is explored in score bands where many explored payments were genuine, less where the score was right, with as
    much money at risk as the share of [exploration] puts there. FILE is the policy with these shares. Propose it with
    `paywarden models register --policy`.
    """
    import numpy as np

    from paywarden.features.history.point_in_time import reference_amounts
    from paywarden.models.metrics.evaluation import DAY_MS, Days, date_of_day
    from paywarden.models.policy.exploration import ExplorationSettings
    from paywarden.models.policy.lists import read_lists
    from paywarden.models.policy.policy import PolicySettings
    from paywarden.models.policy.text import policy_text
    from paywarden.models.replay.explored_shares import ExploredPayments, configured_shares, propose_shares
    from paywarden.models.replay.files import write_whole
    from paywarden.models.training.table import window_labels
    from paywarden.models.training.training_settings import TrainingSettings
    from paywarden.streams.archive.propensities import archived_decisions_of, explored_payments

    share = source.section("exploration", ExplorationSettings).share
    if not share:
        raise Misconfigured("exploration.share: wanted above 0, the share that the proposed ones divide among bands")
    training, asked = source.section("training", TrainingSettings), HistoryAsked(data, False, None, None, 0)
    first, asked_last = day_option("--from", from_day, asked), day_option("--to", to_day, asked)
    engine = wiring.feature_engine(source)
    history = read_asked(source, asked, engine=engine, days=DaysAsked(first, None))
    last = int(history.event_time_ms[-1]) // DAY_MS - training.label_delay_days if asked_last is None else asked_last
    require_within(history, ("--from", first), ("--to", last))
    first = max(int(history.event_time_ms[0]) // DAY_MS, first or 0)
    decisions = archived_decisions_of(Path(data), (first * DAY_MS, (last + 1) * DAY_MS - 1))
    if decisions is None:
        raise Misconfigured(f"{data} has no folder decisions: exploration is read from decisions")
    labels = window_labels(history, Days(first, last), training.label_delay_days, training.unknown_labels)
    explored = explored_payments(history, decisions)
    row, of_explored, of_labels = np.intersect1d(explored.row, labels.row, return_indices=True)
    bands = propose_shares(
        ExploredPayments(
            explored.score[of_explored],
            labels.label[of_labels] == 0,
            reference_amounts(history, wiring.rate_table(source))[row],
            explored.propensity[of_explored],
        ),
        share,
    )
    # As for a replay, the environment does not override a file of its own.
    nothing: Mapping[str, str] = {}
    settings = (read_source(policy_file, nothing) if policy_file else source).section("policy", PolicySettings)
    lines = [f"explored from {date_of_day(first)} to {date_of_day(last)}", *(each.in_words() for each in bands)]
    text = policy_text(replace(settings, explored=configured_shares(bands)), read_lists(settings.lists))
    write_whole(out, "".join(f"# {line}\n" for line in lines) + "\n" + text)
    if as_json:
        click.echo(json.dumps({"bands": [asdict(each) for each in bands], "policy": str(out)}, indent=2))
    click.echo("\n".join([*lines, f"the policy is {out}"]), err=True)
