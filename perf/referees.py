"""Two benchmarks that others made, of investigation and of first frauds, by their rules and beside their tables.

caseload 0.1.0 (https://pypi.org/project/caseload, section "Baselines, 30 seeds"): in each of 18 rounds an operator
investigates a part of the cases, a tenth of them in all. Only these get labels, and the detector is fitted to labels
alone. In the middle, the fraud moves to where the detector does not look. Without knowledge of the break:
- `caseload_recall`, `caseload_recall_after_break`: our training (rows weigh half after two rounds) and our exploration.
  The explored share follows the upper ends of the yields' 95 % intervals (models/replay/explored_shares.py).
- `caseload_recall_ROW…`: `top_k` and `yield_triggered` are the referee's policies with its detector, run again here.
  `our_shares` is our exploration with its detector, `our_training` our training without exploration.

strikeone 1.9.5 (https://pypi.org/project/strikeone): which frauds are the first of their card? A list could catch the
later ones. Its table is of IEEE-CIS, which cannot be shipped. Ours is of a made world with the same 3.1 % of payments
reviewed, so the two are not compared:
- `first_strike_recall`, `first_strike_precision`: of reviews by score, in days after the training.
- `list_recall`: the share of all frauds that a list of cards with a fraud known for 7 days would catch without a model.

    pip install caseload==0.1.0 strikeone==1.9.5 && \\
    python -m perf.referees [--seeds 30] [--cards 4000] [--json FILE]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paywarden.features.history.history import final_labels, read_history
from paywarden.models.metrics.evaluation import DAY_MS, day_of_date
from paywarden.models.metrics.intervals import wilson_interval
from paywarden.models.training.boosting import aged, binned, grow
from paywarden.models.training.training_settings import TrainingSettings
from perf.tools.measuring import arguments_of, finish

# The published figures: recall of all rounds, and of those from the break on.
PUBLISHED = {
    "top-k": (0.598, 0.054),
    "eps-explore(0.6)": (0.430, 0.160),
    "yield-triggered (best simple policy)": (0.600, 0.116),
    "PPO (20 other episodes)": (0.655, 0.197),
    "oracle": (0.988, 0.996),
}
ROWS = {
    "top_k": "top-k, its detector",
    "yield_triggered": "yield-triggered, its detector",
    "our_shares": "our exploration, its detector",
    "our_training": "top-k, our training",
    "": "our exploration, our training",
}
ROUNDS = 18
# Rounds whose yields count: fewer are too noisy, and more see a break late.
_YIELD_ROUNDS = 3
# A round stands for a day.
TRAINING = TrainingSettings(
    trees=60, learning_rate=0.1, min_rows_in_leaf=5, max_bin=255, age_half_life_days=2, threads=1
)
# The days of the made world: its model is trained in the first ones.
_TRAIN_FROM, _TRAIN_TO, _MEASURED_FROM, _DAYS = "2024-01-08", "2024-02-04", "2024-02-12", 60
# Of payments: 100 a day in the referee's table.
_REVIEWED_SHARE, _LABEL_DELAY_DAYS = 0.031, 7


class TrainedDetector:
    """A detector of caseload that our training fits. It is given all labels so far, in the order of the rounds."""

    def __init__(self) -> None:
        self._model: Any = None
        self._ends: list[int] = []

    @property
    def fitted(self) -> bool:
        return self._model is not None

    def fit(self, x: NDArray[np.float64], y: NDArray[np.int64]) -> None:
        self._ends.append(len(y))
        weight = aged(None, np.searchsorted(self._ends, np.arange(len(y)), side="right"), TRAINING)
        names = [f"x{place}" for place in range(x.shape[1])]
        data = binned(x.astype(np.float32), (y == 1).astype(np.int64), TRAINING, names, weight)
        self._model = grow(data, TRAINING, names)

    def score(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self._model.predict(x.astype(np.float32)))


class SharesByYield:
    """A policy of caseload: of each round's budget, the explored share is proportional to what exploring may yield."""

    def __init__(self, mdp: Any) -> None:
        self._mdp = mdp

    def reset(self) -> None:
        """Keep nothing."""

    def act(self, _observation: NDArray[np.float32]) -> tuple[int, int]:
        from caseload import EXPLORE_GRID, PACE_GRID

        seen = self._mdp.records[-_YIELD_ROUNDS:]
        explored, exploited = (
            _upper_yield(sum(getattr(each, found) for each in seen), sum(getattr(each, spent) for each in seen))
            for found, spent in (("found_by_explore", "explore_spend"), ("found_by_exploit", "exploit_spend"))
        )
        share = explored / (explored + exploited) if seen else 0.0
        return PACE_GRID.index(1.0), int(np.argmin(np.abs(np.array(EXPLORE_GRID) - share)))


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--seeds", {"type": int, "default": 30, "help": "episodes of caseload"}),
        ("--cards", {"type": int, "default": 4000, "help": "of the made world"}),
    )
    finish(caseload(range(arguments.seeds)) | first_strikes(arguments.cards), arguments.json)


