"""`paywarden ceiling`: replays beside the best that any model can do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from paywarden.ops.cli import cli
from tests.unit.models.backtest.test_known_truth import COUNT, labels, write


def test_replays_of_the_same_payments_stand_under_one_ceiling(tmp_path: Path) -> None:
    score = np.linspace(0.5, 0.001, COUNT)
    replayed = write(tmp_path, score=score, label=labels({0, 1, 2, 30, 400}))
    worse = write(tmp_path, score=score, label=labels({0, 1, 2, 30, 400}), folder="worse", best=-1)
    asked = ["ceiling", "--data", str(tmp_path), "--replay", str(replayed), "--replay", str(worse)]
    result = CliRunner().invoke(cli, [*asked, "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines[:4]] == ["scores", "ceiling", str(replayed), str(worse)]
    assert lines[1][1:3] == ["1,000", "5"]
    assert (lines[1][-2:], lines[2][-2:]) == (["100", "%"], ["100", "%"])
    first, second = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (first["share"], first["ceiling"]) == (1.0, second["ceiling"])
    assert f"{second['share']:.0%}" == "".join(lines[3][-2:])
    assert second["share"] < 0.1
    assert ["attack", "3", "1.000", "1.000"] in lines


def test_a_folder_without_the_truth_is_refused_in_a_line(tmp_path: Path) -> None:
    asked = ["ceiling", "--data", str(tmp_path), "--replay", str(tmp_path)]
    result = CliRunner().invoke(cli, asked, standalone_mode=False)
    assert "truth.parquet does not exist" in str(result.exception)
