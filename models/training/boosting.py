"""Growing trees: the one place that trains LightGBM for a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from paywarden.models.training.calibration import log_loss, true_probabilities
from paywarden.models.training.settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured

OnTree = Callable[[int], object]
"""Told of every tree that is grown, with 1."""

_THREADS_LINE = "[num_threads: "


@dataclass(frozen=True)
class HeldOut:
    """Rows that trees are not grown on but stopped by. `vectors` (rows, features), `label` (rows,)."""

    vectors: NDArray[np.float32]
    label: NDArray[np.int64]


def grown_on(label: NDArray[np.int64], settings: TrainingSettings) -> NDArray[np.bool_]:
    """Which rows trees are grown on: every fraud, and the setting's share of the rest, drawn by its seed."""
    drawn = np.random.default_rng(settings.seed).random(len(label)) < settings.genuine_sample_share
    return np.asarray(drawn | (label == 1), dtype=np.bool_)


def binned(
    vectors: NDArray[np.float32], label: NDArray[np.int64], settings: TrainingSettings, feature_names: Sequence[str]
) -> Any:
    """Rows in LightGBM's bins: made once for any number of models that differ in how they grow."""
    with _Refusing():
        data = lightgbm.Dataset(
            vectors,
            label,
            # By place: LightGBM is told no names.
            categorical_feature=[place for place, name in enumerate(feature_names) if name in settings.categorical],
            params=_parameters(settings, ()),
            free_raw_data=False,
        )
        return data.construct()


def grow(data: Any, settings: TrainingSettings, feature_names: Sequence[str], *, on_tree: OnTree | None = None) -> Any:
    """A model of `settings.trees` trees. Raises Misconfigured for what LightGBM cannot train with."""
    callbacks = [] if on_tree is None else [_telling(on_tree)]
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
    """A model, and the number of its trees with which the held-out rows are likeliest: no more than `trees`.

    Likeliest as log loss has it, which uses all rows: average precision turns on a few frauds and jumps. `on_tree` is
    told of `trees` trees in all: of each that is grown, and in the end of those that were not needed.
    """
    grown = 0

    def count_tree(trees: int) -> None:
        nonlocal grown
        grown += trees
        if on_tree is not None:
            on_tree(trees)

    share = settings.genuine_sample_share

    def loss(probability: NDArray[np.float64], _data: Any) -> tuple[str, float, bool]:
        return "log_loss", log_loss(held_out.label, true_probabilities(probability, share)), False

    with _Refusing():
        model = lightgbm.train(
            _parameters(settings, feature_names) | {"metric": "none"},
            data,
            settings.trees,
            valid_sets=[data.create_valid(held_out.vectors, held_out.label)],
            feval=loss,
            callbacks=[
                # Before the stopping, which ends the round of callbacks.
                _telling(count_tree),
                lightgbm.early_stopping(settings.early_stopping_rounds, verbose=False),
            ],
        )
    count_tree(settings.trees - grown)
    return model, int(model.best_iteration)


def model_text(model: Any) -> str:
    """LightGBM's text form without the number of threads: that is nothing of the model, and would change its digest."""
    lines = model.model_to_string().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(_THREADS_LINE))


def _parameters(settings: TrainingSettings, feature_names: Sequence[str]) -> dict[str, Any]:
    # Leaving out columns that cannot be split would depend on how trees grow, and bins are shared.
    parameters = settings.lightgbm_parameters() | {"feature_pre_filter": False}
    if settings.monotone and feature_names:
        parameters["monotone_constraints"] = [settings.monotone.get(name, 0) for name in feature_names]
    return parameters


def _telling(on_tree: OnTree) -> Callable[[Any], None]:
    def after_iteration(_environment: Any) -> None:
        on_tree(1)

    return after_iteration


class _Refusing:
    """LightGBM's refusals in one line of ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, lightgbm.basic.LightGBMError):
            # What follows " at " is a line of LightGBM's own source.
            reason = str(error).partition(" at ")[0]
            raise Misconfigured(f"LightGBM cannot train with the [training] settings: {reason}") from error
