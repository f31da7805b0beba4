"""Make decisions for tests of counting."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from paywarden.models.drift.binning import FEATURE_BINS, Binning
from paywarden.streams.drift.drift_counts import MINUTE_MS

NOON_MS = 1_790_000_000_000 - 1_790_000_000_000 % 86_400_000 + 12 * 60 * MINUTE_MS
FEATURES = 3


def small_binning(edges: int = 4) -> Binning:
    """Return a binning with three features, a few bins of scores, and segments by two channels and a country."""
    feature_edges = np.tile(np.linspace(-1, 1, FEATURE_BINS - 1, dtype=np.float32), (FEATURES, 1))
    return Binning(np.linspace(0.1, 0.9, edges), feature_edges, (("ecom", "pos"), ("DE",), ()))


def decision(number: int, decided_ms: int, *, version: str = "m1", features: int = FEATURES) -> dict[str, Any]:
    """Return a decision. Numbers give different decisions; the same number always gives the same one."""
    chance = random.Random(number)
    vector = np.array([chance.uniform(-2, 2) for _ in range(features)], dtype="<f4")
    if chance.random() < 0.2 and features:
        vector[0] = np.nan
    return {
        "decision_id": f"d{number}",
        "decided_time_ms": decided_ms,
        "payment_id": f"p{number}",
        "event_time_ms": decided_ms - 5,
        "card_id": f"c{number % 50}",
        "merchant_id": "m",
        "device_id": None,
        "ip": None,
        "amount_minor": 100,
        "currency": "EUR",
        "mcc": chance.choice([None, "5411"]),
        "country": chance.choice([None, "DE", "FR"]),
        "channel": chance.choice([None, "ecom", "pos", "atm"]),
        "score": chance.random(),
        "action": chance.choice(["approve", "review", "decline"]),
        "reasons": [],
        "flags": chance.choice([[], ["unknown_card"], ["mirror_stale", "unknown_device"]]),
        "model_version": version,
        "catalogue_digest": "x",
        "vector": vector.tobytes(),
        "profile_age_ms": chance.choice([None, 40, 9_000]),
        "utc_offset_minutes": None,
    }
