"""The `[training]` settings: their checks, and the part that a bundle stores."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from paywarden.models.metrics.labels import AUTO, require_setting
from paywarden.models.metrics.propensity import require_weight_max
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal

# Settings that do not change the model.
_NOT_OF_THE_MODEL = ("threads", "mlflow_experiment", "search_minutes", "choose_seconds")
_OF_A_CASCADE = "cascade"

CATEGORY_MAX = 4095
"""The largest category. Every categorical node stores a bitmap as long as the largest category of its set."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. The defaults are not LightGBM's, which do badly on payments.

    Sharp thresholds need fine bins, and rare frauds need shallow, regularised trees.
    """

    # The number of trees; with early stopping, the largest number, unless held-out days choose twice as many.
    trees: int = 200
    learning_rate: float = 0.05
    max_depth: int = 4
    leaves: int = 15
    l2: float = 5.0
    min_sum_hessian: float = internal(1.0)
    min_rows_in_leaf: int = 20
    # The share of the features, and of the rows, that each tree is grown on.
    feature_fraction: float = 1.0
    bagging_fraction: float = 1.0
    max_bin: int = 4095
    # By feature: 1 if a higher value never lowers the score, -1 if it never raises the score.
    monotone: Mapping[str, int] = field(default_factory=dict)
    # Features whose values are names, not amounts. Trees learn sets of values and test whether a value is in a set. A
    # missing value, or one never seen in training, is in no set.
    categorical: tuple[str, ...] = ()
    # Features that no tree may ask for, and whether to add those that grow with the age of the data
    # (models/training/feature_ranges.py).
    leave_out: tuple[str, ...] = ()
    leave_out_clocks: bool = True
    # The share of the genuine payments that are trained on; the newest days stay whole (models/training/sampling.py).
    # On an engine of partitions, 1 means the largest of 1, 1/2, 1/4 … that fits memory.
    genuine_sample_share: float = 1.0
    folds: int = 3
    # How many of the window's last days are held out to choose parameters; 0 means a fifth of the window. With several
    # folds, each fold's days come directly before the next fold's.
    validation_days: int = 0
    validation_folds: int = 1
    # Stop growing after this many trees without a better validation fold. 0 grows all trees.
    early_stopping_rounds: int = 50
    # How many candidates to try on the validation folds. 0 and 1 keep these settings.
    search_budget: int = internal(1)
    # At most as many candidates as a constant cost has room for in this many minutes. 0: no limit.
    search_minutes: float = internal(0.0)
    # How many seconds of work held-out days may try changes of these settings (models/training/changes.py). 0: none.
    # The work is counted, not timed: a slow machine tries as much as a fast one.
    choose_seconds: float = internal(20.0)
    # Changes that held-out days may choose: how many genuine payments a fraud weighs; after how many days of age a row
    # weighs half (0: never); how strongly the values of categories with few rows are drawn to the mean.
    fraud_weight: float = internal(1.0)
    age_half_life_days: int = internal(0)
    category_smoothing: float = internal(10.0)
    seed: int = internal(0)
    threads: int = 2
    label_delay_days: int = 7
    # How far profiles lag behind in training, as they do live: `0`, `150ms`, `1s`, or a measured trace's file
    # (features/history/staleness.py).
    profile_lag: str = "0"
    # With a profile_lag, how many scoring hosts there are whose overlays see the payments that profiles lack
    # (features/history/overlay.py). 0: there is no overlay.
    overlay_hosts: int = 0
    # A payment without an outcome counts as `genuine`, or as not known (`leave_out`); `auto`: the data decides
    # (models/metrics/labels.py).
    unknown_labels: str = AUTO
    # The largest weight that the column `propensity` of a history gives a payment, at least 1. 0 ignores the column
    # (models/metrics/propensity.py).
    propensity_weight_max: float = 20.0
    # Share of payments whose score is at or above the bundle's default thresholds.
    review_share: float = 0.01
    decline_share: float = 0.002
    # With a cascade, a small model of `cascade_trees` trees scores the clear payments, and the large model the others
    # (models/bundle/cascade.py). At most `cascade_disagreement_max` of the payments may get another action.
    cascade: bool = False
    cascade_trees: int = internal(40)
    cascade_leaves: int = internal(15)
    cascade_disagreement_max: float = internal(1e-4)
    # The MLflow experiment that records the training, if MLflow is installed. Empty records nothing.
    mlflow_experiment: str = internal("")

    def lightgbm_parameters(self) -> dict[str, Any]:
        """Returns the settings as LightGBM's parameters, except `monotone`, which needs the order of the features."""
        return {
            "objective": "binary",
            "learning_rate": self.learning_rate,
            "max_depth": self.max_depth,
            "num_leaves": self.leaves,
            "lambda_l2": self.l2,
            "min_sum_hessian_in_leaf": self.min_sum_hessian,
            "min_data_in_leaf": self.min_rows_in_leaf,
            "feature_fraction": self.feature_fraction,
            "bagging_fraction": self.bagging_fraction,
            # Draw new rows for every tree.
            "bagging_freq": 1,
            "scale_pos_weight": self.fraud_weight,
            "cat_smooth": self.category_smoothing,
            "cat_l2": self.category_smoothing,
            "max_bin": self.max_bin,
            "min_data_in_bin": 1,
            "seed": self.seed,
            # Both together give the same model with any number of threads.
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self.threads,
            "verbosity": -1,
        }

    def of_the_model(self) -> dict[str, Any]:
        """Returns the settings that a bundle stores: all that determine the model."""
        stored = {
            name: value
            for name, value in asdict(self).items()
            if name not in _NOT_OF_THE_MODEL and (self.cascade or not name.startswith(_OF_A_CASCADE))
        }
        # A list, as JSON gives it back.
        return stored | {"categorical": [*self.categorical], "leave_out": [*self.leave_out]}

    def of_the_first(self) -> TrainingSettings:
        """Returns the settings of a cascade's first model: these, with its number of trees and leaves."""
        return replace(self, trees=self.cascade_trees, leaves=self.cascade_leaves)


