"""`paywarden replay`: what its options do, and what it refuses."""

from __future__ import annotations

import atexit
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from paywarden.features.history.history import write_history
from paywarden.models.metrics.evaluation import date_of_day
from paywarden.models.replay.files import results_folder
from paywarden.models.replay.report.page import amount
from paywarden.ops.cli import cli
from paywarden.schemas.errors import Misconfigured, PaywardenError
from tests.worlds.small import small_world
from tests.worlds.small.small_world import FIRST_DAY

FROM = date_of_day(FIRST_DAY + 22)
RULE = """
[policy]
review_at = 0.011
decline_at = 0.9

[[policy.rules]]
name = "large"
when = "amount > 300_00"
action = "decline"
"""


@cache
def data() -> Path:
    folder = Path(mkdtemp(prefix="paywarden-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_history(folder, *small_world.tables())
    return folder


def run(out: Path, *options: str, config: str = "", environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Returns the content of metrics.json; a refusal is raised."""
    return told(out, *options, config=config, environment=environment)[0]


def told(
    out: Path, *options: str, config: str = "", environment: dict[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """Returns the content of metrics.json, and the lines of stderr."""
    arguments = ["replay", "--data", str(data()), "--bundle", str(small_world.trained_bundle()), "--out", str(out)]
    # With earlier decisions the days are theirs.
    if "--from" not in options and "--decisions" not in options:
        arguments += ["--from", FROM]
    (out.parent / "some.toml").write_text(config, encoding="utf-8")
    asked = ["--config", str(out.parent / "some.toml"), *arguments, *options]
    result = CliRunner().invoke(cli, asked, standalone_mode=False, env=environment)
    if result.exception is not None:
        raise result.exception
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    headline = json.loads(result.stdout)
    challenger = headline.pop("challenger", {})
    assert challenger.items() <= metrics.get("challenger", {}).items()
    assert bool(challenger) == ("challenger" in metrics)
    assert all(metrics[name] == value for name, value in headline.items())
    assert str(out / "report.html") in result.stderr
    return metrics, result.stderr


def policy_file(folder: Path, text: str = RULE) -> str:
    (folder / "strict.toml").write_text(text, encoding="utf-8")
    return str(folder / "strict.toml")


def test_weighted_figures_are_told_beside_the_plain_ones(tmp_path: Path) -> None:
    """They stood only in metrics.json: readers of the page or of the output took the plain ones for the whole."""
    payments, outcomes = small_world.tables()
    propensity = pa.array([0.1 if row % 30 == 0 else None for row in range(len(payments))])
    write_history(tmp_path / "data", payments.append_column("propensity", propensity), outcomes)
    metrics, said = told(tmp_path / "out", "--data", str(tmp_path / "data"))
    weighted = metrics["weighted"]
    line = next(
        line for line in said.splitlines() if line.startswith("weighted: each payment stands for 1 / propensity")
    )
    assert f"average precision {weighted['average_precision']:.4f}, 95% interval" in line
    assert f"as certain as {round(weighted['effective_payments']):,} payments with" in line
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"average precision {weighted['average_precision']:.4f}" in page
    value = metrics["policy_value"]
    assert value["value_minor_interval"][0] < value["value_minor"] < value["value_minor_interval"][1]
    line = f"propensities the policy gains {amount(value['value_minor'])} EUR in 1,000 payments, 95% interval"
    assert f"by {line}" in said
    assert f"By {line}" in page
    stricter = policy_file(tmp_path, "[policy]\nreview_at = 0.001\ndecline_at = 0.9\n")
    compared, said = told(tmp_path / "two", "--data", str(tmp_path / "data"), "--challenger-policy", stricter)
    gain, other = compared["comparison"]["value_gain"], compared["challenger"]["policy_value"]
    assert gain["value_minor"] == pytest.approx(other["value_minor"] - value["value_minor"])
    assert "by propensities that is a difference of" in said
    metrics, said = told(tmp_path / "plain")
    assert metrics["policy_value"] is None
    assert "weighted: " not in said
    assert "by propensities" not in said
    assert "Weighted figures" not in (tmp_path / "plain" / "report.html").read_text(encoding="utf-8")


def test_a_second_replay_into_the_folder_of_one_that_runs_is_refused(tmp_path: Path) -> None:
    # Once both wrote decisions.unfinished, and the second one to end found it gone: a traceback.
    run(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with results_folder(tmp_path / "out"), pytest.raises(Misconfigured, match=r"another replay is writing to .*/out"):
        run(tmp_path / "out", "--policy", policy_file(tmp_path))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    run(tmp_path / "out", "--policy", policy_file(tmp_path))


def test_a_refused_replay_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="nowhere/decisions is not there"):
        run(tmp_path / "out", "--archived-decisions", str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


def test_the_environment_changes_the_configuration_but_no_policy_file(tmp_path: Path) -> None:
    metrics = run(
        *(tmp_path / "a", "--challenger-policy", policy_file(tmp_path)),
        environment={"PAYWARDEN_POLICY_REVIEW_AT": "0.05"},
    )
    assert metrics["review_at"] == 0.05
    assert metrics["challenger"]["review_at"] == 0.011


def test_a_replay_has_the_lag_of_the_training_unless_told_otherwise(tmp_path: Path) -> None:
    config = '[training]\nprofile_lag = "1h"\noverlay_hosts = 2\n'

    def lag(*options: str) -> tuple[str, int]:
        metrics = run(tmp_path / "a", *options, config=config)
        return metrics["profile_lag"], metrics.get("overlay_hosts", 0)

    assert lag("--lag", "1s", "--overlay", "3") == ("1s", 3)
    assert lag("--overlay", "0") == ("1h", 0)
    assert lag("--lag", "0")[0] == "0"
    # Earlier decisions have their lag already.
    earlier = run(tmp_path / "earlier", "--vectors", config=config)
    assert (earlier["profile_lag"], earlier["overlay_hosts"]) == ("1h", 2)
    assert lag("--decisions", str(tmp_path / "earlier/decisions.parquet"))[0] == "0"


def test_two_policies_of_one_bundle_are_compared(tmp_path: Path) -> None:
    metrics = run(tmp_path / "a", "--challenger-policy", policy_file(tmp_path))
    assert metrics["challenger"]["model_version"] == metrics["model_version"]
    assert metrics["comparison"]["agreement"]["share"] < 1
    assert pq.read_metadata(tmp_path / "a/differences.parquet").num_rows > 0


def test_a_warning_says_how_far_off_scores_are(tmp_path: Path) -> None:
    bundle = small_world.copied_bundle(tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    # Scores of twice the odds and more: calibrated to a world with more fraud.
    manifest["calibration_intercept"] += 1.5
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    metrics, said = told(tmp_path / "a", "--bundle", str(bundle))
    calibration = metrics["calibration"]
    assert calibration["is_far_off"]
    assert f"a ratio of {calibration['ratio']:.2f} (95% interval {calibration['ratio_low']:.2f} to " in said
    assert "The scores are far off as probabilities: they promise" in said
    report = (tmp_path / "a/report.html").read_text(encoding="utf-8")
    assert "The scores are far off as probabilities: they promise" in report


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--from", "2030-01-01", "--to", "2030-01-02"), "--from 2030-01-01: the data ends on 2024-01-30"),
        (("--from", "2030-01-01"), "--from 2030-01-01: the data ends on 2024-01-30"),
        (("--from", "2020-01-01", "--to", "2023-12-31"), "--to 2023-12-31: the data starts on 2024-01-01"),
        (("--from", "-40d", "--to", "-35d"), "--to 2023-12-26: the data starts on 2024-01-01"),
        (("--from", "2024-01-20", "--to", "2024-01-19"), "a window of days must not end before it starts"),
        (("--from", "spring"), "--from: wanted a date such as 2026-10-01, or -14d for .* got 'spring'"),
        (("--to", "14d"), "--to: wanted a date such as 2026-10-01, or -14d for .* got '14d'"),
        (("--policy", "nowhere.toml"), "cannot read the configuration nowhere.toml"),
        (("--decisions", "nowhere.parquet"), "nowhere.parquet cannot be read as Parquet"),
    ],
)
def test_a_replay_that_cannot_run_is_one_line_and_writes_nothing(
    options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(PaywardenError, match=said) as refused:
        run(tmp_path / "a", *options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "processes", "--lag", "1s"], "--lag works with --engine local alone"),
        (
            ["--engine", "processes", "--archived-decisions", "d"],
            "--archived-decisions works with --engine local alone",
        ),
        (["--master", "local[2]"], "--master is for --engine spark"),
        (["--engine", "processes", "--decisions", "d"], "--decisions works with --engine local alone"),
        (["--engine", "processes", "--to", "2020-01-01"], "a window of days must not end before it starts"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})  # one process needs no pool, which starts in seconds
    (tmp_path / "d").touch()
    options = [str(tmp_path / "d") if option == "d" else option for option in options]
    with pytest.raises(Misconfigured, match=message):
        run(tmp_path / "out", *options)
