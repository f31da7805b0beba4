"""The Fraud Detection Handbook's protocols, inputs and published results, to compare a backtest with.

Source: Y.-A. Le Borgne and others, "Reproducible Machine Learning for Credit Card Fraud Detection - Practical Handbook"
(2022), chapters 3 and 5. The book trains on seven days, waits seven days for labels and tests on the next seven. Its
single split trains from 25 July 2018 on. Its prequential protocol has four folds, each a week earlier than the one
before. The validation folds end before the first day of the first test fold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from paywarden.features.catalogue.entity import Catalogue, Entity, request
from paywarden.features.history.history import History
from paywarden.models.backtest.backtest import Protocol
from paywarden.models.metrics.evaluation import (
    METRICS,
    Days,
    HandbookMetrics,
    date_of_day,
    day_of_date,
    day_of_time,
    handbook_split,
    prequential_splits,
)
from paywarden.models.training.candidates import Parameters
from paywarden.schemas.errors import Misconfigured

LABEL_DELAY_DAYS = 7
FIRST_DAY = day_of_date("2018-04-01")
"""The first day of the book's payments."""

_CHOOSING = day_of_date("2018-07-11")
_SINGLE_TEST = day_of_date("2018-07-25")
_PREQUENTIAL_TEST = day_of_date("2018-08-15")

SINGLE = Protocol("single", (handbook_split(_CHOOSING),), (handbook_split(_SINGLE_TEST),))
PREQUENTIAL = Protocol(
    "prequential", tuple(prequential_splits(_CHOOSING)), tuple(prequential_splits(_PREQUENTIAL_TEST))
)
PROTOCOLS = {protocol.name: protocol for protocol in (SINGLE, PREQUENTIAL)}


@dataclass(frozen=True)
class Published:
    """A row of the book's tables: means over the folds, standard deviations if given, and the parameters.

    `parameters`: by metric, with this project's names; None if this project has no such model.
    """

    model: str
    test: HandbookMetrics
    test_std: HandbookMetrics | None = None
    validation: HandbookMetrics | None = None
    parameters: Mapping[str, Parameters] | None = None


def _for_every_metric(parameters: Parameters) -> Mapping[str, Parameters]:
    return dict.fromkeys(METRICS, parameters)


# The book has no LightGBM. Its XGBoost is the closest model.
PUBLISHED: dict[str, dict[str, Published]] = {
    "single": {
        "lr": Published(
            "logistic regression", HandbookMetrics(0.871, 0.606, 0.291), parameters=_for_every_metric({"C": 1.0})
        ),
        "rf": Published(
            "random forest",
            HandbookMetrics(0.867, 0.658, 0.287),
            parameters=_for_every_metric({"trees": 100, "max_depth": None}),
        ),
        "dt": Published(
            "decision tree of depth 2",
            HandbookMetrics(0.763, 0.496, 0.241),
            parameters=_for_every_metric({"max_depth": 2}),
        ),
        "lightgbm": Published("XGBoost", HandbookMetrics(0.862, 0.639, 0.273)),
    },
    "prequential": {
        "lr": Published(
            "logistic regression",
            HandbookMetrics(0.868, 0.623, 0.297),
            HandbookMetrics(0.02, 0.02, 0.01),
            HandbookMetrics(0.867, 0.613, 0.279),
            dict(zip(METRICS, ({"C": 100.0}, {"C": 100.0}, {"C": 0.1}), strict=True)),
        ),
        "rf": Published(
            "random forest",
            HandbookMetrics(0.870, 0.678, 0.299),
            HandbookMetrics(0.02, 0.01, 0.01),
            HandbookMetrics(0.880, 0.694, 0.289),
            _for_every_metric({"trees": 100, "max_depth": 20}),
        ),
        "dt": Published(
            "decision tree",
            HandbookMetrics(0.797, 0.579, 0.284),
            HandbookMetrics(0.01, 0.01, 0.00),
            HandbookMetrics(0.823, 0.573, 0.268),
            dict(zip(METRICS, ({"max_depth": 50}, {"max_depth": 3}, {"max_depth": 5}), strict=True)),
        ),
        "lightgbm": Published(
            "XGBoost",
            HandbookMetrics(0.869, 0.687, 0.303),
            HandbookMetrics(0.01, 0.01, 0.01),
            HandbookMetrics(0.887, 0.708, 0.289),
        ),
    },
}

BEST_PUBLISHED = {"single": None, "prequential": HandbookMetrics(0.876, 0.694, 0.305)}
"""The best published value of each metric over all models, chosen with hindsight where the book gives that."""


def book_catalogue() -> Catalogue:
    """Returns the book's 15 inputs as a catalogue. Customers are cards, terminals are merchants.

    The book's windows are exact to the second; ours consist of tiles. A window is less than 1 % too long, and one with
    a delay ends at most an hour early. A share without payments is missing here and 0 in the book. Models that cannot
    take missing values get 0 here as well.
    """
    card, merchant = Entity("card", key="card_id"), Entity("merchant", key="merchant_id")
    return Catalogue(
        entities=(card, merchant),
        # In the book's order, because a seeded random forest depends on it.
        features=(
            request.amount("amount"),
            request.weekend("weekend"),
            request.night("night"),
            *(
                feature
                for window, hop in (("1d", "10m"), ("7d", "1h"), ("30d", "1h"))
                for feature in (
                    card.count(f"card_count_{window}", window, hop=hop, including_this=True),
                    card.amount_mean(f"card_amount_mean_{window}", window, hop=hop, including_this=True),
                )
            ),
            *(
                feature
                for window in ("1d", "7d", "30d")
                for feature in (
                    merchant.count(f"merchant_count_{window}", window, delay="7d", hop="1h"),
                    merchant.fraud_share(f"merchant_fraud_share_{window}", window, delay="7d", hop="1h"),
                )
            ),
        ),
    )


def require_handbook(history: History, protocol: Protocol) -> None:
    """Raises Misconfigured if the history lacks a day that the book's data has and the protocol needs."""
    needed = Days(FIRST_DAY, protocol.days.last)
    present = np.unique(day_of_time(history.event_time_ms))
    count = int(needed.contains(present).sum())
    if count == needed.last - needed.first + 1:
        return
    span = f"{date_of_day(int(present[0]))} to {date_of_day(int(present[-1]))}" if len(present) else "nowhere"
    raise Misconfigured(
        f"this is not the handbook's history: wanted payments on every day from {date_of_day(needed.first)} to "
        f"{date_of_day(needed.last)}, got {count} of these days (its payments are from {span})"
    )
