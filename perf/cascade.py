"""The savings and the price of a cascade: 40 small trees before 300 trees of 63 leaves.

Measured:
- microseconds a row with the cascade and with its large model alone, a row at a time and ten thousand at once, with one
  thread, best and median of rounds in turns
- over payments after the training: the share answered early, and the share with another action
- out of fold: the loss of average precision

Checked: a row alone gets the same bits as among others, and a row that is not answered early gets the large model's
bits. Used for: whether to train with `--cascade`.

    python -m perf.cascade [--rounds N] [--json FILE]
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import Bundle, calibrated, load_bundle
from paywarden.models.bundle.cascade import CascadePredictor
from paywarden.models.bundle.predictor import Predictor
from perf.tools.measuring import arguments_of, finish, print_rounds
from perf.tools.servers import pin_load
from perf.worlds.scoring_world import WorldSize, make_past, vectors_of

_ROWS = 10_000
_SINGLE_ROWS = 2_000


def main() -> None:
    arguments = arguments_of(__doc__, ("--rounds", {"type": int, "default": 7, "help": "that are counted"}))
    pin_load()
    size = WorldSize()
    # With two folds of so few days their models would differ too much to choose thresholds by.
    training = replace(size.training, cascade=True, folds=4)
    past = make_past(replace(size, training_days=20, training=training))
    bundle = load_bundle(past.bundle, catalogue_digest=past.engine.plan.digest)
    finish(figures_of(bundle, vectors_of(past, _ROWS), arguments.rounds), arguments.json)


def figures_of(bundle: Bundle, rows: NDArray[np.float32], rounds: int) -> dict[str, float]:
    """Returns the figures. Raises AssertionError when a row's score depends on its batch."""
    both = bundle.predictor
    assert isinstance(both, CascadePredictor)
    singles = [np.ascontiguousarray(rows[place : place + 1]) for place in range(min(_SINGLE_ROWS, len(rows)))]
    _check(both, rows, singles)
    predictors: dict[str, Predictor] = {"cascade": both, "large": both.large}
    alone: dict[str, list[float]] = {name: [] for name in predictors}
    together: dict[str, list[float]] = {name: [] for name in predictors}
    for turn in range(rounds + 1):
        for name, predictor in predictors.items():
            taken = [_seconds(predictor, one) for one in singles]
            whole = _seconds(predictor, rows)
            # The first round is not counted.
            if turn:
                alone[name].append(float(np.mean(taken)) * 1e6)
                together[name].append(whole / len(rows) * 1e6)
    print_rounds("a row alone, mean", "µs", alone)
    print_rounds(f"a row of {len(rows):,} at once", "µs", together)
    manifest, told = bundle.manifest, both.cascade
    scores = [
        calibrated(predictor.margins(rows), manifest.calibration_slope, manifest.calibration_intercept)
        for predictor in predictors.values()
    ]
    actions = [np.digitize(each, [manifest.review_at, manifest.decline_at]) for each in scores]
    figures = {f"{name}_alone_us": float(np.median(each)) for name, each in alone.items()}
    figures |= {f"{name}_together_us": float(np.median(each)) for name, each in together.items()}
    return figures | {
        "saved_alone_us": figures["large_alone_us"] - figures["cascade_alone_us"],
        "saved_together_us": figures["large_together_us"] - figures["cascade_together_us"],
        "share_early": both.share_early(rows),
        "share_early_out_of_fold": told.share_early,
        "disagreement": float((actions[0] != actions[1]).mean()),
        "disagreement_out_of_fold": told.disagreement,
        "average_precision_loss": told.average_precision_loss,
    }


def _check(both: CascadePredictor, rows: NDArray[np.float32], singles: list[NDArray[np.float32]]) -> None:
    together = both.margins(rows)
    assert [both.margins(one).item() for one in singles] == together[: len(singles)].tolist(), "a batch changes a score"
    unclear = ~both.cascade.is_clear(both.first.margins(rows))
    assert np.array_equal(together[unclear], both.large.margins(rows)[unclear]), "the large model's bits are others"


def _seconds(predictor: Predictor, rows: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    predictor.margins(rows)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
