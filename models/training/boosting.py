"""Train LightGBM. No other module trains the models of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from paywarden.models.training.calibration import Weight, log_loss
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured

OnTree = Callable[[int], object]
"""Called with the number of further trees that are grown."""

COARSE_BINS = 255
"""Trees of this many bins for each feature order payments nearly as well, in a quarter of the time."""

# Features x rows x trees that are read in a second, by two threads of a machine of 2024: 95 to 204 million with 4095
# bins, 390 to 480 million with 255. They set how much is tried, on every machine the same.
_COARSE_VALUES_PER_SECOND, _FINE_VALUES_PER_SECOND = 400e6, 100e6

_THREADS_LINE = "[num_threads: "


@dataclass(frozen=True)
class HeldOut:
    """Rows for early stopping, on which no tree is grown. `vectors`: (rows, features). `label`: (rows,), 0 or 1.

    `weight`: (rows,), how many payments each row stands for; None means 1.
    """

    vectors: NDArray[np.float32]
    label: NDArray[np.int64]
    weight: Weight = None


class _Rows(lightgbm.Sequence):
    """Rows that LightGBM bins part by part, without a copy of them all."""

    batch_size = 1 << 14

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors

    def __getitem__(self, index: Any) -> NDArray[np.float64]:
        # LightGBM takes no float32 here; it bins floats alike.
        return np.asarray(self._vectors[index], dtype=np.float64)

    def __len__(self) -> int:
        return len(self._vectors)


def binned(
    vectors: NDArray[np.float32] | Sequence[NDArray[np.float32]],
    label: NDArray[np.int64],
    settings: TrainingSettings,
    feature_names: Sequence[str],
    weight: Weight = None,
) -> Any:
    """Returns a LightGBM data set with binned rows. Several models with different settings of growth can share it.

    `vectors`: (rows, features), or several parts of the rows in order. Labels are 0 or 1.
    """
    with _Refusing():
        data = lightgbm.Dataset(
            vectors if isinstance(vectors, np.ndarray) else [_Rows(part) for part in vectors],
            label,
            weight=weight,
            # By index, because LightGBM does not know the names.
            categorical_feature=[place for place, name in enumerate(feature_names) if name in settings.categorical],
            params=_parameters(settings, ()),
            free_raw_data=False,
        )
        return data.construct()


def coarse(settings: TrainingSettings) -> TrainingSettings:
    """Returns the settings with at most COARSE_BINS bins."""
    return replace(settings, max_bin=min(settings.max_bin, COARSE_BINS))


def fit_seconds(rows: int, features: int, settings: TrainingSettings) -> float:
    """Returns about how long a fit takes: a constant of the rows and settings, not of the machine."""
    is_coarse = settings.max_bin <= COARSE_BINS
    return rows * features * settings.trees / (_COARSE_VALUES_PER_SECOND if is_coarse else _FINE_VALUES_PER_SECOND)


def aged(weight: Weight, day: NDArray[np.int64], settings: TrainingSettings) -> Weight:
    """Returns the weights of rows, (rows,), halved for each `age_half_life_days` before the newest. `day`: (rows,)."""
    if not settings.age_half_life_days:
        return weight
    by_age = np.exp2((day - day.max()) / settings.age_half_life_days)
    whole = by_age if weight is None else by_age * weight
    # On average 1, so that the settings of growth mean the same.
    return np.asarray(whole / whole.mean(), dtype=np.float64)


def grow(data: Any, settings: TrainingSettings, feature_names: Sequence[str], *, on_tree: OnTree | None = None) -> Any:
    """Returns a model of `settings.trees` trees. Raises Misconfigured for settings that LightGBM refuses."""
    callbacks = [] if on_tree is None else [_after_each_tree(on_tree)]
    with _Refusing():
        return lightgbm.train(_parameters(settings, feature_names), data, settings.trees, callbacks=callbacks)


def grow_until_worse(
    data: Any,
    held_out: HeldOut,
    settings: TrainingSettings,
    feature_names: Sequence[str],
    *,
    on_tree: OnTree | None = None,
) -> tuple[Any, int]:
    """Train with early stopping: returns a model and the number of trees, at most `trees`, with the lowest log loss.

    The log loss is that of the held-out rows. Average precision would depend on a few frauds and jump; log loss uses
    all rows. `on_tree` counts to `trees` in total: each grown tree, and at the end those that were not needed.
    """
    grown = 0

    def count_tree(trees: int) -> None:
        nonlocal grown
        grown += trees
        if on_tree is not None:
            on_tree(trees)

    def loss(probability: NDArray[np.float64], _data: Any) -> tuple[str, float, bool]:
        return "log_loss", log_loss(held_out.label, probability, held_out.weight), False

    with _Refusing():
        model = lightgbm.train(
            _parameters(settings, feature_names) | {"metric": "none"},
            data,
            settings.trees,
            valid_sets=[data.create_valid(held_out.vectors, held_out.label)],
            feval=loss,
            callbacks=[
                # First, because early stopping skips the callbacks after it.
                _after_each_tree(count_tree),
                lightgbm.early_stopping(settings.early_stopping_rounds, verbose=False),
            ],
        )
    count_tree(settings.trees - grown)
    return model, int(model.best_iteration)


def model_text(model: Any) -> str:
    """Returns LightGBM's text form without the number of threads, which would change the digest but not the model."""
    lines = model.model_to_string().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(_THREADS_LINE))


def _parameters(settings: TrainingSettings, feature_names: Sequence[str]) -> dict[str, Any]:
    # Pre-filtering drops columns by the settings of growth, but several settings share the bins.
    parameters = settings.lightgbm_parameters() | {"feature_pre_filter": False}
    if settings.monotone and feature_names:
        parameters["monotone_constraints"] = [settings.monotone.get(name, 0) for name in feature_names]
    if settings.leave_out and feature_names:
        # LightGBM asks only for features of a group. There is one, and features that are left out are not in it.
        used = [place for place, name in enumerate(feature_names) if name not in settings.leave_out]
        parameters["interaction_constraints"] = [used]
    return parameters


def _after_each_tree(on_tree: OnTree) -> Callable[[Any], None]:
    def after_iteration(_environment: Any) -> None:
        on_tree(1)

    return after_iteration


class _Refusing:
    """A context that turns LightGBM's errors into Misconfigured, in one line."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, lightgbm.basic.LightGBMError):
            # LightGBM appends " at " and a line of its source code.
            reason = str(error).partition(" at ")[0]
            raise Misconfigured(f"LightGBM cannot train with the [training] settings: {reason}") from error
