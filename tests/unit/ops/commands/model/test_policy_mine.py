"""`paywarden policy mine` writes a policy that can be proposed, and the replay that proves it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from paywarden.features.history.history import write_history
from paywarden.models.metrics.evaluation import date_of_day
from paywarden.ops.cli import cli
from paywarden.schemas.errors import Misconfigured
from tests.worlds.small import small_world
from tests.worlds.small.attack import with_attack
from tests.worlds.small.small_world import DAY_MS, FIRST_DAY

ATTACKED = FIRST_DAY + 24
CONFIG = """
[training]
unknown_labels = "genuine"

[policy]
review_at = 0.05

[[policy.rules]]
name = "large"
when = "amount > 5000_00"
action = "review"

[[policy.rules]]
name = "mined_20231201_1"
when = 'mcc == "0000"'
action = "review"
until = "2024-01-10"
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    first_ms, last_ms = ATTACKED * DAY_MS, (ATTACKED + 1) * DAY_MS
    attacked = with_attack(*small_world.tables(), first_ms=first_ms, last_ms=last_ms, frauds_a_day=80, seed=3)
    write_history(tmp_path / "data", *attacked)
    (tmp_path / "paywarden.toml").write_text(CONFIG)
    return tmp_path / "data"


def run(data: Path, *options: str) -> tuple[int, str, BaseException | None]:
    asked = ["--config", str(data.parent / "paywarden.toml"), "policy", "mine", "--data", str(data)]
    asked += ["--bundle", str(small_world.trained_bundle()), "--out", str(data.parent / "mined.toml"), *options]
    told = CliRunner().invoke(cli, asked, standalone_mode=False)
    return told.exit_code, told.stdout, told.exception


def refusal(data: Path, *options: str) -> str:
    _, _, error = run(data, *options)
    assert isinstance(error, Misconfigured), error
    return str(error)


def test_the_file_is_the_policy_with_new_rules_and_without_retired_ones(data: Path) -> None:
    last = date_of_day(ATTACKED)
    _, stdout, error = run(data, "--from", date_of_day(ATTACKED - 6), "--to", last, "--days", "3", "--json")
    assert error is None, error
    result, text = json.loads(stdout), (data.parent / "mined.toml").read_text()
    rules = tomllib.loads(text)["policy"]["rules"]
    assert [rule["name"] for rule in rules] == ["large", *(one["name"] for one in result["new"])]
    assert {rule["until"] for rule in rules[1:]} == {date_of_day(ATTACKED + 3)}
    assert [one["name"] for one in result["retired"]] == ["mined_20231201_1"]
    assert result["new"][0]["held_out"]["gain_interval"][0] > 0
    assert f"# new: {result['new'][0]['name']} until {date_of_day(ATTACKED + 3)}: " in text
    metrics = json.loads((data.parent / "mined.toml.proof" / "metrics.json").read_text())
    assert metrics["challenger"]["whole"]["recall"] > metrics["whole"]["recall"]


def test_what_cannot_be_mined_is_refused_in_one_line(data: Path) -> None:
    assert "wanted a share above 0 and at most 0.1, got 0.5" in refusal(
        data, "--from", date_of_day(ATTACKED), "--false-positives", "0.5"
    )
    assert "the data starts on" in refusal(data, "--to", "2020-01-01")
    (data.parent / "paywarden.toml").write_text('[[policy.rules]]\nname = "a"\nwhen = "shoe > 3"\naction = "review"\n')
    assert "there is no name 'shoe'" in refusal(data)
