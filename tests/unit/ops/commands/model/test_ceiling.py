"""`paywarden replay --ceiling`: a replay beside the best that any model can do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner

from paywarden.models.backtest.known_truth import against_ceiling
from paywarden.ops.cli import cli
from paywarden.ops.commands.model.ceiling import ceiling_lines
from tests.unit.models.backtest.test_known_truth import COUNT, labels, write


def test_a_replay_stands_under_its_ceiling(tmp_path: Path) -> None:
    score = np.linspace(0.5, 0.001, COUNT)
    worse = write(tmp_path, score=score, label=labels({0, 1, 2, 30, 400}), folder="worse", best=-1)
    lines = [line.split() for line in ceiling_lines(against_ceiling(tmp_path, worse))]
    assert [line[0] for line in lines[:3]] == ["scores", "ceiling", str(worse)]
    assert lines[1][1:3] == ["1,000", "5"]
    assert lines[1][-2:] == ["100", "%"]
    assert int(lines[2][-2]) < 10
    assert lines[4][-4:] == ["found", "by", "the", "ceiling"]


def test_a_folder_without_the_truth_is_refused_before_the_replay(tmp_path: Path) -> None:
    asked = ["replay", "--data", str(tmp_path), "--bundle", "none", "--out", str(tmp_path / "out"), "--ceiling"]
    result = CliRunner().invoke(cli, asked, standalone_mode=False)
    assert "truth.parquet does not exist" in str(result.exception)
