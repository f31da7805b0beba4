"""A backtest gives the alerts of the stream's detection, from files, on the clock of the decisions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from paywarden.models.drift.binning import DIMENSIONS
from paywarden.models.drift.counts import count_rows
from paywarden.models.drift.detectors import HOUR_MS, DetectorSettings
from paywarden.models.drift.signal_layout import Kinds
from paywarden.models.metrics.evaluation import date_of_day
from paywarden.models.policy.policy import ACTIONS
from paywarden.ops.commands.watch.drift_backtest import backtest
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source
from paywarden.streams.alerts.alerts import Alert, AlertSettings
from paywarden.streams.drift.backtest import Backtest, VirtualDetection
from paywarden.streams.drift.backtest_files import Injection, PastPart, replayed
from tests.worlds.drift.made_decisions import (
    FEATURES,
    SMALL,
    TRAINING_DAYS,
    VERSION,
    MadeWorld,
    Shares,
    ms_of,
    quiet_reference,
)
from tests.worlds.drift.made_decisions import FIRST_DAY as MADE_DAY

LIVE_DAYS = 6


def shifted(day: float) -> Shares:
    """Half of the web's payments come by an app from the fourth day on."""
    return {"web": 0.37, "pos": 0.2, "app": 0.43} if day >= 3.5 else {"web": 0.74, "pos": 0.2, "app": 0.06}


WORLD = replace(MadeWorld(1, SMALL), channel=shifted)


def parts_of(world: MadeWorld, days: int) -> Iterator[PastPart]:
    for day in range(days):
        for hour in range(24):
            rows = world.rows(day, hour)
            count = len(rows.scores)
            time_ms = ms_of(day) + hour * HOUR_MS + np.arange(count) * (HOUR_MS // max(count, 1))
            versions = np.full(count, VERSION, dtype=object)
            yield PastPart(time_ms, versions, np.full(count, len(FEATURES)), rows)


def joined(parts: Sequence[PastPart]) -> PastPart:
    """Return parts as one."""
    rows = [part.rows for part in parts]
    one = replace(
        rows[0],
        scores=np.concatenate([each.scores for each in rows]),
        actions=np.concatenate([each.actions for each in rows]),
        vectors=np.concatenate([each.vectors for each in rows]),
        flags=[names for each in rows for names in each.flags],
        ages_ms=np.concatenate([each.ages_ms for each in rows]),
        values=[[value for each in rows for value in each.values[place]] for place in range(len(DIMENSIONS))],
    )
    return PastPart(
        np.concatenate([part.time_ms for part in parts]),
        np.concatenate([part.versions for part in parts]),
        np.concatenate([part.widths for part in parts]),
        one,
    )


@pytest.fixture(scope="module")
def whole() -> PastPart:
    return joined(list(parts_of(WORLD, LIVE_DAYS)))


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory, whole: PastPart) -> Path:
    """Write the decisions.parquet that a replay of the world would have written."""
    folder = tmp_path_factory.mktemp("replay")
    rows = whole.rows
    columns = {
        "event_time_ms": whole.time_ms,
        "score": rows.scores,
        "action": [ACTIONS[number] for number in rows.actions],
        "model_version": whole.versions.tolist(),
        "vector": [vector.tobytes() for vector in rows.vectors],
        **dict(zip(DIMENSIONS, rows.values, strict=True)),
    }
    pq.write_table(pa.table(columns), folder / "decisions.parquet", row_group_size=1000)
    quiet_reference().save(folder / "reference.npz")
    return folder


def new_detection() -> VirtualDetection:
    return VirtualDetection({VERSION: quiet_reference()}, detectors=DetectorSettings(), alerts=AlertSettings())


def told_by(parts: Sequence[PastPart]) -> list[Alert]:
    detection = new_detection()
    Backtest(detection, length_ms=HOUR_MS).run(parts)
    return detection.told.alerts


def test_a_backtest_tells_what_the_detection_tells_of_the_same_counts(whole: PastPart, replay: Path) -> None:
    detection = new_detection()
    _, binning = detection.binnings.of(VERSION)
    for day in range(LIVE_DAYS):
        for hour in range(24):
            start_ms = ms_of(day) + hour * HOUR_MS
            rows = replace(WORLD.rows(day, hour), ages_ms=np.full(len(WORLD.rows(day, hour).scores), -1))
            detection.take(start_ms, HOUR_MS, {VERSION: count_rows(binning, rows)})
    assert detection.told.alerts != []
    # However the decisions are cut into parts.
    without_ages = replace(whole, rows=replace(whole.rows, ages_ms=np.full(len(whole.time_ms), -1)))
    assert told_by([without_ages]) == detection.told.alerts
    assert told_by(list(replayed(replay / "decisions.parquet", None))) == detection.told.alerts


def run(replay: Path, *arguments: str) -> Result:
    source = Source({"drift": {"references": [str(replay / "reference.npz")]}}, {})
    return CliRunner().invoke(backtest, ["--decisions", str(replay), "--hours", *arguments], obj=source)


