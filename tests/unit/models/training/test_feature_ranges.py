from __future__ import annotations

import numpy as np

from paywarden.models.training.feature_ranges import DriftingFeature, clocks, drifting_features

DAY = np.repeat(np.arange(30), 100)
RANDOM = np.random.default_rng(6)
NAMES = ["steady", "clock", "new_half", "gone", "falls", "few"]
VECTORS = np.column_stack(
    [
        RANDOM.normal(size=len(DAY)),
        # A card's age where cards begin with the data.
        DAY - RANDOM.integers(0, 2, len(DAY)),
        np.where((DAY >= 20) & (RANDOM.random(len(DAY)) < 0.5), 7.0, RANDOM.integers(0, 3, len(DAY))),
        np.where(DAY >= 20, np.nan, 1.0),
        -DAY,
        RANDOM.integers(0, 2, len(DAY)),
    ]
).astype(np.float32)


def found(*categorical: str) -> dict[str, DriftingFeature]:
    return {feature.name: feature for feature in drifting_features(VECTORS, DAY, NAMES, categorical)}


def test_features_that_leave_their_range_are_named_and_no_others() -> None:
    assert found().keys() == {"clock", "new_half", "gone", "falls"}


def test_only_what_grows_is_a_clock() -> None:
    drifting = drifting_features(VECTORS, DAY, NAMES)
    assert clocks(drifting) == ["clock", "new_half"]
    assert [feature.outside for feature in drifting] == sorted((f.outside for f in drifting), reverse=True)


def test_a_drift_is_told_with_its_range() -> None:
    words = {name: feature.in_words() for name, feature in found("new_half").items()}
    assert words["clock"].endswith("of the later values are outside -1 to 19")
    assert words["new_half"].endswith("of the later values are new")
    assert words["gone"] == "gone: missing in 0% of the earlier rows, 100% later"
