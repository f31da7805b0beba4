"""The arms of cards: nested over the steps, the same on every host and in every language."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.rollout.shares import (
    BASIS_POINTS,
    CANDIDATE,
    CHAMPION,
    CIRCLE,
    CardSplit,
    arm_edges,
    arm_of,
    arms_at,
    checked_steps,
)
from paywarden.schemas.errors import Misconfigured
from tests.checkout import CHECKOUT
from tests.services.missing_tools import NODE

SALT = bytes(range(16))
VECTORS = json.loads((CHECKOUT / "tests" / "clients" / "card_arms.json").read_text(encoding="utf-8"))
STEPS = checked_steps([1, 5, 10, 25, 50, 100])


def test_no_card_of_200_000_changes_arms_wrongly_over_the_steps() -> None:
    positions = CardSplit(SALT).positions(b"card:%d" % number for number in range(200_000))
    arms = np.stack([arms_at(positions, arm_edges([share])) for share in STEPS])
    assert not (np.diff(arms, axis=0) < 0).any()
    shares = (arms == CANDIDATE).mean(axis=1)
    assert shares[-1] == 1.0
    # Five standard deviations of a share.
    expected = np.array(STEPS) / BASIS_POINTS
    assert (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / 2e5)).all()


def test_the_committed_vectors_for_other_languages_hold() -> None:
    salt = bytes.fromhex(VECTORS["salt"])
    for vector in VECTORS["cards"]:
        key = vector["card_key"].encode()
        assert f"{CardSplit(salt).position(key):016x}" == vector["position"]
        assert [arm_of(key, salt, shares) for shares in VECTORS["shares"]] == vector["arms"]


def test_another_language_computes_the_committed_arms(tmp_path: Path) -> None:
    """JavaScript, by the words of the module alone. A vector that says something else is found."""
    node = shutil.which("node")
    if node is None:
        pytest.skip(NODE.reason)
    folder = CHECKOUT / "tests" / "clients"
    command = [node, str(folder / "card_arms.mjs")]
    agreed = subprocess.run([*command, str(folder / "card_arms.json")], capture_output=True, text=True, check=False)
    assert (agreed.stdout, agreed.returncode) == (
        f"{len(VECTORS['cards'])} of {len(VECTORS['cards'])} cards agree\n",
        0,
    )
    first, *others = VECTORS["cards"]
    wrong = VECTORS | {"cards": [first | {"arms": [1, *first["arms"][1:]]}, *others]}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong), encoding="utf-8")
    told = subprocess.run([*command, str(tmp_path / "wrong.json")], capture_output=True, text=True, check=False)
    assert (told.stderr, told.returncode) == (f"{first['card_key']}: another position or arm\n", 1)


@given(st.integers(0, CIRCLE - 1), st.integers(1, 4), st.data())
def test_a_candidates_share_only_gains_cards_when_it_rises(position: int, candidates: int, data: st.DataObject) -> None:
    most = BASIS_POINTS // candidates
    small = data.draw(st.lists(st.integers(0, most), min_size=candidates, max_size=candidates))
    large = [data.draw(st.integers(share, most)) for share in small]
    cards = np.array([position], dtype=np.uint64)
    before, after = arms_at(cards, arm_edges(small))[0], arms_at(cards, arm_edges(large))[0]
    assert before in (CHAMPION, after)


@pytest.mark.parametrize(
    ("percents", "message"),
    [
        ([], "steps: wanted shares in percent that end with 100, got none"),
        ([5, 1, 100], "steps: wanted each above the one before, got 1 % after 5 %"),
        ([5, 5, 100], "steps: wanted each above the one before, got 5 % after 5 %"),
        ([1, 101], "steps: wanted shares above 0 and at most 100 percent, in hundredths of a percent, got 101"),
        ([0, 100], "steps: wanted shares above 0 and at most 100 percent, in hundredths of a percent, got 0"),
        ([float("nan")], "steps: wanted shares above 0 and at most 100 percent, in hundredths of a percent, got nan"),
        ([0.123, 100], "steps: wanted shares above 0 and at most 100 percent, in hundredths of a percent, got 0.123"),
        ([1, 50], "steps: wanted 100 as the last one, got 50 %"),
    ],
)
def test_wrong_steps_are_refused_in_one_line(percents: list[float], message: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        checked_steps(percents)
    assert str(refused.value) == message


def test_shares_that_do_not_fit_the_circle_are_refused() -> None:
    for shares, message in (
        ([10_001], "share of candidate 1: wanted 0 to 100 %, got 100.01 %"),
        ([100, 6_000], "share of candidate 2: wanted 0 to 50 %, got 60 %"),
        ([-1], "share of candidate 1: wanted 0 to 100 %, got -0.01 %"),
        ([], "shares: wanted one for each candidate, got none"),
    ):
        with pytest.raises(Misconfigured, match=message):
            arm_edges(shares)
    with pytest.raises(Misconfigured, match="rollout salt: wanted 16 bytes, got 3"):
        CardSplit(b"abc")
