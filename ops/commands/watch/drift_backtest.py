"""`paywarden drift backtest`: runs drift detection over past decisions, and prints the alerts that it raises."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.ops.alert_text import finite, size_of, values_of
from paywarden.ops.extras import needs
from paywarden.ops.progress import progress_bar
from paywarden.ops.reporting import printable
from paywarden.ops.times import spoken
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.models.drift.reference import Reference
    from paywarden.models.metrics.evaluation import Days
    from paywarden.streams.drift.backtest import Backtest, Detected, VirtualDetection
    from paywarden.streams.drift.backtest_files import PastPart

_SECTIONS = ("drift", "drift_alerts", "drift_detection", "drift_training")
_DAY_MS = 86_400_000
_WEEK_MS = 7 * _DAY_MS


@click.command()
@click.option(
    "--decisions", type=click.Path(), help="decisions.parquet of `paywarden replay --vectors`, or its folder."
)
@click.option("--archive", type=click.Path(file_okay=False), help="Folder of `paywarden admin archive`, instead.")
@click.option(
    "--bundle",
    "bundles",
    type=click.Path(file_okay=False),
    multiple=True,
    help="Bundle whose training window decisions are compared with (default: those that the stream watches).",
)
@click.option("--from", "from_day", metavar="DAY", help="First UTC day, YYYY-MM-DD (default: all).")
@click.option("--to", "to_day", metavar="DAY", help="Last UTC day, included.")
@click.option(
    "--set", "changes", metavar="SECTION.SETTING=VALUE", multiple=True, help="Try a setting of [drift], [drift_…]."
)
@click.option(
    "--inject", "injections", metavar="CHANGE@DAY", multiple=True, help="Change the decisions on purpose; see above."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Chooses the payments that --inject changes.")
@click.option("--hours", "by_hour", is_flag=True, help="Skip blocks of five minutes: a tenth of the time.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write summary and alerts to this file.")
@click.pass_obj
@needs("train")
def backtest(
    source: Source,
    decisions: str | None,
    archive: str | None,
    bundles: tuple[str, ...],
    from_day: str | None,
    to_day: str | None,
    changes: tuple[str, ...],
    injections: tuple[str, ...],
    seed: int,
    by_hour: bool,
    json_file: str | None,
) -> None:
    """Run drift detection over past decisions.

    It is the stream's own detection, on the clock of the decisions: a month takes minutes. It needs no broker and no
    store.

    --inject changes decisions from a day on, to see whether and how soon an alert comes: score=0.4@2026-03-01
    multiplies scores, feature:NAME=0@DAY sets a feature, channel=app@DAY+30d moves payments to another channel, country
    or mcc. With +30d the share of changed payments grows over 30 days.
    """
    from paywarden.models.drift.detectors import HOUR_MS
    from paywarden.streams.alerts.alerts import State
    from paywarden.streams.drift.backtest import FIVE_MS, Backtest, detected
    from paywarden.streams.drift.backtest_files import Injection, archived, injected, replayed

    if (decisions is None) == (archive is None):
        raise Misconfigured("wanted one of --decisions and --archive")
    wanted = [Injection.of(text) for text in injections]
    detection, references = _detection(_changed(source, changes), bundles)
    window = _window(from_day, to_day)
    run = Backtest(detection, length_ms=HOUR_MS if by_hour else FIVE_MS)
    parts = replayed(_file(decisions), window) if decisions is not None else archived(Path(archive or ""), window)
    names = next((reference.feature_names for reference in references.values()), ())
    with progress_bar("days of decisions", _day_count(decisions, archive, window)) as advance:
        run.run(_followed(injected(parts, wanted, names, seed), advance))
    if not run.decisions:
        raise Misconfigured(f"{decisions or archive} holds no decision of these days")
    found = [detected(injection, detection.told.alerts) for injection in wanted]
    summary = summary_of(run, detection, found, references)
    if json_file is not None:
        _write(Path(json_file), {"summary": summary, "alerts": finite(detection.told.records)})
    for record in detection.told.records:
        click.echo(line_of(record))
    if not any(alert.state is State.RAISED for alert in detection.told.alerts):
        click.echo("no alert")
    click.echo("\n".join(summary_lines(summary)))


def _followed(parts: Iterable[PastPart], advance: Callable[[int], object]) -> Iterator[PastPart]:
    """Yields the parts, and reports the days of each when it was taken."""
    before: int | None = None
    for part in parts:
        first, last = (int(part.time_ms[place]) // _DAY_MS for place in (0, -1))
        yield part
        advance(last - (first - 1 if before is None else before))
        before = last


def _day_count(decisions: str | None, archive: str | None, window: Days | None) -> int:
    """Returns about how many days the decisions are of; 0 where they cannot be read, which the backtest refuses."""
    import pyarrow.parquet as pq

    from paywarden.schemas.arrow_files import UNREADABLE

    if window is not None:
        return window.last - window.first + 1
    if decisions is None:
        return len([*Path(archive or "").glob("decisions/date=*")])
    try:
        times = pq.read_table(_file(decisions), columns=["event_time_ms"])["event_time_ms"]
        return int(times[-1].as_py() // _DAY_MS - times[0].as_py() // _DAY_MS) + 1
    except (*UNREADABLE, KeyError, IndexError):
        return 0


def _changed(source: Source, changes: Sequence[str]) -> Source:
    """Returns the source with these settings in place of the file's. Raises Misconfigured for other sections."""
    file: dict[str, dict[str, Any]] = {name: dict(section) for name, section in source.file.items()}
    environment = dict(source.environment)
    for change in changes:
        name, _, value = change.partition("=")
        section, _, setting = name.partition(".")
        if section not in _SECTIONS or not setting:
            raise Misconfigured(f"--set: wanted SECTION.SETTING=VALUE of {', '.join(_SECTIONS)}, got {change!r}")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError) as error:
            raise Misconfigured(f"--set {name}: wanted a value as in paywarden.toml, got {value!r}") from error
        file.setdefault(section, {})[setting] = parsed
        environment.pop(f"PAYWARDEN_{section}_{setting}".upper(), None)
    return replace(source, file=file, environment=environment)


