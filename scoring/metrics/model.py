"""What a scoring worker counts of its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paywarden.scoring.metrics.shared import Counter, Gauge, Registry

# Places in the chain, in order; the last is where no model is left.
PLACES = ("primary", "fallback", "none")


@dataclass(frozen=True)
class ModelMetrics:
    """By place in the chain, never by version: there would be ever more of them.

    `answered_first` and `answered_large` are of models that are cascades.
    """

    scored: Mapping[str, Counter]
    errors: Mapping[str, Counter]
    is_out: Mapping[str, Gauge]
    answered_first: Counter
    answered_large: Counter

    @classmethod
    def declare(cls, registry: Registry) -> ModelMetrics:
        """Of a primary model and one to fall back on."""
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
                    "paywarden_model_out", "1 while a worker leaves the model out, which failed.", ("model",), (place,)
                )
                for place in models
            },
            answered_first=answered_first,
            answered_large=answered_large,
        )
