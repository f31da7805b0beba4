"""The name that importers outside this package still use for `DetectionMetrics`, which is in metrics.py."""

from __future__ import annotations

from paywarden.streams.drift.metrics import DetectionMetrics

__all__ = ["DetectionMetrics"]
