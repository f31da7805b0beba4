"""The metrics of a scoring worker's models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paywarden.scoring.metrics.shared_metrics import Counter, Gauge, MetricsRegistry

# The places in the chain, in order; "none" is for payments that no model scored.
PLACES = ("primary", "fallback", "none")


@dataclass(frozen=True)
class ModelMetrics:
    """Metric handles by place in the chain. A label for the version would create ever more series.

    Only cascades count `answered_first` and `answered_large`.
    """

    scored: Mapping[str, Counter]
    errors: Mapping[str, Counter]
    is_out: Mapping[str, Gauge]
    answered_first: Counter
    answered_large: Counter

    @classmethod
    def declare(cls, registry: MetricsRegistry) -> ModelMetrics:
        """Declare the metrics of a primary and a fallback model."""
        models = PLACES[:-1]
        answered_first, answered_large = (
            registry.counter(
                "paywarden_cascade_answered_total",
                "Payments by the model of a cascade that answered them.",
                ("by",),
                (by,),
            )
            for by in ("first", "large")
        )
        return cls(
            scored={
                place: registry.counter(
                    "paywarden_model_scored_total", "Payments by the model that scored them.", ("model",), (place,)
                )
                for place in PLACES
            },
            errors={
                place: registry.counter(
                    "paywarden_model_errors_total", "Payments that a model failed on.", ("model",), (place,)
                )
                for place in models
            },
            is_out={
                place: registry.gauge(
                    "paywarden_model_out",
                    "1 while a worker's model fails: it failed on the last payment that it was asked about.",
                    ("model",),
                    (place,),
                )
                for place in models
            },
            answered_first=answered_first,
            answered_large=answered_large,
        )
