"""`paywarden policy explore`: from an archive's explored decisions to a policy with shares."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from paywarden.models.policy.policy import PolicySettings
from paywarden.ops.cli import cli
from paywarden.schemas.settings import read_source
from tests.unit.streams.archive.test_propensities import SHARE, archive, explored_world
from tests.worlds.small.small_history import tables


def run(folder: Path, *arguments: str, share: float = SHARE) -> Result:
    exploration = f"[exploration]\nshare = {share}\nbudget_minor_a_day = 1000000\npayment_minor_max = 1000000\n"
    rule = '[policy]\ndecline_at = 0.4\n[[policy.rules]]\nname = "large"\nwhen = "amount > 5"\naction = "review"\n'
    (folder / "some.toml").write_text(exploration + rule, encoding="utf-8")
    asked = ["--config", str(folder / "some.toml"), "policy", "explore", "--data", str(folder), *arguments]
    return CliRunner().invoke(cli, asked, standalone_mode=False)


def test_the_policy_gets_shares_that_follow_what_was_found_in_an_archive(tmp_path: Path) -> None:
    topics, let_through = explored_world(tmp_path, payment_count=len(tables()[0]))
    archive(topics, tmp_path)
    result = run(tmp_path, "--out", str(tmp_path / "then.toml"), "--json")
    assert result.exit_code == 0, result.exception
    printed = json.loads(result.stdout)
    bands = printed["bands"]
    # The payments of the last days have no matured label.
    assert 40 <= sum(band["explored"] for band in bands) < len(let_through)
    assert all(band["genuine"] <= band["explored"] for band in bands)
    settings = read_source(str(tmp_path / "then.toml"), {}).section("policy", PolicySettings)
    assert [(each.score_from, each.share) for each in settings.explored] == [
        (band["score_from"], band["share"]) for band in bands
    ]
    assert [rule.name for rule in settings.rules] == ["large"]
    text = (tmp_path / "then.toml").read_text(encoding="utf-8")
    assert text.startswith("# explored from ")
    # Equal inputs give equal policies.
    run(tmp_path, "--out", str(tmp_path / "again.toml"))
    assert (tmp_path / "again.toml").read_text(encoding="utf-8") == text


def test_too_few_explored_payments_and_no_exploration_are_each_one_line(tmp_path: Path) -> None:
    topics, _ = explored_world(tmp_path, payment_count=1_000)
    archive(topics, tmp_path)
    assert "wanted at least 40 explored payments with a known label, got " in str(
        run(tmp_path, "--to", "-0d", "--out", str(tmp_path / "then.toml")).exception
    )
    assert str(run(tmp_path, "--out", str(tmp_path / "then.toml"), share=0.0).exception).startswith(
        "exploration.share: wanted above 0"
    )
    assert not (tmp_path / "then.toml").exists()
