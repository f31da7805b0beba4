"""Estimate how a bundle's model scores payments that it has not seen, from models that were trained without some days.

Later decisions are compared with the training window, so the reference needs the margins that the bundle's own model
gives to payments like those of the window. Neither of two obvious answers will do:

    out-of-fold margins    Other models gave them, of fewer days. Two models of the same payments rank them alike, but
                           put the many harmless ones at other margins: a step of 0.3 can be half of the payments.
    its own margins there  It has seen these payments. It is surer about them than about others, most of all at the top.

How it works:

1. Each fold's model has margins of the days that it was trained on, and of the days that were held out. For each share
   of the seen payments, the share of the held-out ones below the same margin says how far the model is too sure.
2. The bundle's model has margins of its own window. The mean of the folds' shares says which share of unseen payments
   lies below each of them. Its margins stay those that it gives; only how many payments have each one changes. Days
   that differ are held out once and seen otherwise, so they cancel.
3. Where the folds do not agree, their mean is chance. It is shrunk towards the seen share by max(0, 1 - variance /
   mean²), after W. James and C. Stein, "Estimation with quadratic loss" (1961).

Example: the bundle's model gives 1 % of its window at least 5.2. The margin that 1 % of the seen days reach is reached
by 0.70 %, 0.80 % and 0.75 % of three folds' held-out days. The mean, 0.75 %, is 0.25 points below, with a variance of
0.0008: 99 % of it is kept. The result: 0.75 % of unseen payments are expected at 5.2 or above. In the middle the
held-out shares are 0.502, 0.499 and 0.500: chance, and the middle stays at -10.6. Out of fold it was at -10.2, and by
that 22 of 100 payments lay in other bins though nothing had moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

# Finer than the finest score bin (models/drift/reference_builder.py).
_SHARES = 4000


@dataclass(frozen=True)
class FoldMargins:
    """The margins that one fold's model gives: to the rows it was not trained on, and to those it was. (rows,) each."""

    held_out: F64
    seen: F64


def unseen_margins(own: F64, folds: Sequence[FoldMargins]) -> F64:
    """Returns margins of the bundle's model, as many of each as unseen payments would have, ascending: (shares,).

    `own`: its margins of the rows of its own window, (rows,). No array may be empty. Without folds they are its own.
    """
    if not folds:
        return np.sort(own)
    shares = (np.arange(_SHARES) + 0.5) / _SHARES
    moved = _certain_part(np.array([_held_out_below(fold, shares) - shares for fold in folds]))
    # The share below a higher margin is never smaller.
    below = np.maximum.accumulate(np.clip(shares + moved, 0.0, 1.0))
    seen = np.interp(shares, [0.0, *below, 1.0], [0.0, *shares, 1.0])
    return _at(np.sort(own), seen)


def as_of_one_model(margins: F64, fold: NDArray[np.int64], like: F64) -> F64:
    """Map each fold's margins by rank onto another distribution. `margins`, `fold` and the result: (rows,).

    `like`: the other distribution, ascending. Each fold is a run of days and was scored by a model of its own. Without
    this, differences between those models would look like differences between days.
    """
    mapped = np.empty_like(margins)
    for number in np.unique(fold):
        rows = fold == number
        rank = np.argsort(np.argsort(margins[rows], kind="stable"), kind="stable")
        mapped[rows] = _at(like, (rank + 0.5) / rows.sum())
    return mapped


def _held_out_below(fold: FoldMargins, shares: F64) -> F64:
    """Returns which share of the held-out rows lies below the margin that each share of the seen rows lies below.

    Many rows may have one margin. A share in the midst of them takes as much of the held-out rows with that margin.
    """
    seen, held_out = np.sort(fold.seen), np.sort(fold.held_out)
    margin = _at(seen, shares)
    low, high = (np.searchsorted(seen, margin, side) / len(seen) for side in ("left", "right"))
    first, last = (np.searchsorted(held_out, margin, side) / len(held_out) for side in ("left", "right"))
    return np.asarray(first + (shares - low) / (high - low) * (last - first), dtype=np.float64)


def _at(ordered: F64, shares: F64) -> F64:
    """Returns the values at these shares of an ascending array. No value is made up between two."""
    return ordered[np.minimum((shares * len(ordered)).astype(np.int64), len(ordered) - 1)]


def _certain_part(moved: F64) -> F64:
    """Returns the mean of the folds less the part that chance explains. `moved`: (folds, shares)."""
    mean, count = moved.mean(axis=0), len(moved)
    if count < 2:
        return np.asarray(mean, dtype=np.float64)
    variance = moved.var(axis=0, ddof=1) / count
    kept = 1.0 - np.divide(variance, mean**2, out=np.ones_like(mean), where=mean != 0.0)
    return np.asarray(mean * np.maximum(kept, 0.0), dtype=np.float64)