def _detection(source: Source, bundles: Sequence[str]) -> tuple[VirtualDetection, dict[str, Reference]]:
    from paywarden.models.drift.detectors import DetectorSettings
    from paywarden.streams.alerts.alerts import AlertSettings
    from paywarden.streams.drift.backtest import VirtualDetection
    from paywarden.streams.drift.drift_settings import DriftSettings, TrainingComparisonSettings

    settings = source.section("drift", DriftSettings)
    references = wiring.drift_references(source, replace(settings, bundles=tuple(bundles) or settings.bundles))
    if not references:
        raise Misconfigured("there is no reference to compare with: name a bundle with --bundle")
    detection = VirtualDetection(
        references,
        detectors=source.section("drift_detection", DetectorSettings),
        alerts=source.section("drift_alerts", AlertSettings),
        training=source.section("drift_training", TrainingComparisonSettings),
        learning_days=settings.learning_days,
    )
    return detection, references


def _window(from_day: str | None, to_day: str | None) -> Days | None:
    from paywarden.models.metrics.evaluation import Days, day_of_date

    if from_day is None and to_day is None:
        return None
    if from_day is None or to_day is None:
        raise Misconfigured("wanted both --from and --to, or none")
    first, last = day_of_date(from_day), day_of_date(to_day)
    if last < first:
        raise Misconfigured(f"--to: wanted {from_day} or a later day, got {to_day}")
    return Days(first, last)


def _file(path: str) -> Path:
    return Path(path) / "decisions.parquet" if Path(path).is_dir() else Path(path)


