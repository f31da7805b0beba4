"""Make decisions of the small world's model about payments like those it was trained on, the same for the same hour."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.binning import DIMENSIONS, Binning
from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS
from paywarden.models.drift.reference import Reference, read_reference
from paywarden.models.drift.reference_builder import PastDecisions, make_reference
from paywarden.models.drift.table_segments import TableSegments
from paywarden.models.policy.policy import ACTIONS
from paywarden.streams.drift.drift_counts import counted, row_of
from tests.services.made_once import made_once
from tests.worlds.small import small_world

FEATURE = "card_amount_mean_30d"
_PER_HOUR = 120


@cache
def reference() -> Reference:
    """Return the reference of two weeks of these decisions.

    The reference of the bundle's training is unsuitable, because its days differ from each other. One process of a run
    computes it, and all read its file.
    """
    return read_reference(made_once("reference.npz", lambda path: _computed().save(path)))


def _computed() -> Reference:
    manifest = small_world.loaded_bundle().manifest
    decisions, rows, times = SmallDecisions(seed=9), [], []
    for start_ms in range(19_700 * DAY_MS, 19_714 * DAY_MS, HOUR_MS):
        rows.append(decisions.draw(start_ms, _PER_HOUR))
        times.append(start_ms + np.arange(_PER_HOUR) * (HOUR_MS // _PER_HOUR))
    row = np.concatenate(rows)
    table = small_world.table()
    assert table.segments is not None
    vectors = table.vectors[row]
    segments = TableSegments(np.concatenate(times), tuple(column[row] for column in table.segments.values))
    found = make_reference(
        PastDecisions(small_world.loaded_bundle().score(vectors), vectors, segments),
        model_version=manifest.model_version,
        feature_names=manifest.feature_names,
        thresholds=(manifest.review_at, manifest.decline_at),
    )
    assert found is not None
    return found


class SmallDecisions:
    """Draws payments of the training window again. Setting a field changes the decisions from then on."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        table = small_world.table()
        assert table.segments is not None
        self._segments, self._vectors = table.segments, table.vectors
        hours = table.segments.time_ms // HOUR_MS % 24
        self._rows_of = [np.flatnonzero(hours == hour) for hour in range(24)]
        self._manifest = small_world.loaded_bundle().manifest
        self._number = 0
        # A feature that is 0 for every payment; the age of profiles; an addition to the share of reviews.
        self.gone = ""
        self.age_ms = 400
        self.more_reviews = 0.0
        self.variant = ""
        self.flags: list[str] = []

    def draw(self, start_ms: int, count: int) -> NDArray[np.int64]:
        """Return the rows of the training window from this hour of the day."""
        return self._rng.choice(self._rows_of[start_ms // HOUR_MS % 24], size=count)

    def records(self, start_ms: int, count: int, length_ms: int = 300_000) -> Iterator[dict[str, Any]]:
        """Return decisions made from `start_ms` on, in order of time."""
        rows = self.draw(start_ms, count)
        vectors = self._vectors[rows].copy()
        if self.gone:
            vectors[:, self._manifest.feature_names.index(self.gone)] = 0.0
        scores = small_world.loaded_bundle().score(vectors)
        actions = np.digitize(scores, [self._manifest.review_at, self._manifest.decline_at])
        actions[self._rng.random(count) < self.more_reviews] = 1
        ages = self._rng.lognormal(np.log(self.age_ms), 0.5, count).astype(int)
        for place in range(count):
            self._number += 1
            values = [column[rows[place]] for column in self._segments.values]
            yield {
                "decision_id": f"d{self._number}",
                "decided_time_ms": start_ms + place * length_ms // count,
                "payment_id": f"p{self._number}",
                "event_time_ms": start_ms + place * length_ms // count - 5,
                "card_id": f"c{self._number % 50}",
                "merchant_id": "m",
                "device_id": None,
                "ip": None,
                "amount_minor": 100,
                "currency": "EUR",
                **dict(zip(DIMENSIONS, values, strict=True)),
                "score": float(scores[place]),
                "action": ACTIONS[actions[place]],
                "reasons": [],
                "flags": list(self.flags),
                "model_version": self._manifest.model_version,
                "catalogue_digest": self._manifest.catalogue_digest,
                "vector": vectors[place].tobytes(),
                "profile_age_ms": int(ages[place]),
                "utc_offset_minutes": None,
                "variant": self.variant,
            }

    def counts(self, binning: Binning, start_ms: int, count: int = 120, length_ms: int = 300_000) -> Counts:
        """Return the counts of the same decisions."""
        rows = [row_of(offset, record) for offset, record in enumerate(self.records(start_ms, count, length_ms))]
        return counted(binning, rows)
