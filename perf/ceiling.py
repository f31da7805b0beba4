"""How far the ceiling of the handbook's data (models/backtest/ceiling.py) may be from the best that is possible.

Measured: a history drawn anew from the book's generator, which is written here a second time, and on the test days of
the prequential protocol the metrics of two scorers. The first is the ceiling. The second knows more than any label
shows: every draw of terminals and customers up to seven days ago, and each customer's true mean amount. No model can be
better on average than the second. Nothing is stubbed. Used for: judging a model that comes near the ceiling.

    python -m perf.ceiling [--seed S] [--json FILE]        (minutes of one core)
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features.history.history import History, history_of_tables
from paywarden.models.backtest.backtest import Summary
from paywarden.models.backtest.ceiling import ceiling
from paywarden.models.backtest.handbook import FIRST_DAY, PREQUENTIAL
from paywarden.models.metrics.evaluation import DAY_MS, HandbookMetrics, measure, split_rows

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

_DAYS, _CUSTOMERS, _TERMINALS = 183, 5_000, 10_000
_TERMINAL_DAYS, _CUSTOMER_DAYS, _TOLD_DAYS = 28, 14, 7
# The share of a normal distribution, with half of its mean as deviation, below 0: such amounts are drawn anew, evenly.
_NEGATIVE_PART = 0.02275


@dataclass(frozen=True)
class _World:
    """Payments as columns in order of time; `day` is counted from 0. The draws: (days, terminals or customers)."""

    customer: I64
    terminal: I64
    day: I64
    second: I64
    amount: F64
    fraud: Flags
    mean: F64
    terminal_drawn: Flags
    customer_drawn: Flags


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seed", type=int, default=1, help="seed of the generator")
    parser.add_argument("--json", help="also write the figures there")
    arguments = parser.parse_args()
    world = _generated(np.random.default_rng(arguments.seed))
    history = _history_of(world)
    figures = {"payments": float(len(history)), "frauds": float(world.fraud.sum())}
    scorers = {"ceiling": ceiling(history, PREQUENTIAL.test), "upper": _upper_bound(world)}
    for name, folds in scorers.items():
        for metric, value in asdict(Summary(folds).mean).items():
            figures[f"{name}_{metric}"] = value
    assert figures["upper_average_precision"] > figures["ceiling_average_precision"]
    for name, value in figures.items():
        print(f"{name:<40} {value:>16,.4f}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _generated(random: np.random.Generator) -> _World:
    homes, shops = random.uniform(0, 100, (_CUSTOMERS, 2)), random.uniform(0, 100, (_TERMINALS, 2))
    mean, often = random.uniform(5, 100, _CUSTOMERS), random.uniform(0, 4, _CUSTOMERS)
    codes: list[I64] = []
    amounts: list[F64] = []
    for number, home in enumerate(homes):
        near = np.flatnonzero(np.square(shops - home).sum(axis=1) < 25)
        day = np.repeat(np.arange(_DAYS), random.poisson(often[number], _DAYS))
        second = random.normal(43_200, 20_000, len(day)).astype(np.int64)
        within = (second > 0) & (second < 86_400)
        day, second = day[within], second[within]
        drawn = random.normal(mean[number], mean[number] / 2, len(day))
        drawn = np.where(drawn < 0, random.uniform(0, 2 * mean[number], len(day)), drawn)
        if len(near):
            codes.append(np.stack((np.full(len(day), number), random.choice(near, len(day)), day, second)))
            amounts.append(np.round(drawn, 2))
    joined, amount = np.concatenate(codes, axis=1), np.concatenate(amounts)
    order = np.lexsort((joined[3], joined[2]))
    customer, terminal, day, second = joined[:, order]
    amount = amount[order]
    fraud = amount > 220
    terminal_drawn, customer_drawn = np.zeros((_DAYS, _TERMINALS), bool), np.zeros((_DAYS, _CUSTOMERS), bool)
    for first in range(_DAYS):
        terminal_drawn[first, random.choice(_TERMINALS, 2, replace=False)] = True
        fraud |= terminal_drawn[first][terminal] & (day >= first) & (day < first + _TERMINAL_DAYS)
    for first in range(_DAYS):
        customer_drawn[first, random.choice(_CUSTOMERS, 3, replace=False)] = True
        rows = np.flatnonzero(customer_drawn[first][customer] & (day >= first) & (day < first + _CUSTOMER_DAYS))
        chosen = random.choice(rows, len(rows) // 3, replace=False)
        amount[chosen] *= 5
        fraud[chosen] = True
    return _World(customer, terminal, day, second, amount, fraud, mean, terminal_drawn, customer_drawn)


def _history_of(world: _World) -> History:
    count = len(world.day)
    ids = np.char.add("p", np.arange(count).astype(str))
    time_ms = (FIRST_DAY + world.day) * DAY_MS + world.second * 1000
    payments = pa.table(
        {
            "payment_id": ids,
            "event_time_ms": time_ms,
            "amount_minor": np.round(world.amount * 100).astype(np.int64),
            "currency": np.full(count, "EUR"),
            "card_id": np.char.add("c", world.customer.astype(str)),
            "merchant_id": np.char.add("m", world.terminal.astype(str)),
            **{name: pa.nulls(count, pa.string()) for name in ("device_id", "ip", "mcc", "country", "channel")},
        }
    )
    told = np.flatnonzero(world.fraud)
    outcomes = pa.table(
        {
            "payment_id": ids[told],
            "outcome_time_ms": time_ms[told] + _TOLD_DAYS * DAY_MS,
            "label": np.full(len(told), "fraud"),
            "source": pa.nulls(len(told), pa.string()),
        }
    )
    return history_of_tables(payments, outcomes)


def _upper_bound(world: _World) -> tuple[HandbookMetrics, ...]:
    """Returns the metrics, for each test fold, of a scorer that knows all draws up to the morning seven days ago."""
    day, label = FIRST_DAY + world.day, world.fraud.astype(np.int64)
    usual = _density(world.amount, world.mean[world.customer])
    raised = _density(world.amount / 5, world.mean[world.customer]) / 5
    folds = []
    for split in PREQUENTIAL.test:
        rows = np.flatnonzero(split_rows(day, world.customer, label, split)[1])
        score = _told(world, rows, usual, raised)
        folds.append(measure(day[rows], world.customer[rows], label[rows], score))
    return tuple(folds)


def _told(world: _World, rows: I64, usual: F64, raised: F64) -> F64:
    """Returns the probability of fraud of some payments, (rows,).

    A draw of the last seven days is not known. For a terminal only its chance counts, for a customer the amounts count,
    too.
    """
    evidence = np.log(2 / 3 + raised / np.maximum(usual, 1e-300) / 3)
    order = np.argsort(world.customer, kind="stable")
    starts = np.searchsorted(world.customer[order], np.arange(_CUSTOMERS + 1))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    terminals, customers = (
        np.vstack((np.zeros((1, drawn.shape[1]), np.int64), np.cumsum(drawn, axis=0)))
        for drawn in (world.terminal_drawn, world.customer_drawn)
    )
    chance = 1 - (1 - 2 / _TERMINALS) ** _TOLD_DAYS
    score = np.empty(len(rows))
    for number, row in enumerate(rows.tolist()):
        day, customer, terminal = int(world.day[row]), int(world.customer[row]), int(world.terminal[row])
        end = day - _TOLD_DAYS + 1
        at_terminal = float(terminals[end, terminal] > terminals[max(0, day - _TERMINAL_DAYS + 1), terminal])
        of_customer = float(customers[end, customer] > customers[max(0, day - _CUSTOMER_DAYS + 1), customer])
        if not of_customer:
            before = order[starts[customer] : place[row]]
            before = before[world.day[before] >= end]
            gains = [evidence[before[world.day[before] >= drawn]].sum() for drawn in range(end, day + 1)]
            weight = 3 / _CUSTOMERS * np.exp(np.minimum(gains, 700)).sum()
            of_customer = float(weight / (1 + weight))
        fraud = of_customer / 3 * raised[row]
        fraud /= fraud + (1 - of_customer / 3) * usual[row] + 1e-300
        score[number] = 1 - (1 - max(at_terminal, chance)) * (1 - fraud)
    return np.where(world.amount[rows] > 220, 1.0, score)


def _density(amount: F64, mean: F64) -> F64:
    deviation = mean / 2
    normal = np.exp(-0.5 * np.square((amount - mean) / deviation)) / (deviation * np.sqrt(2 * np.pi))
    return np.asarray(normal + _NEGATIVE_PART * (amount <= 2 * mean) / (2 * mean))


if __name__ == "__main__":
    main()