def caseload(seeds: range) -> dict[str, float]:
    """Returns the figures of caseload: means of the middle half of the episodes, as in its tables."""
    from caseload.evaluation import bootstrap_interval

    # Each process has a core, and many threads of one would wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        episodes = list(pool.map(episode_recalls, seeds))
    print(f"{'caseload, ' + str(len(seeds)) + ' episodes':<40} {'recall':>22} {'after the break':>22}")
    for name, (whole, after) in PUBLISHED.items():
        print(f"{'published: ' + name:<48} {whole:>6.3f} {after:>22.3f}")
    figures = {}
    for row, name in ROWS.items():
        line = f"{name:<40}"
        for place, suffix in enumerate(("", "_after_break")):
            of = bootstrap_interval(np.array([episode[row][place] for episode in episodes]), reps=2_000)
            figures["_".join(filter(None, ("caseload_recall", row))) + suffix] = of.point
            line += f" {of.point:>7.3f} [{of.lo:.3f}, {of.hi:.3f}]"
        print(line)
    return figures


def episode_recalls(seed: int) -> dict[str, tuple[float, float]]:
    """Returns the recall by row of an episode: of all rounds, and of those from the break on."""
    from caseload import GradientBoostScorer, InvestigationMDP, TopK, YieldTriggered, rollout
    from caseload.envs import DriftConfig, make_episode

    episode, (begin,) = make_episode(seed, DriftConfig(n_rounds=ROUNDS))
    recalls = {}
    for row in ROWS:
        detector = TrainedDetector() if row in ("our_training", "") else GradientBoostScorer()
        mdp = InvestigationMDP(episode, detector)
        shares = SharesByYield(mdp)
        result = rollout(mdp, {"yield_triggered": YieldTriggered(), "our_shares": shares, "": shares}.get(row, TopK()))
        recalls[row] = result.recall, result.recall_over(begin, ROUNDS)
    return recalls


def first_strikes(cards: int) -> dict[str, float]:
    """Returns what strikeone says of the decisions of a replay in a made world."""
    import pandas as pd
    from strikeone.audit import audit

    with tempfile.TemporaryDirectory() as folder:
        data, bundle, replayed = (str(Path(folder, name)) for name in ("data", "bundle", "replayed"))
        _paywarden("simulate", "--cards", str(cards), "--days", str(_DAYS), "--seed", "7", "--out", data)
        window = ("--train-from", _TRAIN_FROM, "--train-to", _TRAIN_TO)
        _paywarden("train", "--data", data, *window, "--out", bundle)
        _paywarden("replay", "--data", data, "--bundle", bundle, "--from", _MEASURED_FROM, "--out", replayed)
        decisions, history = pq.read_table(Path(replayed, "decisions.parquet")), read_history(data)
    before = (final_labels(history) == 1) & (history.event_time_ms < day_of_date(_MEASURED_FROM) * DAY_MS)
    known = {history.card.names[code].as_py() for code in np.unique(history.card.codes[before])}
    columns = {
        "transaction_id": decisions["payment_id"].to_pylist(),
        "t": np.asarray(decisions["event_time_ms"]) // 1000,
        "amount": np.asarray(decisions["amount_minor"]) / 100,
        "entity": decisions["card_id"].to_pylist(),
        "label": [int(label == "fraud") for label in decisions["label"].to_pylist()],
        "score": np.asarray(decisions["score"]),
    }
    days = (columns["t"].max() - columns["t"].min()) / 86_400
    capacity = _REVIEWED_SHARE * decisions.num_rows / days
    found = audit(pd.DataFrame(columns), _LABEL_DELAY_DAYS, capacity_per_day=capacity, history_entities=known)
    print("\n" + found.to_text())
    budget = next(each for each in found.budgets if each["primary"])
    figures = {"first_strike_recall": budget["fs_recall"], "first_strike_precision": budget["precision"]}
    return figures | {"list_recall": found.blocklist["recovered_share"]}


def _paywarden(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "paywarden", *arguments], check=True, stdout=subprocess.DEVNULL)


def _upper_yield(found: int, spent: int) -> float:
    return wilson_interval(found / spent, spent)[1] if spent else 1.0


if __name__ == "__main__":
    main()
