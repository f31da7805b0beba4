"""Default training beside a person's half hour with LightGBM, CatBoost and XGBoost, on the same rows and features.

Four simulated worlds with the packaged features and two fields, a category of 166 values and a number:

    unknown     two in five genuine payments have no outcome
    clock       the number grows with the age of the data
    shift       from a day in the last third of the training days on, half of the cards with fraud have none
    categories  fraud prefers some of the 166 values, whose shares of all payments wander

60 days are for training, after 20 on which profiles fill. The 30 test days begin when the training labels are known.
The person holds the last fifth of the training days out, after a gap of the label delay, and draws parameters at random
within `--seconds` of CPU: learning rate, depth, rows and features of a tree, weights of frauds, the category as the
library takes it or as a number, with and without the columns that grow. Early stopping chooses the number of trees.
Each library has the same time, and its best model is grown again on all training days; of the three, the held-out days
choose `by_hand`. With `--delays 1,3,7` the person may also declare another label delay; training keeps the declared
one, 7 days, and only prints what another gains.

    python -m perf.by_hand [--seconds 120] [--cards 1000] [--seed 100] [--worlds …] [--delays 7] [--json FILE]

Printed for each world: the average precision of both in the test days, and the difference with its 95 % interval: cards
are drawn again, and both are measured on the same draws.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import request
from paywarden.features.catalogue.fields import Payment, category, integer
from paywarden.features.datasets.simulated_columns import DEFAULT_START_MS
from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.history import History, history_of_tables
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.models.bundle.bundle import MODEL_TEXT
from paywarden.models.metrics.evaluation import DAY_MS, Days, average_precision
from paywarden.models.training.feature_ranges import clocks, drifting_features
from paywarden.models.training.table import LabelRules, TrainingTable, training_table
from paywarden.models.training.training import train_bundle
from paywarden.models.training.training_settings import TrainingSettings
from perf.peers.environments import interpreter_of
from perf.tools.measuring import arguments_of, finish

KINDS = ("unknown", "clock", "shift", "categories")
PACKAGES = ("lightgbm==4.7.0", "xgboost-cpu==3.2.0", "catboost==1.2.10", "scikit-learn")
_DAYS, _DELAY_DAYS, _RESAMPLES, _CODES = 117, 7, 500, 166
_FIRST = DEFAULT_START_MS // DAY_MS
TRAINING, TEST = Days(_FIRST + 20, _FIRST + 79), Days(_FIRST + 87, _FIRST + 116)
# Every outcome is known by then.
_ALL_KNOWN_DAYS = 90
_VALUES = [f"kind-{number:03d}" for number in range(_CODES)]
_kind, _number = category("kind", 1, _VALUES), integer("number", 2, unit="units")
DECLARED = replace(
    CATALOGUE,
    features=(*CATALOGUE.features, request.category("kind", _kind, _VALUES), request.number("number", _number)),
    payment=Payment(_kind, _number),
)


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--seconds", {"type": float, "default": 120.0, "help": "of CPU for the search by hand, for each world"}),
        ("--cards", {"type": int, "default": 1000, "help": "of each world"}),
        ("--seed", {"type": int, "default": 100, "help": "of the first world"}),
        ("--worlds", {"default": ",".join(KINDS), "help": "which worlds, with commas"}),
        ("--delays", {"default": str(_DELAY_DAYS), "help": "label delays that the person may declare"}),
    )
    figures: dict[str, Any] = {}
    for kind in arguments.worlds.split(","):
        history = made_history(kind, arguments.cards, arguments.seed + KINDS.index(kind))
        with tempfile.TemporaryDirectory(prefix="paywarden-perf-") as folder:
            figures |= _compared(kind, history, arguments.delays.split(","), arguments.seconds, Path(folder))
    finish(figures, arguments.json)


def made_history(kind: str, cards: int, seed: int) -> History:
    """Returns the history of a world."""
    payments, outcomes = simulate(cards=cards, days=_DAYS, seed=seed)
    random = np.random.default_rng([KINDS.index(kind), seed])
    is_fraud = _ever_fraud(payments, outcomes)
    day = payments["event_time_ms"].to_numpy() // DAY_MS - _FIRST
    code, number = random.integers(0, _CODES, len(day)), random.integers(0, 1000, len(day))
    if kind == "clock":
        number = (1000 * day + random.exponential(2000.0, len(day))).astype(np.int64)
    if kind == "categories":
        effect, trend = random.normal(0.0, 0.8, _CODES), random.normal(0.0, 1.0, _CODES)
        for one in np.unique(day):
            for preferred, rows in ((0.0, ~is_fraud), (effect, is_fraud)):
                share = np.exp(trend * (one / _DAYS - 0.5) + preferred)
                of_day = rows & (day == one)
                code[of_day] = random.choice(_CODES, int(of_day.sum()), p=share / share.sum())
    payments = payments.append_column("kind", pa.array(_VALUES).take(pa.array(code)))
    payments = payments.append_column("number", pa.array(number))
    if kind == "shift":
        begin = random.integers(60, 80)
        card = payments["card_id"].combine_chunks().dictionary_encode()
        is_spared = random.random(len(card.dictionary)) < 0.5
        payments = payments.filter(pa.array(~(is_fraud & (day >= begin) & is_spared[card.indices.to_numpy()])))
        outcomes = outcomes.filter(pc.is_in(outcomes["payment_id"], payments["payment_id"].combine_chunks()))
    if kind == "unknown":
        never = payments["payment_id"].filter(pa.array(~is_fraud & (random.random(len(day)) < 0.4)))
        outcomes = outcomes.filter(pc.invert(pc.is_in(outcomes["payment_id"], never.combine_chunks())))
    return history_of_tables(payments, outcomes, DECLARED.payment.fields)


def _ever_fraud(payments: pa.Table, outcomes: pa.Table) -> NDArray[np.bool_]:
    """Returns which payments were ever reported as fraud, (payments,)."""
    reported = outcomes.filter(pc.equal(outcomes["label"], "fraud"))["payment_id"]
    return np.asarray(pc.is_in(payments["payment_id"], reported.combine_chunks()))


def _compared(kind: str, history: History, delays: list[str], seconds: float, folder: Path) -> dict[str, Any]:
    tables = {}
    for days in {*delays, str(_DELAY_DAYS)}:
        engine = FeatureEngine(replace(DECLARED, label_delay=f"{days}d"))
        engine.warm_up()
        tables[days] = _table(history, engine, TRAINING, TrainingSettings()), _table(history, engine, TEST)
    train, test = tables[str(_DELAY_DAYS)]
    names = list(DECLARED.names)
    growing = clocks(drifting_features(train.vectors, train.day, names))
    columns: dict[str, Any] = {"label": train.label, "day": train.day, "delays": delays, "growing": growing}
    for days in delays:
        columns |= {f"train_{days}": tables[days][0].vectors, f"test_{days}": tables[days][1].vectors}
    np.savez(folder / "table.npz", names=names, codes=["kind"], gap=_DELAY_DAYS, **columns)
    child = Path(__file__).parent / "peers" / "by_hand_child.py"
    search = subprocess.Popen([interpreter_of("by_hand", PACKAGES), child, folder, str(seconds)])
    # The search counts its own time of CPU: training may run beside it.
    engine, settings = FeatureEngine(DECLARED), TrainingSettings(threads=1)
    manifest = train_bundle(train, TRAINING, folder / "bundle", engine=engine, settings=settings)
    assert search.wait() == 0, "the search ended: its words are above"
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    by_hand = np.load(folder / "scores.npz")
    ours = np.asarray(lightgbm.Booster(model_file=folder / "bundle" / MODEL_TEXT).predict(test.vectors))
    best = max(found, key=lambda library: found[library]["validation"])
    gain, low, high = _difference(test, ours, by_hand[best])
    figures = {"frauds": int(test.label.sum()), "train": average_precision(test.label, ours)}
    figures |= {f"by_hand_{library}": average_precision(test.label, by_hand[library]) for library in found}
    figures |= {"by_hand": figures[f"by_hand_{best}"], "gain": gain, "gain_low": low, "gain_high": high}
    print(f"\n{kind}: train {figures['train']:.4f}, by hand {figures['by_hand']:.4f} with {best}")
    print(f"difference {gain:+.4f} ({low:+.4f} to {high:+.4f}); by hand: {found[best]}")
    print(f"fits by hand: { {library: one['fits'] for library, one in found.items()} }")
    for one in (manifest.evidence["changes"] or {"tried": []})["tried"]:
        print(f"  tried by train: {one['change']['words']}: {one['gain']:+.4f} ({one['low']:+.4f})")
    print({name: manifest.parameters[name] for name in ("trees", "categorical", "leave_out")}, flush=True)
    return {f"{kind}_{name}": value for name, value in figures.items()}


def _table(
    history: History, engine: FeatureEngine, days: Days, settings: TrainingSettings | None = None
) -> TrainingTable:
    """Returns the rows of some days, with the labels of training, or with those that are known in the end."""
    rules = LabelRules(_ALL_KNOWN_DAYS) if settings is None else LabelRules.of(settings)
    return training_table(history, days, engine=engine, rates=load_rates(), labels=rules)


def _difference(
    test: TrainingTable, ours: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Returns our average precision minus the other's, with the 95 % interval."""
    assert test.card is not None
    cards, place = np.unique(test.card, return_inverse=True)
    random, drawn = np.random.default_rng(0), []
    for _ in range(_RESAMPLES):
        weight = random.poisson(1.0, len(cards))[place].astype(np.float64)
        drawn.append(average_precision(test.label, ours, weight) - average_precision(test.label, other, weight))
    gain = average_precision(test.label, ours) - average_precision(test.label, other)
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return gain, low, high


if __name__ == "__main__":
    main()