def summary_of(
    run: Backtest, detection: VirtualDetection, found: Sequence[Detected], references: Mapping[str, Reference]
) -> dict[str, Any]:
    """Returns the figures of a backtest, for JSON.

    `quiet_alerts_a_week` counts alerts raised before the first injected change: false ones, if nothing else changed.
    """
    from paywarden.streams.alerts.alerts import State
    from paywarden.streams.drift.drift_counts import base_version

    raised = [alert for alert in detection.told.alerts if alert.state is State.RAISED]
    quiet_until_ms = min([run.newest_ms, *(one.injection.at_ms for one in found)])
    quiet_weeks = max(quiet_until_ms - run.first_ms, 0) / _WEEK_MS
    quiet = [alert for alert in raised if alert.time_ms <= quiet_until_ms]
    return {
        "from_time_ms": run.first_ms,
        "to_time_ms": run.newest_ms,
        "decisions": dict(sorted(run.decisions.items())),
        "without_reference": sorted(version for version in run.decisions if base_version(version) not in references),
        "trained_on": _trained_on(run, references),
        "alerts": len(raised),
        "alerts_by_severity": _counted(str(alert.severity) for alert in detection.told.alerts),
        "alerts_by_comparison": _counted(str(alert.comparison) for alert in raised),
        "quiet_weeks": quiet_weeks,
        "quiet_alerts_a_week": len(quiet) / quiet_weeks if quiet_weeks else None,
        "injected": [
            {
                "change": one.injection.text,
                "told_after_hours": None if math.isnan(one.hours) else one.hours,
                "comparison": one.comparison,
                "severity": one.severity,
                "worst_severity": one.worst,
            }
            for one in found
        ],
    }


def _trained_on(run: Backtest, references: Mapping[str, Reference]) -> dict[str, list[int]]:
    """Returns, by version, the first and the last millisecond of its decisions that its model was trained on."""
    from paywarden.models.drift.signal_layout import Kinds
    from paywarden.streams.drift.drift_counts import base_version

    found = {}
    for version in sorted(run.decisions):
        reference = references.get(base_version(version))
        # A reference of live decisions is of days that the model had not seen.
        if reference is None or Kinds.QUALITY in reference.kinds:
            continue
        first_ms, end_ms = max(run.first_ms, reference.start_ms), min(run.newest_ms + 1, reference.end_ms)
        if first_ms < end_ms:
            found[version] = [first_ms, end_ms - 1]
    return found


def _counted(names: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def line_of(record: Mapping[str, Any]) -> str:
    """Returns an alert's state in a line: time, severity, subject, segment, size, value before and after."""
    reminder = " again" if record["reminders"] and record["state"] == "escalated" else ""
    state = f"{record['state'] + reminder:<15} {record['severity']:<8} {record['comparison']:<8}"
    return printable(
        f"{spoken(record['time_ms'])}  {state} "
        f"{record['subject']} {record['signal']} {record['segment']}  {size_of(dict(record))}  {values_of(record)}"
    )


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Returns the summary for people."""
    decisions = sum(summary["decisions"].values())
    lines = [
        "",
        f"{decisions:,} decisions, {spoken(summary['from_time_ms'])} to {spoken(summary['to_time_ms'])} UTC: "
        f"{summary['alerts']} alerts",
    ]
    if (rate := summary["quiet_alerts_a_week"]) is not None:
        lines.append(f"{rate:.2f} alerts a week in {summary['quiet_weeks']:.1f} weeks without an injected change")
    for one in summary["injected"]:
        told = "no alert"
        if one["told_after_hours"] is not None:
            told = (
                f"alert after {one['told_after_hours']:.1f} hours by the {one['comparison']} comparison, "
                f"{one['severity']}, at worst {one['worst_severity']}"
            )
        lines.append(f"{one['change']}: {told}")
    lines += [
        f"{printable(version)} was trained on the days from {spoken(first_ms)[:10]} to {spoken(last_ms)[:10]}: it is "
        "surer of these payments than of new ones, so high scores there are no drift"
        for version, (first_ms, last_ms) in summary["trained_on"].items()
    ]
    return lines + [
        f"{printable(version)} has no reference here: only its scores and actions were watched"
        for version in summary["without_reference"]
    ]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise Misconfigured(f"cannot write {path}: {error.strerror}") from error
