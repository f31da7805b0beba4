"""A person's search for perf/by_hand.py, in its own environment: a training table in, scores of the test days out."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pandas as pd
import xgboost

TREES_MAX, PATIENCE, HELD_OUT_PART = 600, 40, 5
LIBRARIES = ("lightgbm", "xgboost", "catboost")


def main() -> None:
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    with np.load(folder / "table.npz") as file:
        data = dict(file)
    day, label = data["day"], data["label"]
    held_out = int(day.max() - day.min() + 1) // HELD_OUT_PART
    later = day > day.max() - held_out
    earlier = day <= day.max() - held_out - data["gap"]
    random = np.random.default_rng(0)
    spent, fits = dict.fromkeys(LIBRARIES, 0.0), dict.fromkeys(LIBRARIES, 0)
    best: dict[str, dict[str, Any]] = {}
    while sum(spent.values()) < seconds or not all(fits.values()):
        # Each library has the same time.
        library = min(LIBRARIES, key=lambda name: spent[name])
        drawn, started = drawn_parameters(random, data), time.process_time()
        parts = [rows_of(data, drawn, f"train_{drawn['delay']}", rows) for rows in (earlier, later)]
        model, trees = grow(library, drawn, (parts[0], label[earlier]), (parts[1], label[later]))
        precision = average_precision(label[later], predict(library, model, parts[1], trees))
        spent[library] += time.process_time() - started
        fits[library] += 1
        if library not in best or precision > best[library]["validation"]:
            best[library] = {"validation": precision, "trees": trees, **drawn}
    scores = {}
    for library, drawn in best.items():
        whole = rows_of(data, drawn, f"train_{drawn['delay']}", day >= 0), label
        model, trees = grow(library, drawn, whole, None)
        scores[library] = predict(library, model, rows_of(data, drawn, f"test_{drawn['delay']}", slice(None)), trees)
        drawn["fits"] = fits[library]
    np.savez(folder / "scores.npz", **scores)
    (folder / "found.json").write_text(json.dumps(best))


def drawn_parameters(random: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Draw what a person would try. The libraries have their own names for it."""
    return {
        "delay": str(random.choice(data["delays"])),
        "rate": float(random.choice((0.03, 0.05, 0.1))),
        "depth": int(random.integers(3, 8)),
        "rows": float(random.choice((0.6, 0.8, 1.0))),
        "columns": float(random.choice((0.3, 0.5, 0.8, 1.0))),
        "child": int(random.choice((1, 5, 20, 50))),
        "l2": float(random.choice((0.0, 1.0, 5.0, 20.0))),
        "fraud_weight": float(random.choice((1.0, 1.0, 3.0, 10.0))),
        "as_category": bool(random.random() < 0.6),
        "growing": bool(random.random() < 0.4),
    }


def rows_of(data: dict[str, Any], drawn: dict[str, Any], name: str, rows: Any) -> pd.DataFrame:
    table = pd.DataFrame(data[name][rows], columns=data["names"])
    if drawn["as_category"]:
        for code in data["codes"]:
            table[code] = pd.Categorical(table[code].fillna(-1).astype(int), categories=range(-1, 4096))
    return table if drawn["growing"] else table.drop(columns=[*data["growing"]])


def grow(library: str, drawn: dict[str, Any], train: Any, later: Any) -> tuple[Any, int]:
    """Return a model and its trees: as many as the held-out days choose, or as `drawn` says."""
    trees = TREES_MAX if later else drawn["trees"]
    watched = {} if later is None else {"eval_set": [later]}
    if library == "lightgbm":
        model = lightgbm.LGBMClassifier(
            n_estimators=trees, learning_rate=drawn["rate"], num_leaves=2 ** drawn["depth"] * 3 // 4, seed=0,
            max_depth=drawn["depth"], subsample=drawn["rows"], subsample_freq=1,
            colsample_bytree=drawn["columns"], min_child_samples=drawn["child"], reg_lambda=drawn["l2"],
            scale_pos_weight=drawn["fraud_weight"], metric="average_precision", n_jobs=1, verbosity=-1,
        )  # fmt: skip
        stop: list[Any] = [lightgbm.early_stopping(PATIENCE, verbose=False)] if later else []
        rows, label = later or (None, None)
        model.fit(train[0], train[1], eval_X=rows, eval_y=label, callbacks=stop)
        return model, model.best_iteration_ or trees
    if library == "xgboost":
        model = xgboost.XGBClassifier(
            n_estimators=trees, learning_rate=drawn["rate"], max_depth=drawn["depth"], subsample=drawn["rows"],
            colsample_bytree=drawn["columns"], min_child_weight=drawn["child"] / 10, reg_lambda=drawn["l2"],
            scale_pos_weight=drawn["fraud_weight"], enable_categorical=True, n_jobs=1,
            eval_metric="aucpr", early_stopping_rounds=PATIENCE if later else None, random_state=0,
        )  # fmt: skip
        model.fit(*train, **watched, verbose=False)
        return model, model.best_iteration + 1 if later else trees
    model = catboost.CatBoostClassifier(
        iterations=trees, learning_rate=drawn["rate"], depth=drawn["depth"], rsm=drawn["columns"], random_seed=0,
        bootstrap_type="Bernoulli", subsample=drawn["rows"], l2_leaf_reg=drawn["l2"],
        scale_pos_weight=drawn["fraud_weight"], eval_metric="PRAUC", thread_count=1, verbose=False,
        cat_features=[name for name in train[0] if isinstance(train[0][name].dtype, pd.CategoricalDtype)],
        early_stopping_rounds=PATIENCE if later else None, allow_writing_files=False,
    )  # fmt: skip
    model.fit(*train, **watched)
    return model, model.best_iteration_ + 1 if later else trees


def predict(library: str, model: Any, rows: pd.DataFrame, trees: int) -> Any:
    option: dict[str, dict[str, Any]] = {
        "lightgbm": {"num_iteration": trees},
        "xgboost": {"iteration_range": (0, trees)},
    }
    return model.predict_proba(rows, **option.get(library, {"ntree_end": trees}))[:, 1]


def average_precision(label: Any, score: Any) -> float:
    order = np.argsort(-score, kind="stable")
    caught = np.cumsum(label[order])
    return float((caught / np.arange(1, len(label) + 1))[label[order] == 1].mean())


if __name__ == "__main__":
    main()
