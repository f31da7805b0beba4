"""Which candidate is in the shadow on a host: what its deployment file says, and nothing that cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, Deployment, ReleasePaths, write_deployment
from paywarden.streams.shadow.candidate import ShadowCandidate

SALT = "00" * 16
IN_SHADOW = Deployment(ReleasePaths("a"), candidate=ReleasePaths("b", "p.toml", "bb" * 32), rollout="r-7", salt=SALT)


def test_a_candidate_without_cards_is_in_the_shadow_until_it_gets_some(tmp_path: Path) -> None:
    path, candidate = tmp_path / DEPLOYMENT, ShadowCandidate(tmp_path, lambda: "mine")
    assert candidate.look() == {}
    for deployment, found in (
        (IN_SHADOW, {"r-7": IN_SHADOW.candidate}),
        (replace(IN_SHADOW, share=100), {}),
        (IN_SHADOW, {"r-7": IN_SHADOW.candidate}),
        (replace(IN_SHADOW, catalogue="theirs"), {}),
        (replace(IN_SHADOW, catalogue="mine"), {"r-7": IN_SHADOW.candidate}),
        (replace(IN_SHADOW, candidate=None), {}),
    ):
        write_deployment(path, deployment)
        assert candidate.look() == found


def test_a_damaged_file_changes_nothing_and_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, candidate = tmp_path / DEPLOYMENT, ShadowCandidate(tmp_path, lambda: "mine")
    write_deployment(path, IN_SHADOW)
    before = candidate.look()
    path.write_text("{", encoding="utf-8")
    assert [candidate.look() for _ in range(3)] == [before] * 3
    assert caplog.text.count("the candidate in the shadow stays the same") == 1