def test_the_command_prints_each_alert_and_writes_the_same_as_json(replay: Path, tmp_path: Path) -> None:
    result = run(replay, "--json", str(tmp_path / "alerts.json"))
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "alerts.json").read_text())
    summary, alerts = content["summary"], content["alerts"]
    assert summary["decisions"][VERSION] > LIVE_DAYS * SMALL / 2
    assert summary["alerts"] == sum(alert["state"] == "raised" for alert in alerts) > 0
    first = alerts[0]
    assert (first["subject"], first["state"]) == ("traffic", "raised")
    # The shift was at noon of the fourth day.
    assert 0 < first["time_ms"] - ms_of(3.5) <= 12 * HOUR_MS
    assert len(result.output.splitlines()) >= len(alerts)
    assert "traffic share channel=app" in result.output


def test_days_that_the_model_was_trained_on_are_named(replay: Path, tmp_path: Path) -> None:
    assert "was trained on" not in run(replay).output
    own = replace(quiet_reference(), start_ms=ms_of(-TRAINING_DAYS), end_ms=ms_of(2))
    own.save(tmp_path / "reference.npz")
    source = Source({"drift": {"references": [str(tmp_path / "reference.npz")]}}, {})
    result = CliRunner().invoke(backtest, ["--decisions", str(replay), "--hours"], obj=source)
    first, last = (date_of_day(MADE_DAY + TRAINING_DAYS + day) for day in (0, 1))
    assert f"{VERSION} was trained on the days from {first} to {last}: it is surer of these payments" in result.output
    # A reference of live decisions says nothing about what the model was trained on.
    replace(own, kinds=own.kinds | Kinds.QUALITY).save(tmp_path / "reference.npz")
    assert (
        "was trained on" not in CliRunner().invoke(backtest, ["--decisions", str(replay), "--hours"], obj=source).output
    )


def test_settings_can_be_tried(replay: Path) -> None:
    deaf = run(
        replay, "--set", "drift_detection.share_change_min=1e9", "--set", "drift_detection.psi_min=9.0",
        "--set", "drift_detection.false_alarm_days=1e9",
    )  # fmt: skip
    assert "no alert" in deaf.output, deaf.output


def test_an_injected_change_is_looked_for(replay: Path) -> None:
    day = date_of_day(MADE_DAY + TRAINING_DAYS + 1)
    result = run(replay, "--inject", f"score=0.2@{day}", "--to", date_of_day(MADE_DAY + TRAINING_DAYS + 2), "--from",
                 date_of_day(MADE_DAY + TRAINING_DAYS))  # fmt: skip
    assert f"score=0.2@{day}: alert after " in result.output, result.output
    assert "0.00 alerts a week in 0.1 weeks" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inject", "score@2026-01-01"], "--inject: wanted score=FACTOR@DAY"),
        (["--inject", "score=much@2026-01-01"], "--inject score=much@2026-01-01: wanted a number"),
        (["--inject", "feature:gone=1@2020-01-01"], "the model has no feature 'gone'"),
        (["--set", "serve.port=1"], "--set: wanted SECTION.SETTING=VALUE of drift"),
        (["--set", "drift_training.psi_warning=x"], "--set drift_training.psi_warning: wanted a value"),
        (["--from", "2026-01-01"], "wanted both --from and --to"),
        (["--archive", "a"], "wanted one of --decisions and --archive"),
        (["--from", "2001-01-01", "--to", "2001-01-02"], "holds no decision of these days"),
    ],
)
def test_what_cannot_be_done_is_one_line(replay: Path, arguments: list[str], message: str) -> None:
    result = run(replay, *arguments)
    assert isinstance(result.exception, Misconfigured)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_file_without_vectors_or_out_of_order_is_refused(replay: Path, tmp_path: Path) -> None:
    table = pq.read_table(replay / "decisions.parquet")
    path = tmp_path / "decisions.parquet"
    pq.write_table(table.drop_columns(["vector"]), path)
    with pytest.raises(Misconfigured, match=r"it has no column vector: `paywarden replay --vectors` writes it"):
        next(replayed(path, None))
    pq.write_table(table.take(list(range(100, -1, -1))), path)
    with pytest.raises(Misconfigured, match="not in order of event_time_ms"):
        list(replayed(path, None))
    with pytest.raises(Misconfigured, match=r"wanted the decisions.parquet of a replay"):
        next(replayed(tmp_path / "none.parquet", None))


def test_vectors_of_another_catalogue_are_refused(whole: PastPart) -> None:
    other = replace(whole, widths=whole.widths - 1)
    with pytest.raises(Misconfigured, match="have vectors of 4 features, and its reference has 5"):
        told_by([other])


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("channel=wallet@{day}+2d", lambda part: np.array([value == "wallet" for value in part.rows.values[0]])),
        ("feature:risk=9@{day}+2d", lambda part: part.rows.vectors[:, 3] == 9),
        ("score=0@{day}+2d", lambda part: part.rows.scores == 0),
    ],
)
def test_a_slow_change_reaches_more_and_more_payments(
    whole: PastPart, text: str, moved: Callable[[PastPart], np.ndarray[tuple[int], np.dtype[np.bool_]]]
) -> None:
    injection = Injection.of(text.format(day=date_of_day(MADE_DAY + TRAINING_DAYS + 2)))
    changed = injection.changed(whole, FEATURES, np.random.default_rng(1))
    hit = moved(changed)
    shares = [hit[(whole.time_ms >= ms_of(day)) & (whole.time_ms < ms_of(day + 1))].mean() for day in range(6)]
    assert shares[:2] == [0, 0]
    assert 0.1 < shares[2] < shares[3] < 1
    assert shares[4:] == [1, 1]