def require_usable(settings: TrainingSettings, feature_names: Sequence[str]) -> None:
    """Raises Misconfigured naming the first unusable setting. LightGBM itself checks its own parameters."""
    _require_at_least("trees", settings.trees, 1)
    _require_at_least("folds", settings.folds, 2)
    _require_at_least("validation_days", settings.validation_days, 0)
    _require_at_least("validation_folds", settings.validation_folds, 1)
    _require_at_least("early_stopping_rounds", settings.early_stopping_rounds, 0)
    _require_at_least("search_budget", settings.search_budget, 0)
    _require_at_least("seed", settings.seed, 0)
    if not settings.search_minutes >= 0.0:
        raise Misconfigured(f"training.search_minutes: wanted at least 0, got {settings.search_minutes}")
    if not settings.choose_seconds >= 0.0:
        raise Misconfigured(f"training.choose_seconds: wanted at least 0, got {settings.choose_seconds}")
    _require_at_least("label_delay_days", settings.label_delay_days, 0)
    require_setting(settings.unknown_labels)
    require_weight_max(settings.propensity_weight_max)
    _require_at_least("cascade_trees", settings.cascade_trees, 1)
    _require_at_least("cascade_leaves", settings.cascade_leaves, 2)
    if not 0.0 < settings.cascade_disagreement_max < 1.0:
        raise Misconfigured(
            f"training.cascade_disagreement_max: wanted above 0 and below 1, got {settings.cascade_disagreement_max}"
        )
    if not 0.0 < settings.genuine_sample_share <= 1.0:
        raise Misconfigured(
            f"training.genuine_sample_share: wanted above 0 and at most 1, got {settings.genuine_sample_share}"
        )
    if not 0.0 < settings.decline_share <= settings.review_share < 1.0:
        raise Misconfigured(
            "training.decline_share: wanted above 0 and at most training.review_share, which must be below 1, "
            f"got {settings.decline_share} and {settings.review_share}"
        )
    for name, direction in settings.monotone.items():
        _require_direction(name, direction, feature_names)
    for name in settings.leave_out:
        _require_feature("leave_out", name, feature_names)
    if set(settings.leave_out) >= set(feature_names):
        raise Misconfigured("training.leave_out: wanted some features to train on, got all of them left out")
    for name in settings.categorical:
        _require_feature("categorical", name, feature_names)
        if name in settings.monotone:
            raise Misconfigured(
                f"training.categorical: {name} has a direction in training.monotone, and categories have no direction"
            )


def _require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise Misconfigured(f"training.{name}: wanted at least {least}, got {value}")


def _require_direction(name: str, direction: int, feature_names: Sequence[str]) -> None:
    _require_feature("monotone", name, feature_names)
    if direction not in (-1, 1):
        raise Misconfigured(f"training.monotone: wanted 1 or -1 for {name}, got {direction}")


def _require_feature(setting: str, name: str, feature_names: Sequence[str]) -> None:
    if name not in feature_names:
        near = difflib.get_close_matches(name, feature_names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Misconfigured(f"training.{setting}: there is no feature {name!r}{hint}")
