"""The ceiling of the handbook's data: what the generator and the known labels say about a payment."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from paywarden.features.history.history import History, history_of_tables
from paywarden.models.backtest.ceiling import ceiling_scores
from paywarden.models.metrics.evaluation import DAY_MS

# The payments of one terminal, at noon of these days; every customer pays once, except the one of the last test.
FIRST_DAY = 17_700


def history_of(payments: list[tuple[float, str, str, float, bool]]) -> History:
    """Payments are (day, customer, terminal, amount, is fraud), in order of time."""
    time_ms = np.array([(FIRST_DAY + day + 0.5) * DAY_MS for day, *_ in payments]).astype(np.int64)
    ids = [f"p{number:04}" for number in range(len(payments))]
    nothing = pa.nulls(len(payments), pa.string())
    table = pa.table(
        {
            "payment_id": ids,
            "event_time_ms": time_ms,
            "card_id": [customer for _, customer, *_ in payments],
            "merchant_id": [terminal for _, _, terminal, *_ in payments],
            "amount_minor": [round(100 * amount) for *_, amount, _ in payments],
            "currency": ["EUR"] * len(payments),
            **dict.fromkeys(("device_id", "ip", "mcc", "country", "channel"), nothing),
        }
    )
    outcomes = pa.table(
        {
            "payment_id": ids,
            "outcome_time_ms": time_ms + 7 * DAY_MS,
            "label": ["fraud" if fraud else "genuine" for *_, fraud in payments],
            "source": nothing,
        }
    )
    return history_of_tables(table, outcomes)


def at_a_terminal(*labelled: tuple[float, bool], asked: float) -> float:
    """The score of a payment on day `asked`, after payments of usual amounts at the same terminal."""
    payments = [(day, f"c{number}", "t", 50.0, fraud) for number, (day, fraud) in enumerate(labelled)]
    history = history_of([*payments, (asked, "c", "t", 50.0, False)])
    return float(ceiling_scores(history, np.array([len(payments)]))[0])


def test_a_terminal_is_compromised_for_28_days_from_its_first_known_fraud() -> None:
    labels = ((0, False), (3, True), (4, True))
    assert at_a_terminal(*labels, asked=9.9) < 0.01
    assert at_a_terminal(*labels, asked=12) > 0.95
    assert at_a_terminal(*labels, asked=27) > 0.95
    assert at_a_terminal(*labels, asked=32) < 0.05


def test_a_genuine_payment_after_the_fraud_clears_the_terminal() -> None:
    assert at_a_terminal((3, True), (4, False), asked=12) < 0.01


def test_a_customer_is_suspicious_for_large_amounts_and_more_so_after_a_known_fraud() -> None:
    usual = [(float(day), "c", f"t{day}", 20.0 + day % 5, False) for day in range(20)]
    later = (29.0, "c", "t99", 100.0, True)
    large = [(21.0, "c", "t98", 100.0, True)]
    small = [(21.0, "c", "t98", 21.0, False)]

    def score(before: list[tuple[float, str, str, float, bool]], amount: float) -> float:
        asked = (*later[:3], amount, later[4])
        history = history_of([*usual, *before, asked])
        return float(ceiling_scores(history, np.array([len(usual) + 1]))[0])

    assert score(small, 22.0) < 0.01
    assert score(large, 22.0) < 0.05
    assert 0.01 < score(small, 60.0) < score(large, 60.0)
    assert score(large, 100.0) > 0.9
