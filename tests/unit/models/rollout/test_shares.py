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
    arm_end,
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
    arms = np.stack([arms_at(positions, share) for share in STEPS])
    assert not (np.diff(arms, axis=0) < 0).any()
    shares = (arms == CANDIDATE).mean(axis=1)
    assert shares[-1] == 1.0
    # Five standard deviations of a share.
    expected = np.array(STEPS) / BASIS_POINTS
    assert (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / 2e5)).all()


def test_the_committed_vectors_for_other_languages_hold() -> None:
    salt = bytes.fromhex(VECTORS["salt"])
    for vector in VECTORS["cards"]:
        position = CardSplit(salt).position(vector["card_key"].encode())
        assert f"{position:016x}" == vector["position"]
        assert [int(position < arm_end(share)) for share in VECTORS["shares"]] == vector["arms"]


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


@given(st.integers(0, CIRCLE - 1), st.integers(0, BASIS_POINTS), st.integers(0, BASIS_POINTS))
def test_a_candidates_share_only_gains_cards_when_it_rises(position: int, one: int, other: int) -> None:
    cards = np.array([position], dtype=np.uint64)
    before, after = (int(arms_at(cards, share)[0]) for share in sorted((one, other)))
    assert before in (CHAMPION, after)
    assert after == int(position < arm_end(max(one, other)))


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
    for share, got in ((10_001, "100.01 %"), (-1, "-0.01 %")):
        with pytest.raises(Misconfigured, match=f"share of the candidate: wanted 0 to 100 %, got {got}"):
            arm_end(share)
    with pytest.raises(Misconfigured, match="rollout salt: wanted 16 bytes, got 3"):
        CardSplit(b"abc")
